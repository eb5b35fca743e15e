"""Learned prompts for frozen language models: `import prompt_tuning as pt`."""

import importlib
import types
from typing import TYPE_CHECKING, Any

from prompt_tuning._version import __version__ as __version__

# The names bring jax with them, and a verb's --help should not wait: they are looked up
# when they are asked for. Type checkers read the same names here.
if TYPE_CHECKING:
  from prompt_tuning.api import Model as Model
  from prompt_tuning.api import classify as classify
  from prompt_tuning.api import combine as combine
  from prompt_tuning.api import load_model as load_model
  from prompt_tuning.api import load_prompt as load_prompt
  from prompt_tuning.api import predict as predict
  from prompt_tuning.api import score as score
  from prompt_tuning.api import tune as tune
  from prompt_tuning.catalogue import backbones as backbones
  from prompt_tuning.catalogue import methods as methods
  from prompt_tuning.catalogue import tasks as tasks
  from prompt_tuning.comparing import compare as compare
  from prompt_tuning.engine.product import Product as Product
  from prompt_tuning.looking import inspect as inspect
  from prompt_tuning.scoring import evaluate as evaluate

__all__ = [
  "Model",
  "Product",
  "backbones",
  "classify",
  "combine",
  "compare",
  "evaluate",
  "inspect",
  "load_model",
  "load_prompt",
  "methods",
  "predict",
  "score",
  "tasks",
  "tune",
]

# Name -> the module that has it.
_WHERE = {
  **dict.fromkeys(__all__, "prompt_tuning.api"),
  **dict.fromkeys(("backbones", "methods", "tasks"), "prompt_tuning.catalogue"),
  "Product": "prompt_tuning.engine.product",
  "compare": "prompt_tuning.comparing",
  "evaluate": "prompt_tuning.scoring",
  "inspect": "prompt_tuning.looking",
}


if not TYPE_CHECKING:

  def __getattr__(name: str) -> Any:
    if name in _WHERE:
      return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'prompt_tuning' has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted([*globals(), *__all__])


class _Room(types.ModuleType):
  """A room whose name is a function's too, and which can be called as that."""

  def __call__(self, *args: Any, **options: Any) -> Any:
    name = self.__name__.rpartition(".")[2]
    found = getattr(importlib.import_module(_WHERE[name]), name)
    return found(*args, **options)


for _name in ("backbones", "inspect"):
  importlib.import_module(f"prompt_tuning.{_name}").__class__ = _Room
