"""A backbone and a prompt as a model of upstream T5X.

T5X's trainer, evaluator and checkpoints see parameters in T5X's tree, see
`interop.t5x_engine.tree`; losses and predictions are those of our own engine.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics
from flax.core import freeze
from t5x import metrics as t5x_metrics
from t5x import models

from prompt_tuning.core import trainable as branches
from prompt_tuning.core.forward import Forward
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.data import vocabularies
from prompt_tuning.data.features import Layout
from prompt_tuning.decoding import score as scoring
from prompt_tuning.engine.recipe import drops
from prompt_tuning.interop.t5x_engine import start, tree
from prompt_tuning.interop.t5x_engine.features import VirtualPositions
from prompt_tuning.interop.t5x_engine.optimizer import BranchOptimizer
from prompt_tuning.objectives import objective as objectives

Params = Any
Batch = Mapping[str, jax.Array]


class PromptModel(models.BaseTransformerModel):
  """What T5X trains, evaluates and asks for predictions.

  Args:
    backbone: architecture (`BACKBONE`); None reads it from `initial_checkpoint`.
    prompt: `core.prompt.Prompt` or `Together`; None for the bare backbone.
    vocabulary: of the backbone and the task, ours or SeqIO's.
    task_feature_lengths: {"inputs": T, "targets": U} without reserved positions.
    objective: see `objectives/`. optimizer: `engine.optimizer.Optimizer`.
    trainable: branches that train.
    output: how predictions are made (`outputs/`), or None for losses and scores alone.
    labels: of the task, for rank choice. prompt_place: see `data.features`.
    initial_checkpoint: T5X checkpoint that is restored; None for random weights.
    fresh: whether the prompt starts anew, from the checkpoint's token table where it
      starts from words; False where the checkpoint holds it.
    seed: of a fresh prompt. procedure: of several phases, which T5X does not run.
    head: refused, so that a method that brings one says so.

  Raises:
    ValueError: for what T5X cannot run.
  """

  def __init__(
    self,
    backbone: Any,
    prompt: Any,
    vocabulary: Any,
    task_feature_lengths: Mapping[str, int],
    objective: Any,
    optimizer: Any,
    trainable: Sequence[str],
    output: Any = None,
    labels: Sequence[str] | None = None,
    prompt_place: str = "front",
    initial_checkpoint: str | None = None,
    fresh: bool = True,
    seed: int = 0,
    procedure: Any = None,
    head: Any = None,
  ) -> None:
    if procedure is not None:
      raise ValueError(
        f"`PROCEDURE` is {type(procedure).__name__}, a run of several phases, and T5X "
        "trains one. Run `python -m prompt_tuning.train` with this recipe."
      )
    backbone = backbone or start.architecture(initial_checkpoint)
    start.check(backbone, prompt, output, labels, head)
    optimizer_def = BranchOptimizer(optimizer, trainable, prompt)
    # T5X compares it with the task's, which is SeqIO's own.
    seqio_s = vocabularies.for_seqio(vocabulary)
    super().__init__(backbone.module(), seqio_s, seqio_s, optimizer_def)
    self.prompted, self.vocabulary = PromptedModel(backbone, prompt), vocabulary
    self.objective, self.trainable = objective, tuple(trainable)
    self.output, self.labels = output, labels
    self.initial_checkpoint, self.fresh, self.seed = initial_checkpoint, fresh, seed
    self.drops = backbone.switches["dropout_rate"] > 0 or drops(prompt)
    sizes = task_feature_lengths["inputs"], task_feature_lengths["targets"]
    layout = Layout.of(self.prompted, *sizes, prompt_place, truncate=True)
    self.FEATURE_CONVERTER_CLS = functools.partial(VirtualPositions, layout)

  def get_initial_variables(
    self, rng: Any, input_shapes: Any, input_types: Any = None
  ) -> Any:
    """Random weights, the prompt as it starts, and the axes of both.

    The prompt is drawn by `seed`, not by `rng`: it is the one that our engine draws.
    """
    del input_shapes, input_types
    prompt, backbone = self.prompted.prompt, self.prompted.backbone
    params = {"backbone": backbone.init(_key(rng))}
    shapes = self.prompted.prompt_shapes(params["backbone"])
    if shapes:
      table_VH = backbone.table(params["backbone"])
      params["prompt"] = self._first_prompt(table_VH)
    axes = tree.axes(backbone.logical_axes(), shapes, prompt)
    return freeze({"params": tree.to_t5x(params, prompt), "params_axes": axes})

  def _first_prompt(self, table_VH: Any) -> Params:
    if self.initial_checkpoint is None or not self.fresh:
      return start.draw(self.prompted, table_VH, self._encode, self.seed)
    return self._prompt_on_checkpoint

  @functools.cached_property
  def _prompt_on_checkpoint(self) -> Params:
    """The prompt on the checkpoint's table, which T5X has yet to restore."""
    table_VH = start.table(self.initial_checkpoint)
    with jax.ensure_compile_time_eval():
      drawn = start.draw(self.prompted, table_VH, self._encode, self.seed)
    return jax.device_get(drawn)

  def _encode(self, text: str) -> list[int]:
    return vocabularies.encode(self.vocabulary, text)

  def _ours(self, params: Params) -> Params:
    return tree.from_t5x(params, self.prompted.prompt)

  def _compute_logits(
    self, params: Params, batch: Batch, dropout_rng: Any = None
  ) -> jax.Array:
    return self.prompted.logits(self._ours(params), batch, _key(dropout_rng))

  def loss_fn(self, params: Params, batch: Batch, dropout_rng: Any) -> Any:
    """(mean loss of a target token, metrics); no gradient reaches frozen branches.

    T5X adds up the gradients of its microbatches, each a mean of its own.
    """
    trains, frozen = branches.split(self._ours(params), self.trainable)
    whole = branches.merge(trains, jax.tree.map(jax.lax.stop_gradient, frozen))
    key = _key(dropout_rng) if self.drops else None
    terms = objectives.terms(self.objective, Forward(self.prompted, whole, batch, key))
    loss, weight = objectives.mean(self.objective, terms), terms[0].weight
    found = {"loss": (loss * weight, weight), **objectives.metrics(terms)}
    metrics = {
      name: clu_metrics.Average(total=total, count=weight)
      for name, (total, weight) in found.items()
    }
    rows = jnp.float32(batch["targets"].shape[0])
    rate = t5x_metrics.TimeRate.from_model_output(rows)
    metrics["timing/seqs_per_second"] = rate
    steps = t5x_metrics.StepsPerTime.from_model_output()
    metrics["timing/steps_per_second"] = steps
    return loss, metrics

  def predict_batch_with_aux(
    self, params: Params, batch: Batch, rng: Any = None
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Ids [B U] of the answers, and their log-probabilities [B] as `scores`.

    For a choice the answer is the best label, and `scores` are as its rule counts them.
    """
    if self.output is None:
      raise ValueError(
        "T5X asks for predictions, but `OUTPUT` is None. Include a file of "
        "gin/outputs/, such as gin/outputs/text_greedy.gin."
      )
    run = self.output.program(self.prompted, self.labels, self._encode)
    # None draws with the seed that the output states.
    arrays = run(self._ours(params), batch, _key(rng))
    marks = self.prompted.backbone.spec.ids
    ids, scores = self.output.ids(arrays, self.labels, self._encode, marks)
    return ids, {"scores": scores}

  def score_batch(
    self, params: Params, batch: Batch, return_intermediates: bool = False
  ) -> jax.Array:
    """Log-probability of each row's targets [B]."""
    if return_intermediates:
      raise ValueError(
        "`return_intermediates` is True, but a prompted model records none. Score "
        "without it."
      )
    return scoring.score(self.prompted, self._ours(params), batch)


def _key(rng: Any) -> Any:
  """T5X passes keys of the old kind, plain numbers."""
  if rng is None or jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
    return rng
  return jax.random.wrap_key_data(rng)
