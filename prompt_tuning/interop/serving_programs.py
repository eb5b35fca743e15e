"""A frozen model with its prompt as functions of weights and features, to be exported.

Rows B and input length T are symbols, so a program takes any (at least one). The
decoding loop can live with that: its cache is as long as the targets, whose number is
fixed here, and T is seen by attention over the encodings alone. Whoever runs a program
should still pad T to a multiple of 16 or so, since XLA compiles each shape once.

The reserved positions of the prompt are put in inside the program.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import Array

from prompt_tuning.core.model import PromptedModel
from prompt_tuning.core.trainable import flatten, unflatten
from prompt_tuning.data import vocabularies
from prompt_tuning.data.batches import check_labels
from prompt_tuning.data.given import Wants
from prompt_tuning.engine.conventions import Conventions
from prompt_tuning.interop import serving_reads
from prompt_tuning.interop.serving_card import FORMAT
from prompt_tuning.interop.serving_settings import Settings
from prompt_tuning.outputs import choice
from prompt_tuning.outputs.output import Output, said

# What a text may bring besides itself.
BESIDE = ("external", "task")
# (weights by name, features by name) -> results by name.
Program = Callable[[Mapping[str, Array], Mapping[str, Array]], dict[str, Array]]


@dataclasses.dataclass(frozen=True, eq=False)
class Servable:
  """What is to be served.

  Attributes:
    model, params: backbone and prompt. vocabulary: see `data.vocabularies`.
    settings: what the programs do. card: of the artifact, but for its files.
    outputs: a program each; without any, those of the settings.
  """

  model: PromptedModel
  params: Any
  vocabulary: Any
  settings: Settings
  card: dict[str, Any]
  outputs: tuple[Output, ...] = ()

  @property
  def weights(self) -> dict[str, Array]:
    """Every weight by its name; a program's arguments in this order."""
    return {name: jnp.asarray(value) for name, value in flatten(self.params).items()}

  @property
  def programs(self) -> dict[str, Program]:
    """Functions to lower."""
    return {
      one.serves: self._program(one) for one in self.outputs or self.settings.outputs
    }

  def _program(self, output: Output) -> Program:
    encode = functools.partial(vocabularies.encode, self.vocabulary)
    answer = output.program(self.model, self.settings.labels, encode)

    def run(weights: Any, features: Any) -> dict[str, Array]:
      return answer(unflatten(weights), self._batch(features), None)

    return run

  def _batch(self, features: Mapping[str, Array]) -> dict[str, Array]:
    """Model features of what the programs take."""
    inputs_BT, form = features["inputs"], self.model.backbone.format
    at_B = form.starts(inputs_BT, self.card["place"], features.get("mark"), jnp)
    batch = form.read(inputs_BT, self.model.lengths, at_B, jnp)
    beside = {name: features[name] for name in BESIDE if name in features}
    return {**batch, **beside}

  def symbols(self) -> dict[str, jax.ShapeDtypeStruct]:
    """The features that the programs take, B and T as symbols."""
    b, t = export.symbolic_shape("b, t")
    found = {"inputs": jax.ShapeDtypeStruct((b, t), jnp.int32)}
    prompt = self.model.prompt
    if prompt is not None and prompt.external_width:
      shape = (b, prompt.external_width)
      found["external"] = jax.ShapeDtypeStruct(shape, jnp.float32)
    if prompt is not None and prompt.tasks:
      found["task"] = jax.ShapeDtypeStruct((b,), jnp.int32)
    if self.card["place"] == "mark":
      found["mark"] = jax.ShapeDtypeStruct((b,), jnp.int32)
    return dict(sorted(found.items()))


def servable(session: Any, settings: Settings) -> Servable:
  """What `prompt_tuning.answer.session` made, with its card.

  Raises:
    ValueError: if the prompt cannot be served, or the labels cannot be written.
  """
  loaded, prompt, known = session.loaded, session.prompt, session.known
  settings = settings.filled(known)
  outputs: tuple[Output, ...] = ()
  if session.model.head is not None:
    session.answering(settings.labels, known.output)
    headed = _headed(session.model, known)
    writes = loaded.backbone.format.writes
    outputs = (settings.output, headed) if writes else (headed,)
  elif settings.labels:
    encode = functools.partial(vocabularies.encode, loaded.vocabulary)
    choice.label_rows(settings.labels, encode)
    check_labels(settings.labels, loaded.vocabulary)
  output = settings.output
  card = {
    "format": FORMAT,
    "jax": jax.__version__,
    "platforms": list(settings.platforms),
    "place": known.place,
    "reads": reads(known, session.model, session.wants),
    "labels": list(settings.labels) if settings.labels else None,
    "normalize_by_length": settings.normalize_by_length,
    "head": said(outputs[-1]) if outputs else None,
    "decoding": {"loop": output.kind, **dataclasses.asdict(output)},
    "backbone": {
      "name": loaded.name,
      "fingerprint": loaded.fingerprint,
      "family": loaded.backbone.family,
      "activations": jnp.dtype(loaded.backbone.switches["dtype"]).name,
      "architecture": loaded.backbone.architecture,
    },
    "prompt": prompt.card,
  }
  made = session.model, session.params, loaded.vocabulary, settings, card
  return Servable(*made, outputs)


def _headed(model: PromptedModel, known: Conventions) -> Output:
  """The output of the prompt's card, which must be the head's."""
  output = known.output
  if output is None or not output.headed:
    raise ValueError(
      "The prompt has a head, but its card does not say how the head answers. Train it "
      "with OUTPUT of a file such as gin/outputs/label.gin."
    )
  output.check(model, known.labels)
  return output


_NOTHING = Wants()


def reads(
  known: Conventions, model: PromptedModel, wants: Wants = _NOTHING
) -> dict[str, Any]:
  """What an artifact's card says of reading, from the prompt's; see `serving_reads`.

  Args:
    known: what the prompt's card says. model: with the prompt, whose ids they are.
    wants: what the prompt reads besides texts.
  """
  form, ids = model.backbone.format, model.backbone.spec.ids
  most = known.inputs if known.truncate else None
  if form.most is not None:
    room = form.most - form.opened - form.reserved(model.lengths)["inputs"]
    most = room if most is None else min(most, room)
  template = None
  if known.reading is not None:
    template = [
      [serving_reads.COLUMN if is_column else serving_reads.TEXT, text]
      for text, is_column in known.reading.pieces
      if text
    ]
  told = {"tasks": wants.tasks, "names": list(wants.names) or None}
  told = told if wants.tasks else {}
  return {
    "ids": model.backbone.spec.vocabulary,
    "marks": {"pad": ids.pad, "end": ids.end, "closed": form.closed},
    "template": template,
    "inputs": most,
    "truncate": most is not None,
    **told,
  }
