"""Whether two short answers say the same: SQuAD's rules, and T5's for nouns."""

import collections
import re
import string

_DETERMINERS = frozenset(
  "a an the this that these those my your her his our their some each every few many "
  "much which whose".split()
)


def words(text: str) -> list[str]:
  """Words in lower case, without ASCII punctuation and without articles."""
  bare = text.lower().translate(str.maketrans("", "", string.punctuation))
  return re.sub(r"\b(?:a|an|the)\b", " ", bare).split()


def overlap(answer: list[str], prediction: list[str]) -> float:
  """F1 of two bags of words, from 0 to 1."""
  shared = sum((collections.Counter(answer) & collections.Counter(prediction)).values())
  return 2.0 * shared / (len(answer) + len(prediction)) if shared else 0.0


def same_noun(candidate: str, prediction: str) -> str | None:
  """Says "True" or "False"; None for a prediction that names nothing."""
  left, right = _bare(candidate), _bare(prediction)
  if not right:
    return None
  # "Bob" and "Bob's hat" are two things.
  if ("'" in left) != ("'" in right):
    return "False"
  left_words, right_words = set(left.split(" ")), set(right.split(" "))
  return str(left_words <= right_words or right_words <= left_words)


def _bare(noun: str) -> str:
  kept = [word for word in noun.strip().lower().split(" ") if word not in _DETERMINERS]
  return " ".join(kept)
