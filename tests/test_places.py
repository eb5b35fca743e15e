"""Every place of a T5 against plain matrices, all of them at once and one by one."""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import method_tools as tools
import numpy as np
import pytest

from prompt_tuning.backbones.t5.attention import relative_bucket
from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.backbones.t5.stacking import stack_layers
from prompt_tuning.core.context import Spec, Tables
from prompt_tuning.core.injection import Injection
from prompt_tuning.core.places import KINDS, At, Layers, LowRank, Slots, kind_of
from prompt_tuning.data.features import Layout, pad
from prompt_tuning.data.packing import pack
from prompt_tuning.decoding import decode
from prompt_tuning.outputs.text import Greedy

# No two sizes alike: V, H, N, D, F, layers of the encoder and of the decoder.
CONFIG = T5Config(37, 12, 2, 5, 14, 2, 3)
SCANNED = T5(dataclasses.replace(CONFIG, scan_layers=True))
BACKBONE = T5(CONFIG)
PARAMS = tools.random_params(BACKBONE.shapes())
P, B, T, U = 3, 4, 7, 5
NAMES = sorted(BACKBONE.spec.places)
# Places of virtual positions; those of layers stand in front.
POSITIONS = {name for name in NAMES if name.endswith((".input", ".layers"))}


def example(number: int) -> dict[str, np.ndarray]:
  random = np.random.default_rng(number)
  sizes = 3 + number % 4, 2 + number % 3
  inputs, targets = (np.append(random.integers(3, 37, n), 1) for n in sizes)
  return {"inputs": inputs.astype(np.int32), "targets": targets.astype(np.int32)}


EXAMPLES = [example(number) for number in range(B)]


def layout(names) -> Layout:
  side = [name.partition(".")[0] for name in names if name in POSITIONS]
  return Layout(T, U, *(P * side.count(s) for s in ("encoder", "decoder")))


def batch(names):
  made = layout(names)
  rows = [pad(made.convert(row), made.lengths) for row in EXAMPLES]
  return {k: jnp.asarray(np.stack([row[k] for row in rows])) for k in rows[0]}


def injection(names, R=1):
  """Random records of places, one for all examples or one for each."""
  held = {}
  for name in names:
    count, width, _ = BACKBONE.spec.places[name]
    length = 1 if name.endswith(("scale", "shift")) else P
    random = np.random.default_rng(NAMES.index(name))
    tables = 0.5 * random.normal(size=(R, count, length, width))
    tables = jnp.asarray(tables + name.endswith("scale"), jnp.float32)
    held[name] = At(name)(tables, None, BACKBONE.spec)
  return Injection(held)


# ---- the oracle: one example, no padding, no packing, plain products


WEIGHTS = jax.tree.map(lambda x: np.asarray(x, np.float64), PARAMS)


@functools.cache
def buckets(queries: range, keys: range, causal: bool):
  """Bucket of each key's distance to each query."""
  distance = np.array(keys)[None] - np.array(queries)[:, None]
  return np.asarray(relative_bucket(jnp.asarray(distance), not causal, 32, 128))


def softmax(x):
  x = np.exp(x - x.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)


def gelu(x):
  return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def norm(x, scale):
  return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * scale


def own(values, row):
  """Those of one example."""
  return np.asarray(values, np.float64)[min(row, len(values) - 1)]


class Plain:
  """A T5 of loops over layers and heads in float64, and the records of one example."""

  def __init__(self, injection, row):
    self.row = row
    self.held = {
      name: own(record.vectors, row)
      for name, record in injection.held.items()
      if not isinstance(record, Layers)
    }
    layers = {k: x for k, x in injection.held.items() if isinstance(x, Layers)}
    self.parts = {name: record.parts for name, record in layers.items()}

  def kernel(self, name, layer, kernel, x):
    y = x @ kernel
    low = self.held.get(f"{name}.weight")
    if low is not None:
      left, right = low[layer, :, : x.shape[-1]], low[layer, :, x.shape[-1] :]
      y = y + x @ left.T @ right
    return self.inner(name, layer, y)

  def inner(self, name, layer, y):
    scale, shift = (self.held.get(f"{name}.{kind}") for kind in ("scale", "shift"))
    y = y if scale is None else y * scale[layer]
    y = y if shift is None else y + shift[layer]
    adapter = self.held.get(f"{name}.adapter")
    if adapter is None:
      return y
    down, up = np.split(adapter[layer], 2, axis=-1)
    return y + np.maximum(y @ down.T, 0) @ up

  def attend(self, name, layer, weights, x, source, bias, causal, kv, late=0):
    """`late` counts reserved places in front of x that are not there yet."""
    kernels = {k: weights[k]["kernel"] for k in ("query", "key", "value", "out")}
    query = self.kernel(f"{name}.query", layer, kernels["query"], x)
    key = self.kernel(f"{name}.key", layer, kernels["key"], source)
    value = self.kernel(f"{name}.value", layer, kernels["value"], source)
    queries, keys = range(late, late + len(x)), range(late, late + len(source))
    slots = self.held.get(kv)
    if slots is not None:
      key = np.concatenate([slots[2 * layer], key])
      value = np.concatenate([slots[2 * layer + 1], value])
      keys = range(late - slots.shape[1], late + len(source))
      if late:
        keys = [*range(-slots.shape[1], 0), *keys[slots.shape[1] :]]
    heads = []
    for n in range(CONFIG.num_heads):
      mine = slice(n * CONFIG.head_dim, (n + 1) * CONFIG.head_dim)
      logits = query[:, mine] @ key[:, mine].T
      if bias is not None:
        logits = logits + bias[n][buckets(queries, tuple(keys), causal)]
      if causal:
        later = np.array(keys)[None] > np.array(queries)[:, None]
        logits = np.where(later, -np.inf, logits)
      heads.append(softmax(logits) @ value[:, mine])
    mixed = np.concatenate(heads, -1)
    return self.kernel(f"{name}.out", layer, kernels["out"], mixed)

  def mlp(self, stack, layer, weights, x):
    gate = self.kernel(f"{stack}.mlp.gate", layer, weights["wi_0"]["kernel"], x)
    up = self.kernel(f"{stack}.mlp.up", layer, weights["wi_1"]["kernel"], x)
    hidden = gelu(gate) * up
    hidden = self.inner(f"{stack}.mlp.hidden", layer, hidden)
    return self.kernel(f"{stack}.mlp.down", layer, weights["wo"]["kernel"], hidden)

  def stack(self, stack, x, encoded=None):
    weights = WEIGHTS[stack]
    bias = weights["relpos_bias"]["rel_embedding"]
    own = "attention" if stack == "encoder" else "self_attention"
    first = own if stack == "encoder" else "self_attention"
    causal = stack == "decoder"
    depth = getattr(CONFIG, f"num_{stack}_layers")
    parts = self.parts.get(f"{stack}.layers", ())
    for layer in range(depth):
      w = weights[f"layers_{layer}"]
      x = self.placed(parts, layer, x)
      late = sum(part.length for part in parts if part.first > layer)
      y = norm(x, w[f"pre_{first}_layer_norm"]["scale"])
      sides = y, y, bias, causal, f"{stack}.kv", late
      x = x + self.attend(f"{stack}.self", layer, w[own], *sides)
      if encoded is not None:
        y = norm(x, w["pre_cross_attention_layer_norm"]["scale"])
        sides = y, encoded, None, False, "cross.kv"
        across = w["encoder_decoder_attention"]
        x = x + self.attend("decoder.cross", layer, across, *sides)
      y = norm(x, w["pre_mlp_layer_norm"]["scale"])
      x = x + self.mlp(stack, layer, w["mlp"], y)
    return norm(x, weights[f"{stack}_norm"]["scale"])

  def placed(self, parts, layer, x):
    """States with those of slots in front, new ones or changed ones."""
    at = 0
    for part in parts:
      if part.first > layer:
        continue
      tables = own(part.tables, self.row)
      table = tables[0 if part.once else layer - part.first]
      if part.first == layer:
        x = np.concatenate([x[:at], table, x[at:]])
      elif not part.once:
        old = x[at : at + part.length] if part.add else 0
        x = np.concatenate([x[:at], old + table, x[at + part.length :]])
      at += part.length
    return x

  def logits(self):
    table = WEIGHTS["token_embedder"]["embedding"]
    ids = EXAMPLES[self.row]
    x, y = table[ids["inputs"]], table[np.append(0, ids["targets"][:-1])]
    offset = self.held.get("encoder.offset")
    if offset is not None:
      P = min(len(offset), len(x))
      x = np.concatenate([x[:P] + offset[:P], x[P:]])
    front = [self.held.get(f"{stack}.input") for stack in ("encoder", "decoder")]
    x = x if front[0] is None else np.concatenate([front[0], x])
    y = y if front[1] is None else np.concatenate([front[1], y])
    states = self.stack("decoder", y, self.stack("encoder", x))
    states = states[-len(ids["targets"]) :]
    return states @ WEIGHTS["decoder"]["logits_dense"]["kernel"]


def wanted(found: Injection):
  return [Plain(found, row).logits() for row in range(B)]


@functools.partial(jax.jit, static_argnums=0)
def logits(backbone, params, batch, found):
  encoded = backbone.encode(params, batch, found)
  return backbone.decode(params, batch, *encoded, found)


def check(got_BUV, want, front=0, atol=1e-4):
  for row, own in enumerate(want):
    mine = np.asarray(got_BUV)[row, front : front + len(own)]
    np.testing.assert_allclose(mine, own, rtol=0, atol=atol)


SOME = ["cross.kv", "decoder.cross.value.weight", "encoder.mlp.hidden.scale"]


@pytest.mark.parametrize("R", [1, B])
def test_all_places_at_once(R):
  """Unrolled and scanned, one record for all examples and one for each."""
  found = injection(NAMES, R)
  want = wanted(found)
  for backbone in (BACKBONE, SCANNED):
    scanned = backbone is SCANNED
    params = stack_layers(PARAMS, backbone.config) if scanned else PARAMS
    got = logits(backbone, params, batch(NAMES), found)
    # Every place at once multiplies what float32 rounds in each.
    check(got, want, 2 * P, 1e-3)


# One of each kind, in each stack; the others are in the test of all at once.
CHOSEN = [
  "encoder.input",
  "encoder.layers",
  "encoder.offset",
  "decoder.kv",
  "decoder.layers",
  "decoder.self.key.shift",
  *SOME,
]
if os.environ.get("PROMPT_TUNING_THOROUGH"):
  CHOSEN = NAMES


@pytest.mark.parametrize("name", CHOSEN)
def test_each_place_acts_alone(name):
  found = injection([name])
  got = logits(BACKBONE, PARAMS, batch([name]), found)
  bare = wanted(Injection())
  want = wanted(found)
  check(got, want, front=P * (name in POSITIONS and name.startswith("dec")))
  moved = max(np.abs(a - b).max() for a, b in zip(want, bare, strict=True))
  # A shift of all keys adds the same to each of a query's logits: it does nothing.
  assert moved < 1e-12 if name.endswith("key.shift") else moved > 1e-2


@pytest.mark.parametrize("R", [1, B])
def test_packed_rows(R):
  """What an example changes changes nothing for the others of its row."""
  made = layout(NAMES)
  rows = list(pack([made.convert(row) for row in EXAMPLES], 45, 33, 3))
  packed = {k: jnp.asarray(np.stack([row[k] for row in rows])) for k in rows[0]}
  places = {}
  for number, row in enumerate(EXAMPLES):
    for b, s in np.ndindex(len(rows), 3):
      mine = (rows[b]["segment_ids"] == s + 1) & (rows[b]["prompt_index"] < 0)
      if np.array_equal(rows[b]["inputs"][mine], row["inputs"]):
        places[number] = (b, s)
  found = injection(NAMES, R)
  want = wanted(found)
  if R > 1:
    order = np.zeros(len(rows) * 3, int)
    for number, (b, s) in places.items():
      order[b * 3 + s] = number
    picked = {k: record.pick(jnp.asarray(order)) for k, record in found.held.items()}
    found = Injection(picked)
  got = np.asarray(logits(BACKBONE, PARAMS, packed, found))
  for number, (b, s) in places.items():
    text = np.asarray(packed["decoder_prompt_index"][b]) < 0
    mine = (np.asarray(packed["decoder_segment_ids"][b]) == s + 1) & text
    # So many changes at once multiply each rounding.
    np.testing.assert_allclose(got[b, mine], want[number], rtol=0, atol=2e-4)


@dataclasses.dataclass(frozen=True)
class Model:
  """What `generate` asks of a prompted model."""

  backbone: T5
  found: Injection = dataclasses.field(hash=False, compare=False)
  segments = 1

  def read(self, params, batch):
    return self.backbone.read(params["backbone"], batch, self.found), self.found


@pytest.mark.parametrize("backbone", [BACKBONE, SCANNED], ids=["unrolled", "scanned"])
def test_decoding_obeys_them_all(backbone):
  """Each greedy token is the likeliest one after those before it, all read anew."""
  found, data = injection(NAMES, B), batch(NAMES)
  scanned = backbone is SCANNED
  params = stack_layers(PARAMS, backbone.config) if scanned else PARAMS
  model = Model(backbone, found)
  steps = jax.jit(lambda p, b: decode.generate(model, {"backbone": p}, b, Greedy(U)))
  ids, total = jax.device_get(steps(params, data))
  shifted = np.pad(ids, ((0, 0), (1, 0)))[:, :-1]
  before = np.full((B, 2 * P), 2)
  data = {**data, "decoder_inputs": jnp.asarray(np.concatenate([before, shifted], 1))}
  again = np.asarray(logits(backbone, params, data, found))[:, 2 * P :]
  chances = np.asarray(jax.nn.log_softmax(again))
  for row in range(B):
    end = list(ids[row]).index(1) + 1 if 1 in ids[row] else U
    np.testing.assert_array_equal(again[row].argmax(-1)[:end], ids[row][:end])
    said = chances[row, np.arange(end), ids[row][:end]].sum()
    np.testing.assert_allclose(said, total[row], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["encoder.input", *SOME, "decoder.self.out.shift"])
def test_two_side_by_side(name):
  """Records join as their kinds do, a static one beside one that read the input."""
  one, other = injection([name]).get(name), injection([name], B).get(name)
  both = one.beside(other)
  if name.endswith(("input", "kv")):
    np.testing.assert_array_equal(both.vectors[2, ..., :P, :], one.vectors[0])
    np.testing.assert_array_equal(both.vectors[2, ..., P:, :], other.vectors[2])
  elif name.endswith("weight"):
    assert both.vectors.shape == (B, 3, 2 * P, 22)
  else:
    joined = np.multiply if name.endswith("scale") else np.add
    np.testing.assert_allclose(both.vectors, joined(one.vectors, other.vectors))


def test_masks_side_by_side():
  masked = Slots(jnp.ones((2, 3, 4)), jnp.array([[True] * 3, [False] * 3]))
  both = Slots(jnp.zeros((1, 2, 4))).beside(masked)
  want = [[True] * 5, [True, True, False, False, False]]
  np.testing.assert_array_equal(both.mask, want)
  assert Slots(masked.vectors).beside(Slots(masked.vectors)).mask is None


def test_the_factor_of_a_kernel_is_that_of_its_right_half():
  name = "encoder.self.value.weight"
  tables = jnp.ones((1, 2, P, 22))
  found = At(name, 4.0)(tables, None, BACKBONE.spec).vectors
  np.testing.assert_array_equal(found[..., :12], 1.0)
  np.testing.assert_array_equal(found[..., 12:], 4.0)


@pytest.mark.parametrize(
  ("place", "words"),
  [
    ("encoder", "must name a place"),
    (3, "must name a place"),
    ("encoder.inputs", "ends in one of input, kv"),
  ],
)
def test_what_is_no_place(place, words):
  with pytest.raises(ValueError, match=words):
    At(place)


def test_a_place_that_a_backbone_has_not():
  spec = Spec(12, 37, {"decoder.input": Tables(1, 12)})
  with pytest.raises(ValueError, match="has not. It has decoder.input"):
    At("encoder.kv").tables(spec)


def test_every_kind_has_a_place():
  assert {kind_of(name) for name in NAMES} == set(KINDS.values())
  assert kind_of("decoder.self.query.weight") is LowRank
