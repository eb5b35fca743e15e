"""What the processes of other libraries share: orders come in, answers go out.

Each line of standard input is an order in JSON, each line of standard output its
answer; `theirs.py` gives the orders. Needs the standard library alone, for the
interpreters of the workers have nothing of ours.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

Facts = dict[str, Any]


def serve(
  facts: Facts,
  kinds: Mapping[str, Callable[[Facts], Any]],
  describe: Callable[[Any, Facts], Facts],
  wait: Callable[[], None] = lambda: None,
  peak: Callable[[], int | None] = lambda: None,
) -> None:
  """Carries out orders until there is none left.

  Args:
    facts: said first, of the library and its device.
    kinds: what makes a side of an order; a side takes a step when it is called.
    describe: what is said of a side and its order once it is made.
    wait: until the device has done its work. peak: bytes that it held at the most.
  """
  # Libraries print to standard output: answers go to a copy of it, the rest aside.
  out = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)

  def say(answer: Facts) -> None:
    print(json.dumps(answer), file=out, flush=True)

  say(facts)
  sides: dict[str, Any] = {}
  for line in sys.stdin:
    order = json.loads(line)
    if order["do"] == "make":
      side = sides[order["name"]] = kinds[order["kind"]](order)
      say(describe(side, order))
    elif order["do"] == "run":
      side = sides[order["name"]]
      wait()
      start = time.perf_counter()
      for _ in range(order["steps"]):
        side()
      wait()
      say({"seconds": time.perf_counter() - start})
    elif order["do"] == "peak":
      say({"bytes": peak()})
