"""A BERT: embeddings of words, places and types, a stack, the heads of its files."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.linen import partitioning
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning.backbones.bert.config import BertConfig
from prompt_tuning.backbones.bert.layers import ACTIVATIONS, Affine, Layer, norm
from prompt_tuning.backbones.common.attend import mask_bias, pairs
from prompt_tuning.backbones.common.changes import Changes
from prompt_tuning.backbones.common.layered import Layered
from prompt_tuning.backbones.common.linear import Embedder
from prompt_tuning.backbones.common.prefix import Prefix
from prompt_tuning.backbones.common.walk import Walk, layer_modules
from prompt_tuning.core import partition
from prompt_tuning.core.axes import along


def _run_layer(layer: nn.Module, *args: Any) -> tuple[Any, Any]:
  return layer(*args)


class Encoder(Walk):
  """Normed embeddings -> states of the last layer, behind which stands no norm."""

  @property
  def depth(self) -> int:
    return self.config.num_layers

  def setup(self) -> None:
    self.layers = layer_modules(Layer, self.config, self.depth, self.train)

  def __call__(
    self,
    x_BTH: Float[Array, "B T H"],
    mask_BT: Bool[Array, "B T"],
    segments_BT: Int[Array, "B T"] | None = None,
    prefix: Prefix | None = None,
    changes: Changes | None = None,
    placed: Layered | None = None,
  ) -> Float[Array, "B T H"]:
    allowed = pairs(None, mask_BT, segments_BT, segments_BT)
    layers = None
    if prefix is not None:
      shape = jnp.broadcast_shapes(allowed.shape[:-1], prefix.allowed.shape[:-1])
      both = (
        jnp.broadcast_to(x, (*shape, x.shape[-1])) for x in (prefix.allowed, allowed)
      )
      allowed, layers = jnp.concatenate([*both], axis=-1), prefix.layers
    per_layer = layers, changes or None, placed and placed.layers
    shared = mask_bias(allowed), placed and placed.slots
    return self.walk(_run_layer, x_BTH, per_layer, *shared)[0]


class Embeddings(nn.Module):
  """What is added to the row of each token, and the norm of the sum."""

  config: BertConfig
  train: bool

  @nn.compact
  def __call__(
    self,
    x_BTH: Float[Array, "B T H"],
    positions_BT: Int[Array, "B T"],
    types_BT: Int[Array, "B T"] | None = None,
  ) -> Float[Array, "B T H"]:
    config = self.config
    first = nn.initializers.normal(0.02)

    def table(name: str, rows: int) -> Float[Array, "X H"]:
      shape = rows, config.emb_dim
      return partitioning.param_with_axes(name, first, shape, axes=(None, "embed"))

    types_XH = table("types", config.types)
    # A gather of rows that all are the first would be made at every position.
    own = types_XH[:1] if types_BT is None else jnp.take(types_XH, types_BT, axis=0)
    rows_BTH = jnp.take(
      table("positions", config.positions), positions_BT, axis=0, mode="clip"
    )
    x_BTH = x_BTH.astype(jnp.float32) + rows_BTH.astype(jnp.float32)
    x_BTH = norm(config, "norm")(x_BTH + along(own, x_BTH))
    drop = nn.Dropout(config.dropout_rate, deterministic=not self.train)
    return partition.placed(drop(x_BTH), "batch", "length", "embed")


class MaskedWords(nn.Module):
  """LN(act(h W + b)), of which the token table makes logits, with a bias of its own."""

  config: BertConfig

  def setup(self) -> None:
    config = self.config
    sizes = config.emb_dim, config.emb_dim
    self.dense = Affine(*sizes, ("embed", "joined_kv"), config.dtype)
    self.norm = norm(config)
    self.bias = partitioning.param_with_axes(
      "bias", nn.initializers.zeros, (config.vocab_size,), axes=("vocab",)
    )

  def __call__(self, states: Float[Array, "*X H"]) -> Float[Array, "*X H"]:
    config = self.config
    kind = config.activation if config.kind == "bert" else "gelu"
    return self.norm(ACTIVATIONS[kind](self.dense(states)))


class Bert(nn.Module):
  """A whole encoder; methods give its stages, so that a prompt can stand between."""

  config: BertConfig
  train: bool = False

  def setup(self) -> None:
    config = self.config
    sizes = config.vocab_size, config.emb_dim
    self.token_embedder = Embedder(*sizes, config.dtype)
    self.embeddings = Embeddings(config, self.train)
    self.encoder = Encoder(config, self.train)
    if config.pooler:
      width = config.emb_dim
      self.pooler = Affine(width, width, ("embed", "joined_kv"), config.dtype)
    if config.mlm_head:
      self.masked_words = MaskedWords(config)

  def __call__(self, inputs_BT: Array) -> Any:
    """Everything once, to initialise every parameter."""
    mask_BT = jnp.ones(inputs_BT.shape, bool)
    positions_BT = jnp.zeros_like(inputs_BT)
    x_BTH = self.encode(self.embed(inputs_BT), positions_BT, None, mask_BT)
    pooled = self.pooled(x_BTH[:, 0]) if self.config.pooler else None
    return pooled, self.logits(x_BTH) if self.config.mlm_head else None

  def embed(self, ids: Int[Array, "*X"]) -> Float[Array, "*X H"]:
    return self.token_embedder(ids)

  def encode(
    self, x_BTH: Array, positions_BT: Array, types_BT: Any, *args: Any
  ) -> Float[Array, "B T H"]:
    """States of word rows [B T H]; see `Embeddings` and `Encoder`."""
    return self.encoder(self.embeddings(x_BTH, positions_BT, types_BT), *args)

  def pooled(self, states: Float[Array, "*X H"]) -> Float[Array, "*X H"]:
    """tanh(h W + b)."""
    return jnp.tanh(self.pooler(states))

  def logits(self, states: Float[Array, "*X H"]) -> Float[Array, "*X V"]:
    """float32 logits of masked words over all V rows."""
    found = self.token_embedder.attend(self.masked_words(states))
    bias = self.masked_words.bias.astype(jnp.float32)
    return found + along(bias, found)
