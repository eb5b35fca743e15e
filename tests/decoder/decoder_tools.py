"""Decoders that tests share: those of the goldens, and prompts on them."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning.core.model import PromptedModel
from prompt_tuning.core.prompt import Prompt, spread
from prompt_tuning.inits import uniform
from prompt_tuning.interop import decoder_family
from prompt_tuning.parameterisers.dense import Dense

GOLDENS = pathlib.Path(__file__).resolve().parent.parent / "goldens" / "decoders"
NAMES = sorted(path.name for path in GOLDENS.iterdir() if path.is_dir())
# One of each kind of positions, of residuals and of heads.
FEW = ("gpt2", "llama_tied", "neox")
INIT = uniform.symmetric(0.7)


@functools.cache
def found() -> dict[str, np.ndarray]:
  """What transformers gives; see `goldens/make_decoder_goldens.py`."""
  return dict(np.load(GOLDENS / "found.npz"))


@functools.cache
def loaded(name):
  """(backbone, weights) of a folder."""
  opened = decoder_family.open_source(GOLDENS / name)
  return decoder_family.load(opened, None, None, None)


def prompted(name, place=None, length=3, **switches):
  """(model, params) with a table at a place, or at several."""
  backbone, weights = loaded(name)
  if switches:
    backbone = backbone.recast(**switches)
  sites = [place] if isinstance(place, str) else place
  prompt = None
  if sites is not None:
    parts = Prompt(length, Dense(INIT), sites[0])
    prompt = parts if len(sites) == 1 else spread(parts, sites)
  model = PromptedModel(backbone, prompt)
  params = {"backbone": weights}
  if prompt is not None:
    params["prompt"] = model.init_prompt(jax.random.key(2), weights)
  return model, params


def padded(rows, width, pad=-1):
  """Rows of ids, padded behind."""
  made = [[*row, *[pad] * (width - len(row))] for row in rows]
  return jnp.array(made, jnp.int32)
