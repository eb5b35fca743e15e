"""Small JSON files of a run, read back with care: anybody may have touched them."""

import json
from typing import Any


class DamagedError(ValueError):
  """A file of a run that does not hold what a run writes there."""


def parsed(data: bytes) -> Any:
  """The value of a JSON text in UTF-8.

  Raises:
    DamagedError: if it is none.
  """
  try:
    return json.loads(data.decode("utf-8"))
  except (ValueError, RecursionError) as error:
    raise DamagedError(str(error) or type(error).__name__) from error


def read_object(path: Any) -> dict[str, Any]:
  """The JSON object that a file holds.

  Raises:
    DamagedError: if it holds none.
  """
  try:
    found = parsed(path.read_bytes())
  except OSError as error:
    raise DamagedError(error.strerror or str(error)) from error
  if not isinstance(found, dict):
    raise DamagedError("it holds no JSON object")
  return found


def is_step(value: Any) -> bool:
  """Whether a value counts steps."""
  return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def is_number(value: Any) -> bool:
  """Whether a value is a number that a float holds; not-a-number is one."""
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return False
  return isinstance(value, float) or abs(value) < 2**1023


def read_lines(path: Any) -> tuple[list[tuple[str, dict[str, Any]]], list[int]]:
  """Lines of metrics.jsonl, as text and value, and the numbers of damaged ones.

  A process that was killed may have left half a line.
  """
  found, damaged = [], []
  for number, raw in enumerate(path.read_bytes().split(b"\n"), 1):
    if not raw:
      continue
    try:
      line = parsed(raw)
    except DamagedError:
      line = None
    if _is_metrics(line):
      found.append((raw.decode("utf-8"), line))
    else:
      damaged.append(number)
  return found, damaged


def dropped(name: str, numbers: list[int]) -> str:
  """What to say of damaged lines."""
  few = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
  what = f"line {few} is" if len(numbers) == 1 else f"lines {few} are"
  return f"{name}: {what} damaged and left out."


def _is_metrics(line: Any) -> bool:
  if not isinstance(line, dict) or not is_step(line.get("step")):
    return False
  rest = {name: value for name, value in line.items() if name not in ("step", "split")}
  return isinstance(line.get("split"), str) and all(map(is_number, rest.values()))


def is_scores(value: Any) -> bool:
  """Whether a value is what evaluation gives: names and numbers, at least one."""
  return isinstance(value, dict) and bool(value) and all(map(is_number, value.values()))
