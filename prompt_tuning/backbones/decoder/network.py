"""The stack of a decoder-only language model.

Names and logical axes of parameters are those of a T5's decoder, so that rules of
sharding hold. Layers run unrolled (`layers_0` ...) or scanned (one `layers` branch with
a leading layer axis); both give the same logits.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning.backbones.common.attend import mask_bias
from prompt_tuning.backbones.common.changes import Changes
from prompt_tuning.backbones.common.layered import marked, obeyed
from prompt_tuning.backbones.common.linear import Dense, Embedder
from prompt_tuning.backbones.common.prefix import KeysValues
from prompt_tuning.backbones.common.walk import Walk, layer_modules
from prompt_tuning.backbones.decoder.attention import Attention, Turns, turns
from prompt_tuning.backbones.decoder.config import DecoderConfig
from prompt_tuning.backbones.decoder.layers import FeedForward, Norm
from prompt_tuning.core import partition

# Of the first draw of both tables.
STDDEV = 0.02


class PerLayer(NamedTuple):
  """What a layer gets of its own; in a scan, with a leading axis.

  Attributes:
    past: keys and values before those of the tokens, or None.
    cache: of tokens that were written, else None.
    changes: see `changes`. turns: see `layered`.
  """

  past: KeysValues | None = None
  cache: KeysValues | None = None
  changes: Changes | None = None
  turns: Any = None


class Layer(nn.Module):
  """Attention and feed-forward, each behind a norm, one after the other or at once."""

  config: DecoderConfig
  train: bool

  def setup(self) -> None:
    config = self.config
    self.pre_self_attention_layer_norm = Norm(config)
    self.self_attention = Attention(config)
    self.pre_mlp_layer_norm = Norm(config)
    self.mlp = FeedForward(config)
    self.dropout = nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))

  def __call__(
    self,
    x_BXH: Float[Array, "B X H"],
    per_layer: Sequence[Any],
    bias: Float[Array, "B 1 X K"],
    by: Turns,
    index: Int[Array, ""] | None,
    slots: Any,
  ) -> tuple[Float[Array, "B X H"], KeysValues]:
    """States, and keys and values of the tokens, those in the cache included."""
    past, cache, changes, own = per_layer
    x_BXH, bias = obeyed(self, x_BXH, bias, own, slots)
    y = self.pre_self_attention_layer_norm(x_BXH)
    keys_values = self.self_attention.keys_values(y, by, changes)
    if cache is not None:
      keys_values = jax.tree.map(
        lambda old, new: jax.lax.dynamic_update_slice_in_dim(
          old, new.astype(old.dtype), index, axis=1
        ),
        cache,
        keys_values,
      )
    parts = [keys_values] if past is None else [past, keys_values]
    read = self.self_attention(y, parts, by, bias, self.train, changes)
    behind_BXH = x_BXH + self.dropout(read, deterministic=not self.train)
    y = self.pre_mlp_layer_norm(x_BXH if self.config.parallel_residual else behind_BXH)
    y = self.mlp(y, self.train, changes)
    x_BXH = marked(behind_BXH + self.dropout(y, deterministic=not self.train))
    self.sow("trace", "states", x_BXH)
    return x_BXH, keys_values


def _run_layer(layer: nn.Module, *args: Any) -> tuple[Any, Any]:
  return layer(*args)


class Stack(Walk):
  """States -> normed states."""

  config: DecoderConfig
  train: bool = False

  @property
  def depth(self) -> int:
    return self.config.num_decoder_layers

  def setup(self) -> None:
    config = self.config
    self.layers = layer_modules(Layer, config, self.depth, self.train)
    self.decoder_norm = Norm(config)
    self.dropout = nn.Dropout(config.dropout_rate, broadcast_dims=(-2,))
    if not config.logits_via_embedding:
      axes = "embed", "vocab"
      self.logits_dense = Dense(config.emb_dim, config.vocab_size, axes, "float32")

  def __call__(
    self,
    x_BXH: Float[Array, "B X H"],
    places_BX: Int[Array, "B X"],
    allowed_BXK: Bool[Array, "B X K"],
    per_layer: PerLayer,
    index: Int[Array, ""] | None = None,
    slots: Any = None,
  ) -> tuple[Float[Array, "B X H"], Any]:
    x_BXH = self.dropout(marked(x_BXH), deterministic=not self.train)
    bias, by = mask_bias(allowed_BXK)[:, None], turns(self.config, places_BX)
    given = per_layer, bias, by, index, slots
    x_BXH, keys_values = self.walk(_run_layer, x_BXH, *given)
    return self.decoder_norm(x_BXH), keys_values


class Transformer(nn.Module):
  """A whole decoder; methods give its stages, so that a prompt can stand between."""

  config: DecoderConfig
  train: bool = False

  def setup(self) -> None:
    config = self.config
    sizes = config.vocab_size, config.emb_dim
    self.token_embedder = Embedder(*sizes, config.dtype, stddev=STDDEV)
    if config.positions == "learned":
      rows = config.num_positions + config.position_offset
      table = rows, config.emb_dim, config.dtype
      self.position_embedder = Embedder(*table, "positions", STDDEV)
    self.decoder = Stack(config, self.train)

  def __call__(self, ids_BX: Array, places_BX: Array, allowed_BXX: Array) -> Array:
    """Plain logits, used to initialise every parameter."""
    given = self.embed(ids_BX), places_BX, allowed_BXX, PerLayer()
    return self.logits(self.decode(*given)[0])

  def embed(self, ids: Int[Array, "*X"]) -> Float[Array, "*X H"]:
    return self.token_embedder(ids)

  def decode(
    self,
    x_BXH: Float[Array, "B X H"],
    places_BX: Int[Array, "B X"],
    allowed_BXK: Bool[Array, "B X K"],
    per_layer: PerLayer,
    index: Int[Array, ""] | None = None,
    slots: Any = None,
  ) -> tuple[Float[Array, "B X H"], Any]:
    """Last states of rows, and each layer's keys and values of them.

    Args:
      x_BXH: embeddings, prompts among them. places_BX: of each in its own text, from 0.
      allowed_BXK: which keys each sees, those of the past in front.
      per_layer: what each layer gets. index: place in the cache. slots: of `layered`.
    """
    x_BXH = x_BXH.astype(self.config.dtype)
    if self.config.positions == "learned":
      rows_BX = places_BX + self.config.position_offset
      x_BXH = x_BXH + self.position_embedder(rows_BX)
    return self.decoder(x_BXH, places_BX, allowed_BXK, per_layer, index, slots)

  def logits(self, states: Float[Array, "*X H"]) -> Float[Array, "*X V"]:
    """float32 logits over all V rows."""
    if self.config.logits_via_embedding:
      logits = self.token_embedder.attend(states)
    else:
      logits = self.decoder.logits_dense(states.astype(self.config.dtype))
    names = ("batch", "length", "vocab") if logits.ndim == 3 else ("batch", "vocab")
    return partition.placed(logits, *names)
