"""The T5 encoder and decoder stacks.

Names, shapes and logical axes of parameters follow T5X's minimal network. Layers run
unrolled (`layers_0` ...) or scanned (one `layers` branch with a leading layer axis);
both give the same logits.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning.backbones.common import fused
from prompt_tuning.backbones.common.attend import mask_bias, pairs
from prompt_tuning.backbones.common.changes import Changes
from prompt_tuning.backbones.common.layered import Layered, marked
from prompt_tuning.backbones.common.linear import Dense, Embedder
from prompt_tuning.backbones.common.prefix import Prefix, places
from prompt_tuning.backbones.common.walk import Walk, layer_modules
from prompt_tuning.backbones.t5.attention import RelativeBias
from prompt_tuning.backbones.t5.blocks import (
  DecoderLayer,
  EncoderLayer,
  PerLayer,
)
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.backbones.t5.layers import RMSNorm
from prompt_tuning.core import partition


class Stack(Walk):
  """What both stacks share: the position bias, the final norm."""

  config: T5Config
  train: bool = False

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
    self.layers = layer_modules(EncoderLayer, config, self.depth, self.train)
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
    x_BTH = marked(x_BTH.astype(self.config.dtype))
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
    self.layers = layer_modules(DecoderLayer, config, self.depth, self.train)
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
    x_BUH = marked(x_BUH.astype(self.config.dtype))
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
    sizes = self.config.vocab_size, self.config.emb_dim
    self.token_embedder = Embedder(*sizes, self.config.dtype)
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
