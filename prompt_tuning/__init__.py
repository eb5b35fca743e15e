"""Learned prompts for frozen language models: `import prompt_tuning as pt`."""

from typing import Any

__version__ = "0.1.0"
__all__ = [
  "classify",
  "combine",
  "load_model",
  "load_prompt",
  "predict",
  "score",
  "tune",
]


def __getattr__(name: str) -> Any:
  # The names bring jax and TensorFlow with them; a verb's --help should not wait.
  if name in __all__:
    from prompt_tuning import api

    return getattr(api, name)
  raise AttributeError(f"module 'prompt_tuning' has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted([*globals(), *__all__])
