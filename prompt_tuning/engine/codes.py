"""Codes of the frozen encoder, made once a run and not once a step.

What a prompt reads of the frozen encoder's output may hang on the input and the frozen
weights alone. Then each example's vector is made before the first step, kept in host
memory (4 N C bytes) and given to every step as the feature `code`, so that the compiled
step holds no second pass of the encoder.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from prompt_tuning.core.model import PromptedModel
from prompt_tuning.data.features import Layout
from prompt_tuning.engine import evaluate

Example = dict[str, Any]


def check(model: PromptedModel, trainable: Sequence[str], streams: bool) -> None:
  """Refuses what has no code that could be made once.

  Args:
    model: backbone and prompt. trainable: branches that train.
    streams: whether the training examples are not held in memory.

  Raises:
    ValueError: naming what is in the way.
  """
  readers = () if model.prompt is None else model.prompt.encoded
  fix = "Set CACHE_CODES = False."
  if len(readers) != 1:
    raise ValueError(
      "`CACHE_CODES` is True, which goes with a prompt of which one part reads the "
      f"frozen encoder (a pooled Encoding); in this one {len(readers)} do. {fix}"
    )
  if not getattr(readers[0], "once", False):
    raise ValueError(
      f"`CACHE_CODES` is True, but the code of {type(readers[0]).__name__} hangs on "
      "weights of its own that train (a pool by attention does). Set CODE_POOL = "
      "'mean', 'first' or 'last', or CACHE_CODES = False."
    )
  moving = [branch for branch in trainable if branch.split("/")[0] == "backbone"]
  if moving:
    raise ValueError(
      f"`CACHE_CODES` is True, but `TRAINABLE` names {moving}: codes of an encoder "
      f"that trains change with every step. {fix}"
    )
  if streams:
    raise ValueError(
      "`CACHE_CODES` is True, but the task's training examples are a stream, which is "
      f"not held in memory. {fix}"
    )


def attach(
  model: PromptedModel,
  params: Any,
  parts: Sequence[Sequence[Example]],
  layout: Layout,
  size: int,
  recorder: Any,
  place: Any,
  between: Callable[[], None] = lambda: None,
) -> list[Sequence[Example]]:
  """The same examples, each with its vector [C] as `code`.

  Args:
    model: backbone and prompt. params: all parameters.
    parts: lists of task features. layout: of the examples, which says where they are
      cut. size: rows of a batch; examples stand in it by length.
    recorder: told what it took. place: of batches, an `engine.sharding.Placement`.
    between: called before each batch; what it raises leaves the rest.
  """
  start = time.monotonic()
  make = evaluate.compiled(dataclasses.replace(model, segments=1).codes, place)

  def run(params: Any, batch: Any, numbers: Any) -> np.ndarray:
    between()
    return np.asarray(make(params, batch), np.float32)

  found = []
  for examples in parts:
    given = functools.partial(run, params)
    codes = evaluate.in_order(given, examples, layout, size, place)
    pairs = zip(examples, codes, strict=True)
    # A copy: a row would keep the batch that it was made in.
    made = [{**example, "code": code.copy()} for example, code in pairs]
    found.append(examples.over(made) if hasattr(examples, "over") else made)
  total = sum(one["code"].nbytes for part in found for one in part)
  count = sum(map(len, found))
  recorder.say(
    f"Codes of {count:,} examples: {total / 1e6:,.1f} MB, "
    f"{time.monotonic() - start:.1f} s."
  )
  return found
