"""Learning from another prompt on the same backbone.

  "kl"    mean over target tokens of KL(softmax(T / t) || softmax(S / t)) t^2
  "mse"   mean over target tokens and words of (S - T)^2
  states  mean over the positions of a stack and H of (S - T)^2

with S of the student and T of the teacher. Hinton et al., 2015, "Distilling the
Knowledge in a Neural Network"; states as in Wang et al., 2023, "Multitask Prompt Tuning
Enables Parameter-Efficient Transfer Learning". They are those after a stack's last
norm, our choice: what a T5 adds up inside grows by orders of magnitude, and one layer
would own the loss. `layers` compares every layer instead, with the mean over them.

"kl" and "mse" may be told to look at the pieces of the task's labels alone (and the end
mark): of 32,000 words nobody asks for most.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from prompt_tuning.core.forward import Forward
from prompt_tuning.core.ids import Ids
from prompt_tuning.core.model import Batch
from prompt_tuning.objectives.objective import Objective, Term, Words

KINDS = ("kl", "mse")
SIDES = ("encoder", "decoder")
OVER = ("all", "labels")
LAYERS = ("out", "states", "hidden")


@dataclasses.dataclass(frozen=True)
class Distil(Objective):
  """The teacher's words.

  Attributes:
    teacher: a name among the model's teachers (TEACHERS).
    kind: "kl" or "mse". temperature: t, above 0; of "kl".
    over: "all" words of the vocabulary, or the pieces of the "labels".
    pieces: ids of those, once it is bound to a task.
  """

  teacher: str
  kind: str = "kl"
  temperature: float = 1.0
  over: str = "all"
  pieces: Sequence[int] | None = None

  def __post_init__(self) -> None:
    _check("Distil.kind", self.kind, KINDS)
    _check("Distil.over", self.over, OVER)
    if not 0 < self.temperature < float("inf"):
      raise ValueError(
        f"`Distil.temperature` must be above 0, got {self.temperature!r}."
      )

  @property
  def teachers(self) -> tuple[str, ...]:
    return (self.teacher,)

  def bound(self, words: Words, labels: Sequence[str] | None) -> "Distil":
    if self.over == "all":
      return self
    if not labels:
      raise ValueError(
        "`Distil.over` is 'labels', but the task names none. Set LABELS, or take "
        "'all' words."
      )
    pieces = {int(piece) for label in labels for piece in words.encode(label)}
    return dataclasses.replace(self, pieces=tuple(sorted({*pieces, words.end})))

  def count(self, batch: Batch, ids: Ids) -> Float[Array, ""]:
    """Target tokens."""
    return ids.is_real(batch["targets"]).sum().astype(jnp.float32)

  def __call__(self, forward: Forward) -> Term:
    teacher = forward.teacher(self.teacher)
    apart_BU = self._apart(*map(self._logits, (forward, teacher)))
    total = jnp.where(forward.real, apart_BU, 0).sum()
    weight = self.count(forward.batch, forward.ids)
    return Term(total, weight, {f"distil_{self.kind}": (total, weight)})

  def _logits(self, forward: Forward) -> Float[Array, "B U C"]:
    """Of all words, or of some C of them."""
    found = forward.logits(forward.states)
    return found if self.pieces is None else found[..., jnp.asarray(self.pieces)]

  def _apart(
    self, student_BUV: Float[Array, "B U V"], teacher_BUV: Float[Array, "B U V"]
  ) -> Float[Array, "B U"]:
    if self.kind == "mse":
      return jnp.square(student_BUV - teacher_BUV).mean(-1)
    t = self.temperature
    wanted_BUV = jax.nn.log_softmax(teacher_BUV / t)
    found_BUV = jax.nn.log_softmax(student_BUV / t)
    return (jnp.exp(wanted_BUV) * (wanted_BUV - found_BUV)).sum(-1) * t**2


@dataclasses.dataclass(frozen=True)
class DistilStates(Objective):
  """The teacher's states of one stack.

  Attributes:
    teacher: a name among the model's teachers (TEACHERS).
    side: "encoder", whose prompt positions are compared too, or "decoder", at its
      target tokens.
    layers: "out", the last states; or the mean over all layers of what they make
      ("states") or of what their feed-forwards read back ("hidden").
  """

  teacher: str
  side: str = "encoder"
  layers: str = "out"

  def __post_init__(self) -> None:
    _check("DistilStates.side", self.side, SIDES)
    _check("DistilStates.layers", self.layers, LAYERS)

  @property
  def traces(self) -> tuple[str, ...]:
    return () if self.layers == "out" else (f"{self.side}.{self.layers}",)

  @property
  def teachers(self) -> tuple[str, ...]:
    return (self.teacher,)

  def count(self, batch: Batch, ids: Ids) -> Float[Array, ""]:
    """Positions of the stack that are no pads."""
    rows = batch["inputs" if self.side == "encoder" else "targets"]
    return ids.is_real(rows).sum().astype(jnp.float32)

  def __call__(self, forward: Forward) -> Term:
    teacher = forward.teacher(self.teacher)
    if self.side == "decoder":
      pair = forward.states, teacher.states
      mask_BT = forward.real
    else:
      (left, mask_BT), (right, other_BT) = forward.encoded, teacher.encoded
      pair, mask_BT = (left, right), mask_BT & other_BT
    for name in self.traces:
      pair = forward.trace(name), teacher.trace(name)
    apart_BT = jnp.square(pair[0] - pair[1]).mean(-1)
    if self.traces:
      apart_BT = apart_BT.mean(0)
    total = jnp.where(mask_BT, apart_BT, 0).sum()
    weight = self.count(forward.batch, forward.ids)
    return Term(total, weight, {f"distil_{self.side}": (total, weight)})


def _check(name: str, value: str, allowed: tuple[str, ...]) -> None:
  if value not in allowed:
    raise ValueError(f"`{name}` must be one of {allowed}, got {value!r}.")
