"""The T5 encoder and decoder stacks.

Names, shapes and logical axes of parameters follow T5X's minimal network. Layers run
unrolled (`layers_0` ...) or scanned (one `layers` branch with a leading layer axis);
both give the same logits.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import partitioning
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning.backbones.t5 import fused, layered
from prompt_tuning.backbones.t5.attention import (
  Attention,
  RelativeBias,
  mask_bias,
  pairs,
)
from prompt_tuning.backbones.t5.changes import Changes
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.backbones.t5.layered import Layered
from prompt_tuning.backbones.t5.layers import Dense, Embedder, FeedForward, RMSNorm
from prompt_tuning.backbones.t5.prefix import KeysValues, Prefix, joined, places
from prompt_tuning.core import partition


def _placed(x: Float[Array, "B T H"]) -> Float[Array, "B T H"]:
  """Marks the residual stream."""
  return partition.placed(x, "batch", "length", "embed")


def _obeyed(
  module: nn.Module, x_BTH: Array, bias: Array, turns: Any, slots: Any
) -> tuple[Array, Array]:
  """States with what a prompt writes before a layer, and the bias that hides slots."""
  if slots is None:
    return x_BTH, bias
  key = None
  if module.train and any(slot.part.reader is not None for slot in slots):
    key = module.make_rng("dropout")
  return layered.write(x_BTH, turns, slots, key), layered.hidden(bias, turns, slots)


class EncoderLayer(nn.Module):
  """Self-attention and feed-forward, each behind a norm and a residual."""

  config: T5Config
  train: bool

  @nn.compact
  def __call__(
    self,
    x_BTH: Float[Array, "B T H"],
    per_layer: tuple[KeysValues | None, Changes | None, Any],
    bias: Float[Array, "#B N T X"],
    slots: Any,
  ) -> tuple[Float[Array, "B T H"], None]:
    config, train = self.config, self.train
    prefix, changes, turns = per_layer
    x_BTH, bias = _obeyed(self, x_BTH, bias, turns, slots)
    drop = nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))
    attention = Attention(config, name="attention")
    y = RMSNorm(config.dtype, name="pre_attention_layer_norm")(x_BTH)
    keys_values = joined(prefix, attention.keys_values(y, changes))
    y = attention(y, keys_values, bias, train, changes)
    x_BTH += drop(y, deterministic=not train)
    y = RMSNorm(config.dtype, name="pre_mlp_layer_norm")(x_BTH)
    y = FeedForward(config, name="mlp")(y, train, changes)
    return _placed(x_BTH + drop(y, deterministic=not train)), None


class PerLayer(NamedTuple):
  """What a layer of the decoder gets of its own; in a scan, with a leading axis.

  Attributes:
    cross: keys and values of cross-attention made before, else None.
    cache: of earlier keys and values, else None.
    prefix, cross_prefix: keys and values in front of those of the tokens, or None.
    changes: see `changes`. turns: see `layered`.
  """

  cross: KeysValues | None = None
  cache: KeysValues | None = None
  prefix: KeysValues | None = None
  cross_prefix: KeysValues | None = None
  changes: Changes | None = None
  turns: Any = None


class DecoderLayer(nn.Module):
  """Causal self-attention, attention to the encoder, feed-forward.

  Run over whole targets, or over the next few tokens with a cache of earlier keys and
  values and with the cross-attention's keys and values made beforehand.
  """

  config: T5Config
  train: bool

  def setup(self) -> None:
    config = self.config
    self.pre_self_attention_layer_norm = RMSNorm(config.dtype)
    self.self_attention = Attention(config)
    self.pre_cross_attention_layer_norm = RMSNorm(config.dtype)
    self.encoder_decoder_attention = Attention(config, "cross")
    self.pre_mlp_layer_norm = RMSNorm(config.dtype)
    self.mlp = FeedForward(config)
    self.dropout = nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))

  def cross(
    self, carry: None, per_layer: Any, encoded_BTH: Array
  ) -> tuple[None, KeysValues]:
    """Keys and values that this layer's cross-attention reads."""
    prefix, changes = per_layer
    made = self.encoder_decoder_attention.keys_values(encoded_BTH, changes)
    return carry, joined(prefix, made)

  def __call__(
    self,
    x_BUH: Float[Array, "B U H"],
    per_layer: "PerLayer",
    self_bias: Float[Array, "#B N U X"],
    cross_bias: Float[Array, "B 1 #U T"],
    encoded_BTH: Float[Array, "B T H"] | None,
    index: Int[Array, ""] | None,
    slots: Any,
  ) -> tuple[Float[Array, "B U H"], KeysValues | None]:
    cross, cache, prefix, cross_prefix, changes, turns = per_layer
    x_BUH, self_bias = _obeyed(self, x_BUH, self_bias, turns, slots)
    y = self.pre_self_attention_layer_norm(x_BUH)
    keys_values = joined(prefix, self.self_attention.keys_values(y, changes))
    if cache is not None:
      keys_values = cache = jax.tree.map(
        lambda old, new: jax.lax.dynamic_update_slice_in_dim(
          old, new.astype(old.dtype), index, axis=1
        ),
        cache,
        keys_values,
      )
    y = self.self_attention(y, keys_values, self_bias, self.train, changes)
    x_BUH += self.dropout(y, deterministic=not self.train)
    y = self.pre_cross_attention_layer_norm(x_BUH)
    attention = self.encoder_decoder_attention
    if cross is None:
      extra = _of_cross(changes), cross_prefix
      y = attention.read(y, encoded_BTH, cross_bias, self.train, *extra)
    else:
      y = attention(y, cross, cross_bias, self.train, changes)
    x_BUH += self.dropout(y, deterministic=not self.train)
    y = self.mlp(self.pre_mlp_layer_norm(x_BUH), self.train, changes)
    x_BUH += self.dropout(y, deterministic=not self.train)
    return _placed(x_BUH), cache


def _of_cross(changes: Changes | None) -> Changes | None:
  """The changes that cross-attention obeys, if there are any."""
  found = {k: v for k, v in (changes or {}).items() if k.startswith("cross.")}
  return found or None


def _layers(cls: type[nn.Module], config: T5Config, count: int, train: bool) -> Any:
  """The blocks of a stack: a list, or one module whose parameters are scanned over."""
  if config.remat_policy != "none":
    policies = jax.checkpoint_policies
    dots = policies.dots_with_no_batch_dims_saveable
    cls = nn.remat(
      cls,
      policy=dots if config.remat_policy == "dots" else policies.nothing_saveable,
      prevent_cse=not config.scan_layers,
    )
  if config.scan_layers:
    return cls(config, train)
  return [cls(config, train) for _ in range(count)]


class Stack(nn.Module):
  """What both stacks share: the position bias, the final norm, the walk of layers."""

  config: T5Config
  train: bool = False

  def walk(self, block: Any, x: Any, per_layer: Any, *shared: Any) -> tuple[Any, Any]:
    """Runs `block(layer, x, entry, *shared)` -> (x, output) through the layers.

    Entries and outputs are one a layer: lists, or arrays with a leading layer axis
    where layers are scanned.
    """
    if self.config.scan_layers:
      return self._scan(block, len(shared))(self.layers, x, per_layer, *shared)
    outputs = []
    for i, layer in enumerate(self.layers):
      own = tuple(_at(part, i) for part in per_layer)
      x, output = block(layer, x, own, *shared)
      outputs.append(output)
    return x, outputs

  def beside(self, prefix: Prefix, bias: Array, places_BT: Array) -> Array:
    """The bias with that of a prefix's slots in front."""
    slots_P = jnp.arange(prefix.allowed.shape[-1]) % prefix.length - prefix.length
    slots = self.relpos_bias(places_BT, slots_P) + mask_bias(prefix.allowed)
    return _behind(slots, bias)

  def fitted(self, bias: Array, x_BQH: Array) -> Array:
    """The bias as attention takes it, made once for all layers."""
    config, (B, Q, _) = self.config, x_BQH.shape
    shape = (B, config.num_heads, Q)
    return fused.bias_of(bias, shape, config.dtype, config.attention)

  def _scan(self, block: Any, shared: int) -> Any:
    # Parameters get a leading axis, which `params_axes` records as "layers".
    return partitioning.scan_with_axes(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=(0, *[nn.broadcast] * shared),
      length=self.depth,
      axis_name="layers",
    )


def _at(part: Any, layer: int) -> Any:
  """One layer's entry of a list, or of arrays with a leading layer axis."""
  if part is None or isinstance(part, list):
    return part and part[layer]
  return jax.tree.map(lambda x: x[layer], part)


def _run_layer(layer: nn.Module, *args: Any) -> tuple[Any, Any]:
  return layer(*args)


def _in_front(prefix: Prefix | None, bias: Array) -> Array:
  """The bias of cross-attention with that of a prefix's slots; it knows no places."""
  if prefix is None:
    return bias
  return _behind(mask_bias(prefix.allowed), bias)


def _behind(slots: Array, bias: Array) -> Array:
  shape = jnp.broadcast_shapes(slots.shape[:-1], bias.shape[:-1])
  both = [jnp.broadcast_to(x, (*shape, x.shape[-1])) for x in (slots, bias)]
  return jnp.concatenate(both, axis=-1)


class Encoder(Stack):
  """Embeddings -> encodings."""

  @property
  def depth(self) -> int:
    return self.config.num_encoder_layers

  def setup(self) -> None:
    config = self.config
    self.relpos_bias = RelativeBias(config, bidirectional=True)
    self.layers = _layers(EncoderLayer, config, self.depth, self.train)
    self.encoder_norm = RMSNorm(config.dtype)
    self.dropout = nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))

  def __call__(
    self,
    x_BTH: Float[Array, "B T H"],
    mask_BT: Bool[Array, "B T"],
    segments_BT: Int[Array, "B T"] | None = None,
    prefix: Prefix | None = None,
    changes: Changes | None = None,
    placed: Layered | None = None,
  ) -> Float[Array, "B T H"]:
    x_BTH = _placed(x_BTH.astype(self.config.dtype))
    T = x_BTH.shape[1]
    bias = self.relpos_bias(jnp.arange(T)[None], jnp.arange(T))
    bias = bias + mask_bias(pairs(None, mask_BT, segments_BT, segments_BT))
    layers = None
    if prefix is not None:
      bias = self.beside(prefix, bias, places(T, segments_BT))
      layers = prefix.layers
    x_BTH = self.dropout(x_BTH, deterministic=not self.train)
    bias = self.fitted(bias, x_BTH)
    per_layer = layers, changes or None, placed and placed.layers
    x_BTH, _ = self.walk(_run_layer, x_BTH, per_layer, bias, placed and placed.slots)
    x_BTH = self.encoder_norm(x_BTH)
    return self.dropout(x_BTH, deterministic=not self.train)


class Decoder(Stack):
  """Target embeddings and encodings -> logits."""

  @property
  def depth(self) -> int:
    return self.config.num_decoder_layers

  def setup(self) -> None:
    config = self.config
    self.relpos_bias = RelativeBias(config, bidirectional=False)
    self.layers = _layers(DecoderLayer, config, self.depth, self.train)
    self.decoder_norm = RMSNorm(config.dtype)
    self.dropout = nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))
    if not config.logits_via_embedding:
      axes = "embed", "vocab"
      self.logits_dense = Dense(config.emb_dim, config.vocab_size, axes, "float32")

  def cross(
    self,
    encoded_BTH: Float[Array, "B T H"],
    prefix: Prefix | None = None,
    changes: Changes | None = None,
  ) -> Any:
    """Keys and values of every layer's cross-attention, made once for decoding."""
    per_layer = (prefix and prefix.layers, changes or None)
    return self.walk(DecoderLayer.cross, None, per_layer, encoded_BTH)[1]

  def __call__(
    self,
    x_BUH: Float[Array, "B U H"],
    encoded_BTH: Float[Array, "B T H"],
    encoder_mask_BT: Bool[Array, "B T"],
    segments_BU: Int[Array, "B U"] | None = None,
    encoder_segments_BT: Int[Array, "B T"] | None = None,
    prefix: Prefix | None = None,
    cross_prefix: Prefix | None = None,
    changes: Changes | None = None,
    placed: Layered | None = None,
  ) -> Float[Array, "B U H"]:
    """Normed states of whole targets, each position seeing those before it."""
    U = x_BUH.shape[1]
    places_U = jnp.arange(U)
    causal_UU = places_U[:, None] >= places_U[None, :]
    bias = self.relpos_bias(places_U[None], places_U)
    bias = bias + mask_bias(pairs(causal_UU, None, segments_BU, segments_BU))
    layers = None
    if prefix is not None:
      bias = self.beside(prefix, bias, places(U, segments_BU))
      layers = prefix.layers
    cross_bias = mask_bias(
      pairs(None, encoder_mask_BT, segments_BU, encoder_segments_BT)
    )
    cross_bias = _in_front(cross_prefix, cross_bias)
    per_layer = PerLayer(
      prefix=layers,
      cross_prefix=cross_prefix and cross_prefix.layers,
      changes=changes or None,
      turns=placed and placed.layers,
    )
    slots = placed and placed.slots
    return self._run(x_BUH, per_layer, bias, cross_bias, encoded_BTH, None, slots)[0]

  def step(
    self,
    x_BUH: Float[Array, "B U H"],
    cross: Any,
    cache: Any,
    index: Int[Array, ""],
    encoder_mask_BT: Bool[Array, "B T"],
    changes: Changes | None = None,
    placed: Layered | None = None,
  ) -> tuple[Float[Array, "B U H"], Any]:
    """Normed states of the next U tokens, the first at position `index`.

    The mask covers the keys of `cross`, those of a prefix included.
    """
    leaf = jax.tree.leaves(cache)[0]
    keys_X = jnp.arange(leaf.shape[-3])
    queries_U = index + jnp.arange(x_BUH.shape[1])
    bias = self.relpos_bias(queries_U[None], keys_X)
    bias = bias + mask_bias(queries_U[:, None] >= keys_X[None, :])[None, None]
    cross_bias = mask_bias(encoder_mask_BT)[:, None, None, :]
    turns, slots = placed and placed.layers, placed and placed.slots
    per_layer = PerLayer(cross, cache, changes=changes or None, turns=turns)
    return self._run(x_BUH, per_layer, bias, cross_bias, None, index, slots)

  def _run(self, x_BUH, per_layer, bias, cross_bias, encoded_BTH, index, slots):
    x_BUH = _placed(x_BUH.astype(self.config.dtype))
    x_BUH = self.dropout(x_BUH, deterministic=not self.train)
    bias, cross_bias = (self.fitted(one, x_BUH) for one in (bias, cross_bias))
    x_BUH, cache = self.walk(
      _run_layer, x_BUH, per_layer, bias, cross_bias, encoded_BTH, index, slots
    )
    x_BUH = self.decoder_norm(x_BUH)
    return self.dropout(x_BUH, deterministic=not self.train), cache


class Transformer(nn.Module):
  """A whole T5; methods give its stages, so that a prompt can stand between them."""

  config: T5Config
  train: bool = False

  def setup(self) -> None:
    self.token_embedder = Embedder(self.config)
    self.encoder = Encoder(self.config, self.train)
    self.decoder = Decoder(self.config, self.train)

  def __call__(self, inputs_BT: Array, targets_BU: Array) -> Array:
    """Plain logits, used to initialise every parameter."""
    x_BTH = self.embed(inputs_BT)
    mask_BT = inputs_BT > 0
    encoded_BTH = self.encode(x_BTH, mask_BT)
    return self.logits(self.decode(self.embed(targets_BU), encoded_BTH, mask_BT))

  def embed(self, ids: Int[Array, "*X"]) -> Float[Array, "*X H"]:
    return self.token_embedder(ids)

  def encode(self, *args: Any) -> Float[Array, "B T H"]:
    return self.encoder(*args)

  def decode(self, *args: Any) -> Float[Array, "B U H"]:
    return self.decoder(*args)

  def cross(self, *args: Any) -> Any:
    return self.decoder.cross(*args)

  def step(self, *args: Any) -> tuple[Array, Any]:
    return self.decoder.step(*args)

  def logits(self, states: Float[Array, "*X H"]) -> Float[Array, "*X V"]:
    """float32 logits over all V rows."""
    if self.config.logits_via_embedding:
      logits = self.token_embedder.attend(states * self.config.emb_dim**-0.5)
    else:
      logits = self.decoder.logits_dense(states.astype(self.config.dtype))
    names = ("batch", "length", "vocab") if logits.ndim == 3 else ("batch", "vocab")
    return partition.placed(logits, *names)
