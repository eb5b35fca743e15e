"""A backbone on disk, whatever its format: T5X's names, shapes, and lazy reading."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from prompt_tuning.backbones.t5 import files
from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.backbones.t5.stacking import stack_layers
from prompt_tuning.core.trainable import flatten, unflatten


class UnreadableError(ValueError):
  """A file is damaged, incomplete, or not what it says it is."""


@dataclasses.dataclass(frozen=True)
class Lazy:
  """An array that has not been read.

  Attributes:
    shape: of the array. read: gives it.
  """

  shape: tuple[int, ...]
  read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Source:
  """Attributes:
  path: what the user gave. config: the architecture, read from the files.
  arrays: T5X name (no `target/`) -> array, layers unrolled.
  prompts: name -> array of what is no part of the backbone, such as a trained prompt.
  vocabulary: "bytes", a SentencePiece file, or None where none lies beside the weights.
  step: training step of the checkpoint, if it says.
  """

  path: pathlib.Path
  config: T5Config
  arrays: Mapping[str, Lazy]
  prompts: Mapping[str, Lazy] = dataclasses.field(default_factory=dict)
  vocabulary: str | None = None
  step: int | None = None


def load(source: Source, expected: T5 | None = None) -> tuple[T5, Any]:
  """(backbone, weights); each array is read once, and only one is held twice.

  Args:
    source: where from.
    expected: architecture bound elsewhere, which must be the source's; its switches
      (dropout, dtype, scan, remat) apply.

  Raises:
    ValueError: if the architecture differs, or if weights are missing, unknown or of
      another shape (all are named).
  """
  backbone = files.fitting(source.config, expected, str(source.path))
  unrolled = T5(dataclasses.replace(backbone.config, scan_layers=False))
  files.check_names(flatten(unrolled.shapes()), dict(source.arrays), str(source.path))
  params = unflatten({name: _read(lazy) for name, lazy in source.arrays.items()})
  if backbone.config.scan_layers:
    params = stack_layers(params, backbone.config)
  return backbone, params


def _read(lazy: Lazy) -> Any:
  value = lazy.read()
  # T5 1.1 overflows when it computes in float16.
  return jnp.asarray(value, jnp.float32 if value.dtype == np.float16 else None)


def config_of(
  shapes: Mapping[str, tuple[int, ...]], where: str, max_distance: int = 128
) -> T5Config:
  """The architecture that the shapes of T5X-named arrays imply.

  Raises:
    UnreadableError: naming the first array that it takes and that is missing.
  """

  def shape(name: str, rank: int = 2) -> tuple[int, ...]:
    found = shapes.get(name)
    if found is None or len(found) != rank:
      raise UnreadableError(
        f"{where!r} is no T5: {name} is "
        f"{'missing' if found is None else f'of shape {found}'}. Known are T5 1.0, "
        "1.1, mT5, Flan and ByT5 with layers_0, layers_1 and so on."
      )
    return found

  vocab_size, emb_dim = shape("token_embedder/embedding")
  num_heads, buckets = shape("encoder/relpos_bias/rel_embedding")
  gated = "encoder/layers_0/mlp/wi_0/kernel" in shapes
  mlp = shape(f"encoder/layers_0/mlp/{'wi_0' if gated else 'wi'}/kernel")
  joined = shape("encoder/layers_0/attention/query/kernel")[1]
  if num_heads < 1 or joined % num_heads:
    raise UnreadableError(
      f"{where!r} is no T5: {num_heads} heads do not divide a projection of {joined}."
    )

  def depth(side: str) -> int:
    start = f"{side}/layers_"
    names = {n.removeprefix(start).split("/")[0] for n in shapes if n.startswith(start)}
    return len(names)

  return T5Config(
    vocab_size=vocab_size,
    emb_dim=emb_dim,
    num_heads=num_heads,
    head_dim=joined // num_heads,
    mlp_dim=mlp[1],
    num_encoder_layers=depth("encoder"),
    num_decoder_layers=depth("decoder"),
    mlp_activations=("gelu", "linear") if gated else ("relu",),
    logits_via_embedding="decoder/logits_dense/kernel" not in shapes,
    relative_buckets=buckets,
    relative_max_distance=max_distance,
  )
