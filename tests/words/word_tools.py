"""A code, a context and a table for words, and numpy for what they should make."""

import jax
import jax.numpy as jnp
import method_tools as tools
import numpy as np

from prompt_tuning.core.context import Code, Context, Spec, Tables
from prompt_tuning.core.prompt import Prompt
from prompt_tuning.inits import uniform
from prompt_tuning.parameterisers.dense import Dense

R, Q, C, V = 3, 6, 8, 40
SHAPE = (1, 4, C)
LENGTHS = (6, 2, 4)
RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=(R, Q, C)).astype(np.float32)
MASK = np.arange(Q)[None] < np.array(LENGTHS)[:, None]
IDS = np.where(MASK, RNG.integers(3, V, (R, Q)), 0)
# Row i of the table holds i, so that a row tells which token it was.
TABLE = np.repeat(np.arange(V, dtype=np.float32)[:, None], C, axis=1)
PLACES = {f"{side}.input": Tables(1, C) for side in ("encoder", "decoder")}
SPEC = Spec(C, V, PLACES, TABLE, lambda text: [ord(x) - ord("a") + 3 for x in text])
CODE = Code(jnp.asarray(VALUES), jnp.asarray(MASK))
CONTEXT = Context(
  ids=jnp.asarray(IDS),
  mask=jnp.asarray(MASK),
  embeddings=jnp.asarray(VALUES),
  encoding=jnp.asarray(VALUES[:, ::-1]),
  external=jnp.asarray(VALUES[:, 0]),
)


def run(word, *arguments, params=None, **options):
  """The word's result as numpy, and the parameters (at random) it was made with."""
  if params is None:
    shapes = jax.eval_shape(lambda key: word.init(key, *arguments), jax.random.key(0))
    params = tools.random_params(shapes.get("params", {}))
  found = word.apply({"params": params}, *arguments, **options)
  return found, jax.tree.map(np.asarray, params)


def generate(word, **options):
  drawn, params = run(word, CODE, SHAPE, SPEC, **options)
  assert drawn.prompt.shape == (R, *SHAPE)
  return np.asarray(drawn.prompt).reshape(R, -1), params


def close(left, right):
  tools.assert_close(left, right, 2e-6)


def draw(initializer, *shape):
  return np.asarray(initializer(jax.random.key(0), shape, SPEC))


def static(length, site=None):
  return Prompt(length, Dense(uniform.zeros()), site or "encoder.input")
