"""What a run tells: metrics.jsonl, TensorBoard, a bar or plain lines."""

import contextlib
import json
import logging
import os
import select
import sys
import time
from collections.abc import Mapping
from typing import Any

import tqdm

from prompt_tuning.core import files, hushed
from prompt_tuning.engine import records

# What is no answer to how well it goes.
INNER = ("loss", "cross_entropy", "token_accuracy", "gradient_norm", "learning_rate")


class Log:
  """Writes metrics of a run to its folder and progress to the screen.

  A screen that goes away (a closed pipe, a lost terminal) ends no run: what would have
  stood there is in metrics.jsonl.

  Attributes:
    folder: MODEL_DIR, here or remote.
  """

  def __init__(
    self,
    folder: Any,
    steps: int,
    first: int = 0,
    tensorboard: bool = True,
    quiet: bool = False,
  ) -> None:
    self.folder = files.at(folder)
    self.folder.mkdir(parents=True, exist_ok=True)
    self._path = self.folder / "metrics.jsonl"
    self._writers: dict[str, Any] = {}
    self._tensorboard = tensorboard
    self._steps = steps
    self._start = time.monotonic()
    self._quiet = quiet
    watched = not quiet and sys.stderr is not None and sys.stderr.isatty()
    self._bar = tqdm.tqdm(total=steps, initial=first, disable=not watched)
    self._plain = not watched
    self._beside: dict[str, str] = {}
    self._lines = self._kept(first)

  def _kept(self, first: int) -> list[str]:
    """A resumed run repeats the steps after its checkpoint: their lines go first.

    One that evaluates alone repeats its one line and no other.
    """

    def repeated(line: dict[str, Any]) -> bool:
      if not self._steps:
        return (line["step"], line["split"]) == (0, "validation")
      return line["step"] > first

    if not self._path.exists():
      return []
    found, damaged = records.read_lines(self._path)
    if damaged:
      self.say(records.dropped(self._path.name, damaged))
    kept = [text + "\n" for text, line in found if not repeated(line)]
    if "".join(kept).encode("utf-8") != self._path.read_bytes():
      files.write_text(self._path, "".join(kept))
    return kept

  def _add(self, line: str) -> None:
    if not files.is_remote(self._path):
      with self._path.open("a", encoding="utf-8") as file:
        file.write(line)
      return
    # Nothing can be added to an object.
    self._lines.append(line)
    files.write_text(self._path, "".join(self._lines))

  def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
    """One line of metrics.jsonl, one event a value, one line on the screen."""
    self._add(json.dumps({"step": step, "split": split, **values}) + "\n")
    if self._tensorboard:
      if split not in self._writers:
        # clu's writer needs TensorFlow, whose import is slow: only where it is used.
        with hushed.errors():
          from clu import metric_writers

          writer = metric_writers.SummaryWriter(str(self.folder / split))
        self._writers[split] = writer
      self._writers[split].write_scalars(step, dict(values))
    self._beside.update(beside_bar(split, values))
    if not self._plain:
      self._bar.set_postfix(self._beside, refresh=False)
    shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
    passed = ""
    if self._plain:
      passed = f"[{time.monotonic() - self._start:6.0f}s] "
      shown = f"step {step}/{self._steps} {split}: {shown}"
    else:
      shown = f"step {step} {split}: {shown}"
    if not self._quiet:
      self._show(passed + shown)

  def step(self, step: int) -> None:
    """Moves the bar."""
    try:
      self._bar.update(step - self._bar.n)
    except (OSError, ValueError):
      self._leave_screen()

  def say(self, text: str) -> None:
    """A line for whoever watches."""
    if self._quiet:
      logging.info("%s", text)
    else:
      self._show(text)

  def _show(self, text: str) -> None:
    try:
      if self._plain:
        print(text, flush=True)
      else:
        self._bar.write(text)
    except (OSError, ValueError):
      self._leave_screen()

  def _leave_screen(self) -> None:
    """Writes to nowhere from now on, or Python would fail once more when it ends."""
    self._quiet, self._bar.disable = True, True
    for stream in (sys.stdout, sys.stderr):
      if not _open(stream):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)

  def close(self) -> None:
    with contextlib.suppress(OSError, ValueError):
      self._bar.close()
    for writer in self._writers.values():
      writer.flush()
      writer.close()


def beside_bar(split: str, values: Mapping[str, float]) -> dict[str, str]:
  """What stands beside the bar of a line: loss and rate, or scores."""
  if split == "train":
    names = {"loss": "loss", "learning_rate": "rate"}
    return {to: f"{values[name]:.3g}" for name, to in names.items() if name in values}
  scores = {name: value for name, value in values.items() if name not in INNER}
  if not scores and "loss" in values:
    scores = {"validation loss": values["loss"]}
  return {name: f"{value:.4g}" for name, value in scores.items()}


def _open(stream: Any) -> bool:
  """Whether a stream still leads somewhere, or is none of the system's."""
  try:
    number = stream.fileno()
  except (OSError, ValueError, AttributeError):
    return True
  try:
    stream.flush()
  except OSError:
    return False
  poll = select.poll()
  poll.register(number, select.POLLOUT)
  return not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


class Both:
  """A log, and somebody else who is told the same."""

  def __init__(self, log: Log, other: Any) -> None:
    self._log, self._other = log, other

  def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
    """To both."""
    self._log.write(step, split, values)
    self._other.write(step, split, values)

  def step(self, step: int) -> None:
    """To both."""
    self._log.step(step)
    self._other.step(step)

  def say(self, text: str) -> None:
    """To both."""
    self._log.say(text)
    self._other.say(text)

  def close(self) -> None:
    """The log; the other is its owner's to close."""
    self._log.close()


class Silent:
  """The log of a process that is not the first."""

  def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
    """Says nothing."""

  def step(self, step: int) -> None:
    """Says nothing."""

  def say(self, text: str) -> None:
    """Says nothing."""

  def close(self) -> None:
    """Has nothing open."""
