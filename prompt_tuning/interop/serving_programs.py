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
from jaxtyping import Array, Int

from prompt_tuning.core.model import RESERVED_ID, PromptedModel
from prompt_tuning.core.trainable import flatten, unflatten
from prompt_tuning.data import vocabularies
from prompt_tuning.data.batches import check_labels
from prompt_tuning.data.given import Wants
from prompt_tuning.decoding import decode, score
from prompt_tuning.engine.conventions import Conventions
from prompt_tuning.interop import serving_reads
from prompt_tuning.interop.serving_card import FORMAT
from prompt_tuning.interop.serving_settings import Settings
from prompt_tuning.outputs import choice

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
  """

  model: PromptedModel
  params: Any
  vocabulary: Any
  settings: Settings
  card: dict[str, Any]

  @property
  def weights(self) -> dict[str, Array]:
    """Every weight by its name; a program's arguments in this order."""
    return {name: jnp.asarray(value) for name, value in flatten(self.params).items()}

  @property
  def programs(self) -> dict[str, Program]:
    """Functions to lower."""
    made = {"generate": self._generate}
    if self.settings.labels:
      made["choose"] = self._choose
    return made

  def _generate(self, weights: Any, features: Any) -> dict[str, Array]:
    batch, output = self._batch(features), self.settings.output
    ids, log_probs = decode.generate(self.model, unflatten(weights), batch, output)
    return {"ids": ids, "log_probability": log_probs}

  def _choose(self, weights: Any, features: Any) -> dict[str, Array]:
    encode = functools.partial(vocabularies.encode, self.vocabulary)
    ids_KU = choice.label_rows(self.settings.labels, encode)
    scores_BK = score.choice_scores(
      self.model,
      unflatten(weights),
      self._batch(features),
      ids_KU,
      self.settings.normalize_by_length,
    )
    return {"scores": scores_BK}

  def _batch(self, features: Mapping[str, Array]) -> dict[str, Array]:
    """Model features of what the programs take."""
    P = self.model.lengths.get("encoder", 0)
    inputs_BT = features["inputs"]
    start_B = starts(inputs_BT, self.card["place"], features.get("mark"))
    ids, prompt_index = reserve(inputs_BT, start_B, P)
    batch = {"inputs": ids, "prompt_index": prompt_index}
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


def starts(
  inputs_BT: Int[Array, "B T"], place: str, mark_B: Int[Array, " B"] | None = None
) -> Int[Array, " B"]:
  """Where each row's reserved positions begin: `data.features.Layout` in a program."""
  last_B = jnp.maximum((inputs_BT > 0).sum(1, dtype=jnp.int32) - 1, 0)
  if place == "mark":
    return jnp.clip(mark_B, 0, last_B)
  if place == "end":
    return last_B
  first = 1 if place == "after_first" else 0
  return jnp.full_like(last_B, first) * (inputs_BT[:, 0] > 0)


def reserve(
  inputs_BT: Int[Array, "B T"], start_B: Int[Array, " B"], length: int
) -> tuple[Int[Array, "B {length}+T"], Int[Array, "B {length}+T"]]:
  """Rows with `length` reserved positions put in, and their prompt_index."""
  T = inputs_BT.shape[1]
  here_1X = jnp.arange(T + length, dtype=jnp.int32)[None]
  place_BX = here_1X - start_B[:, None]
  reserved_BX = (place_BX >= 0) & (place_BX < length)
  source_BX = jnp.where(place_BX < 0, here_1X, here_1X - length)
  ids_BX = jnp.take_along_axis(inputs_BT, jnp.clip(source_BX, 0, T - 1), axis=1)
  ids_BX = jnp.where(reserved_BX, RESERVED_ID, ids_BX)
  return ids_BX, jnp.where(reserved_BX, place_BX, -1)


def servable(session: Any, settings: Settings) -> Servable:
  """What `prompt_tuning.answer.session` made, with its card.

  Raises:
    ValueError: if the prompt cannot be served, or the labels cannot be written.
  """
  loaded, prompt, known = session.loaded, session.prompt, session.known
  settings = settings.filled(known)
  if settings.labels:
    encode = functools.partial(vocabularies.encode, loaded.vocabulary)
    choice.label_rows(settings.labels, encode)
    check_labels(settings.labels, loaded.vocabulary)
  output = settings.output
  card = {
    "format": FORMAT,
    "jax": jax.__version__,
    "platforms": list(settings.platforms),
    "place": known.place,
    "reads": reads(known, loaded.backbone.spec.vocabulary, session.wants),
    "labels": list(settings.labels) if settings.labels else None,
    "normalize_by_length": settings.normalize_by_length,
    "decoding": {"loop": output.loop, **dataclasses.asdict(output)},
    "backbone": {
      "name": loaded.name,
      "fingerprint": loaded.fingerprint,
      "activations": jnp.dtype(loaded.backbone.config.dtype).name,
      "architecture": loaded.backbone.config.to_json(),
    },
    "prompt": prompt.card,
  }
  return Servable(session.model, session.params, loaded.vocabulary, settings, card)


_NOTHING = Wants()


def reads(known: Conventions, ids: int, wants: Wants = _NOTHING) -> dict[str, Any]:
  """What an artifact's card says of reading, from the prompt's; see `serving_reads`.

  Args:
    known: what the prompt's card says. ids: how many the backbone has.
    wants: what the prompt reads besides texts.
  """
  cut = known.truncate and known.inputs is not None
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
    "ids": ids,
    "template": template,
    "inputs": known.inputs if cut else None,
    "truncate": cut,
    **told,
  }
