"""What the rest of the library may ask of a backbone family.

A family is a room `backbones/NAME/` with one class that fulfils `Backbone`: pure
functions of a parameter tree that travels beside it. It is the only reader of its
config and of `Injection`. The stages of a pass, from one reading to many answers:

  run        states of the targets of a batch, in one pass: training, losses
  read       what a family makes of the inputs: a `Reading`
  continued  states of given targets behind it: label scores, many of one reading
  prefill    logits of the first token, what is kept of the reading, and a cache
  extend     the next token: greedy search, sampling, beams

A family that writes nothing reads alone: it is a `Backbone`, the others are `Writer`s.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Bool, Float, Int

from prompt_tuning.core.context import Spec
from prompt_tuning.core.format import EncoderDecoder
from prompt_tuning.core.injection import Injection

Params = Any
Batch = Mapping[str, Array]
# What `prefill` keeps of a reading.
Memory = Any
# Keys and values of what was read and written: arrays with an axis of rows.
Cache = Any


class Reading(Protocol):
  """What a family makes of inputs; it may hold more.

  Attributes:
    states: the last ones of the inputs, virtual positions included [B T H].
    mask: true where one may be read [B T].
  """

  states: Float[Array, "B T H"]
  mask: Bool[Array, "B T"]


def check_writes(backbone: "Backbone", what: str) -> None:
  """Raises ValueError where words are asked of a backbone that writes none.

  Args:
    what: asks for them, as the caller knows it, such as "`OUTPUT` (Greedy)".
  """
  if not backbone.format.writes:
    raise ValueError(
      f"{what} asks for words, but the backbone is an encoder (family "
      f"{backbone.family}), which writes none. Let a head answer: OUTPUT of "
      'gin/outputs/label.gin, labels.gin or number.gin, or output="label", "labels" or '
      '"number" of `tune`.'
    )


def prompt_key(key: Any) -> Any:
  """Of a pass's key the part that is the prompt's; the rest is the backbone's."""
  return jax.random.split(jax.random.split(key)[0])[0]


@runtime_checkable
class Backbone(Protocol):
  """One architecture of a family.

  Attributes:
    family: its name, as `interop.families` and cards know it.
  """

  family: str

  @property
  def spec(self) -> Spec:
    """Width, vocabulary, ids and places: what words and loops may know."""

  @property
  def format(self) -> EncoderDecoder:
    """How examples become features, see `core.format`."""

  @property
  def architecture(self) -> dict[str, Any]:
    """What must match for weights to fit, as JSON has it; no switch is in it."""

  @property
  def switches(self) -> dict[str, Any]:
    """What may change while weights still fit, by the names that `recast` takes.

    Every family has dropout_rate, dtype (of activations), weights_dtype, scan_layers
    and remat_policy.
    """

  def recast(self, **switches: Any) -> "Backbone":
    """The same architecture with other switches.

    Raises:
      ValueError: for a switch that there is not, or that does not fit the others.
    """

  def check_device(self) -> None:
    """Raises ValueError for a switch that this machine cannot follow."""

  def init(self, key: Any) -> Params:
    """Random weights."""

  def shapes(self) -> Params:
    """Shapes and dtypes of the weights; nothing is allocated."""

  def held_shapes(self) -> Params:
    """The same, as the switch weights_dtype says to keep them."""

  def logical_axes(self) -> Params:
    """The logical axis names of every parameter, as a tree of tuples."""

  def table(self, params: Params) -> Float[Array, "V H"]:
    """The token table."""

  def embed(self, params: Params, ids: Int[Array, "*X"]) -> Float[Array, "*X H"]:
    """Embeddings of words; of a pad something finite, which means nothing."""

  def encode_rows(
    self, params: Params, embeddings_BTH: Array, mask_BT: Array, segments_BT: Any = None
  ) -> Float[Array, "B T H"]:
    """What the frozen model makes of rows without a prompt, dropout off.

    An encoder's output; of a causal stack its own states. Rows stand in front, packed
    or not: see `core.context.Rows`.
    """

  def read(
    self,
    params: Params,
    batch: Batch,
    injection: Injection | None = None,
    key: Any = None,
  ) -> Reading:
    """Reads inputs; of the features those of `format.read`.

    `key` is for dropout, given where nothing is written alone: see `Writer.run`.
    """


@runtime_checkable
class Writer(Backbone, Protocol):
  """A backbone that writes words: all but encoders."""

  @property
  def cache_axis(self) -> int:
    """Which axis of a cache's arrays is that of rows."""

  def run(
    self,
    params: Params,
    batch: Batch,
    injection: Injection | None = None,
    key: Any = None,
  ) -> tuple[Float[Array, "B U H"], Reading]:
    """States from which `logits` makes those of each of `batch["targets"]`.

    Args:
      params: the weights. batch: features of `format`, packed or not.
      injection: what a prompt asks for, or None.
      key: for dropout, None for none. `prompt_key` of it is the prompt's.

    Returns:
      The states, and what came of the inputs on the way, as `read` gives it.
    """

  def continued(
    self,
    params: Params,
    reading: Reading,
    targets_BU: Int[Array, "B U"],
    injection: Injection | None = None,
    key: Any = None,
  ) -> Float[Array, "B U H"]:
    """States of targets, as `run` gives them, behind what was read before.

    One example a row. Mapped over targets, what was read stays one.
    """

  def logits(
    self, params: Params, states: Float[Array, "*X H"]
  ) -> Float[Array, "*X V"]:
    """float32 logits of states."""

  def prefill(
    self,
    params: Params,
    reading: Reading,
    room: int,
    injection: Injection | None = None,
  ) -> tuple[Float[Array, "B V"], Memory, Cache]:
    """Logits of the first token, what every step reads, and the cache they hand on.

    Args:
      params: the weights. reading: of `read`. room: tokens that will be fed back.
      injection: that of `read`.
    """

  def extend(
    self,
    params: Params,
    ids_B: Int[Array, " B"],
    memory: Memory,
    cache: Cache,
    index: Int[Array, ""],
  ) -> tuple[Float[Array, "B V"], Cache]:
    """Logits after the token at place `index` (from 0), and the cache with it."""
