"""Weights in files, by name: whether they fit, and digests that tell them apart."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning.backbones.common.stacking import unrolled


def check_names(expected: dict[str, Any], found: dict[str, Any], where: str) -> None:
  """Raises ValueError naming every missing, unknown or misshapen parameter."""
  problems: list[str] = []

  def report(kind: str, names: Sequence[str]) -> None:
    if names:
      problems.append(f"{kind} {len(names)}: {', '.join(names)}")

  report("lacks", sorted(set(expected) - set(found)))
  report("adds", sorted(set(found) - set(expected)))
  report(
    "has other shapes for",
    [
      f"{name} {tuple(found[name].shape)} instead of {tuple(expected[name].shape)}"
      for name in sorted(set(expected) & set(found))
      if tuple(found[name].shape) != tuple(expected[name].shape)
    ],
  )
  if problems:
    raise ValueError(
      f"The checkpoint {where!r} does not fit: it {'; it '.join(problems)}."
      " Name the checkpoint's own architecture."
    )


def fingerprint(params: Any) -> str:
  """A short digest of a backbone's weights, see `digest`."""
  return digest(unrolled(params))


def digest(arrays: Mapping[str, Any]) -> str:
  """A short digest of named arrays: names, shapes and a sketch of values.

  Args:
    arrays: unrolled name -> what `read()` gives the array of.

  Every array contributes its bytes' digest in bfloat16-rounded form, so a stored copy
  in bfloat16 and the same weights held in float32 agree.
  """
  digest = hashlib.sha256()
  for name, leaf in sorted(arrays.items()):
    value = np.asarray(jax.device_get(leaf.read())).astype(jnp.bfloat16)
    digest.update(f"{name}{value.shape}".encode())
    digest.update(np.ascontiguousarray(value).view(np.uint16))
  return digest.hexdigest()[:16]
