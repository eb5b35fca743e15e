"""A vocabulary of a toy: letters and a space, from id 0 on, and marks above them."""

import dataclasses

from prompt_tuning.core.ids import Ids

LETTERS = "abcdefghijklmnopqrstuvwxyz "


@dataclasses.dataclass(frozen=True)
class Letters:
  """`ids` are the toy's; those of letters step aside for them."""

  ids: Ids
  vocab_size: int = 31
  bos_id = unk_id = None

  @property
  def pad_id(self):
    # Of a tokenizer that pads with its end mark.
    return self.ids.end if self.ids.pad < 0 else self.ids.pad

  @property
  def eos_id(self):
    return self.ids.end

  @property
  def words(self):
    taken = {self.ids.pad, self.ids.end, self.ids.reserved}
    return [i for i in range(self.vocab_size) if i not in taken][: len(LETTERS)]

  def encode(self, text):
    return [self.words[LETTERS.index(letter)] for letter in text]

  def decode(self, ids):
    return "".join(LETTERS[self.words.index(i)] for i in ids if i in self.words)
