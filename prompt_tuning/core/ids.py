"""Which token ids mean something else than a word: a fact of a backbone family."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Ids:
  """Ids of features. Those of SeqIO's vocabularies, and of T5, are the defaults.

  Attributes:
    pad: what fills rows up; no word. A family whose tokenizer pads with a word, or not
      at all, takes -1 here, and its `embed` gives something finite there.
    start: what the first target follows where nothing was read before it.
    end: closes a target, and an input where the family reads it so.
    reserved: stands at virtual positions; any id but `pad`, and never looked up.
  """

  pad: int = 0
  start: int = 0
  end: int = 1
  reserved: int = 2

  def __post_init__(self) -> None:
    if self.reserved == self.pad or self.end == self.pad:
      raise ValueError(
        f"`Ids.pad` is {self.pad}, which is `reserved` or `end` too: rows would end "
        "there. Take -1 for a family that pads with a word."
      )

  def is_real(self, ids: Any) -> Any:
    """True where ids (integers of any shape) are no padding."""
    # No id lies below a pad that is not positive.
    return ids > self.pad if self.pad <= 0 else ids != self.pad


MARKS = Ids()
