"""How a served program's texts become ids: as the prompt's training read them.

A card says it under "reads":

  "ids": 32128          ids from 0 that the program takes
  "template": [["text", "review: "], ["column", "text"]], or null: texts as they are
  "inputs": 48, "truncate": true    longer inputs are cut to 48 ids, end mark included
  "tasks": 2, "names": ["a", "b"]   the prompt tells 2 tasks apart (null: unnamed)
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from prompt_tuning.data.task import MARK
from prompt_tuning.data.texts import plain, short
from prompt_tuning.interop.untrusted import Stated

TEXT, COLUMN = "text", "column"


@dataclasses.dataclass(frozen=True)
class Reads:
  """Attributes:
  ids: how many ids there are, or None where an older card does not say.
  most: ids of a text that are read, or None for all.
  template: (`TEXT` or `COLUMN`, the text or the column's name), or None.
  tasks: how many the prompt tells apart, 0 for none. names: of these, or ().
  """

  ids: int | None = None
  most: int | None = None
  template: tuple[tuple[str, str], ...] | None = None
  tasks: int = 0
  names: tuple[str, ...] = ()

  @property
  def columns(self) -> tuple[str, ...]:
    """Columns of the template, each once."""
    named = [text for kind, text in self.template or () if kind == COLUMN]
    return tuple(dict.fromkeys(named))

  def text(self, where: str, value: Any) -> str:
    """The whole input of a text, or of {column: text}.

    Raises:
      ValueError: if it is neither, or not what the template takes.
    """
    if isinstance(value, str) and len(self.columns) <= 1:
      values = {name: value for name in self.columns}
    elif isinstance(value, Mapping) and self.columns:
      values = {name: value.get(name) for name in self.columns}
    else:
      wanted = f"{{column: text}} of {list(self.columns)}" if self.columns else "a text"
      raise ValueError(f"{where} must be {wanted}, got {short(value)}.")
    if self.template is None:
      return plain(where, str(value))
    whole = self.template == ((COLUMN, self.columns[0]),)
    for name, text in values.items():
      if not isinstance(text, str) or text.count(MARK) > whole:
        raise ValueError(
          f"{where} has the column {name!r} {short(text)}; it must be a text without "
          f"{MARK}."
        )
      plain(where, text)
    pieces = (values[text] if kind == COLUMN else text for kind, text in self.template)
    return "".join(pieces)

  def cut(self, ids: Sequence[int]) -> list[int]:
    """Ids without an end mark, so many that there is room for it."""
    return list(ids if self.most is None else ids[: self.most - 1])


def of(card: Mapping[str, Any]) -> Reads:
  """What a checked card says."""
  said = card.get("reads")
  if said is None:
    return Reads()
  template = said.get("template")
  return Reads(
    said["ids"],
    said["inputs"] if said["truncate"] else None,
    None if template is None else tuple(map(tuple, template)),
    said.get("tasks") or 0,
    tuple(said.get("names") or ()),
  )


def check(stated: Stated) -> None:
  """Checks the entry of a card.

  Raises:
    UnreadableError: naming the key that is absent or of another kind.
  """
  stated.count("ids", least=1)
  if stated.flag("truncate"):
    stated.count("inputs", least=1)
  if stated.has("tasks"):
    count = stated.count("tasks", least=1)
    if stated.has("names") and len(stated.texts("names")) != count:
      stated.need("names", lambda value: False, f"{count} texts, each once")
  if stated.has("template"):
    stated.need("template", _is_template, "[kind, text] pairs with a column")


def _is_template(value: Any) -> bool:
  if not isinstance(value, list):
    return False
  for piece in value:
    pair = isinstance(piece, list) and all(isinstance(one, str) for one in piece)
    if not pair or len(piece) != 2 or piece[0] not in (TEXT, COLUMN):
      return False
  return any(kind == COLUMN for kind, _ in value)
