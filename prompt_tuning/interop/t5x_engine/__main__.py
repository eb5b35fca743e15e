"""Prints the folder that T5X must search for our gin files.

python -m t5x.train --gin_search_paths="$(python -m prompt_tuning.interop.t5x_engine)"
"""

from prompt_tuning.engine import config


def folder() -> str:
  """Where `gin/` lies: the checkout, or the installed package."""
  return str(config.gin_folder().parent)


if __name__ == "__main__":
  print(folder())
