"""Trains every point of a grid with several seeds; a table and a plot of what came.

  python -m prompt_tuning.sweep --grid "LEARNING_RATE=[0.03,0.3]" --seeds 3 \\
    --gin_file=configs/demo/prompt_tuning.gin --output runs/rates

Each run is one of `train` in a folder of its own, so the same command goes on with what
a killed one left, and finished runs stay as they are.
"""

if __name__ == "__main__":
  # Before anything slow is imported.
  from prompt_tuning.engine import early
  from prompt_tuning.terminal import usage

  usage.show("sweep")
  early.begin("prompt_tuning.sweep")

import ast
import dataclasses
import itertools
import json
import math
import re
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from prompt_tuning import train
from prompt_tuning.core import files
from prompt_tuning.engine import config, curves, ended, explain, flags, product
from prompt_tuning.engine.listed import Rows
from prompt_tuning.terminal import short

TABLE, PLOT = "table.json", "sweep.png"
# How a table of ours begins, which a later sweep replaces.
OURS = files.begins(b'[\n  {\n    "point"')
# What a sweep sets itself.
OWN = ("MODEL_DIR", "SEED")
MOST_RUNS = 10_000


@dataclasses.dataclass(frozen=True)
class Sweep:
  """Attributes:
  grid: macro -> its values. seeds: of the runs of each point.
  folder: where all goes. rest: flags of `train` that all runs share.
  metric: the score that is compared; None for BEST_METRIC.
  """

  grid: dict[str, list[Any]]
  seeds: Sequence[int]
  folder: Any
  rest: Sequence[str]
  metric: str | None = None

  @property
  def points(self) -> list[dict[str, Any]]:
    """All combinations of values, the last macro changing first."""
    return [
      dict(zip(self.grid, values, strict=True))
      for values in itertools.product(*self.grid.values())
    ]

  def place(self, point: dict[str, Any], seed: int) -> Any:
    """MODEL_DIR of a run."""
    name = ",".join(f"{macro}={_plain(value)}" for macro, value in point.items())
    return self.folder / name / f"seed-{seed}"

  def flags(self, point: dict[str, Any], seed: int) -> list[str]:
    """The flags of a run."""
    said = {**point, "SEED": seed, "MODEL_DIR": str(self.place(point, seed))}
    return [*self.rest, *(f"--gin.{name}={value!r}" for name, value in said.items())]

  def check(self) -> None:
    """Refuses a point that no run can have, before the first one.

    Raises:
      ValueError: naming the macro and the value.
    """
    files.check_replaceable(self.folder / TABLE, OURS)
    places = [self.place(point, 0) for point in self.points]
    if len(set(places)) < len(places):
      raise ValueError(
        "Two points of `--grid` have folders of the same name. Leave out values that "
        "differ in signs alone."
      )
    for point in self.points:
      config.parse_flags(self.flags(point, self.seeds[0]), "prompt_tuning.train")

  def run(self) -> Rows:
    """Trains what is left to train; the table so far after each run."""
    rows = Rows()
    total = len(self.points) * len(self.seeds)
    numbers = itertools.count(1)
    for point in self.points:
      name = ", ".join(f"{macro}={value}" for macro, value in point.items())
      found = []
      for seed in self.seeds:
        ended.say(f"\n== run {next(numbers)} of {total}: {name}, SEED={seed}")
        config.run_verb(train.train, self.flags(point, seed))
        found.append(self._score(self.place(point, seed)))
      rows.append(_row(name, point, found))
      files.write_text(self.folder / TABLE, json.dumps(rows, indent=2) + "\n", OURS)
    return rows

  def _score(self, folder: Any) -> tuple[str, float, int]:
    """The score of a run, its name, and how many numbers trained.

    Raises:
      ValueError: for a run without that score.
    """
    made = product.load(folder)
    scores = made.card.get("scores") or {}
    metric = self.metric
    if metric is None:
      said = explain.bindings((folder / "config.gin").read_text())
      metric = ast.literal_eval(said.get("BEST_METRIC", "'loss'"))
    if metric not in scores:
      raise ValueError(
        f"`--metric` {metric!r} is no score of {str(folder)!r}: there are "
        f"{sorted(scores) or 'none, as it has no validation'}."
      )
    return metric, scores[metric], made.parameters


def _row(
  name: str, point: dict[str, Any], found: Sequence[tuple[str, float, int]]
) -> dict[str, Any]:
  each = [score for _, score, _ in found]
  return {
    "point": name,
    **point,
    "metric": found[0][0],
    "mean": statistics.fmean(each),
    "spread": statistics.stdev(each) if len(each) > 1 else None,
    "each": each,
    "trained": found[0][2],
  }


def _plain(value: Any) -> str:
  """A value as part of a folder's name."""
  return re.sub(r"[^\w.+-]+", "_", str(value)).strip("_") or "_"


def grid(texts: Sequence[str]) -> dict[str, list[Any]]:
  """Macro -> values, of texts such as "LEARNING_RATE=[0.03, 0.3]".

  Raises:
    ValueError: naming the text that does not fit.
  """
  found: dict[str, list[Any]] = {}
  for text in texts:
    name, _, values = text.partition("=")
    name = name.strip()
    try:
      listed = ast.literal_eval(values.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
      listed = None
    fits = isinstance(listed, list | tuple) and len(listed) > 0
    if not fits or not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
      raise ValueError(
        f"`--grid` is {text!r}; it must be a macro and its values, such as "
        '"LEARNING_RATE=[0.03,0.3]", texts in quotes.'
      )
    if name in found or name in OWN:
      why = "given twice" if name in found else "set by the sweep itself"
      raise ValueError(f"`--grid` names {name}, which is {why}. Leave it out.")
    found[name] = list(listed)
  return found


def read(argv: Sequence[str]) -> Sweep:
  """The sweep that flags ask for.

  Raises:
    ValueError: for flags that do not fit.
  """
  parser = flags.Parser(prog="prompt-tuning sweep", allow_abbrev=False)
  parser.add_argument("--grid", action="append", default=[])
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--output", default="runs/sweep")
  parser.add_argument("--metric")
  given, rest = parser.parse_known_args(argv)
  found = grid(given.grid)
  if not found:
    raise ValueError('`--grid` is missing: --grid "LEARNING_RATE=[0.03,0.3]".')
  runs = math.prod(map(len, found.values())) * given.seeds
  if not 1 <= given.seeds or runs > MOST_RUNS:
    raise ValueError(
      f"`--seeds` is {given.seeds}, which makes {runs} runs; it must be a whole number "
      f"from 1, and the runs at most {MOST_RUNS:,}."
    )
  own = [w for w in rest if re.match(rf"--gin\.({'|'.join(OWN)}) *=", w)]
  if own:
    raise ValueError(f"`{own[0]}` is set by the sweep: see --output and --seeds.")
  if any(word.split("=")[0] == "--data" for word in rest):
    rest = short.spelt_out("train", [*rest, "--output", given.output])
    rest = [word for word in rest if not word.startswith("--gin.MODEL_DIR=")]
  seeds = range(given.seeds)
  return Sweep(found, seeds, files.at(given.output), rest, given.metric)


def main(argv: Sequence[str] | None = None) -> None:
  """Runs a sweep, prints its table and draws it.

  Raises:
    SystemExit: 2 with one line for what does not fit; that of `train` for a run that
      ended early.
  """
  try:
    sweep = read(sys.argv[1:] if argv is None else list(argv))
    sweep.check()
    rows = sweep.run()
  except (ValueError, OSError) as error:
    print(f"error: {config.in_macros(config.one_line(error))}", file=sys.stderr)
    raise SystemExit(2) from error
  names, each = [row["point"] for row in rows], [row["each"] for row in rows]
  curves.means(names, each, rows[0]["metric"]).savefig(sweep.folder / PLOT, dpi=120)
  shown = Rows({k: v for k, v in row.items() if k != "point"} for row in rows)
  ended.say(
    f"\n{shown!r}\n\ntable: {sweep.folder / TABLE}   plot: {sweep.folder / PLOT}"
  )


if __name__ == "__main__":
  with ended.at_once():
    main()
