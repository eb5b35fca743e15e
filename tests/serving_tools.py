"""Prompts of random numbers, and what is written of them to be served."""

import functools

import jax
import method_tools
import numpy as np

from prompt_tuning import answer, export
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.engine import evaluate, product
from prompt_tuning.interop.load import load

# Logits are of order 1; programs differ in how XLA fuses them.
TOLERANCE = 1e-5


def made(tiny_folder, folder, method, place="front", labels=None, card=None, **numbers):
  """A product of random numbers for the tiny backbone, in its folder.

  Args:
    tiny_folder: the backbone. folder: where `prompt/` goes. method: of `gin/methods/`.
    place, labels: for the card. card: more of it. numbers: macros of the method.
  """
  loaded = load(tiny_folder)
  found = method_tools.load(method, folder, **numbers)
  model = PromptedModel(loaded.backbone, found.prompt)
  layout = {"place": place}
  backbone = {"name": tiny_folder, "fingerprint": loaded.fingerprint, "width": 16}
  said = {"method": method, "layout": layout, "backbone": backbone}
  said["task"] = {"labels": labels}
  said |= card or {}
  params = {}
  if found.prompt is not None:
    params["prompt"] = method_tools.random_params(
      model.prompt_shapes(loaded.params), scale=1.0
    )
  if "backbone" in found.trainable:
    # What trained a little: a scale that is clearly another.
    params["backbone"] = jax.tree.map(lambda x: 1.5 * x, loaded.params)
  params = jax.tree.map(np.asarray, params)
  product.Product(found.prompt, params, said).save(folder / "prompt")
  return folder / "prompt"


def write(to, prompt, out, *flags):
  """Runs the verb; returns the folder that it wrote."""
  export.main([f"--to={to}", f"--prompt={prompt}", f"--output={out}", *flags])
  return out


def records(ready, texts, labels, output, external=None, task=None):
  """What the library itself answers, one record a text.

  Args:
    ready: of `answer.session`. texts, labels, output: as for `evaluate.predictor`.
    external, task: as for `pt.predict`.
  """
  vocabulary = ready.loaded.vocabulary
  beside = ready.wants.beside(len(texts), task, external)
  examples = answer.examples(vocabulary, texts, beside)
  run = evaluate.predictor(ready.model, vocabulary, labels, output)
  run = functools.partial(run, ready.params)
  return evaluate.in_order(run, examples, ready.layout(examples), len(texts))
