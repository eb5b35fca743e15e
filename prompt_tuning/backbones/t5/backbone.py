"""A T5 as the rest of the library sees it: pure functions of a parameter tree.

The only reader of `Injection` for this family. Parameters are the tree that
`network.Transformer` makes, named as T5X names them.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.core import unfreeze
from flax.linen import partitioning
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning.backbones.common import changes, fused, int8, layered, texts
from prompt_tuning.backbones.common import prefix as prefixes
from prompt_tuning.backbones.t5 import cached, traces, views
from prompt_tuning.backbones.t5.config import IDS, SWITCHES, T5Config
from prompt_tuning.backbones.t5.network import Transformer
from prompt_tuning.backbones.t5.places import places
from prompt_tuning.core import injection as inject
from prompt_tuning.core.context import Spec
from prompt_tuning.core.format import EncoderDecoder
from prompt_tuning.core.injection import Injection

Params = Any


class Encoded(NamedTuple):
  """What the decoder reads of the inputs.

  Attributes:
    states: encodings [B T H]. mask: true where they may be attended to [B T].
  """

  states: Float[Array, "B T H"]
  mask: Bool[Array, "B T"]


def _keys(key: Any) -> tuple[Any, Any]:
  """Keys of the encoder and of the decoder; see `core.backbone.prompt_key`."""
  if key is None:
    return None, None
  read_key, write_key = jax.random.split(key)
  return jax.random.split(read_key)[1], write_key


@dataclasses.dataclass(frozen=True)
class T5:
  """A backbone of one architecture; weights travel beside it.

  Attributes:
    config: the architecture.
    found: filled by each pass with what `traces` names; None where nobody asks.
  """

  config: T5Config
  found: dict[str, Array] | None = dataclasses.field(default=None, compare=False)

  family = "t5"
  # What heads may read, and objectives that compare layers.
  views = views.VIEWS
  traces = traces.TRACES

  @property
  def spec(self) -> Spec:
    config = self.config
    return Spec(config.emb_dim, config.vocab_size, places(config), ids=IDS)

  @property
  def format(self) -> EncoderDecoder:
    return EncoderDecoder(IDS)

  @property
  def architecture(self) -> dict[str, Any]:
    """What must match for weights to fit, as JSON has it."""
    return self.config.to_json()

  @property
  def switches(self) -> dict[str, Any]:
    """What may change while weights still fit."""
    return {name: getattr(self.config, name) for name in SWITCHES}

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

  def traced(self, *args: Any) -> tuple[Any, dict[str, Array]]:
    """What `run` gives, and of each of `traces` the values in every layer."""
    tracing = T5(self.config, {})
    return tracing.run(*args), tracing.found

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
    return self.apply(params, "embed", ids)

  def encode_rows(
    self,
    params: Params,
    embeddings_BTH: Float[Array, "B T H"],
    mask_BT: Bool[Array, "B T"],
    segments_BT: Int[Array, "B T"] | None = None,
  ) -> Float[Array, "B T H"]:
    """Encodings of rows without a prompt, packed or not, dropout off."""
    return self.apply(params, "encode", embeddings_BTH, mask_BT, segments_BT)

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
    mask_BT = IDS.is_real(inputs_BT)
    segments_BT = batch.get("segment_ids")
    injection = injection or Injection()
    offset, slots = injection.get("encoder.offset"), injection.get("encoder.input")
    if offset is not None:
      places_BT = texts.places(batch, IDS)
      x_BTH = inject.add(x_BTH, offset.vectors, places_BT, segments_BT)
    held, index_BT = injection.get("encoder.layers"), batch.get("prompt_index")
    if held is not None:
      mask_BT &= layered.visible(held, index_BT, segments_BT)
    if slots is not None:
      index_BT = layered.of_input(batch["prompt_index"], held)
      x_BTH = inject.fill(x_BTH, slots.vectors, index_BT, segments_BT)
      if slots.mask is not None:
        mask_BT &= inject.visible(slots.mask, index_BT, segments_BT)
    B = x_BTH.shape[0]
    prefix = self.prefixed(injection.get("encoder.kv"), B, segments_BT)
    changed = self.changed(injection, "encoder", B, segments_BT)
    placed = None
    if held is not None:
      front = 0 if prefix is None else prefix.allowed.shape[-1]
      rows = batch["prompt_index"], front, 0, segments_BT, IDS.is_real(inputs_BT)
      placed = layered.layered(held, *self.walked("encoder"), *rows)
    encoded_BTH = self.apply(
      params, "encode", x_BTH, mask_BT, segments_BT, prefix, changed, placed, key=key
    )
    return encoded_BTH, mask_BT

  def prefixed(self, held: Any, B: int, segments_BT: Any = None) -> Any:
    if held is None:
      return None
    if held.shift:
      raise ValueError(
        "`AtKeysValues.shift` is True, but a T5 numbers no positions. Leave it out."
      )
    vectors = held.vectors, held.mask
    heads = self.config.num_heads, self.config.head_dim
    scanned = self.config.scan_layers
    return prefixes.prefix(*vectors, B, segments_BT, heads, scanned)

  def walked(self, stack: str) -> tuple[int, bool]:
    """How many layers a stack has, and whether they are scanned."""
    return getattr(self.config, f"num_{stack}_layers"), self.config.scan_layers

  def changed(self, injection: Injection | None, stack: str, *rows: Any) -> Any:
    inputs = {name: tables.inputs for name, tables in self.spec.places.items()}
    return changes.of(injection, stack, inputs, *rows)

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
    segments_BT = batch.get("segment_ids")
    injection = injection or Injection()
    slots, held = injection.get("decoder.input"), injection.get("decoder.layers")
    if slots is not None:
      index_BU = layered.of_input(batch["decoder_prompt_index"], held)
      x_BUH = inject.fill(x_BUH, slots.vectors, index_BU, segments_BU)
    B = x_BUH.shape[0]
    prefix, placed = self.prefixed(injection.get("decoder.kv"), B, segments_BU), None
    if held is not None:
      front = 0 if prefix is None else prefix.allowed.shape[-1]
      rows = batch["decoder_prompt_index"], front, 0, segments_BU
      placed = layered.layered(held, *self.walked("decoder"), *rows)
    return self.apply(
      params,
      "decode",
      x_BUH,
      encoded_BTH,
      encoder_mask_BT,
      segments_BU,
      segments_BT,
      prefix,
      self.prefixed(injection.get("cross.kv"), B, segments_BU),
      self.changed(injection, "decoder", B, segments_BU, segments_BT),
      placed,
      key=key,
    )

  def view(
    self,
    params: Params,
    name: str,
    batch: dict[str, Array],
    reading: Encoded,
    injection: Injection | None = None,
    key: Any = None,
    front: int = 0,
    segments: int = 1,
  ) -> Float[Array, "R H"]:
    """One vector an example, for heads; see `backbones.t5.views`.

    Args:
      params: the weights. name: one of `views`. batch, injection, key: as for `run`.
      reading: what it made of them.
      front: positions of the decoder's prompt. segments: S.
    """
    if name == "mean":
      return texts.mean(reading.states, batch, segments, self.spec.ids)
    begun = views.start(batch, front, segments)
    given = *reading, injection, _keys(key)[1]
    states_BUH = self.states(params, begun, *given)
    return states_BUH[:, front :: front + 1].reshape(-1, self.spec.width)

  def decode(self, params: Params, *args: Any, **kwargs: Any) -> Float[Array, "B U V"]:
    """float32 logits at every target position; arguments are those of `states`."""
    return self.logits(params, self.states(params, *args, **kwargs))

  def run(
    self,
    params: Params,
    batch: dict[str, Array],
    injection: Injection | None = None,
    key: Any = None,
  ) -> tuple[Float[Array, "B U H"], Encoded]:
    """The decoder's states at every target position, and what the encoder made."""
    read_key, write_key = _keys(key)
    reading = self.read(params, batch, injection, read_key)
    return self.states(params, batch, *reading, injection, write_key), reading

  def read(
    self,
    params: Params,
    batch: dict[str, Array],
    injection: Injection | None = None,
    key: Any = None,
  ) -> Encoded:
    """What the decoder will read; see `encode`."""
    return Encoded(*self.encode(params, batch, injection, key))

  def continued(
    self,
    params: Params,
    reading: Encoded,
    targets_BU: Int[Array, "B U"],
    injection: Injection | None = None,
    key: Any = None,
  ) -> Float[Array, "B U H"]:
    """States of targets behind what was read; mapped over targets, it stays one."""
    injection = injection or Injection()
    slots, held = injection.get("decoder.input"), injection.get("decoder.layers")
    reserved = 0 if slots is None else slots.vectors.shape[1]
    reserved += 0 if held is None else held.length
    batch = self.format.written(targets_BU, {"decoder": reserved}, xp=jnp)
    given = *reading, injection, _keys(key)[1]
    return self.states(params, batch, *given)[:, reserved:]

  def logits(
    self, params: Params, states: Float[Array, "*X H"]
  ) -> Float[Array, "*X V"]:
    """float32 logits of the decoder's states."""
    return self.apply(params, "logits", states).astype(jnp.float32)

  def prefill(
    self,
    params: Params,
    reading: Encoded,
    room: int,
    injection: Injection | None = None,
  ) -> tuple[Float[Array, "B V"], cached.Memory, cached.Cache]:
    """What decoding starts from: the prompt and the start token are read.

    Args:
      params: the weights. reading: of `read`. room: tokens that will be fed back.
      injection: what the prompt asks for, or None.

    Returns:
      Logits of the first token; what all later steps read (`extend`'s `memory`); and
      the cache that they hand on, whose rows lie along `cache_axis`.
    """
    return cached.prefill(self, params, *reading, room, injection or Injection())

  def extend(
    self,
    params: Params,
    ids_B: Int[Array, " B"],
    memory: cached.Memory,
    cache: cached.Cache,
    index: Int[Array, ""],
  ) -> tuple[Float[Array, "B V"], cached.Cache]:
    """Logits after the token at place `index` (from 0), and the cache with it."""
    x_BUH = self.embed(params, ids_B)[:, None]
    return cached.step(self, params, x_BUH, memory, cache, memory.opening + index)

  def apply(self, params: Params, method: str, *args: Any, key: Any = None) -> Any:
    rngs = None
    if key is not None:
      # Encoder and decoder must not drop the same places.
      rngs = {"dropout": jax.random.fold_in(key, ("encode", "decode").index(method))}
    module, given = self.module(train=key is not None), {"params": params}
    if self.found is None:
      return module.apply(given, *args, rngs=rngs, method=method)
    out, sown = module.apply(given, *args, rngs=rngs, method=method, mutable=["trace"])
    self.found.update(traces.kept(sown))
    return out
