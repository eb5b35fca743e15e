"""A T5 as the rest of the library sees it: pure functions of a parameter tree.

The only reader of `Injection` for this family. Parameters are the tree that
`network.Transformer` makes, named as T5X names them.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import unfreeze
from flax.linen import partitioning
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning.backbones.t5 import fused, int8
from prompt_tuning.backbones.t5 import prefix as prefixes
from prompt_tuning.backbones.t5.config import SWITCHES, T5Config
from prompt_tuning.backbones.t5.network import Transformer
from prompt_tuning.core import injection as inject
from prompt_tuning.core.context import Spec
from prompt_tuning.core.injection import Injection

Params = Any
Cache = Any


@dataclasses.dataclass(frozen=True)
class T5:
  """A backbone of one architecture; weights travel beside it.

  Attributes:
    config: the architecture.
  """

  config: T5Config

  family = "t5"

  @property
  def spec(self) -> Spec:
    config = self.config
    return Spec(
      width=config.emb_dim,
      heads=config.num_heads,
      head_width=config.head_dim,
      encoder_layers=config.num_encoder_layers,
      decoder_layers=config.num_decoder_layers,
      vocabulary=config.vocab_size,
    )

  @property
  def cache_axis(self) -> int:
    """Which axis of a cache's arrays is the batch."""
    return 1 if self.config.scan_layers else 0

  def module(self, train: bool = False) -> Transformer:
    return Transformer(self.config, train)

  def recast(self, **switches: Any) -> "T5":
    """The same architecture with other switches, such as dropout_rate=0.1.

    Raises:
      ValueError: for a switch that there is not, or that does not fit the others.
    """
    unknown = sorted(set(switches) - set(SWITCHES))
    if unknown:
      raise ValueError(f"{unknown} are no switches; there are {list(SWITCHES)}.")
    return T5(dataclasses.replace(self.config, **switches))

  def check_device(self) -> None:
    """Raises ValueError for a switch that this machine cannot follow."""
    fused.check(self.config.attention)

  def init(self, key: Any) -> Params:
    """Random weights, drawn as T5 draws them."""
    return self._init(key)["params"]

  def logical_axes(self) -> Params:
    """The logical axis names of every parameter, as a tree of tuples."""
    shapes = jax.eval_shape(self._init, jax.random.key(0))
    specs = unfreeze(partitioning.get_axis_names(shapes["params_axes"]))
    # A PartitionSpec is a tuple in some versions of JAX only.
    return jax.tree.map(tuple, specs, is_leaf=lambda x: not isinstance(x, dict))

  def shapes(self) -> Params:
    """Shapes and dtypes of the weights; nothing is allocated."""
    return jax.eval_shape(self.init, jax.random.key(0))

  def held_shapes(self) -> Params:
    """The same, as `T5Config.weights_dtype` says to keep weights once they are read."""
    dtype = self.config.weights_dtype
    if dtype == "int8":
      return int8.shapes(self.shapes())
    return jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype), self.shapes()
    )

  def _init(self, key: Any) -> Any:
    ids = jnp.ones((1, 2), jnp.int32)
    return self.module().init(key, ids, ids)

  def table(self, params: Params) -> Float[Array, "V H"]:
    """The token table."""
    table = params["token_embedder"]["embedding"]
    return table.wide() if isinstance(table, int8.Quantised) else table

  def embed(self, params: Params, ids: Int[Array, "*X"]) -> Float[Array, "*X H"]:
    return self._apply(params, "embed", ids)

  def encode_rows(
    self,
    params: Params,
    embeddings_BTH: Float[Array, "B T H"],
    mask_BT: Bool[Array, "B T"],
    segments_BT: Int[Array, "B T"] | None = None,
  ) -> Float[Array, "B T H"]:
    """Encodings of rows without a prompt, packed or not, dropout off."""
    return self._apply(params, "encode", embeddings_BTH, mask_BT, segments_BT)

  def encode(
    self,
    params: Params,
    batch: dict[str, Array],
    injection: Injection | None = None,
    key: Any = None,
  ) -> tuple[Float[Array, "B T H"], Bool[Array, "B T"]]:
    """Encodings of a batch and which of them the decoder may attend to.

    Args:
      params: the weights.
      batch: `inputs`; `prompt_index` where positions are reserved; `segment_ids` where
        rows are packed.
      injection: what the prompt asks for, or None.
      key: dropout key; None switches dropout off.
    """
    inputs_BT = batch["inputs"]
    x_BTH = self.embed(params, inputs_BT)
    mask_BT = inputs_BT > 0
    segments_BT = batch.get("segment_ids")
    if injection is not None and injection.encoder_input is not None:
      index_BT = batch["prompt_index"]
      x_BTH = inject.fill(x_BTH, injection.encoder_input, index_BT, segments_BT)
      if injection.encoder_mask is not None:
        mask_BT &= inject.visible(injection.encoder_mask, index_BT, segments_BT)
    prefix = None
    if injection is not None and injection.encoder_kv is not None:
      prefix = prefixes.prefix(
        injection.encoder_kv,
        injection.encoder_kv_mask,
        x_BTH.shape[0],
        segments_BT,
        self.config,
      )
    encoded_BTH = self._apply(
      params, "encode", x_BTH, mask_BT, segments_BT, prefix, key=key
    )
    return encoded_BTH, mask_BT

  def states(
    self,
    params: Params,
    batch: dict[str, Array],
    encoded_BTH: Float[Array, "B T H"],
    encoder_mask_BT: Bool[Array, "B T"],
    injection: Injection | None = None,
    key: Any = None,
  ) -> Float[Array, "B U H"]:
    """The decoder's states at every target position (`decoder_inputs` are shifted)."""
    x_BUH = self.embed(params, batch["decoder_inputs"])
    segments_BU = batch.get("decoder_segment_ids")
    if injection is not None and injection.decoder_input is not None:
      index_BU = batch["decoder_prompt_index"]
      x_BUH = inject.fill(x_BUH, injection.decoder_input, index_BU, segments_BU)
    prefix = None
    if injection is not None and injection.decoder_kv is not None:
      prefix = prefixes.prefix(
        injection.decoder_kv, None, x_BUH.shape[0], segments_BU, self.config
      )
    return self._apply(
      params,
      "decode",
      x_BUH,
      encoded_BTH,
      encoder_mask_BT,
      segments_BU,
      batch.get("segment_ids"),
      prefix,
      key=key,
    )

  def decode(self, params: Params, *args: Any, **kwargs: Any) -> Float[Array, "B U V"]:
    """float32 logits at every target position; arguments are those of `states`."""
    return self.logits(params, self.states(params, *args, **kwargs))

  def logits(
    self, params: Params, states: Float[Array, "*X H"]
  ) -> Float[Array, "*X V"]:
    """float32 logits of the decoder's states."""
    return self._apply(params, "logits", states).astype(jnp.float32)

  def start(
    self,
    params: Params,
    encoded_BTH: Float[Array, "B T H"],
    length: int,
    injection: Injection | None = None,
  ) -> tuple[Any, Cache, int]:
    """What decoding starts from.

    Returns:
      cross-attention keys and values, made once; a cache with `length` free places;
      the first of these, behind the keys and values that the prompt supplies.
    """
    cross = self._apply(params, "cross", encoded_BTH)
    config, B = self.config, encoded_BTH.shape[0]
    depth, first = config.num_decoder_layers, 0
    shape = (depth, B, length, config.num_heads, config.head_dim)
    cache = (jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))
    if injection is not None and injection.decoder_kv is not None:
      first = injection.decoder_kv.shape[-2]
      own = prefixes.stacked(injection.decoder_kv, B, config)
      cache = tuple(
        jnp.concatenate([x.astype(config.dtype), free], axis=2)
        for x, free in zip(own, cache, strict=True)
      )
    return cross, prefixes.per_layer(cache, config), first

  def step(
    self,
    params: Params,
    embeddings_BUH: Float[Array, "B U H"],
    cross: Any,
    cache: Cache,
    index: Int[Array, ""],
    encoder_mask_BT: Bool[Array, "B T"],
  ) -> tuple[Float[Array, "B V"], Cache]:
    """Logits after the last of the next U embeddings, and the cache with them."""
    states_BUH, cache = self._apply(
      params, "step", embeddings_BUH, cross, cache, index, encoder_mask_BT
    )
    return self.logits(params, states_BUH[:, -1]), cache

  def _apply(self, params: Params, method: str, *args: Any, key: Any = None) -> Any:
    rngs = None
    if key is not None:
      # Encoder and decoder must not drop the same places.
      rngs = {"dropout": jax.random.fold_in(key, ("encode", "decode").index(method))}
    module = self.module(train=key is not None)
    return module.apply({"params": params}, *args, rngs=rngs, method=method)
