"""A causal stack of two layers, tied logits, and ids that are none of a T5's."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from prompt_tuning.core import injection as inject
from prompt_tuning.core.context import Spec, Tables
from prompt_tuning.core.format import Causal
from prompt_tuning.core.ids import Ids
from toy_family import stack

SWITCHES = {"dropout_rate": 0.0, "dtype": "float32", "weights_dtype": None}
SWITCHES |= {"scan_layers": False, "remat_policy": "none"}


class Reading(NamedTuple):
  """`past`: keys and values of each layer [B K J], of which `allowed_BK` are seen."""

  states: Any
  mask: Any
  past: Any
  allowed_BK: Any
  count_B1: Any
  first_B1: Any


@dataclasses.dataclass(frozen=True)
class Toy:
  """V, H, J = N * D with N = 1, L, and which ids are no words: 0 is one."""

  vocabulary: int = 31
  width: int = 12
  inner: int = 10
  layers: int = 2
  ids: Ids = Ids(pad=-1, start=30, end=30, reserved=29)  # noqa: RUF009

  family = "toy"
  cache_axis = 0
  switches = SWITCHES

  @property
  def spec(self):
    tables = {"input": Tables(1, self.width), "kv": Tables(2 * self.layers, self.inner)}
    places = {f"decoder.{name}": asked for name, asked in tables.items()}
    return Spec(self.width, self.vocabulary, places, ids=self.ids)

  @property
  def format(self):
    return Causal(self.ids)

  @property
  def architecture(self):
    sizes = dataclasses.asdict(self)
    return {**sizes, "ids": list(dataclasses.astuple(self.ids))}

  def recast(self, **switches):
    if any(SWITCHES.get(name, self) != value for name, value in switches.items()):
      raise ValueError(f"A toy's switches are {SWITCHES}, got {switches}.")
    return self

  def check_device(self):
    """It runs anywhere."""

  def init(self, key):
    H, J = self.width, self.inner
    sizes = {"query": (H, J), "key": (H, J), "value": (H, J), "out": (J, H)}
    sizes |= {"up": (H, H), "down": (H, H)}
    params = {"table": jax.random.normal(key, (self.vocabulary, H))}
    for i in range(self.layers):
      keys = jax.random.split(jax.random.fold_in(key, i), len(sizes))
      params[f"layers_{i}"] = {
        name: jax.random.normal(one, size) * size[0] ** -0.5
        for one, (name, size) in zip(keys, sizes.items(), strict=True)
      }
    return params

  def shapes(self):
    return jax.eval_shape(self.init, jax.random.key(0))

  held_shapes = shapes

  def logical_axes(self):
    return jax.tree.map(lambda x: (None,) * x.ndim, self.shapes())

  def table(self, params):
    return params["table"]

  def embed(self, params, ids):
    return params["table"][jnp.maximum(ids, 0)]

  def logits(self, params, states):
    return (states @ params["table"].T).astype(jnp.float32)

  def encode_rows(self, params, embeddings_BTH, mask_BT, segments_BT=None):
    group_BT = mask_BT.astype(int) if segments_BT is None else segments_BT
    return stack.whole(self, params, embeddings_BTH, group_BT, mask_BT, None)[0]

  def run(self, params, batch, injection=None, key=None):
    x_BTH, group_BT, seen_BT = self._inputs(params, batch, injection)
    group_BU = self.ids.is_real(batch["targets"]).astype(int)
    group_BU = batch.get("decoder_segment_ids", group_BU)
    x_BXH = [x_BTH, self.embed(params, batch["decoder_inputs"])]
    x_BXH, group_BX, seen_BX = (
      jnp.concatenate(pair, 1)
      for pair in (x_BXH, (group_BT, group_BU), (seen_BT, group_BU > 0))
    )
    given = params, x_BXH, group_BX, seen_BX, injection
    states_BXH, past, allowed_BK = stack.whole(self, *given)
    T, U = group_BT.shape[1], group_BU.shape[1]
    kept = jax.tree.map(lambda x: x[:, :-U], past), allowed_BK[:, :-U]
    rest = seen_BT.sum(1, keepdims=True), batch["decoder_inputs"][:, :1]
    return states_BXH[:, T:], Reading(states_BXH[:, :T], seen_BT, *kept, *rest)

  def read(self, params, batch, injection=None):
    x_BTH, group_BT, seen_BT = self._inputs(params, batch, injection)
    found = stack.whole(self, params, x_BTH, group_BT, seen_BT, injection)
    word_BT = self.ids.is_real(batch["inputs"]) & (batch["prompt_index"] < 0)
    last_B1 = (word_BT * jnp.arange(word_BT.shape[1])).argmax(1)[:, None]
    first_B1 = jnp.take_along_axis(batch["inputs"], last_B1, 1)
    first_B1 = jnp.where(word_BT.any(1)[:, None], first_B1, self.ids.start)
    return Reading(found[0], seen_BT, *found[1:], seen_BT.sum(1)[:, None], first_B1)

  def continued(self, params, reading, targets_BU, injection=None, key=None):
    follows_BU = jnp.concatenate([reading.first_B1, targets_BU[:, :-1]], 1)
    places_U = jnp.arange(follows_BU.shape[1])
    causal = jnp.broadcast_to(
      places_U[:, None] >= places_U, (len(follows_BU), *2 * places_U.shape)
    )
    given = follows_BU, reading, reading.count_B1 + places_U, causal, stack.joined
    return stack.behind(self, params, *given)[0]

  def prefill(self, params, reading, room, injection=None):
    blank = jnp.zeros((len(reading.states), 1 + room, self.inner))
    cache = [(blank, blank)] * self.layers
    logits_BV, cache = self._step(params, reading.first_B1, reading, cache, 0)
    return logits_BV, reading, cache

  def extend(self, params, ids_B, memory, cache, index):
    return self._step(params, ids_B[:, None], memory, cache, index + 1)

  def _step(self, params, ids_B1, memory, cache, index):
    def join(layer, past, new):
      put = jax.lax.dynamic_update_slice_in_dim
      own = [put(x, y, index, 1) for x, y in zip(cache[layer], new, strict=True)]
      return [jnp.concatenate(pair, 1) for pair in zip(past, own, strict=True)]

    room, (B, K) = cache[0][0].shape[1], memory.allowed_BK.shape
    seen = jnp.broadcast_to(jnp.arange(room) <= index, (B, 1, room))
    given = params, ids_B1, memory, memory.count_B1 + index, seen, join
    states_B1H, whole = stack.behind(self, *given)
    logits_BV = self.logits(params, states_B1H[:, -1])
    return logits_BV, [tuple(x[:, K:] for x in pair) for pair in whole]

  def _inputs(self, params, batch, injection):
    """Embeddings, groups, and what is seen: not the token that opens the targets."""
    inputs_BT, index_BT = batch["inputs"], batch["prompt_index"]
    segments_BT, x_BTH = batch.get("segment_ids"), self.embed(params, inputs_BT)
    group_BT = self.ids.is_real(inputs_BT).astype(int)
    group_BT = group_BT if segments_BT is None else segments_BT
    behind_BT = jnp.pad(group_BT, ((0, 0), (0, 1)))[:, 1:]
    seen_BT = (group_BT > 0) & ((group_BT == behind_BT) | (index_BT >= 0))
    slots = injection and injection.get("decoder.input")
    if slots:
      x_BTH = inject.fill(x_BTH, slots.vectors, index_BT, segments_BT)
    return x_BTH, group_BT, seen_BT
