"""The program `prompt-tuning`: finds the verb and hands over to it."""

import difflib
import os
import sys
from collections.abc import Sequence

from prompt_tuning._version import __version__
from prompt_tuning.terminal import usage
from prompt_tuning.terminal.usage import USAGES


def main(argv: Sequence[str] | None = None) -> None:
  """Shows help or a list, or becomes `python -m prompt_tuning.VERB`.

  Raises:
    SystemExit: 0 after help, 2 for a verb that there is not.
  """
  argv = sys.argv[1:] if argv is None else list(argv)
  if not argv or argv[0] in ("-h", "--help", "help"):
    print(usage.overview())
    raise SystemExit(0 if argv else 2)
  verb, rest = argv[0], argv[1:]
  if verb == "--version":
    print(f"prompt-tuning {__version__}")
    raise SystemExit(0)
  if verb not in USAGES:
    close = difflib.get_close_matches(verb, USAGES, 1, 0.5)
    hint = f"; did you mean {close[0]}?" if close else ""
    verbs = ", ".join(USAGES)
    print(f"error: there is no verb {verb!r} among {verbs}{hint}", file=sys.stderr)
    raise SystemExit(2)
  usage.show(verb, rest)
  if verb == "list":
    from prompt_tuning.terminal import listing

    listing.main(rest)
    return
  sys.stdout.flush()
  os.execv(sys.executable, [sys.executable, "-m", f"prompt_tuning.{verb}", *rest])
