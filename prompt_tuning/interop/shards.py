"""The weight files of a Hugging Face folder: safetensors or pickles, one or many."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from safetensors import numpy as safetensors_numpy

from prompt_tuning.interop import pickles, tensor_files, untrusted
from prompt_tuning.interop.lazy import Lazy, UnreadableError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLED_INDEX = "pytorch_model.bin.index.json"
PICKLED = "pytorch_model.bin"
# Names of other frameworks' weights, which are not read.
FOREIGN = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.pkl")


def tensors(folder: Any) -> dict[str, Lazy]:
  """Name -> array; safetensors are preferred to pickles.

  Raises:
    UnreadableError: if there are no weights, or a file is missing, damaged, or holds
      other weights than the index says.
  """
  for index, single, reader in (
    (INDEX, SINGLE, tensor_files.tensors),
    (PICKLED_INDEX, PICKLED, pickles.tensors),
  ):
    if (folder / index).is_file():
      return _sharded(folder, index, reader)
    if (folder / single).is_file():
      return reader(folder / single)
  others = sorted({path.name for form in FOREIGN for path in folder.glob(form)})
  also = f" (of its {others}, none is read; save it again as safetensors)"
  raise UnreadableError(
    f"{str(folder)!r} holds neither {SINGLE} nor {INDEX}{also if others else ''}."
  )


def _sharded(folder: Any, index: str, reader: Any) -> dict[str, Lazy]:
  stated = untrusted.read_object(folder / index).get("weight_map")
  if not isinstance(stated, dict) or not stated:
    raise UnreadableError(f"{str(folder / index)!r} has no `weight_map`.")
  found: dict[str, Lazy] = {}
  for shard in sorted({str(shard) for shard in stated.values()}):
    path = folder / shard
    if not untrusted.is_plain(shard) or not path.is_file():
      raise UnreadableError(f"The shard {shard!r} of {str(folder)!r} is missing.")
    inside = reader(path)
    lacking = sorted(n for n, s in stated.items() if s == shard and n not in inside)
    if lacking:
      raise UnreadableError(
        f"{str(path)!r} lacks weights that {index} names: {', '.join(lacking[:8])}."
      )
    found.update({name: inside[name] for name in inside if stated.get(name) == shard})
    unnamed = sorted(set(inside) - set(stated))
    if unnamed:
      raise UnreadableError(
        f"{str(path)!r} holds weights that {index} does not name: "
        f"{', '.join(unnamed[:8])}."
      )
  return found


@dataclasses.dataclass(frozen=True)
class Out:
  """An array to write.

  Attributes:
    shape, dtype: as it will be stored. make: gives it.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  make: Callable[[], np.ndarray]

  @property
  def size(self) -> int:
    """Bytes."""
    return math.prod(self.shape) * self.dtype.itemsize


def save(folder: pathlib.Path, weights: Mapping[str, Out], most: int) -> None:
  """Writes one file, or several and their index; one is held at a time.

  Args:
    folder: to write into. weights: name -> array.
    most: bytes of a file, which only a single larger array exceeds.
  """
  groups: list[list[str]] = []
  room = 0
  for name, out in weights.items():
    if not groups or out.size > room:
      groups.append([])
      room = most
    groups[-1].append(name)
    room -= out.size
  stated = {}
  for number, group in enumerate(groups, 1):
    file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
    file = SINGLE if len(groups) == 1 else file
    made = {name: weights[name].make() for name in group}
    safetensors_numpy.save_file(made, str(folder / file), metadata={"format": "pt"})
    stated.update(dict.fromkeys(group, file))
  if len(groups) > 1:
    total = sum(out.size for out in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": stated}
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (folder / INDEX).write_text(text, encoding="utf-8")
