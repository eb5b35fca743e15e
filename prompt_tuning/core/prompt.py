"""A prompt: condition -> parameterise -> transforms -> site.

A method is such a sentence, bound in one file of `gin/methods/`. The contracts:

* condition: `needs` (fields of Context beyond ids and embeddings) and
  `__call__(context, spec, train) -> Code`. One that needs "encoding" may say `once`:
  its code is one vector that hangs on the input and the frozen backbone alone.
* parameterise: `reads_code` and `__call__(code or None, shape, spec, train) -> Drawn`
  with shape (G, P, H).
* transform: `__call__(drawn, code or None, spec, train) -> Drawn`, with `reads_code`
  where it cannot do without one.
* site: the name of a place of the backbone, or `core.places.At`.

Parameterisers and transforms may have `needs` too; "table" puts the token table into
the Spec that they are called with. A parameteriser with `reads_states` reads what the
encoder's layers make of the text: it takes no code and gives a `core.layers.Reader` in
place of Drawn.

Words draw their parameters through `weight`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
from flax.linen import partitioning
from jaxtyping import Array, Bool, Float

from prompt_tuning.core.context import Code, Context, Spec, pooled
from prompt_tuning.core.injection import Injection
from prompt_tuning.core.places import At, AtLayers, kind_of, site_at
from prompt_tuning.core.several import Several

# Draws a table of the given shape: (key, shape, spec) -> array. Spec carries the token
# table and the tokeniser for those that start from words.
Initializer = Callable[[Any, tuple[int, ...], Spec], Array]
Shape = tuple[int, int, int]

# Most positions of one prompt. Attention costs their square; methods use 1 to 200.
LONGEST = 4096
# Names of the axes of a prompt's tables [G P H], see `core.partition`.
AXES = ("tables", "prompt", "embed")


@flax.struct.dataclass
class Drawn:
  """A prompt on its way to its site.

  Attributes:
    prompt: [R G P H]; R is 1 where no input was read.
    mask: true where a position is in use [R P], or None for all.
  """

  prompt: Float[Array, "R G P H"]
  mask: Bool[Array, "R P"] | None = None


def weight(
  module: nn.Module,
  name: str,
  initializer: Initializer | None,
  shape: Sequence[int],
  spec: Spec,
  axes: Sequence[str | None] | None = None,
) -> Array:
  """A float32 parameter of a word, drawn while initialising and read afterwards.

  A loaded prompt has no initialiser, and one that starts from words cannot run without
  a tokeniser; so, unlike Flax's own, this never calls it to check a shape.

  Args:
    module, name: whose parameter, and which. initializer: draws it. shape: its sizes.
    spec: of the backbone.
    axes: a name for each axis, by which it may be divided over devices (see
      `core.partition`); None keeps it whole on every device.

  Raises:
    ValueError: if a stored parameter has another shape.
  """
  shape = tuple(shape)
  if axes is not None:
    # As flax.linen.partitioning.param_with_axes does, which would call the initialiser.
    mark = partitioning.AxisMetadata(tuple(axes))
    module.sow("params_axes", f"{name}_axes", mark, reduce_fn=lambda old, new: new)
  if module.is_initializing():
    return module.param(name, initializer, shape, spec)
  value = module.get_variable("params", name)
  # A branch may stand there, in what is loaded from elsewhere.
  there = getattr(value, "shape", None)
  if there != shape:
    raise ValueError(
      f"`{type(module).__name__}.{name}` must have shape {shape}, got {there}. The "
      "parameters belong to another method, length or backbone."
    )
  return value


class Prompt(nn.Module):
  """One prompt, written at one site.

  Attributes:
    length: P, positions, from 1 to `LONGEST`.
    parameterise: makes the vectors.
    site: where they act, such as "encoder.input"; see `core.places`.
    condition: reads the input for the parameteriser, or None.
    transforms: applied to the vectors, in order.
  """

  length: int
  parameterise: nn.Module
  site: str | At
  condition: nn.Module | None = None
  transforms: Sequence[nn.Module] = ()

  def __post_init__(self) -> None:
    whole = isinstance(self.length, int) and not isinstance(self.length, bool)
    if not whole or not 1 <= self.length <= LONGEST:
      raise ValueError(
        "`Prompt.length` (PROMPT_LENGTH), the positions reserved for the prompt, must "
        f"be a whole number from 1 to {LONGEST}, got {self.length!r}. For a model "
        "without a prompt use the method `unprompted`."
      )
    words = self.parameterise, *self.transforms
    readers = [type(w).__name__ for w in words if getattr(w, "reads_code", False)]
    if bool(readers) != (self.condition is not None):
      named = " and ".join(readers) or " and ".join(type(w).__name__ for w in words)
      raise ValueError(
        f"`Prompt.condition` is {self.condition!r}, but {named} "
        f"{'reads' if readers else 'does not read'} a code. Bind a condition exactly "
        "where the parameteriser or a transform reads one."
      )
    if not isinstance(self.site, At):
      kind_of(self.site)
    if self.reads_states:
      self._check_reader()
    super().__post_init__()

  @property
  def at(self) -> At:
    """The site as a record."""
    return site_at(self.site)

  @property
  def reads_states(self) -> bool:
    """Whether the backbone asks the parameteriser, layer by layer."""
    return getattr(self.parameterise, "reads_states", False)

  def _check_reader(self) -> None:
    name = type(self.parameterise).__name__
    if not isinstance(self.at, AtLayers):
      raise ValueError(
        f"`Prompt.site` is {self.at.place!r}, but {name} reads the states of a "
        "stack's layers: its place is 'encoder.layers'."
      )
    if self.transforms or self.at.factor != 1.0:
      raise ValueError(
        f"`Prompt.transforms` and `AtLayers.factor` act on tables, but {name} makes "
        "its vectors inside of the backbone. Leave them out."
      )

  @property
  def needs(self) -> frozenset[str]:
    """Fields of Context that must be filled in."""
    words = self.condition, self.parameterise, *self.transforms
    return frozenset().union(*(getattr(word, "needs", ()) for word in words))

  @property
  def reads_input(self) -> bool:
    return self.condition is not None or self.reads_states

  @property
  def reads_text(self) -> bool:
    """Whether it reads more of an example than which task it belongs to."""
    return self.reads_input and self.needs != {"task"}

  @property
  def encoded(self) -> tuple[nn.Module, ...]:
    """Conditions that read the frozen encoder's output."""
    return (self.condition,) if "encoding" in self.needs else ()

  @property
  def external_width(self) -> int:
    """Width of the external vectors that the condition reads; 0 for none."""
    return self.condition.width if "external" in self.needs else 0

  @property
  def tasks(self) -> int:
    """How many tasks the condition tells apart; 0 where it reads none."""
    return self.condition.tasks if "task" in self.needs else 0

  @property
  def lengths(self) -> dict[str, int]:
    """Virtual positions to reserve, by the side ("encoder", "decoder")."""
    side = self.at.side
    return {} if side is None else {side: self.length}

  def code(self, context: Context, spec: Spec) -> Float[Array, "R C"]:
    """The one vector that an encoded condition makes of each example."""
    return self.condition(context, spec).values[:, 0]

  def _read(self, context: Context, spec: Spec, train: bool) -> Code | None:
    if self.condition is None:
      return None
    if context.code is not None and self.encoded:
      return pooled(context.code)
    return self.condition(context, spec, train)

  def __call__(self, context: Context, spec: Spec, train: bool = False) -> Injection:
    spec = dataclasses.replace(spec, asked=self.at.tables(spec))
    code = self._read(context, spec, train)
    G, H = spec.asked.count, spec.asked.width
    if self.reads_states:
      if self.at.place != f"{spec.reader}.layers":
        raise ValueError(
          f"`Prompt.site` is {self.at.place!r}, but {type(self.parameterise).__name__} "
          f"reads the states that the text has: its place is '{spec.reader}.layers'."
        )
      reader = self.parameterise(None, (G, self.length, H), spec, train)
      record = self.at.read(reader, self.length, context.segments, spec)
      return Injection({self.at.place: record})
    drawn = self.parameterise(code, (G, self.length, H), spec, train)
    for transform in self.transforms:
      drawn = transform(drawn, code, spec, train)
    return Injection({self.at.place: self.at(drawn.prompt, drawn.mask, spec)})


def spread(prompt: Prompt, sites: Sequence[str | At]) -> "Together":
  """The same sentence at several places, each with parameters of its own.

  Each part has the name of its place, dots as underscores: "encoder_kv".

  Raises:
    ValueError: if a place is named twice.
  """
  parts = {}
  for site in sites:
    place = site.place if isinstance(site, At) else site
    name = place.replace(".", "_")
    if name in parts:
      raise ValueError(
        f"`spread.sites` names the place {place!r} twice. Name it once, or bind "
        "`prompt.Together` with a name for each."
      )
    # Words that are one object would be one set of parameters.
    parts[name] = prompt.clone(_deep_clone=True, site=site)
  return Together(parts)


class Together(Several):
  """Several prompts as one: their positions stand side by side, in order."""

  @property
  def reads_input(self) -> bool:
    return any(prompt.reads_input for prompt in self.prompts)

  @property
  def tasks(self) -> int:
    return max(prompt.tasks for prompt in self.prompts)

  @property
  def lengths(self) -> dict[str, int]:
    total: dict[str, int] = {}
    for prompt in self.prompts:
      for side, length in prompt.lengths.items():
        total[side] = total.get(side, 0) + length
    return total

  def code(self, context: Context, spec: Spec) -> Float[Array, "R C"]:
    (prompt,) = (prompt for prompt in self.prompts if prompt.encoded)
    return prompt.code(context, spec)

  def __call__(self, context: Context, spec: Spec, train: bool = False) -> Injection:
    parts = [prompt(context, spec, train) for prompt in self.prompts]
    return functools.reduce(Injection.beside, parts)
