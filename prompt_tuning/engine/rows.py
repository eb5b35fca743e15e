"""Which examples share a batch: few shapes, and rows by length within a bound.

Attention holds B * N * T * T numbers, so a batch as long as its longest example asks
for all the memory there is once a single text is long. `bound` allows B * T * T as many
as a full batch of rows of the usual length has, and a batch of longer texts has fewer
rows: where 64 rows of 512 positions fit, one of 4,096 does.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from prompt_tuning.data import batches as batching
from prompt_tuning.data import lengths
from prompt_tuning.data.features import Layout
from prompt_tuning.data.lengths import bound as bound

# Positions of the longest row unless more is asked for: as much as 64 usual ones.
MOST_POSITIONS = 4096


@dataclasses.dataclass(frozen=True)
class Planned:
  """A batch to be.

  Attributes:
    numbers: of its examples. layout: of its rows. size: its rows.
  """

  numbers: Sequence[int]
  layout: Layout
  size: int


def plan(
  examples: Sequence[Mapping[str, Any]],
  layout: Layout,
  size: int,
  most: int | None = None,
  multiple: int = 1,
) -> list[Planned]:
  """Batches that hold each example once.

  See `data.lengths.batches` for their order.

  Args:
    examples: task features. layout: how each is laid out; its lengths are the limit.
    size: rows of a batch. most: B * T * T of a batch, see `bound`; a row alone may have
      more. None for any.
    multiple: of which the number of rows must be one, that of devices to share them.

  Raises:
    ValueError: for a size below 1.
  """
  if size < 1:
    raise ValueError(f"`EVAL_BATCH_SIZE` must be at least 1, got {size}.")
  layout = layout.around(examples)

  def fit(numbers: Sequence[int], few: bool) -> Layout:
    return layout.around([examples[i] for i in numbers], doubling=few)

  def fits(rows: int, fitting: Layout) -> bool:
    return most is None or rows * fitting.lengths["inputs"] ** 2 <= most

  sizes = [len(example["inputs"]) for example in examples]
  return [
    Planned(numbers, fitting, rows + -rows % multiple)
    for numbers, fitting, rows in lengths.batches(sizes, size, fit, fits, batching.MANY)
  ]
