"""What the tests and the scripts of `goldens/` share about T5X checkpoints.

Needs NumPy and this library, not T5X.
"""

import gzip
import hashlib
import pathlib
import re
from typing import Any

import numpy as np
from goldens import weights

from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.interop import t5x

STEP = 12
FORMATS = ("legacy", "orbax")
# Orbax gives the files of its databases random names.
RANDOM = re.compile(r"(?<=/d/)[0-9a-f]{32}")


def tree(name: str) -> dict[str, Any]:
  """Weights of a golden's backbone with a prompt in T5X's branch."""
  params = weights.nested(weights.tiny_weights(name))
  shape = (3, weights.CONFIGS[name]["emb_dim"])
  vectors = np.random.RandomState(7).standard_normal(shape).astype(np.float32)
  params["encoder"]["prompt"] = {"prompt": {"prompt": vectors}}
  return params


def write(folder: pathlib.Path, kind: str, name: str) -> pathlib.Path:
  """Writes `tree` as a checkpoint of T5X, "legacy" or "orbax"; returns its folder."""
  backbone = T5(T5Config(**weights.CONFIGS[name]))
  writer = {"legacy": t5x.write_legacy, "orbax": t5x.write_orbax}[kind]
  return writer(folder, backbone, tree(name), STEP)


def content(step: pathlib.Path) -> dict[str, str]:
  """Name -> digest of all that is the same in every writing.

  Legacy: of each file, chunks as they unpack. Orbax: of each array; its files hold
  times, and databases whose bytes differ each time, so they count by name alone.
  """
  paths = [path for path in sorted(step.rglob("*")) if path.is_file()]
  if (step / "state").is_dir():
    names = {RANDOM.sub("*", str(path.relative_to(step))) for path in paths}
    return {**dict.fromkeys(sorted(names), ""), **_arrays(step)}
  return {str(path.relative_to(step)): _digest(_unpacked(path)) for path in paths}


def _unpacked(path: pathlib.Path) -> bytes:
  data = path.read_bytes()
  return gzip.decompress(data) if path.name[0].isdigit() else data


def _arrays(step: pathlib.Path) -> dict[str, str]:
  source = t5x.open_source(step)
  found = {}
  for name, lazy in sorted({**source.arrays, **source.prompts}.items()):
    value = lazy.read()
    found[name] = _digest(f"{value.dtype}{value.shape}".encode() + value.tobytes())
  return found


def _digest(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()[:8]
