"""The steps of a recipe, lowered from shapes: nothing is read, drawn or allocated.

They are the functions that `fit` and `evaluate` run, with the shardings they run with.
"""

import dataclasses
import functools
from typing import Any

import jax

from prompt_tuning.core import trainable as branches
from prompt_tuning.core.forward import Forward
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.data.features import Layout
from prompt_tuning.engine import evaluate, fit, heads, sharding, terms
from prompt_tuning.engine.ready import Places, Ready, places, state_shapes
from prompt_tuning.engine.recipe import Recipe
from prompt_tuning.objectives import objective as objectives
from prompt_tuning.objectives.cross_entropy import CrossEntropy
from prompt_tuning.objectives.objective import Words, bound, judged, parts

PROGRAMS = ("train", "eval", "decode")


@dataclasses.dataclass(frozen=True)
class Job:
  """What is to run, and where.

  Attributes:
    model, layout, recipe: as `engine.fit` takes them.
    output: see `outputs/`. labels: how many a choice has.
    place: the mesh and its rules; its devices may be those of a topology.
  """

  model: PromptedModel
  layout: Layout
  recipe: Recipe
  output: Any
  labels: int
  place: sharding.Placement

  def __post_init__(self) -> None:
    trainable = self.model.trains(self.recipe.trainable)
    recipe = dataclasses.replace(self.recipe, trainable=trainable)
    object.__setattr__(self, "recipe", recipe)

  def check(self) -> None:
    """Raises ValueError where a batch does not divide by the mesh."""
    recipe = self.recipe
    sharding.check_batch(recipe.batch_size, recipe.microbatches, self.place)
    sharding.check_batch(recipe.eval_batch_size, 1, self.place, "EVAL_BATCH_SIZE")

  @functools.cached_property
  def params(self) -> Any:
    """Shapes of all parameters; what trains is float32, as `fit` makes it."""
    backbone = self.model.backbone.held_shapes()
    prompt = self.model.prompt_shapes(backbone)
    found = {"backbone": backbone, **({"prompt": prompt} if prompt else {})}
    if self.model.head is not None:
      found["head"] = self.model.head_shapes()
    found |= self._own(found)
    trains, frozen = branches.split(found, self.trainable)
    trains = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, "float32"), trains)
    return branches.merge(trains, frozen)

  def _own(self, params: Any) -> Any:
    """Shapes of the branch of the objective, if it has one."""
    draw = functools.partial(terms.branch, self.objective, self.model, seed=0)
    return jax.eval_shape(draw, params)

  @functools.cached_property
  def trainable(self) -> tuple[str, ...]:
    """Branches that train."""
    owns = any(hasattr(part.objective, "init") for part in parts(self.objective))
    return (*self.recipe.trainable, *[terms.BRANCH] * owns)

  @functools.cached_property
  def objective(self) -> Any:
    """The objective, with labels as long as targets may be."""
    words = Words(self._pieces, self.model.backbone.spec.ids.end)
    labels = [str(number) for number in range(self.labels)]
    return bound(self.recipe.objective, words, labels)

  @functools.cached_property
  def transform(self) -> Any:
    """The optimiser of what trains."""
    trains, _ = branches.split(self.params, self.trainable)
    return self.recipe.optimizer.build(trains)

  @functools.cached_property
  def places(self) -> Places:
    """Where everything lives."""
    trainable = self.trainable
    return places(self.model, self.params, trainable, self.transform, self.place)

  def lower(self, program: str) -> Any:
    """One of `PROGRAMS`, lowered."""
    return {"train": self._train, "eval": self._eval, "decode": self._decode}[program]()

  def _train(self) -> Any:
    recipe = self.recipe
    trains, frozen = branches.split(self.params, self.trainable)
    begin = state_shapes(trains, self.transform)
    recipe = dataclasses.replace(recipe, objective=self.objective)
    run = fit.compiled_step(
      self.model, recipe, self.layout, self.transform, self.place, self.places
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    return run.lower(
      _at(begin, self.places.state),
      _at(frozen, self.places.frozen),
      self.batch(recipe.batch_size, self.model.segments),
      jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=self.place.replicated),
    )

  def _eval(self) -> Any:
    evaluator = evaluate.Evaluator(
      self._alone, judged(self.objective), self.layout, None, None, None, 1, self.place
    )
    return evaluator.loss_step.lower(self._whole, self.batch(self._size))

  def _decode(self) -> Any:
    params, batch = self._whole, self.batch(self._size)
    numbers = jax.ShapeDtypeStruct((self._size,), "int32", sharding=self.place.by_rows)
    labels = list(map(str, range(self.labels)))
    program = self.output.program(self._alone, labels, self._pieces)
    return evaluate.compiled(program, self.place).lower(params, batch, numbers)

  def _pieces(self, label: str) -> list[int]:
    """A label's pieces: any of as many tokens costs the same, but no two are alike."""
    number, vocabulary = int(label), self.model.backbone.spec.vocabulary
    pieces = []
    for _ in range(max(self.layout.targets - 1, 1)):
      number, rest = divmod(number, vocabulary - 3)
      pieces.append(3 + rest)
    return pieces

  @property
  def _alone(self) -> PromptedModel:
    return dataclasses.replace(self.model, segments=1)

  @property
  def _size(self) -> int:
    return self.recipe.eval_batch_size

  @property
  def _whole(self) -> Any:
    """Parameters as an evaluation during training finds them."""
    trains, frozen = branches.split(self.params, self.trainable)
    return branches.merge(
      _at(trains, self.places.trainable), _at(frozen, self.places.frozen)
    )

  def batch(self, size: int, segments: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch of the recipe's layout."""
    lengths = dict(self.layout.lengths)
    if segments > 1:
      own = self.layout.form.segments
      lengths |= {name: lengths[one.axis] for name, one in own.items()}
    shapes = {name: ((size, length), "int32") for name, length in lengths.items()}
    prompt = self.model.prompt
    each = (size,) if segments == 1 else (size, segments)
    if prompt is not None and prompt.external_width:
      shapes["external"] = (*each, prompt.external_width), "float32"
    if prompt is not None and prompt.tasks:
      shapes["task"] = each, "int32"
    if self.model.head is not None:
      shapes["labels"] = heads.labels(self.model, self.recipe.objective, each)
    batch = {
      name: jax.ShapeDtypeStruct(shape, dtype, sharding=self.place.by_rows)
      for name, (shape, dtype) in shapes.items()
    }
    if self.recipe.cache_codes:
      batch["code"] = self._code(batch, size, segments)
    return batch

  def _code(self, batch: Any, size: int, segments: int) -> jax.ShapeDtypeStruct:
    """What `engine.codes` adds to each row of a batch."""
    model = dataclasses.replace(self.model, segments=segments)
    made = jax.eval_shape(model.codes, self.params, batch)
    shape = (size, *(() if segments == 1 else (segments,)), made.shape[-1])
    return jax.ShapeDtypeStruct(shape, made.dtype, sharding=self.place.by_rows)


def check_objective(ready: Ready) -> None:
  """Follows the shapes of a part of a batch through what training lowers.

  Cross-entropy alone reads whatever a row holds, and is not looked at.

  Raises:
    ValueError: for rows, labels or a prompt that a term cannot read.
  """
  recipe = ready.recipe
  if ready.transform is None or isinstance(recipe.objective, CrossEntropy):
    return
  job = Job(ready.model, ready.layout, recipe, None, 0, ready.place)
  batch = job.batch(recipe.batch_size // recipe.microbatches, ready.model.segments)

  def lost(params: Any, batch: Any) -> Any:
    found = objectives.terms(recipe.objective, Forward(ready.model, params, batch))
    return [term.total for term in found]

  jax.eval_shape(lost, ready.params, batch)


def _at(shapes: Any, places: Any) -> Any:
  """Shapes that know where they live."""
  return jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    shapes,
    places,
  )
