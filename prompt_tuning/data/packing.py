"""Several examples in one row: no position is spent on padding that could hold text."""

import logging
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from prompt_tuning.data.features import BY_EXAMPLE, PAD, Layout

ENCODER = ("inputs", "prompt_index")
DECODER = ("targets", "decoder_inputs", "decoder_prompt_index")


def useful(segments: int, layout: Layout) -> int:
  """S, `segments` of a packed row, or what its positions hold if S is far more.

  Prompts are made for B * S examples a step, whether rows hold so many or not. Rows
  are the same for every S that is no less than what they hold; a lower one is said.
  """
  lengths = layout.lengths
  most = min(
    lengths["inputs"] // (layout.encoder_prompt + 1),
    lengths["targets"] // (layout.decoder_prompt + 1),
  )
  most = max(most, 2)
  if segments <= 2 * most:
    return segments
  logging.warning(
    "PACK_SEGMENTS is %d, but a row of %d inputs and %d targets holds no more than %d "
    "examples: it is taken as %d.",
    segments,
    lengths["inputs"],
    lengths["targets"],
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
) -> Iterator[dict[str, np.ndarray]]:
  """First fit over a window of open rows; yields padded rows.

  Args:
    examples: unpadded model features of `features.Layout.convert`.
    inputs, targets: positions of a packed row.
    segments: S, examples a row may hold at the most.
    open_rows: when as many rows are open, the fullest is closed.

  Yields:
    Rows with `segment_ids` and `positions` (and the decoder's): segment 1..S, 0 at
    pads; positions count from 0 within each segment. What an example has one of
    becomes [S ...], 0 where there is no segment.

  Raises:
    ValueError: if one example is longer than a row.
  """
  rows: list[list[Mapping[str, np.ndarray]]] = []
  room: list[list[int]] = []
  for example in examples:
    need = (len(example["inputs"]), len(example["targets"]))
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
        yield _row(rows.pop(full), inputs, targets, segments)
  for row in rows:
    yield _row(row, inputs, targets, segments)


def _row(
  examples: list[Mapping[str, np.ndarray]], inputs: int, targets: int, most: int
) -> dict[str, np.ndarray]:
  row = {}
  for names, length, segments, positions in (
    (ENCODER, inputs, "segment_ids", "positions"),
    (DECODER, targets, "decoder_segment_ids", "decoder_positions"),
  ):
    sizes = [len(example[names[0]]) for example in examples]
    filled = sum(sizes)
    for name in names:
      values = np.full(length, PAD.get(name, 0), np.int32)
      values[:filled] = np.concatenate([example[name] for example in examples])
      row[name] = values
    row[segments] = np.zeros(length, np.int32)
    row[segments][:filled] = np.repeat(np.arange(1, len(sizes) + 1), sizes)
    row[positions] = np.zeros(length, np.int32)
    row[positions][:filled] = np.concatenate([np.arange(size) for size in sizes])
  for name in BY_EXAMPLE:
    if name in examples[0]:
      values = np.stack([example[name] for example in examples])
      row[name] = np.zeros((most, *values.shape[1:]), values.dtype)
      row[name][: len(values)] = values
  return row
