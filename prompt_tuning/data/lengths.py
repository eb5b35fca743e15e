"""Which texts share a batch, by their lengths: short ones with short ones.

Attention holds B * N * T * T numbers, so a batch as long as its longest text asks for
all the memory there is once a single one is long. This room needs nothing but Python:
a server reads texts with it too.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

Fit = TypeVar("Fit")
# More batches than this are sorted by length.
MANY = 8
# The usual length of a row, where training does not say a longer one.
USUAL = 512


def bound(size: int, trained: int = 0) -> int:
  """B * T * T of `size` rows of the usual length, or of the one trained with."""
  return size * max(USUAL, trained) ** 2


def batches(
  lengths: Sequence[int],
  size: int,
  fit: Callable[[Sequence[int], bool], Fit],
  fits: Callable[[int, Fit], bool],
  many: int = MANY,
) -> list[tuple[Sequence[int], Fit, int]]:
  """(numbers of the texts, what holds them, rows) of each batch; each text is in one.

  Where there are many batches, or the longest text would fill one, short texts stand
  with short ones in rows of a few lengths; otherwise they keep their order and all
  rows have one length.

  Args:
    lengths: of the texts. size: rows of a batch.
    fit: what holds the texts of these numbers; whether it shall be one of few lengths.
    fits: whether so many rows of that are allowed; one row always is.
    many: more batches than this are sorted.
  """
  order: list[int] = list(range(len(lengths)))
  if not order:
    return []
  whole = fit(order, False)
  sort = len(order) > many * size or not fits(size, whole)
  if sort:
    order.sort(key=lambda i: lengths[i])
  found, start = [], 0
  while start < len(order):
    rows = size
    while True:
      numbers = order[start : start + rows]
      fitting = fit(numbers, True) if sort else whole
      if rows == 1 or fits(rows, fitting):
        break
      rows //= 2
    found.append((numbers, fitting, rows))
    start += len(numbers)
  return found
