"""config.json of decoders of Hugging Face: what it must say, and what is refused."""

import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from prompt_tuning.backbones.decoder.config import DecoderConfig
from prompt_tuning.interop.lazy import UnreadableError

ACTIVATIONS = {
  "silu": "silu",
  "swish": "silu",
  "gelu": "gelu",
  "gelu_new": "gelu_tanh",
  "gelu_fast": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "relu": "relu",
}
# model_type -> field -> (what its absence means, values that this network computes).
FIXED = {
  "llama": {},
  "gpt2": {
    "scale_attn_weights": (True, (True,)),
    "scale_attn_by_inverse_layer_idx": (False, (False,)),
    "add_cross_attention": (False, (False, None)),
  },
  "opt": {
    "do_layer_norm_before": (True, (True,)),
    "layer_norm_elementwise_affine": (True, (True,)),
    "_remove_final_layer_norm": (False, (False,)),
  },
  "gpt_neox": {},
}
# No axis of a model is longer.
_LARGEST = 1 << 31


class Fields:
  """Fields of a config.json, each read as the kind that it must be.

  Attributes:
    stated: name -> value. where: the file is.
  """

  def __init__(self, stated: Mapping[str, Any], where: str) -> None:
    self.stated, self.where = stated, where

  def _read(
    self, name: str, absent: Any, fits: Callable[[Any], bool], what: str
  ) -> Any:
    value = self.stated.get(name)
    value = absent if value is None else value
    if not fits(value):
      raise UnreadableError(
        f"{self.where!r} says {name} is {reprlib.repr(value)}; it must be {what}."
      )
    return value

  def size(self, name: str, absent: int | None = None) -> int:
    """A whole number from 1."""

    def fits(value: Any) -> bool:
      return type(value) is int and 1 <= value <= _LARGEST

    return self._read(name, absent, fits, "a whole number from 1")

  def number(self, name: str, absent: float) -> float:
    """A number above 0."""

    def fits(value: Any) -> bool:
      return type(value) in (int, float) and 0 < value < math.inf

    return float(self._read(name, absent, fits, "a number above 0"))

  def flag(self, name: str, absent: bool) -> bool:
    """True or false."""
    kind = "true or false"
    return self._read(name, absent, lambda value: isinstance(value, bool), kind)

  def mark(self, name: str, absent: int) -> int:
    """An id, or the first of several."""
    value = self.stated.get(name)
    first = value[0] if isinstance(value, list) and value else value
    first = absent if first is None else first
    if type(first) is not int or first < 0:
      raise UnreadableError(
        f"{self.where!r} says {name} is {reprlib.repr(value)}; it must be an id."
      )
    return first

  def activation(self, name: str, absent: str) -> str:
    """A function of `ACTIVATIONS`."""
    known = f"one of {', '.join(ACTIVATIONS)}"

    def fits(value: Any) -> bool:
      return isinstance(value, str) and value in ACTIVATIONS

    return ACTIVATIONS[self._read(name, absent, fits, known)]

  def rope(self) -> dict[str, Any]:
    """What is said of turned positions, by the names of either release.

    Raises:
      UnreadableError: for wave lengths that are stretched for long texts.
    """
    found = {}
    for name in ("rope_parameters", "rope_scaling"):
      block = self.stated.get(name)
      if block is None:
        continue
      kind = isinstance(block, dict) and block.get("rope_type", block.get("type"))
      if kind not in ("default", None):
        raise UnreadableError(
          f"{self.where!r} says {name} {reprlib.repr(block)}; this library knows the "
          "rope_type 'default' alone."
        )
      found |= block
    return found


def config_of(kind: str, stated: Mapping[str, Any], where: str) -> DecoderConfig:
  """The architecture that a config.json describes.

  Args:
    kind: its model_type, one of `FIXED`. stated: its fields. where: it is.

  Raises:
    UnreadableError: for what is missing, malformed, or no decoder of this library.
  """
  fields = Fields(stated, where)
  for name, (absent, known) in FIXED[kind].items():
    if stated.get(name, absent) not in known:
      raise UnreadableError(
        f"{where!r} says {name} {reprlib.repr(stated[name])}; this library's {kind} "
        f"knows {known[0]!r} alone."
      )
  try:
    return DecoderConfig(**_KINDS[kind](fields))
  except ValueError as error:
    if isinstance(error, UnreadableError):
      raise
    raise UnreadableError(f"{where!r}: {error}") from error


def _sizes(fields: Fields, width: str, layers: str, heads: str) -> dict[str, Any]:
  H, N = fields.size(width), fields.size(heads)
  if H % N and "head_dim" not in fields.stated:
    raise UnreadableError(f"{fields.where!r}: {heads} {N} does not divide {width} {H}.")
  return {
    "vocab_size": fields.size("vocab_size"),
    "emb_dim": H,
    "num_heads": N,
    "num_kv_heads": N,
    "head_dim": H // N,
    "num_decoder_layers": fields.size(layers),
  }


def _llama(fields: Fields) -> dict[str, Any]:
  sizes = _sizes(fields, "hidden_size", "num_hidden_layers", "num_attention_heads")
  rope = Fields({**fields.stated, **fields.rope()}, fields.where)
  return {
    **sizes,
    "num_kv_heads": fields.size("num_key_value_heads", sizes["num_heads"]),
    "head_dim": fields.size("head_dim", sizes["head_dim"]),
    "mlp_dim": fields.size("intermediate_size"),
    "norm_epsilon": fields.number("rms_norm_eps", 1e-6),
    "rope_base": rope.number("rope_theta", 10000.0),
    "rope_share": rope.number("partial_rotary_factor", 1.0),
    "num_positions": fields.size("max_position_embeddings", 2048),
    "mlp_activation": fields.activation("hidden_act", "silu"),
    "attention_bias": fields.flag("attention_bias", False),
    "mlp_bias": fields.flag("mlp_bias", False),
    "logits_via_embedding": fields.flag("tie_word_embeddings", False),
    "start_id": fields.mark("bos_token_id", 1),
    "end_id": fields.mark("eos_token_id", 2),
  }


def _plain(fields: Fields, epsilon: str, activation: str, default: str) -> Any:
  """Of a GPT-2 and what followed it."""
  return {
    "norm": "layer",
    "norm_epsilon": fields.number(epsilon, 1e-5),
    "mlp_activation": fields.activation(activation, default),
    "mlp_gated": False,
    "mlp_bias": True,
  }


def _gpt2(fields: Fields) -> dict[str, Any]:
  sizes = _sizes(fields, "n_embd", "n_layer", "n_head")
  return {
    **sizes,
    **_plain(fields, "layer_norm_epsilon", "activation_function", "gelu_new"),
    "mlp_dim": fields.size("n_inner", 4 * sizes["emb_dim"]),
    "positions": "learned",
    "num_positions": fields.size("n_positions", 1024),
    "attention_bias": True,
    "logits_via_embedding": fields.flag("tie_word_embeddings", True),
    "start_id": fields.mark("bos_token_id", 50256),
    "end_id": fields.mark("eos_token_id", 50256),
  }


def _opt(fields: Fields) -> dict[str, Any]:
  sizes = _sizes(fields, "hidden_size", "num_hidden_layers", "num_attention_heads")
  inner = fields.size("word_embed_proj_dim", sizes["emb_dim"])
  if inner != sizes["emb_dim"]:
    raise UnreadableError(
      f"{fields.where!r} says word_embed_proj_dim {inner} beside hidden_size "
      f"{sizes['emb_dim']}; this library's opt has one width."
    )
  bias = fields.flag("enable_bias", True)
  return {
    **sizes,
    **_plain(fields, "layer_norm_eps", "activation_function", "relu"),
    "mlp_dim": fields.size("ffn_dim"),
    "positions": "learned",
    "num_positions": fields.size("max_position_embeddings", 2048),
    "position_offset": 2,
    "attention_bias": bias,
    "mlp_bias": bias,
    "logits_via_embedding": fields.flag("tie_word_embeddings", True),
    "start_id": fields.mark("bos_token_id", 2),
    "end_id": fields.mark("eos_token_id", 2),
  }


def _neox(fields: Fields) -> dict[str, Any]:
  sizes = _sizes(fields, "hidden_size", "num_hidden_layers", "num_attention_heads")
  rope = fields.rope()
  older = {
    "rope_theta": fields.stated.get("rotary_emb_base"),
    "partial_rotary_factor": fields.stated.get("rotary_pct"),
  }
  rope = Fields({**older, **rope}, fields.where)
  return {
    **sizes,
    **_plain(fields, "layer_norm_eps", "hidden_act", "gelu"),
    "mlp_dim": fields.size("intermediate_size"),
    "rope_base": rope.number("rope_theta", 10000.0),
    "rope_share": rope.number("partial_rotary_factor", 0.25),
    "num_positions": fields.size("max_position_embeddings", 2048),
    "parallel_residual": fields.flag("use_parallel_residual", True),
    "attention_bias": fields.flag("attention_bias", True),
    "logits_via_embedding": fields.flag("tie_word_embeddings", False),
    "start_id": fields.mark("bos_token_id", 0),
    "end_id": fields.mark("eos_token_id", 2),
  }


_KINDS = {"llama": _llama, "gpt2": _gpt2, "opt": _opt, "gpt_neox": _neox}
