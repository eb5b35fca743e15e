"""A frozen backbone and a prompt as one model.

The backbone embeds, a Context is built, the prompt answers with an Injection, the
backbone obeys it. Parameters are {"backbone": ..., "prompt": ...}, "head" where there
is one, and while training also "objective" (what an objective owns) and "teacher"
(prompts that only teach).

A head is a module of `heads/`: `view` names what it reads of the backbone (one of its
`views`), and `__call__(seen, spec, train)` makes something other than words of it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import unfreeze
from jaxtyping import Array, Float

from prompt_tuning.core.backbone import Backbone, Reading, prompt_key
from prompt_tuning.core.context import Context, Spec, frozen, real_rows
from prompt_tuning.core.fitted import fitted
from prompt_tuning.core.format import FORM, EncoderDecoder
from prompt_tuning.core.injection import Injection
from prompt_tuning.core.randomness import streams
from prompt_tuning.core.trainable import flatten

Params = dict[str, Any]
Batch = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class PromptedModel:
  """Backbone and prompt.

  Attributes:
    backbone: pure functions of its weights.
    prompt: `core.prompt.Prompt` or `Together`; None for the bare model. What it says
      of an encoder is said to the stack that there is, see `core.fitted`.
    segments: S, how many examples a packed row may hold; 1 where rows are not packed.
    teachers: name -> another prompt on the same backbone, whose parameters are the
      branch `teacher/NAME`. They have the student's lengths.
    head: answers in other than words, from the branch `head`; None for none.
  """

  backbone: Backbone
  prompt: Any = None
  segments: int = 1
  teachers: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
  head: Any = None

  def __post_init__(self) -> None:
    if self.prompt is not None:
      object.__setattr__(self, "prompt", fitted(self.prompt, self.backbone.spec))
    known = getattr(self.backbone, "views", ())
    if self.head is not None and self.head.view not in known:
      raise ValueError(
        f"The head (HEAD) reads {self.head.view!r} of the backbone, which gives "
        f"{list(known) or 'nothing to heads'}. Set HEAD_POOL to one of these."
      )

  @property
  def lengths(self) -> dict[str, int]:
    """Virtual positions that batches must reserve, by side."""
    return {} if self.prompt is None else self.prompt.lengths

  def init_prompt(self, key: Any, backbone_params: Any, encode: Any = None) -> Params:
    """Draws the prompt's parameters; `encode` turns text into piece ids."""
    if self.prompt is None:
      return {}
    spec = self._spec(backbone_params, encode)
    return self._init_prompt(key, backbone_params, spec)

  def prompt_shapes(self, backbone_params: Any) -> Params:
    """Shapes of the prompt's parameters for weights or their shapes."""
    if self.prompt is None:
      return {}

    def draw(key, params):
      return self._init_prompt(key, params, self._spec(params))

    return jax.eval_shape(draw, jax.random.key(0), backbone_params)

  def init_head(self, key: Any) -> Params:
    """Draws the head's parameters; none without one."""
    if self.head is None:
      return {}
    spec = self.backbone.spec
    return self.head.init(key, jnp.zeros((1, spec.width)), spec).get("params", {})

  def head_shapes(self) -> Params:
    """Shapes of the head's parameters."""
    return jax.eval_shape(self.init_head, jax.random.key(0))

  def trains(self, branches: Sequence[str]) -> tuple[str, ...]:
    """The branches that train: those named, and the head, which nobody else trains."""
    named = any(name.split("/")[0] == "head" for name in branches)
    more = () if self.head is None or named else ("head",)
    return (*branches, *more)

  def logical_axes(self, params: Any) -> dict[str, tuple[str | None, ...]]:
    """Path of a parameter -> names of its axes; a few have none.

    Args:
      params: all parameters, or what has their shapes. The prompt's are read, never
        drawn: a loaded prompt cannot draw any.
    """
    found = flatten({"backbone": self.backbone.logical_axes()})
    if self.prompt is None:
      return found

    def read(backbone: Any, prompt: Any) -> Any:
      inputs = self._first_context(backbone), self._spec(backbone)
      return self.prompt.apply({"params": prompt}, *inputs, mutable="params_axes")[1]

    shapes = jax.eval_shape(read, params["backbone"], params.get("prompt", {}))
    marks = unfreeze(shapes).get("params_axes", {})
    for path, mark in flatten({"prompt": marks}).items():
      found[path.removesuffix("_axes")] = tuple(mark.names)
    return found

  def _spec(self, backbone_params: Any, encode: Any = None) -> Spec:
    table_VH = self.backbone.table(backbone_params)
    return dataclasses.replace(self.backbone.spec, table=table_VH, encode=encode)

  def _init_prompt(self, key: Any, backbone_params: Any, spec: Spec) -> Params:
    context = self._first_context(backbone_params)
    return self.prompt.init(key, context, spec).get("params", {})

  def _first_context(self, backbone_params: Any) -> Context:
    """A row with something in it, to learn shapes from."""
    length = max(4, sum(self.lengths.values()))
    batch = {"inputs": jnp.full((1, length), self.backbone.spec.ids.end, jnp.int32)}
    if self.segments > 1:
      batch["segment_ids"] = jnp.ones_like(batch["inputs"])
    each = (1,) if self.segments == 1 else (1, self.segments)
    if self.prompt.external_width:
      batch["external"] = jnp.zeros((*each, self.prompt.external_width))
    if self.prompt.tasks:
      batch["task"] = jnp.zeros(each, jnp.int32)
    return self.context(backbone_params, batch)

  def context(self, backbone_params: Any, batch: Batch) -> Context:
    """What the prompt may read of a batch; all of it is data, none of it trains."""
    inputs_BT = batch["inputs"]
    places = batch.get("prompt_index"), batch.get("segment_ids")
    rows = real_rows(inputs_BT, *places, self.segments, self.backbone.spec.ids)
    if self.segments == 1:
      # No reserved position is left in a row, so its tail is padding in every row.
      keep = inputs_BT.shape[1] - self._reserved_columns(batch)
      ids_BT, mask_BT = rows.ids[:, :keep], rows.mask[:, :keep]
      rows = dataclasses.replace(rows, ids=ids_BT, mask=mask_BT, own_mask=mask_BT)
    ids_RT = jnp.where(rows.own_mask, rows.split(rows.ids), 0)
    encoding_RTH = None
    if "encoding" in self.prompt.needs and "code" not in batch:
      embeddings_BTH = self.backbone.embed(backbone_params, rows.ids)
      encoding_RTH = rows.split(
        self.backbone.encode_rows(
          backbone_params, embeddings_BTH, rows.mask, rows.segments
        )
      )
    if "external" in self.prompt.needs and "external" not in batch:
      raise ValueError(
        "The prompt reads external vectors, but the batch has no feature `external`. "
        "Use a task that supplies one vector an example."
      )
    if "task" in self.prompt.needs and "task" not in batch:
      raise ValueError(
        "The prompt reads the task of each example, but the batch has no feature "
        "`task`. Train on a mixture, which numbers its tasks, and say the task of what "
        "is asked."
      )
    context = Context(
      ids=ids_RT,
      mask=rows.own_mask,
      embeddings=self.backbone.embed(backbone_params, ids_RT),
      task=_by_example(batch.get("task"), 1),
      encoding=encoding_RTH,
      external=_by_example(batch.get("external"), 2),
      code=_by_example(batch.get("code"), 2),
      segments=self.segments,
    )
    return frozen(context)

  def codes(self, params: Params, batch: Batch) -> Float[Array, "R C"]:
    """What the prompt makes of the frozen encoding of each example, dropout off.

    Given back as the feature `code`, it spares that pass of the encoder.
    """
    return self.prompt.apply(
      {"params": params.get("prompt", {})},
      self.context(params["backbone"], batch),
      self.backbone.spec,
      method="code",
    )

  def _reserved_columns(self, batch: Batch) -> int:
    if self.segments > 1 or "prompt_index" not in batch:
      return 0
    return self.backbone.format.reserved(self.lengths)["inputs"]

  def inject(self, params: Params, batch: Batch, key: Any = None) -> Injection | None:
    """Asks the prompt (None without one); `key` switches its dropout on."""
    return self.prompted(params, batch, key)[0]

  def prompted(
    self, params: Params, batch: Batch, key: Any = None
  ) -> tuple[Injection | None, dict[str, Any]]:
    """The injection, and what words sowed as "aux": path of the word -> values."""
    if self.prompt is None:
      return None, {}
    context = self.context(params["backbone"], batch)
    spec = self.backbone.spec
    if "table" in self.prompt.needs:
      table_VH = frozen(self.backbone.table(params["backbone"]))
      spec = dataclasses.replace(spec, table=table_VH)
    injection, sown = self.prompt.apply(
      {"params": params.get("prompt", {})},
      context,
      spec,
      train=key is not None,
      rngs=None if key is None else self._streams(key),
      mutable=["aux"],
    )
    return injection, flatten(sown.get("aux", {}))

  def _streams(self, key: Any) -> dict[str, Any]:
    """A key for each kind of noise that some word draws; dropout's is `key` itself."""
    named = sorted(streams(self.prompt) - {"dropout"})
    others = {name: jax.random.fold_in(key, i) for i, name in enumerate(named, 1)}
    return {"dropout": key, **others}

  def headed(self, params: Params, seen: Array, key: Any = None) -> Array:
    """What the head makes of its view, such as float32 [R C].

    Raises:
      ValueError: where there is none.
    """
    if self.head is None:
      raise ValueError(
        "The objective or the output reads a head, but there is none (`HEAD` is None). "
        "Include gin/heads/pooled.gin, or a method that brings one."
      )
    rngs = None if key is None else {"dropout": key}
    weights, spec = {"params": params["head"]}, self.backbone.spec
    return self.head.apply(weights, seen, spec, train=key is not None, rngs=rngs)

  def taught(self, params: Params, name: str) -> tuple["PromptedModel", Params]:
    """The model under one of its `teachers`, and the parameters that it reads.

    Raises:
      ValueError: where there is no teacher of that name.
    """
    if name not in self.teachers:
      raise ValueError(
        f"`TEACHERS` has no {name!r}, from which the objective learns; there are "
        f"{sorted(self.teachers)}. Name a prompt's folder there."
      )
    model = dataclasses.replace(self, prompt=self.teachers[name], teachers={})
    held = params.get("teacher", {}).get(name, {})
    return model, {"backbone": params["backbone"], "prompt": held}

  def read(self, params: Params, batch: Batch) -> tuple[Reading, Injection | None]:
    """What the backbone makes of the inputs, and what else answering asks for."""
    injection = self.inject(params, batch)
    return self.backbone.read(params["backbone"], batch, injection), injection

  def features(self, inputs: Array, targets: Array) -> Batch:
    """Model features of plain id arrays [B T] and [B U], prompts in front."""
    return features(inputs, targets, self.lengths, self.backbone.format)

  def logits(
    self, params: Params, batch: Batch, key: Any = None
  ) -> Float[Array, "B U V"]:
    """float32 logits of a batch of features; `key` switches dropout on."""
    return self.backbone.logits(params["backbone"], self.states(params, batch, key))

  def states(
    self, params: Params, batch: Batch, key: Any = None
  ) -> Float[Array, "B U H"]:
    """The last states of the targets, from which `backbone.logits` makes logits."""
    own = None if key is None else prompt_key(key)
    injection = self.inject(params, batch, own)
    return self.backbone.run(params["backbone"], batch, injection, key)[0]


def _by_example(values: Array | None, rank: int) -> Array | None:
  """Values of each example [R ...]; those of packed rows come as [B S ...]."""
  if values is None or values.ndim == rank:
    return values
  return values.reshape(-1, *values.shape[2:])


def features(
  inputs: Array,
  targets: Array,
  lengths: dict[str, int],
  form: EncoderDecoder = FORM,
) -> Batch:
  """Model features of plain id arrays, prompt positions reserved in front.

  Args:
    inputs: token ids [B T]. targets: token ids [B U]; both padded behind.
    lengths: positions to reserve, by side. form: of the backbone (`Backbone.format`).
  """
  ids = jnp.asarray(inputs, jnp.int32), jnp.asarray(targets, jnp.int32)
  return form.convert(*ids, lengths, xp=jnp)
