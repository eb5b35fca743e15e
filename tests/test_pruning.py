"""Masks, importance by example, and runs that prune and rewind."""

import dataclasses
import json
import math
import shutil
import types

import jax
import jax.numpy as jnp
import method_tools as tools
import numpy as np
import optax
import process_tools
import pytest

from prompt_tuning import train
from prompt_tuning.core import trainable as branches
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.core.prompt import Prompt
from prompt_tuning.data import batches as batching
from prompt_tuning.engine import (
  config,
  identity,
  measured,
  optimizer,
  product,
  state,
  step,
)
from prompt_tuning.engine.product import Product
from prompt_tuning.engine.recipe import Reading, Recipe
from prompt_tuning.inits import uniform
from prompt_tuning.interop import prompts
from prompt_tuning.objectives.cross_entropy import CrossEntropy
from prompt_tuning.parameterisers.dense import Dense
from prompt_tuning.procedures.importance import Importance
from prompt_tuning.procedures.measure import Probe, per_example
from prompt_tuning.procedures.phase import Result
from prompt_tuning.procedures.prune_rewind import PruneRewind, pruned
from prompt_tuning.transforms.mask import Mask

P, K = 4, 4
TABLE, MASK = "prompt/parameterise/prompt", "prompt/transforms_0/mask"


@pytest.fixture(scope="module")
def case():
  return tools.case("xprompt", PROMPT_LENGTH=P, PIECES=K)


def masked(case, mask, how="zero"):
  """The model and its parameters under a mask."""
  word = Mask(K, how)
  table = Dense(uniform.symmetric(0.5))
  prompt = Prompt(P, table, "encoder.input", None, (word,))
  flat = {**branches.flatten(case.params), MASK: jnp.asarray(mask, jnp.float32)}
  model = dataclasses.replace(case.model, prompt=prompt)
  return model, branches.unflatten(flat)


def logits(pair, batch):
  model, params = pair
  return np.asarray(jax.jit(model.logits)(params, batch))


# ---- the mask


def test_ones_prune_nothing(case):
  plain = PromptedModel(
    case.model.backbone, Prompt(P, Dense(uniform.zeros()), "encoder.input")
  )
  wanted = logits((plain, case.params), case.batch())
  for how in ("zero", "hidden"):
    found = logits(masked(case, np.ones((P, K)), how), case.batch())
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_zero_hidden_and_dropped_are_three_things(case):
  mask = np.ones((P, K))
  mask[1] = 0
  zero, hidden = (
    logits(masked(case, mask, how), case.batch()) for how in ("zero", "hidden")
  )
  flat = branches.flatten(case.params)
  shorter = Prompt(P - 1, Dense(uniform.zeros()), "encoder.input")
  model = PromptedModel(case.model.backbone, shorter)
  left = {
    **{name: x for name, x in flat.items() if name != MASK},
    TABLE: jnp.delete(flat[TABLE], 1, axis=1),
  }
  layout = dataclasses.replace(case.layout, encoder_prompt=P - 1)
  rows = [batching.pad(layout.convert(row), layout.lengths) for row in case.rows]
  batch = {name: jnp.asarray(x) for name, x in batching.stack(rows).items()}
  batch.pop("external", None)
  dropped = logits((model, branches.unflatten(left)), batch)
  for one, other in ((zero, hidden), (hidden, dropped), (zero, dropped)):
    assert np.abs(one - other).max() > 1e-3


def test_nobody_attends_to_what_is_hidden(case):
  """Its vector changes nothing and has no gradient; a zero row is a row."""
  mask = np.ones((P, K))
  mask[1] = 0

  def change(how):
    model, params = masked(case, mask, how)
    loss = step.loss_fn(model, CrossEntropy())
    trainable, frozen = branches.split(params, (MASK,))
    run = jax.grad(lambda held: loss(held, frozen, case.batch(), None, ())[0])
    run = jax.jit(run)
    return np.asarray(branches.flatten(run(trainable))[MASK])

  assert not change("hidden")[1].any() and change("zero")[1].any()


def test_pieces_must_divide_the_width(case):
  with pytest.raises(ValueError, match="`Mask.pieces` is 3; it must be a whole number"):
    tools.case("xprompt", PROMPT_LENGTH=P, PIECES=3)
  with pytest.raises(ValueError, match="`Mask.pruned` is 'gone'"):
    tools.case("xprompt", PROMPT_LENGTH=P, PIECES=K, PRUNED="gone")


@pytest.mark.parametrize("rule", [optimizer.Adafactor(weight_decay=0.1), None])
def test_what_is_masked_stays_zero_with_decay_and_momentum(case, rule):
  mask = np.ones((P, K), np.float32)
  mask[2], mask[0, 1] = 0, 0
  model, params = masked(case, mask)
  rule = rule(lambda _: 0.3) if rule else optax.adamw(0.3, weight_decay=0.5)
  trainable, frozen = branches.split(params, case.method.trainable)
  run = jax.jit(step.train_step(model, CrossEntropy(), rule))
  now = state.create(trainable, rule)
  for _ in range(3):
    now, _ = run(now, frozen, case.batch(), jax.random.key(0))
  params = branches.merge(now.trainable, frozen)
  assert np.array_equal(branches.flatten(params)[MASK], mask)
  made = model.inject(params, case.batch()).get("encoder.input").vectors[0]
  gone = np.repeat(mask, made.shape[-1] // K, 1) == 0
  assert (np.asarray(made)[gone] == 0).all() and (np.asarray(made)[~gone] != 0).all()
  moved = np.abs(branches.flatten(now.trainable)[TABLE] - case.params["prompt"][
    "parameterise"]["prompt"])  # fmt: skip
  assert moved.max() > 0.1


# ---- importance


def probe(case):
  run = step.loss_fn(case.model, CrossEntropy())

  def loss(params, batch):
    total, (term,) = run(params, {}, batch, None, ())
    return total, term.weight

  return Probe(case.model, case.params, loss)


def test_the_gradient_of_a_mask_is_an_inner_product(case):
  """dL/dmask[p, k] = <prompt[p, k], dL/dprompt[p, k]>, by example."""
  asked, batch = probe(case), case.batch()
  flat = {**branches.flatten(case.params), MASK: jnp.ones((P, K))}

  def of(path):
    def inner(value):
      return branches.unflatten({**flat, path: value})

    run = jax.jit(lambda held: per_example(asked, inner, held, batch))
    return np.asarray(run(flat[path]))

  mask_BPK, table_BGPH = of(MASK), of(TABLE)
  B, H = len(mask_BPK), table_BGPH.shape[-1]
  product_BPKh = (table_BGPH[:, 0] * flat[TABLE]).reshape(B, P, K, H // K)
  np.testing.assert_allclose(mask_BPK, product_BPKh.sum(-1), rtol=2e-4, atol=1e-5)


def test_importance_by_example(case):
  """Batches and padding rows change nothing; |E g| is below E |g|."""
  measure, asked = Importance(), probe(case)
  add = jax.jit(lambda total, batch, w: measure.add(total, asked, batch, w))

  def scores(size, repeats=0):
    total = measure.init(asked)
    for first in range(0, len(case.rows), size):
      rows = case.rows[first : first + size]
      rows = rows + rows[-1:] * repeats
      weight_B = jnp.array([1.0] * (len(rows) - repeats) + [0.0] * repeats)
      total = add(total, case.batch(rows), weight_B)
    return measure.finish(jax.tree.map(np.asarray, total))

  whole, padded = scores(len(case.rows)), scores(2, repeats=1)
  assert len(case.rows) > 2
  for name in ("pieces", "positions"):
    np.testing.assert_allclose(padded[name], whole[name], rtol=5e-4, atol=1e-6)
  flat = branches.flatten(case.params)

  def inner(mask):
    return branches.unflatten({**flat, MASK: mask})

  run = jax.jit(lambda held: per_example(asked, inner, held, case.batch()))
  mean = np.abs(np.mean(run(flat[MASK]), 0))
  assert (whole["pieces"] >= mean - 1e-6).all()
  assert (whole["pieces"] > mean + 1e-6).any()
  with pytest.raises(ValueError, match="`Importance.mask` is 'prompt/x'"):
    Importance("prompt/x").init(asked)


def test_a_measurement_weighs_each_example_of_a_split_once(case):
  """As the engine goes over it, in batches of several sizes."""

  @dataclasses.dataclass(frozen=True)
  class Seen:
    split: str = "train"
    limit: int | None = None

    def init(self, probe):
      return {"count": jnp.zeros(()), "ids": jnp.zeros(())}

    def add(self, total, probe, batch, weight_B):
      ids = (batch["inputs"] * (batch["prompt_index"] < 0)).sum(1)
      weighed = (weight_B * ids).sum()
      return {"count": total["count"] + weight_B.sum(), "ids": total["ids"] + weighed}

    def finish(self, total):
      return total

  task = types.SimpleNamespace(
    streams=False, name="toy", labels=None, tokens=lambda *_: case.rows
  )
  for size in (2, 3, len(case.rows)):
    sentence = types.SimpleNamespace(
      alone=case.model,
      task=task,
      loaded=types.SimpleNamespace(vocabulary=types.SimpleNamespace(eos_id=1)),
      recipe=Recipe(("prompt",), CrossEntropy(), None, None, eval_batch_size=size),
      reading=Reading({"inputs": 9, "targets": 4}),
    )
    place = sentence.recipe.sharding.over(jax.devices()[:1])
    params = place.params(case.model, case.params)
    found = measured._summed(sentence, Seen(), params, place, lambda: None)
    assert found["count"] == len(case.rows)
    assert found["ids"] == sum(int(row["inputs"].sum()) for row in case.rows)


# ---- prune and rewind


def test_masks_are_nested_and_keep_something():
  scores = {
    "positions": np.array([3.0, 1.0, 2.0, 4.0]),
    "pieces": np.arange(16.0).reshape(4, 4),
    "mask": np.ones((4, 4)),
  }
  assert pruned(scores, "positions", 0.0, "importance").all()
  one = pruned(scores, "positions", 0.5, "importance")
  assert one.any(1).tolist() == [True, False, False, True]
  assert one.all(1).tolist() == one.any(1).tolist()
  other = pruned(scores, "positions", 0.5, "reversed")
  assert other.any(1).tolist() == [False, True, True, False]
  # Survivors alone are scored: half of eight pieces.
  both = pruned({**scores, "mask": one}, "pieces", 0.5, "importance")
  assert both.sum() == 4 and not both[[1, 2]].any() and not both[0].any()
  assert pruned(scores, "pieces", 0.99, "random").sum() == 1
  left = [pruned(scores, "positions", 0.99, order).any(1).sum() for order in
    ("importance", "reversed", "random")]  # fmt: skip
  assert left == [1, 1, 1]


@pytest.mark.parametrize(
  ("given", "words"),
  [
    ({"ratios": [1.0]}, "shares from 0 to below 1: 1 would remove the whole"),
    ({"ratios": []}, "`PruneRewind.ratios` is"),
    ({"levels": ["rows"]}, "`PruneRewind.levels` is"),
    ({"order": "best"}, "`PruneRewind.order` is 'best'"),
  ],
)
def test_what_cannot_be_pruned(given, words):
  with pytest.raises(ValueError, match=words):
    PruneRewind(**{"ratios": [0.5], **given})


def test_the_best_of_several():
  done = [
    Result(name, 1, 1, {"loss": loss, "accuracy": share})
    for name, loss, share in (("a", 2.0, 50), ("b", math.nan, 70), ("c", 1.0, 70))
  ]
  names = ["a", "b", "c"]
  assert PruneRewind([0.5]).best(done, names) == "c"
  assert PruneRewind([0.5], metric="accuracy").best(done, names) == "b"
  with pytest.raises(ValueError, match="`PruneRewind.metric` is 'f1', which no"):
    PruneRewind([0.5], metric="f1").best(done, names)


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_folder, cache):
  """MODEL_DIR of a small run that prunes, and its flags."""
  work = tmp_path_factory.mktemp("pruning")
  shutil.copytree(tiny_folder, work / "backbone")
  text = process_tools.RECIPE.replace("prompt_tuning.gin", "xprompt.gin")
  text += "TRAIN_STEPS = 3\nEVAL_PERIOD = 0\nRATIOS = (0, 0.5)\nPIECES = 4\n"
  process_tools.write_task(work, f"{work}/backbone", text)
  flags = [f"--gin_file={work}/recipe.gin", f"--gin.MODEL_DIR='{work}/run'"]
  config.run_verb(train.train, flags)
  return work / "run"


def tensors(folder):
  made = product.load(folder)
  return {**branches.flatten(made.frozen), **branches.flatten(made.trainable)}


@pytest.mark.slow
def test_a_run_prunes_rewinds_and_ends_with_the_best(run):
  names = [path.name for path in sorted((run / "phases").iterdir())]
  assert [name[3:] for name in names] == [
    *("whole", "score_positions", "positions_00", "positions_50"),
    *("score_pieces", "pieces_00", "pieces_50", "final"),
  ]
  found = {name[3:]: tensors(run / "phases" / name) for name in names if "score" not in
    name}  # fmt: skip
  assert found["positions_50"][MASK].any(1).sum() == 2
  # Nothing pruned is trained on from the same point, and so is what was best again.
  np.testing.assert_array_equal(
    found["positions_00"][TABLE], _retrained(run, "positions_00")
  )
  final = found["final"]
  scores = {}
  for name in ("pieces_00", "pieces_50"):
    (folder,) = (run / "phases").glob(f"*_{name}")
    scores[name] = json.loads((folder / "result.json").read_text())["scores"]["loss"]
  best = min(scores, key=scores.get)
  np.testing.assert_array_equal(final[MASK], found[best][MASK])
  np.testing.assert_array_equal(final[TABLE], found[best][TABLE])
  made = product.load(run)
  assert set(branches.flatten(made.frozen)) == {MASK}
  assert (run / "prompt" / "card.json").is_file()


def _retrained(run, name):
  """The table of a run that begins where the first phase of another ended."""
  table = run / "phases" / "00_whole" / "prompt" / "prompt.safetensors"
  assert table.is_file()
  flags = [
    f"--gin_file={run.parent}/recipe.gin",
    "--gin_file=gin/inits/saved.gin",
    f"--gin.MODEL_DIR='{run.parent}/again'",
    "--gin.PROCEDURE=None",
    f"--gin.PROMPT_FILE='{table}'",
    f"--gin.PROMPT_TENSOR='{TABLE}'",
  ]
  config.run_verb(train.train, flags)
  return tensors(run.parent / "again")[TABLE]


@pytest.mark.slow
def test_survivors_begin_where_the_first_training_ended(run):
  """The start of each retraining is the end of the first one, bit for bit."""
  (folder,) = (run / "phases").glob("*_positions_50")
  whole = tensors(run / "phases" / "00_whole")
  digest = json.loads((folder / "run.json").read_text())["identity"]["start"]
  mask = tensors(folder)[MASK]
  assert digest == identity.arrays({TABLE: whole[TABLE], MASK: mask})


def test_a_prompt_that_hides_positions_is_no_array():
  mask = np.ones((3, 1), np.float32)
  table = np.ones((1, 3, 8), np.float32)
  card = {"layout": {"place": "front"}, "backbone": {"width": 8}}

  def folded(pruned):
    module = Prompt(3, Dense(None), "encoder.input", None, [Mask(1, pruned)])
    tree = {"parameterise": {"prompt": table}, "transforms_0": {"mask": mask}}
    return prompts.fold(Product(module, {"prompt": tree}, card))

  np.testing.assert_array_equal(folded("hidden"), table[0])
  mask[1] = 0
  assert folded("zero").any(1).tolist() == [True, False, True]
  with pytest.raises(ValueError, match="hides 1 of its positions"):
    folded("hidden")
