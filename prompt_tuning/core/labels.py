"""Several labels as one text, such as "film|music": of targets, and of answers."""

from collections.abc import Collection, Sequence

# What says that none of the labels holds, where it is none of them itself.
NONE = "none"


def parts(text: str, separator: str) -> list[str]:
  """The labels that a text names, without the space around each."""
  text = text.strip()
  return [] if text == NONE else [part.strip() for part in text.split(separator)]


def joined(held: Collection[str], labels: Sequence[str], separator: str) -> str:
  """The text of those labels that are held, in the order of all."""
  return separator.join(label for label in labels if label in held) or NONE
