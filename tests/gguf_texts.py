"""Texts of many scripts, made by rule: runs of letters, digits, marks and spaces."""

import random

COUNT = 1600
# First and last letter of a script's plain letters.
SCRIPTS = [
  ("a", "z"), ("A", "Z"), ("à", "ÿ"), ("α", "ω"), ("а", "я"), ("א", "ת"), ("ا", "ي"),
  ("अ", "ह"), ("ก", "ฮ"), ("ა", "ჰ"), ("ぁ", "ん"), ("ァ", "ン"), ("一", "丿"),
  ("가", "각"), ("😀", "😿"), ("Ā", "ſ"), ("̀", "̈"), ("٠", "٩"),
]  # fmt: skip
WORDS = (
  "the of and to in is was for that with as his film music year it's don't we'll "
  "I've you're def return class while print import self None True str int"
).split()
SPACES = [" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\u00a0", " \n ", ""]
SIGNS = [*".,;:!?'\"()[]{}<>@#$%^&*-_=+/\\|~`", "...", "->", "==", "“", "”", "—", "…"]
MARKS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<file_sep>"]


def made() -> list[str]:
  """The same texts every time."""
  rng = random.Random(11)
  return [_text(rng) for _ in range(COUNT)]


def _text(rng: random.Random) -> str:
  found = []
  for _ in range(rng.randint(1, 9)):
    found += [_part(rng), rng.choice(SPACES)]
  return "".join(found)


def _part(rng: random.Random) -> str:
  kind = rng.random()
  if kind < 0.4:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, 4)))
  if kind < 0.7:
    first, last = map(ord, rng.choice(SCRIPTS))
    letters = (chr(rng.randint(first, last)) for _ in range(rng.randint(1, 8)))
    return "".join(letters)
  if kind < 0.8:
    return str(rng.randint(0, 10 ** rng.randint(1, 9)))
  return rng.choice(SIGNS) if kind < 0.95 else rng.choice(MARKS)
