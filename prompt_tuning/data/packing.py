"""Several examples in one row: no position is spent on padding that could hold text."""

import logging
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from prompt_tuning.core.format import BY_EXAMPLE, FORM, EncoderDecoder
from prompt_tuning.data.features import Layout


def useful(segments: int, layout: Layout) -> int:
  """S, `segments` of a packed row, or what its positions hold if S is far more.

  Prompts are made for B * S examples a step, whether rows hold so many or not. Rows
  are the same for every S that is no less than what they hold; a lower one is said.
  """
  lengths, opened = layout.lengths, layout.form.opened
  # An example has one token at least.
  most = min(lengths[axis] // (n + 1 + opened) for axis, n in layout.reserved.items())
  most = max(most, 2)
  if segments <= 2 * most:
    return segments
  logging.warning(
    "PACK_SEGMENTS is %d, but a row of %d inputs and %d targets holds no more than %d "
    "examples: it is taken as %d.",
    segments,
    lengths["inputs"],
    lengths.get("targets", 0),
    most,
    most,
  )
  return most


def pack(
  examples: Iterable[Mapping[str, np.ndarray]],
  inputs: int,
  targets: int,
  segments: int,
  open_rows: int = 64,
  form: EncoderDecoder = FORM,
) -> Iterator[dict[str, np.ndarray]]:
  """First fit over a window of open rows; yields padded rows.

  Args:
    examples: unpadded model features of `features.Layout.convert`.
    inputs, targets: positions of a packed row.
    segments: S, examples a row may hold at the most.
    open_rows: when as many rows are open, the fullest is closed.
    form: of the backbone, which says what pads.

  Yields:
    Rows with `segment_ids` (and the decoder's): 1..S, 0 at pads. What an example has
    one of becomes [S ...], 0 where there is no segment.

  Raises:
    ValueError: if one example is longer than a row.
  """
  sizes = {"inputs": inputs, "targets": targets}
  rows: list[list[Mapping[str, np.ndarray]]] = []
  room: list[list[int]] = []
  for example in examples:
    need = (len(example["inputs"]), len(example.get("targets", ())))
    if need[0] > inputs or need[1] > targets:
      raise ValueError(
        f"An example of {need[0]} inputs and {need[1]} targets does not fit a packed "
        f"row of {inputs} and {targets}. Lengthen the row or shorten the features."
      )
    for i, left in enumerate(room):
      if need[0] <= left[0] and need[1] <= left[1] and len(rows[i]) < segments:
        rows[i].append(example)
        left[0] -= need[0]
        left[1] -= need[1]
        break
    else:
      rows.append([example])
      room.append([inputs - need[0], targets - need[1]])
      if len(rows) > open_rows:
        full = min(range(len(rows)), key=lambda i: room[i][0])
        room.pop(full)
        yield _row(rows.pop(full), sizes, segments, form)
  for row in rows:
    yield _row(row, sizes, segments, form)


def _row(
  examples: list[Mapping[str, np.ndarray]],
  sizes: Mapping[str, int],
  most: int,
  form: EncoderDecoder,
) -> dict[str, np.ndarray]:
  row = {}
  for name, feature in form.features.items():
    row[name] = np.full(sizes[feature.axis], feature.pad, np.int32)
    values = np.concatenate([example[name] for example in examples])
    row[name][: len(values)] = values
  for name, feature in form.segments.items():
    row[name] = np.full(sizes[feature.axis], feature.pad, np.int32)
    counts = [len(example[feature.axis]) for example in examples]
    numbers = np.repeat(np.arange(1, len(counts) + 1), counts)
    row[name][: len(numbers)] = numbers
  for name in BY_EXAMPLE:
    if name in examples[0]:
      values = np.stack([example[name] for example in examples])
      row[name] = np.zeros((most, *values.shape[1:]), values.dtype)
      row[name][: len(values)] = values
  return row
