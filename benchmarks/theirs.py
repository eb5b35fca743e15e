"""Orders to `peft_worker.py`, which may run in another interpreter.

Two processes keep two libraries' threads and allocators apart; the parent waits while
the child works, so the sides still take turns.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ours import Sizes

WORKER = pathlib.Path(__file__).with_name("peft_worker.py")
NEEDS = ("torch", "transformers", "peft")


class AbsentError(ValueError):
  """PEFT's side cannot run here."""


def add_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--peft_python",
    help="interpreter with torch, transformers and peft; this one without the flag",
  )
  parser.add_argument(
    "--peft_compile", action="store_true", help="wrap PEFT's model in torch.compile"
  )


class Peft:
  """The other library as a process; use it in a `with`."""

  def __init__(self, python: str | None = None):
    missing = [] if python else [n for n in NEEDS if not importlib.util.find_spec(n)]
    if missing:
      raise AbsentError(
        f"PEFT's side needs {', '.join(missing)}: pip install '.[oracles]', or name an "
        "interpreter that has them with --peft_python=PATH."
      )
    self._folder = tempfile.TemporaryDirectory()
    self._process = subprocess.Popen(
      [python or sys.executable, str(WORKER)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    self.facts = self._answer()
    if "absent" in self.facts:
      self.close()
      raise AbsentError(f"PEFT's side: {self.facts['absent']} (of {python}).")

  def train(
    self,
    name: str,
    shape: Sizes,
    batches: Sequence[Mapping[str, np.ndarray]],
    prompted: bool = True,
    compiled: bool = False,
  ) -> Any:
    """A side of `timing.take_turns`: one step, its seconds.

    Args:
      name: of the side. shape: of the model.
      batches: `inputs` and `targets`, 0 pads; their shapes may differ.
      prompted: prompt tuning; else every weight trains, without a prompt.
      compiled: through torch.compile.
    """
    order = {"kind": "train", "prompted": prompted, "compile": compiled}
    return self._make(name, shape, batches, order)

  def generate(
    self,
    name: str,
    shape: Sizes,
    batch: Mapping[str, np.ndarray],
    steps: int,
    beams: int,
  ) -> Any:
    """A side that decodes `steps` tokens of a batch."""
    order = {"kind": "generate", "steps": steps, "beams": beams}
    return self._make(name, shape, [batch], order)

  def peak(self) -> int | None:
    """Bytes of a card that torch held at the most; None on a CPU."""
    return self._ask({"do": "peak"})["bytes"]

  def _make(self, name: str, shape: Sizes, batches: Any, order: dict[str, Any]) -> Any:
    file = pathlib.Path(self._folder.name, f"{name}.npz")
    arrays = {
      f"{kind}_{number}": batch[kind]
      for number, batch in enumerate(batches)
      for kind in ("inputs", "targets")
    }
    np.savez(file, **arrays)
    whole = {"name": name, "shape": dataclasses.asdict(shape), "file": str(file)}
    self.facts |= self._ask({"do": "make", **whole, **order})
    self._check_weights(shape)

    def side(steps: int = 1) -> float:
      return self._ask({"do": "run", "name": name, "steps": steps})["seconds"]

    return side

  def _check_weights(self, shape: Sizes) -> None:
    """Both sides must hold the same model."""
    expected = sum(leaf.size for leaf in jax.tree.leaves(shape.backbone().shapes()))
    if self.facts["parameters"] != expected:
      raise RuntimeError(
        f"PEFT's model has {self.facts['parameters']:,} weights, ours {expected:,}; "
        "this version of transformers builds another model."
      )

  def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
    self._process.stdin.write(json.dumps(order) + "\n")
    self._process.stdin.flush()
    return self._answer()

  def _answer(self) -> dict[str, Any]:
    line = self._process.stdout.readline()
    if not line:
      code = self._process.wait()
      raise RuntimeError(f"PEFT's process ended with {code}; its error stands above.")
    return json.loads(line)

  def close(self) -> None:
    """Ends the process and removes its files."""
    self._process.stdin.close()
    self._process.stdout.close()
    self._process.wait()
    self._folder.cleanup()

  def __enter__(self) -> "Peft":
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()


@contextlib.contextmanager
def optional(python: str | None) -> Iterator[Peft | None]:
  """PEFT's side, or None (and a line that says so) where it cannot run."""
  try:
    side = Peft(python)
  except AbsentError as error:
    print(f"Without PEFT's side. {error}")
    yield None
    return
  with side:
    yield side
