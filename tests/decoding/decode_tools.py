"""A tiny T5 whose rows go their own ways, and searches without a cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.core.injection import Injection
from prompt_tuning.core.model import PromptedModel, features
from prompt_tuning.core.places import KeysValues, Slots
from prompt_tuning.decoding import decode

V, U, T, SEED = 23, 6, 7, 40
CONFIG = T5Config(
  vocab_size=V,
  emb_dim=16,
  num_heads=2,
  head_dim=8,
  mlp_dim=32,
  num_encoder_layers=1,
  num_decoder_layers=2,
  mlp_activations=("relu",),
)


@dataclasses.dataclass(frozen=True)
class Given:
  """A prompt whose vectors, keys and values are its parameters."""

  encoder: int = 0
  decoder: int = 0
  slots: int = 0
  needs = frozenset()

  @property
  def lengths(self):
    both = {"encoder": self.encoder, "decoder": self.decoder}
    return {side: length for side, length in both.items() if length}

  def apply(self, variables, context, spec, train=False, rngs=None, mutable=()):
    kinds = {"input": Slots, "kv": KeysValues}
    held = {
      name: kinds[name.partition(".")[2]](value)
      for name, value in variables["params"].items()
    }
    return Injection(held), {}


PROMPTS = {
  "bare": None,
  "both": Given(encoder=2, decoder=3, slots=2),
}


@functools.cache
def setting(name="bare"):
  """A model whose rows go their own ways, and some of which end early."""
  backbone, prompt = T5(CONFIG), PROMPTS[name]
  random = np.random.RandomState(SEED)

  def draw(path, leaf):
    scale = path[-1].key == "scale"
    spread = random.normal(0, leaf.shape[0] ** -0.5, leaf.shape)
    return jnp.asarray(1 + 0.1 * spread if scale else 2 * spread, jnp.float32)

  weights = jax.tree_util.tree_map_with_path(draw, backbone.shapes())
  tables = {
    f"{side}.input": jnp.asarray(
      random.normal(0, 1, (1, length, CONFIG.emb_dim)), jnp.float32
    )
    for side, length in (prompt.lengths if prompt else {}).items()
  }
  layers = CONFIG.num_encoder_layers, CONFIG.num_decoder_layers
  for side, depth in zip(("encoder", "decoder"), layers, strict=True):
    if prompt and prompt.slots:
      shape = (1, 2 * depth, prompt.slots, CONFIG.num_heads * CONFIG.head_dim)
      tables[f"{side}.kv"] = jnp.asarray(random.normal(0, 1, shape) * 0.7, jnp.float32)
  return PromptedModel(backbone, prompt), {"backbone": weights, "prompt": tables}


def inputs(rows=4):
  ids = np.random.RandomState(0).randint(3, V, (rows, T))
  return np.where(np.arange(T) < np.arange(T, T - rows, -1)[:, None], ids, 0)


def batch_of(model, ids):
  batch = features(ids, np.zeros((len(ids), U), int), model.lengths)
  return {name: batch[name] for name in ("inputs", "prompt_index")}


@functools.partial(jax.jit, static_argnames=("model", "decoder"))
def generate(model, params, batch, decoder, key=None):
  return decode.generate(model, params, batch, decoder, key)


@functools.cache
def oracle(name="bare"):
  """(row, prefix) -> log-probabilities of the next token, without a cache."""
  model, params = setting(name)
  P = model.lengths.get("decoder", 0)

  @jax.jit
  def table(params, ids, prefix):
    prefix = jnp.broadcast_to(prefix, (ids.shape[0], U))
    logits = model.logits(params, features(ids, prefix, model.lengths))
    return jax.nn.log_softmax(logits[:, P:])

  @functools.cache
  def after(row, prefix):
    padded = np.array(prefix + (0,) * (U - len(prefix)))
    return np.asarray(table(params, inputs(), padded)[row, len(prefix)], np.float64)

  return after


def padded(prefix, steps=U):
  return list(prefix) + [0] * (steps - len(prefix))


def run(loop, step, cache, first, *args, **options):
  compiled = jax.jit(lambda *given: loop(step, *given, *args, **options))
  return compiled(cache, first)
