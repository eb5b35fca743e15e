"""What the benchmarks share: interleaved timing, the peak of the run, tables, memory.

Sides of a comparison take turns, so that what else the machine does falls on all of
them alike; a side is a function that returns only once its work is done. Figures are
medians over rounds. The peak is that of one large matrix product, timed in the same
rounds; `--product=0` leaves it out.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from prompt_tuning.engine import compilation, huge_pages

# Two libraries may share one card. JAX reads this when it first opens a device.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

SWITCH = argparse.BooleanOptionalAction
Side = Callable[[], Any]
PRODUCT = "matrix product"


@dataclasses.dataclass(frozen=True)
class Times:
  """Attributes:
  seconds: of each round.
  """

  seconds: tuple[float, ...]

  @property
  def median(self) -> float:
    return statistics.median(self.seconds)

  @property
  def ms(self) -> float:
    return 1000 * self.median

  @property
  def spread(self) -> float:
    """Half the distance between the quartiles, as a part of the median."""
    if len(self.seconds) < 2:
      return 0.0
    low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
    return (high - low) / 2 / self.median


def take_turns(sides: Mapping[str, Side], rounds: int, warmup: int) -> dict[str, Times]:
  """Times every side once a round; each round starts with another side.

  A side may return the seconds it took (a process of its own does); else the wall
  clock counts.
  """
  if not sides or rounds < 1 or warmup < 0:
    raise ValueError(
      f"`take_turns` needs a side, rounds >= 1 and warmup >= 0, got {len(sides)} "
      f"sides, {rounds} and {warmup}."
    )
  names = list(sides)
  found: dict[str, list[float]] = {name: [] for name in names}
  for number in range(-warmup, rounds):
    first = number % len(names)
    for name in names[first:] + names[:first]:
      start = time.perf_counter()
      told = sides[name]()
      seconds = time.perf_counter() - start
      if number >= 0:
        found[name].append(told if isinstance(told, float) else seconds)
  return {name: Times(tuple(seconds)) for name, seconds in found.items()}


def product(size: int, dtype: str = "float32") -> Side:
  """A matrix product of 2 * size^3 operations, compiled as a step's products are."""
  left, right = (
    jax.random.normal(jax.random.key(i), (size, size), jnp.dtype(dtype)) for i in (0, 1)
  )
  asked = compilation.options(jax.default_backend(), size)
  multiply = jax.jit(lambda left, right: left @ right, compiler_options=asked)
  return lambda: jax.block_until_ready(multiply(left, right))


@dataclasses.dataclass(frozen=True)
class Measured:
  """What `measure` found.

  Attributes:
    times: of each side.
    peak: operations a second of the matrix product in the same rounds, or None.
  """

  times: dict[str, Times]
  peak: float | None


def measure(sides: Mapping[str, Side], args: argparse.Namespace) -> Measured:
  """`take_turns` with the matrix product as one more side."""
  whole = dict(sides)
  if args.product:
    whole[PRODUCT] = product(args.product, getattr(args, "dtype", "float32"))
  times = take_turns(whole, args.rounds, args.warmup)
  one = times.pop(PRODUCT, None)
  return Measured(times, 2 * args.product**3 / one.median if one else None)


def device() -> str:
  """The device in words: a card's name, or the processor's and its cores."""
  found = jax.devices()[0]
  if found.platform != "cpu":
    return f"{jax.device_count()} x {found.device_kind}"
  name = platform.processor() or platform.machine()
  file = pathlib.Path("/proc/cpuinfo")
  if file.is_file():
    lines = (line.partition(":") for line in file.read_text().splitlines())
    name = next((v.strip() for k, _, v in lines if k.strip() == "model name"), name)
  return f"{name}, {os.cpu_count()} cores"


def resident(peak: bool = False) -> int | None:
  """Bytes of memory that this process holds, or held at the most; None if unknown.

  The kernel's own figure: `getrusage` also counts what a parent held at the fork.
  """
  file, field = pathlib.Path("/proc/self/status"), "VmHWM:" if peak else "VmRSS:"
  if not file.is_file():
    return None
  lines = file.read_text().splitlines()
  return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def child(script: str, argv: Sequence[str], **environment: str) -> dict[str, Any]:
  """Runs a script in a process of its own; its last line is its answer in JSON."""
  done = subprocess.run(
    [sys.executable, script, *argv],
    stdout=subprocess.PIPE,
    text=True,
    env={**os.environ, **environment},
  )
  if done.returncode:
    raise RuntimeError(
      f"{script} ended with {done.returncode}; its error stands above."
    )
  return json.loads(done.stdout.splitlines()[-1])


def start(script: str) -> None:
  """Gives a script the memory that the library's own programs have.

  Processes that it starts inherit it, PEFT's too.
  """
  huge_pages.ask(script)


def flags(doc: str, rounds: int = 10, size: int = 2048) -> argparse.ArgumentParser:
  """A parser with the flags that all benchmarks have."""
  parser = argparse.ArgumentParser(description=doc.splitlines()[0], allow_abbrev=False)
  parser.add_argument("--rounds", type=int, default=rounds, help="timed rounds")
  parser.add_argument("--warmup", type=int, default=2, help="rounds before them")
  parser.add_argument("--product", type=int, default=size, help="side of the product")
  parser.add_argument("--json", type=pathlib.Path, help="file for the results")
  return parser


def finish(
  args: argparse.Namespace, rows: Sequence[Mapping[str, Any]], found: dict[str, Any]
) -> dict[str, Any]:
  """Prints settings, table and single results; writes all of it where asked to."""
  chosen = {k: v for k, v in vars(args).items() if k != "json" and v is not None}
  whole = {
    "device": device(),
    "jax": jax.__version__,
    "large_pages": huge_pages.asked(),
    "settings": {
      k: str(v) if isinstance(v, pathlib.Path) else v for k, v in chosen.items()
    },
    **found,
    "rows": list(rows),
  }
  pages = "large pages" if whole["large_pages"] else "small pages"
  print(f"{whole['device']}, {pages}, jax {jax.__version__}")
  print("  ".join(f"{name}={value}" for name, value in whole["settings"].items()))
  print("\n" + table(rows))
  for name, value in found.items():
    print(f"{name}: {_words(value)}")
  if args.json:
    aside = args.json.with_name(args.json.name + ".part")
    aside.write_text(json.dumps(whole, indent=1) + "\n")
    aside.replace(args.json)
  return whole


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """A Markdown table of rows with the same names."""
  if not rows:
    return "(no rows)"
  cells = [[str(name) for name in rows[0]]]
  cells += [[_words(value) for value in row.values()] for row in rows]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = [_line(row, widths) for row in cells]
  lines.insert(1, _line(["-" * width for width in widths], widths))
  return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
  padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
  return f"| {' | '.join(padded)} |"


def _words(value: Any) -> str:
  if value is None:
    return "-"
  if not isinstance(value, float):
    return str(value)
  return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
