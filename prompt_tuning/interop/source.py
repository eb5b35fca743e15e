"""A backbone on disk, whatever its format: names, shapes, and lazy reading."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from prompt_tuning.backbones.common import stored
from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.core.context import Spec
from prompt_tuning.interop import placing
from prompt_tuning.interop.lazy import Lazy, UnreadableError
from prompt_tuning.interop.placing import Shardings

# No axis of a T5 is longer.
_LARGEST = 1 << 31


@dataclasses.dataclass(frozen=True)
class Source:
  """Attributes:
  path: what the user gave. config: the architecture, read from the files.
  arrays: name in the backbone's own tree (no `target/`) -> array, layers unrolled.
  prompts: name -> array of what is no part of the backbone, such as a trained prompt.
  vocabulary: "bytes", a SentencePiece file or tokenizer.json, or None where none lies
    beside the weights.
  step: training step of the checkpoint, if it says.
  family: the class of backbones that a config makes.
  """

  path: Any
  config: Any
  arrays: Mapping[str, Lazy]
  prompts: Mapping[str, Lazy] = dataclasses.field(default_factory=dict)
  vocabulary: str | None = None
  step: int | None = None
  family: Callable[[Any], Any] = T5

  @property
  def backbone(self) -> Any:
    """The backbone that it holds."""
    return self.family(self.config)

  @property
  def spec(self) -> Spec:
    """Of the backbone that it holds."""
    return self.backbone.spec


def load(
  source: Source,
  expected: Any = None,
  shardings: Shardings | Callable[[Any], Shardings] | None = None,
  dtype: Any = None,
) -> tuple[Any, Any]:
  """(backbone, weights); each array is read once, straight into its place.

  The host holds what it keeps and, at most, one array more: layers are stacked, kernels
  transposed and numbers cast while they are read, large arrays first.

  Args:
    source: where from.
    expected: architecture bound elsewhere, which must be the source's; its switches
      (dropout, dtypes, scan, remat) apply.
    shardings: name in the backbone's own tree (`encoder/layers/...` where layers are
      scanned) -> where the array shall live, or a function of the backbone that gives
      them. Each process then reads the slices of its own devices. Names left out, and
      all for None, go to the default device.
    dtype: to keep the weights in, such as "bfloat16", which rounds to 8 bits, or
      "int8", which rounds matrices (`int8.Quantised`) and keeps the rest; None for
      the switch `weights_dtype` of `expected`. Where that is None too, the stored ones
      are kept, but for float16, which T5 1.1 overflows in and which is widened to
      float32.

  Raises:
    ValueError: if the architecture differs, or if weights are missing, unknown, of
      another shape, or no finite floating-point numbers (all are named).
  """
  backbone = stored.fitting(source.backbone, expected, str(source.path))
  if dtype is not None:
    dtype = backbone.recast(weights_dtype=dtype).switches["weights_dtype"]
  else:
    dtype = backbone.switches["weights_dtype"]
  shapes = _shapes(source.backbone)
  stored.check_names(shapes, dict(source.arrays), str(source.path))
  given = source.path, backbone, shardings, dtype
  return backbone, placing.load(source.arrays, *given)


@functools.lru_cache(maxsize=8)
def _shapes(backbone: Any) -> dict[str, jax.ShapeDtypeStruct]:
  """Unrolled name -> shape, of a backbone as files state it."""
  return placing.unrolled_shapes(backbone)


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
        "1.1, mT5, Flan and ByT5, with an encoder and a decoder."
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

  if type(max_distance) is not int or max(vocab_size, *mlp, buckets) > _LARGEST:
    raise UnreadableError(
      f"{where!r} is no T5: a table [{vocab_size} {emb_dim}], a kernel {mlp}, "
      f"{buckets} buckets up to a distance of {max_distance!r}."
    )
  try:
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
  except ValueError as error:
    raise UnreadableError(f"{where!r} is no T5: {error}") from error
