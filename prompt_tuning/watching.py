"""Who watches `tune`: a bar, callbacks, a recorder, and what is remembered."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from prompt_tuning.engine.listed import Rows
from prompt_tuning.engine.log import beside_bar
from prompt_tuning.engine.loop import Scores

Callback = Callable[[int, dict[str, Any]], Any]


class Watch:
  """A recorder that remembers, and tells others.

  Attributes:
    lines: {"step", "split", metrics ...} of every line so far.
  """

  def __init__(
    self,
    steps: int,
    recorder: Any = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
  ) -> None:
    self.lines = Rows()
    self._recorder, self._callbacks = recorder, callbacks
    self._bar = bar(steps) if progress and recorder is None else None
    self._shown: dict[str, str] = {}

  def write(self, step: int, split: str, values: Scores) -> None:
    found = {name: float(value) for name, value in values.items()}
    self.lines.append({"step": step, "split": split, **found})
    if self._bar is not None:
      self._shown.update(beside_bar(split, found))
      self._bar.set_postfix(self._shown)
    if self._recorder is not None:
      self._recorder.write(step, split, values)
    for callback in self._callbacks:
      callback(step, {"split": split, **found})

  def step(self, step: int) -> None:
    if self._bar is not None:
      self._bar.update(step - self._bar.n)
    if self._recorder is not None:
      self._recorder.step(step)

  def say(self, text: str) -> None:
    if self._bar is not None:
      self._bar.write(text)
    if self._recorder is not None:
      self._recorder.say(text)

  def close(self) -> None:
    """Leaves the bar as it stands."""
    if self._bar is not None:
      self._bar.close()


def bar(steps: int) -> Any:
  """A bar with the time left, in a notebook or on a terminal; None elsewhere."""
  # What `auto` chooses, without its asyncio: a widget in a notebook.
  from tqdm import auto, std

  notebook = issubclass(auto.tqdm, getattr(auto, "notebook_tqdm", std.tqdm))
  notebook = notebook and auto.notebook_tqdm is not std.tqdm
  if not steps or not (notebook or (sys.stderr is not None and sys.stderr.isatty())):
    return None
  return auto.tqdm(total=steps, desc="tune", unit="step", dynamic_ncols=True)


def checked(callbacks: Any) -> Sequence[Callback]:
  """One function, or a list of them; raises ValueError for anything else."""
  if callbacks is None:
    return ()
  found = [callbacks] if callable(callbacks) else callbacks
  if not isinstance(found, list | tuple) or not all(map(callable, found)):
    raise ValueError(
      f"`callbacks` is {callbacks!r}; give functions of a step and its metrics, such "
      "as [lambda step, metrics: print(step, metrics)]."
    )
  return tuple(found)
