"""Orders to other libraries' sides, which may run in other interpreters.

`peft_worker.py` is PEFT's side, `t5x_worker.py` T5X's. Two processes keep two
libraries' threads and allocators apart; the parent waits while the child works, so the
sides still take turns.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np
from ours import Sizes

from prompt_tuning.engine import huge_pages

HERE = pathlib.Path(__file__).parent
# What another library's process is told of memory pages: nothing, or to use small ones.
PAGES = {"same": {}, "small": {huge_pages.VARIABLE: f"{huge_pages.NAME}=0"}}


class AbsentError(ValueError):
  """The other library's side cannot run here."""


def add_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--peft_python",
    help="interpreter with torch, transformers and peft; this one without the flag",
  )
  parser.add_argument(
    "--peft_compile", action="store_true", help="wrap PEFT's model in torch.compile"
  )
  add_pages(parser)


def add_pages(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--their_pages",
    choices=sorted(PAGES),
    default="same",
    help="memory pages of the other library: those of ours, or what it gets by itself",
  )


class Worker:
  """Another library as a process; use it in a `with`.

  Attributes:
    library: its name. script: of its process. needs: modules of its interpreter.
    install: how to get them. flag: that names another interpreter.
  """

  library: str
  script: str
  needs: tuple[str, ...]
  install: str
  flag: str

  def __init__(self, python: str | None = None, pages: str = "same"):
    absent = [n for n in self.needs if not python and not importlib.util.find_spec(n)]
    if absent:
      raise AbsentError(
        f"{self.library}'s side needs {', '.join(absent)}: {self.install}, or name an "
        f"interpreter that has them with {self.flag}=PATH."
      )
    self._folder = tempfile.TemporaryDirectory()
    self._process = subprocess.Popen(
      [python or sys.executable, str(HERE / self.script)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env={**os.environ, **PAGES[pages]},
    )
    self.facts = self._answer()
    if "absent" in self.facts:
      self.close()
      raise AbsentError(f"{self.library}'s side: {self.facts['absent']} (of {python}).")

  def train(
    self,
    name: str,
    shape: Sizes,
    batches: Sequence[Mapping[str, np.ndarray]],
    **order: Any,
  ) -> Any:
    """A side of `timing.take_turns`: one step, its seconds.

    Args:
      name: of the side. shape: of the model.
      batches: `inputs` and `targets`, 0 pads; their shapes may differ.
      order: what else the worker knows of.
    """
    return self._make(name, shape, batches, {"kind": "train", **order})

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
        f"{self.library}'s model has {self.facts['parameters']:,} weights, ours "
        f"{expected:,}: it is another model."
      )

  def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
    self._process.stdin.write(json.dumps(order) + "\n")
    self._process.stdin.flush()
    return self._answer()

  def _answer(self) -> dict[str, Any]:
    line = self._process.stdout.readline()
    if not line:
      code = self._process.wait()
      raise RuntimeError(
        f"{self.library}'s process ended with {code}; its error stands above."
      )
    return json.loads(line)

  def close(self) -> None:
    """Ends the process and removes its files."""
    self._process.stdin.close()
    self._process.stdout.close()
    self._process.wait()
    self._folder.cleanup()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()


class Peft(Worker):
  """Hugging Face's side; `train` takes `prompted` and `compile` (`torch.compile`)."""

  library = "PEFT"
  script = "peft_worker.py"
  needs = ("torch", "transformers", "peft")
  install = "pip install '.[oracles]'"
  flag = "--peft_python"

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


class T5X(Worker):
  """T5X's side; `train` takes `one_hot`, the embedding by a product."""

  library = "T5X"
  script = "t5x_worker.py"
  needs = ("t5x", "seqio", "optax")
  install = "T5X is on no package registry; install it from its repository"
  flag = "--t5x_python"


@contextlib.contextmanager
def optional(python: str | None, pages: str = "same") -> Iterator[Peft | None]:
  """PEFT's side, or None (and a line that says so) where it cannot run."""
  try:
    side = Peft(python, pages)
  except AbsentError as error:
    print(f"Without PEFT's side. {error}")
    yield None
    return
  with side:
    yield side
