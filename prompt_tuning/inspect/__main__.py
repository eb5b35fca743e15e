"""Writes report.html of a run: one page that fetches nothing.

python -m prompt_tuning.inspect runs/mine [--split=test] [--output=report.html]
"""

if __name__ == "__main__":
  # Before anything slow is imported.
  from prompt_tuning.engine import early
  from prompt_tuning.terminal import usage

  usage.show("inspect")
  early.begin()

import logging
import sys
from collections.abc import Sequence

from prompt_tuning.engine import compilation, config, ended, flags
from prompt_tuning.inspect import report
from prompt_tuning.inspect import run as runs


def main(argv: Sequence[str] | None = None) -> None:
  """Reads the flags, writes the page, says where it is.

  Raises:
    SystemExit: with one line and the code 2 for what does not fit.
  """
  parser = flags.Parser(prog="python -m prompt_tuning.inspect")
  parser.add_argument("run")
  parser.add_argument("--split")
  parser.add_argument("--output")
  parser.add_argument("--examples", type=int, default=10)
  given = parser.parse_args(argv)
  logging.getLogger("absl").setLevel(logging.ERROR)
  try:
    with ended.in_one_line():
      if given.examples < 1:
        raise ValueError(
          f"`--examples` is {given.examples}; it must be a whole number from 1."
        )
      compilation.keep()
      found = runs.read(given.run, given.split)
      path = report.write(found, given.output, given.examples)
  except (ValueError, OSError) as error:
    print(f"error: {config.one_line(error)}", file=sys.stderr)
    raise SystemExit(2) from error
  ended.say(f"report: {path}")


if __name__ == "__main__":
  with ended.at_once():
    main()
