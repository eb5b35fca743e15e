"""Examples a second on texts of real lengths: packed, padded, and PEFT's way.

  python benchmarks/real_lengths.py --data=DIR [--tasks=sst2,rte] [--peft_python=PATH]
    [--json=FILE]

DIR holds <task>/train.tsv.gz and vocab/t5_32k.spiece.model. All sides train a prompt on
the same texts in the same order. `packed`: rows as long as padded ones, several
examples in each; `padded`: one example a row of --inputs positions (rte: --rte_inputs;
longer texts are cut, on every side); `buckets`: padded to one of --buckets lengths;
`peft N`: N examples, padded to the longest of them. PEFT's fastest N counts. A round
is --block steps of a side.
"""

import dataclasses
import itertools
import math
import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import ours
import theirs
import timing

from prompt_tuning.data import batches as batching
from prompt_tuning.data import buckets, vocabularies
from prompt_tuning.data.features import Layout
from prompt_tuning.engine import config

Batch = dict[str, np.ndarray]


class Side:
  """Blocks of steps, and what each of them held."""

  def __init__(self, step: Callable[[], Any], batches: Sequence[Batch], block: int):
    self.step, self.batches, self.block = step, batches, block
    self.done: list[tuple[int, int]] = []

  def __call__(self) -> float | None:
    first, total = len(self.done) * self.block, None
    for _ in range(self.block):
      seconds = self.step()
      if seconds is not None:
        total = (total or 0.0) + seconds
    held = [
      held_by(self.batches[(first + i) % len(self.batches)]) for i in range(self.block)
    ]
    self.done.append((sum(n for n, _ in held), sum(n for _, n in held)))
    return total

  def rates(self, times: timing.Times) -> tuple[float, float]:
    """Median (examples, tokens) a second over the timed rounds."""
    done = self.done[-len(times.seconds) :]
    pairs = list(zip(done, times.seconds, strict=True))
    return tuple(statistics.median(d[i] / s for d, s in pairs) for i in (0, 1))


def held_by(batch: Batch) -> tuple[int, int]:
  """(examples, input tokens without prompts) of a batch."""
  real_BT = batch["inputs"] > 0
  if "prompt_index" in batch:
    real_BT &= batch["prompt_index"] < 0
  segments = batch.get("segment_ids")
  rows = len(real_BT) if segments is None else int(segments.max(1).sum())
  return rows, int(real_BT.sum())


def texts(task: str, args: Any, longest: int) -> list[dict[str, Any]]:
  """Training examples as ids, cut to `longest` inputs."""
  config.parse([f"gin/tasks/{task}.gin"], [f"DATA_DIR = {str(args.data)!r}"])
  file = args.vocab_file or args.data / "vocab" / "t5_32k.spiece.model"
  vocabulary = vocabularies.sentencepiece(str(file))
  found = config.macro("TASK").tokens(vocabulary, "train", args.examples)
  layout = Layout(longest, args.targets, truncate=True)
  converted = [layout.convert(example) for example in found]
  return [{name: row[name] for name in ("inputs", "targets")} for row in converted]


def packing(examples: Sequence[Any], shape: ours.Sizes, row: int) -> tuple[int, int]:
  """(segments, targets) of a packed row: a quarter more than fit on average.

  Every target position costs a pass through the decoder and the vocabulary, so room for
  the most and longest that a row could hold would cost more than it saves.
  """

  def mean(name: str) -> float:
    return statistics.mean(len(example[name]) for example in examples)

  fit = row / (mean("inputs") + shape.prompt)
  longest = max(len(example["targets"]) for example in examples)
  targets = max(longest, math.ceil(1.25 * fit * mean("targets")))
  return max(1, math.ceil(1.25 * fit)), targets


def taken(count: int, *args: Any) -> list[Batch]:
  return list(itertools.islice(batching.train_batches(*args), count))


def longest_of_batch(examples: Sequence[Any], count: int, size: int) -> list[Batch]:
  """Batches padded to the longest example that they hold."""
  order = batching.shuffled(examples, 0)
  found = []
  for _ in range(count):
    chosen = list(itertools.islice(order, size))
    batch = {}
    for name in ("inputs", "targets"):
      width = max(len(example[name]) for example in chosen)
      rows = [np.pad(one[name], (0, width - len(one[name]))) for one in chosen]
      batch[name] = np.stack(rows)
    found.append(batch)
  return found


def sides(
  examples: Sequence[Any], shape: ours.Sizes, peft: theirs.Peft | None, args: Any
) -> dict[str, Side]:
  params, count = shape.params(), args.batches
  row = shape.inputs + shape.prompt
  segments, targets = packing(examples, shape, row)
  kinds = {"packed": (segments, targets, ()), "padded": (1, shape.targets, ())}
  if args.buckets > 1:
    lengths = [len(example["inputs"]) + shape.prompt for example in examples]
    kinds["buckets"] = 1, shape.targets, buckets.choose(lengths, args.buckets)
  found = {}
  for name, (S, U, chosen) in kinds.items():
    layout = Layout(shape.inputs, U, shape.prompt)
    held = taken(count, examples, layout, shape.batch, 0, 0, S, chosen)
    on_device = [{k: jnp.asarray(v) for k, v in batch.items()} for batch in held]
    step = ours.build("prompt_tuning", shape, params, batches=on_device, segments=S)
    found[name] = Side(step, held, args.block)
  for size in map(int, args.peft_batches.split(",")) if peft else ():
    held, name = longest_of_batch(examples, count, size), f"peft {size}"
    found[name] = Side(peft.train(name, shape, held), held, args.block)
  return found


def one(task: str, args: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """(rows, results) of one data set."""
  shape = ours.sizes(args)
  if task == "rte":
    shape = dataclasses.replace(shape, inputs=args.rte_inputs)
  examples = texts(task, args, shape.inputs)
  with theirs.optional(args.peft_python, args.their_pages) as peft:
    made = sides(examples, shape, peft, args)
    found = timing.measure(made, args)
  rows, rates = [], {}
  for name, side in made.items():
    rates[name], tokens = side.rates(found.times[name])
    held, real = zip(*map(held_by, side.batches), strict=True)
    # PEFT puts the prompt in front of what the batch holds.
    outside = 0 if "prompt_index" in side.batches[0] else shape.prompt * sum(held)
    places = sum(batch["inputs"].size for batch in side.batches) + outside
    rows.append(
      {
        "task": task,
        "side": name,
        "shape": _shape(side.batches),
        "examples_a_step": statistics.mean(held),
        "filled": (sum(real) + shape.prompt * sum(held)) / places,
        "ms_a_step": found.times[name].ms / args.block,
        "examples_s": rates[name],
        "tokens_s": tokens,
      }
    )
  theirs_best = max((r for n, r in rates.items() if n.startswith("peft")), default=None)
  return rows, {
    "packed_over_padded": rates["packed"] / rates["padded"],
    "packed_over_peft": rates["packed"] / theirs_best if theirs_best else None,
    "peak_gflops": found.peak and found.peak / 1e9,
  }


def _shape(batches: Sequence[Batch]) -> str:
  """Rows x positions; several lengths as the shortest and the longest."""
  rows, lengths = zip(*(batch["inputs"].shape for batch in batches), strict=True)
  several = f"{min(lengths)}-{max(lengths)}"
  return f"{rows[0]}x{lengths[0] if len(set(lengths)) == 1 else several}"


def main(argv: list[str] | None = None) -> dict[str, Any]:
  parser = timing.flags(__doc__)
  ours.add_flags(parser)
  theirs.add_flags(parser)
  parser.add_argument("--data", type=pathlib.Path, required=True)
  parser.add_argument("--vocab_file", type=pathlib.Path, help="a SentencePiece model")
  parser.add_argument("--tasks", default="sst2,rte")
  parser.add_argument("--rte_inputs", type=int, default=256)
  parser.add_argument("--examples", type=int, help="of the training split; all")
  parser.add_argument("--batches", type=int, default=16, help="different ones a side")
  parser.add_argument("--peft_batches", default="16,64")
  parser.add_argument("--buckets", type=int, default=3, help="lengths; 1 for none")
  parser.add_argument("--block", type=int, default=2, help="steps a round")
  args = parser.parse_args(argv)
  rows: list[dict[str, Any]] = []
  single: dict[str, Any] = {}
  for task in args.tasks.split(","):
    more, single[task] = one(task, args)
    rows += more
  return timing.finish(args, rows, single)


if __name__ == "__main__":
  timing.start(__file__)
  main()
