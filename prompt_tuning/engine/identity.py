"""What a run hangs on beside its configuration: data, backbone, vocabulary.

Paths say little: a file may be another one tomorrow, or on another machine. So a run
writes down digests, in MODEL_DIR/run.json, and compares them when it goes on. Examples
are compared as they are read, in order, after templates and draws; of a stream only the
first ones are.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from prompt_tuning.core import files
from prompt_tuning.engine import examples as reading
from prompt_tuning.engine import records

NAME = "run.json"
FORMAT = "prompt_tuning/run/1"
# Examples of a stream that stand for it.
FIRST = 256

# What is compared -> a short text that says which one it is; None where that cannot be
# said (a stream that is drawn anew each time) or nothing is read.
Identity = Mapping[str, str | None]

_TRAIN, _VALIDATION = "training split", "validation split"


def of(loaded: Any, task: Any, vocabulary: Any, trains: bool) -> Identity:
  """The identity of a run.

  Args:
    loaded: backbone (`interop.load.Loaded`). task: `data.task.TextTask`.
    vocabulary: of the backbone. trains: whether the training split is read.
  """
  validated = "validation" in task.splits
  return {
    _TRAIN: data(task, vocabulary, "train") if trains else None,
    _VALIDATION: data(task, vocabulary, "validation") if validated else None,
    **frozen(loaded, vocabulary),
  }


def frozen(loaded: Any, vocabulary: Any) -> Identity:
  """The identity of what no phase of a run changes: backbone and vocabulary."""
  architecture = json.dumps(loaded.backbone.architecture, sort_keys=True)
  return {
    "backbone": f"weights {loaded.fingerprint}, architecture {_digest([architecture])}",
    "vocabulary": words(vocabulary),
  }


def arrays(given: Mapping[str, np.ndarray]) -> str:
  """How many arrays there are and a digest of their paths and numbers."""
  found = hashlib.sha256()
  for path, value in sorted(given.items()):
    value = np.asarray(value)
    found.update(f"{path} {value.shape} {value.dtype} ".encode())
    found.update(np.ascontiguousarray(value).tobytes())
  return f"{len(given)} arrays {found.hexdigest()[:16]}"


def data(task: Any, vocabulary: Any, split: str) -> str | None:
  """How many examples a split has and a digest of them, in order."""
  if not task.streams:
    found = task.examples(split)
    texts = (_text(example) for example in found)
    return f"{len(found):,} examples {_digest(texts)}"

  def first() -> str:
    found = reading.read(task, vocabulary, split, FIRST)
    return f"first {len(found)} examples {_digest(map(_text, found))}"

  once, again = first(), first()
  # Some registered tasks draw without a seed.
  return once if once == again else None


def words(vocabulary: Any) -> str:
  """How many ids a vocabulary has and a digest of what it makes of text."""
  size = vocabulary.vocab_size
  model = getattr(vocabulary, "sp_model", None)
  if isinstance(model, bytes):
    return f"{size:,} ids {_digest([model])}"
  return f"{size:,} ids {_digest(vocabulary.decode([i]) for i in range(size))}"


def _text(example: Mapping[str, Any]) -> str:
  def plain(value: Any) -> Any:
    if isinstance(value, bytes):
      return value.decode("utf-8", "surrogateescape")
    value = np.asarray(value)
    # The digits of vectors would take longer than all else.
    return _digest([value.tobytes()]) if value.dtype.kind == "f" else value.tolist()

  return json.dumps(example, sort_keys=True, default=plain)


def _digest(parts: Iterable[str | bytes]) -> str:
  found = hashlib.sha256()
  for part in parts:
    raw = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
    # Its length too: ("ab", "c") is not ("a", "bc").
    found.update(len(raw).to_bytes(8, "little"))
    found.update(raw)
  return found.hexdigest()[:16]


def read(folder: Any) -> Identity | None:
  """What the run in a folder has written down; None without such a file.

  Raises:
    ValueError: if the file is damaged.
  """
  path = folder / NAME
  if not path.is_file():
    return None
  try:
    found = records.read_object(path)
    if found.get("format") != FORMAT:
      raise records.DamagedError(f"its format is {found.get('format')!r}")
    known = found.get("identity")
    if not isinstance(known, dict):
      raise records.DamagedError("it holds no identity")
    if not all(text is None or isinstance(text, str) for text in known.values()):
      raise records.DamagedError("its identity holds no texts")
  except records.DamagedError as error:
    raise ValueError(
      f"{str(path)!r} is damaged ({error}), so what the run was trained on is unknown. "
      "Remove that file if data and backbone are the same, or choose another MODEL_DIR."
    ) from error
  return known


def check(folder: Any, now: Identity) -> None:
  """Refuses to go on with other data, another backbone or another vocabulary.

  Raises:
    ValueError: naming the first thing that differs.
  """
  for name, before in (read(folder) or {}).items():
    if before is not None and now.get(name) not in (None, before):
      raise ValueError(
        f"The {name} of the run in `MODEL_DIR` {str(folder)!r} changed: {before} "
        f"there, {now[name]} now. Bring back what it was, or choose another MODEL_DIR."
      )


def write(folder: Any, now: Identity) -> None:
  """Writes run.json; what is unknown now stays as it was."""
  known = {**now}
  for name, before in (read(folder) or {}).items():
    if known.get(name) is None:
      known[name] = before
  text = json.dumps({"format": FORMAT, "identity": known}, indent=2)
  files.write_text(folder / NAME, text + "\n")
