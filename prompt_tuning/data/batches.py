"""Examples -> batches of numpy arrays, in a fixed order for a seed, from any step.

A finite task is read once into memory: then each epoch is a seeded permutation, and
training can start at any step without reading what came before. A task that streams
is read on and on, and skipped forward when training resumes.
"""

import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.data import buckets as bucketing
from prompt_tuning.data.features import Layout, pad
from prompt_tuning.data.lengths import MANY
from prompt_tuning.data.packing import pack
from prompt_tuning.data.suited import check_labels, check_lengths, check_targets

__all__ = [
  "ahead",
  "batches",
  "check_labels",
  "check_lengths",
  "check_targets",
  "epoch_order",
  "every",
  "shuffled",
  "stack",
  "train_batches",
]

Example = dict[str, Any]
Batch = dict[str, np.ndarray]


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
  """The permutation of an epoch."""
  return np.random.default_rng([seed, epoch]).permutation(count)


def shuffled(examples: Sequence[Any], seed: int, first: int = 0) -> Iterator[Any]:
  """Examples for ever, each epoch in an order of its own, from the `first`-th on."""
  count = len(examples)
  for epoch in itertools.count(first // count):
    order = epoch_order(count, seed, epoch)
    skip = first % count if epoch == first // count else 0
    for i in order[skip:]:
      yield examples[i]


def stack(rows: Sequence[Batch]) -> Batch:
  """One batch of equally long rows."""
  return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def batches(
  rows: Iterable[Any],
  size: int,
  own: Sequence[int] | None = None,
  finish: Callable[[Any], Batch] = lambda row: row,
) -> Iterator[Batch]:
  """Full batches; a ragged end is dropped (training streams have none).

  Args:
    rows: of all processes. size: B. own: numbers of the rows of a batch to make, those
      of this process; None for all. finish: makes a row of model features.
  """
  rows = iter(rows)
  own = range(size) if own is None else own
  while True:
    chosen = list(itertools.islice(rows, size))
    if len(chosen) < size:
      return
    yield stack([finish(chosen[i]) for i in own])


def every(
  examples: Sequence[Mapping[str, Any]],
  layout: Layout,
  size: int,
  own: Sequence[int] | None = None,
) -> Iterator[tuple[Batch, list[int]]]:
  """Batches of padded rows that hold each example once, and the numbers of these.

  Where there are many batches, short examples stand with short ones in rows of a few
  lengths, so that little is spent on padding and few shapes are compiled; otherwise the
  examples keep their order and all rows have one length.

  Args:
    examples: task features. layout: how each is laid out; its lengths are the limit.
    size: rows of a batch; the last one repeats its last row to fill up, without its
      targets.
    own: numbers of the rows to make, those of this process; None for all.
  """
  own = range(size) if own is None else own
  layout = layout.around(examples)
  order, sort = list(range(len(examples))), len(examples) > MANY * size
  if sort:
    order.sort(key=lambda i: len(examples[i]["inputs"]))
  for start in range(0, len(order), size):
    numbers = order[start : start + size]
    chosen = [examples[i] for i in numbers]
    fitting = layout.around(chosen, doubling=True) if sort else layout
    yield filled(chosen, fitting, own), numbers


def filled(
  chosen: Sequence[Mapping[str, Any]], layout: Layout, own: Sequence[int]
) -> Batch:
  """Padded rows of the examples chosen for a batch.

  Args:
    own: numbers of the rows to make; behind the examples the last one is repeated,
      without its targets, or without its tokens where nothing is written.
  """
  rows = []
  for i in own:
    converted = layout.convert(chosen[min(i, len(chosen) - 1)])
    row = pad(converted, layout.lengths, layout.form)
    if i >= len(chosen):
      name = "targets" if layout.form.writes else "inputs"
      row = {**row, name: np.full_like(row[name], layout.form.ids.pad)}
    rows.append(row)
  return stack(rows)


def train_batches(
  examples: Sequence[Example] | Callable[[], Iterable[Example]],
  layout: Layout,
  size: int,
  seed: int,
  first_step: int = 0,
  pack_segments: int = 1,
  buckets: Sequence[int] = (),
  own: Sequence[int] | None = None,
) -> Iterator[Batch]:
  """Training batches from step `first_step` on.

  The order of examples does not depend on how many processes share them: each lays out
  its own rows of the same batches. (Packed rows and buckets depend on the examples
  before, so every process lays out all and keeps its own.)

  Args:
    examples: a sequence held in memory, which may say its own `order` (see
      `data.rates.Subsets`), or a function that opens a stream.
    layout: how each example is laid out.
    size: B, rows a batch.
    seed: of the order.
    first_step: batches that an earlier run has taken.
    pack_segments: S, examples a row may hold; 1 pads instead of packing.
    buckets: lengths of `inputs` to choose among for a batch, see `data.buckets`; empty
      for one length.
    own: numbers of the rows of a batch to make, those of this process; None for all.
  """
  streams = callable(examples)
  direct = not streams and pack_segments == 1 and not buckets
  if streams:
    source: Iterable[Example] = examples()
  elif hasattr(examples, "order"):
    numbers = examples.order(size, seed, first_step if direct else 0)
    source = (examples[i] for i in numbers)
  else:
    source = shuffled(examples, seed, first_step * size if direct else 0)
  lengths, form = layout.lengths, layout.form
  if buckets or pack_segments > 1:
    features = (layout.convert(example) for example in source)
  if buckets:
    whole = bucketing.batches(features, lengths, buckets, size, form)
    result = (_only(batch, own) for batch in whole)
  elif pack_segments > 1:
    sizes = lengths["inputs"], lengths.get("targets", 0)
    result = batches(pack(features, *sizes, pack_segments, form=form), size, own)
  else:
    result = batches(
      source, size, own, lambda one: pad(layout.convert(one), lengths, form)
    )
  # What depends on the examples before cannot be entered in the middle: read up to it.
  return result if direct else itertools.islice(result, first_step, None)


def _only(batch: Batch, own: Sequence[int] | None) -> Batch:
  return batch if own is None else {name: x[list(own)] for name, x in batch.items()}


def ahead(source: Iterator[Any], depth: int = 4) -> Iterator[Any]:
  """Runs an iterator in a thread, `depth` items ahead of who reads it.

  The thread ends when the reader closes this generator.
  """
  items: queue.Queue = queue.Queue(depth)
  closed = threading.Event()
  end = object()

  def put(item: Any) -> bool:
    while not closed.is_set():
      try:
        items.put(item, timeout=0.1)
        return True
      except queue.Full:
        continue
    return False

  def run() -> None:
    try:
      for item in source:
        if not put(item):
          return
      put(end)
    except BaseException as error:  # noqa: BLE001  handed to the reader
      put(error)

  thread = threading.Thread(target=run, daemon=True)
  thread.start()
  try:
    while True:
      item = items.get()
      if item is end:
        return
      if isinstance(item, BaseException):
        raise item
      yield item
  finally:
    closed.set()
    thread.join(timeout=5)
