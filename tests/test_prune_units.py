"""Attribution of units, masks that are slices, and a run that prunes them."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import method_tools as tools
import numpy as np
import process_tools
import pytest

from prompt_tuning import train
from prompt_tuning.core import trainable as branches
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.engine import config, product, step
from prompt_tuning.objectives.cross_entropy import CrossEntropy
from prompt_tuning.procedures.attribution import Attribution
from prompt_tuning.procedures.measure import Probe
from prompt_tuning.procedures.phase import Result
from prompt_tuning.procedures.prune_units import PruneUnits, named, units

MASKS = tuple(f"prompt/{side}/parameterise/prompt" for side in ("encoder", "decoder"))


@pytest.fixture(scope="module")
def case():
  """With masks of ones, where a run starts."""
  whole = tools.case("skip_neurons", PROMPT_LENGTH=4)
  ones = {path.removeprefix("prompt/").replace("/", "__"): 1.0 for path in MASKS}
  return tools.changed(whole, **ones)


def put(params, **leaves):
  return branches.unflatten({**branches.flatten(params), **leaves})


def test_masked_units_are_sliced_kernels(case):
  mask = np.ones(branches.flatten(case.params)[MASKS[0]].shape, np.float32)
  mask[0, 0, [1, 5]], mask[1, 0, 3] = 0, 0
  found = case.logits(params=put(case.params, **{MASKS[0]: jnp.asarray(mask)}))
  flat = branches.flatten(case.params)
  for layer, row_F in enumerate(mask[:, 0]):
    path = f"backbone/encoder/layers_{layer}/mlp/wo/kernel"
    flat[path] = flat[path] * row_F[:, None]
  tools.assert_close(found, case.logits(params=branches.unflatten(flat)))
  assert np.abs(found - case.plain_logits).max() > 1e-3


def probe(case):
  run = step.loss_fn(case.model, CrossEntropy())

  def loss(params, batch):
    total, (term,) = run(params, {}, batch, None, ())
    return total, term.weight

  return Probe(case.model, case.params, loss)


def attributed(case, measure, rows=None, batches=1):
  rows, asked = case.rows if rows is None else rows, probe(case)
  total, size = measure.init(asked), len(rows) // batches
  add = jax.jit(lambda total, batch, w: measure.add(total, asked, batch, w))
  for i in range(batches):
    batch = case.batch(rows[i * size : (i + 1) * size])
    total = add(total, batch, jnp.ones(size))
  return measure.finish(jax.tree.map(np.asarray, total))


def test_attribution_is_the_slope_of_the_answer(case):
  """sum_t h dP/dh of a unit is what P does where its factor moves."""
  rows = case.rows[:1]
  found = attributed(case, Attribution(MASKS), rows)[MASKS[1]]
  asked, batch = probe(case), case.batch(rows)
  flat = branches.flatten(case.params)
  answer = jax.jit(
    lambda mask: jnp.exp(
      -jnp.divide(*asked.loss(branches.unflatten({**flat, MASKS[1]: mask}), batch))
    )
  )
  place = np.unravel_index(np.abs(found).argmax(), found.shape)
  moved = [flat[MASKS[1]].at[place].add(sign * 1e-2) for sign in (1, -1)]
  slope = (answer(moved[0]) - answer(moved[1])) / 2e-2
  assert abs(slope) > 0
  np.testing.assert_allclose(found[place], slope, rtol=2e-2)
  # d log P = dP / P of one example, so both rank alike.
  logs = attributed(case, Attribution(MASKS, of="logp"), rows)[MASKS[1]]
  np.testing.assert_allclose(found, logs * answer(flat[MASKS[1]]), rtol=1e-3, atol=1e-7)


def test_batches_change_nothing_and_a_dead_unit_has_no_share(case):
  path = "backbone/encoder/layers_1/mlp/wo/kernel"
  flat = branches.flatten(case.params)
  dead = put(case.params, **{path: flat[path].at[2].set(0.0)})
  case = dataclasses.replace(case, params=dead)
  whole, parts = (attributed(case, Attribution(MASKS), None, n) for n in (1, 4))
  for mask in MASKS:
    np.testing.assert_allclose(parts[mask], whole[mask], rtol=1e-3, atol=1e-6)
  assert whole[MASKS[0]][1, 0, 2] == 0 and whole[MASKS[0]][1].any()
  large = attributed(case, Attribution(MASKS, magnitude=True))
  assert (large[MASKS[0]] >= np.abs(whole[MASKS[0]]) - 1e-7).all()


def test_what_cannot_be_attributed(case):
  with pytest.raises(ValueError, match="`Attribution.masks` is .'prompt/x'., of which"):
    Attribution(["prompt/x"]).init(probe(case))
  with pytest.raises(ValueError, match="`Attribution.of` is 'q'"):
    Attribution(MASKS, of="q")


def test_masks_keep_the_best_of_each_layer():
  scores = np.stack([np.arange(8.0), np.arange(8.0)[::-1]])[:, None]
  mask = units(scores, 0.5)
  assert mask[:, 0].tolist() == [[0] * 4 + [1] * 4, [1] * 4 + [0] * 4]
  assert units(scores, 0.0).all() and units(scores, 0.3, multiple=4)[0].sum() == 8
  assert units(scores, 0.9, multiple=3).sum(-1).tolist() == [[3], [3]]
  reverse = units(scores, 0.5, order="reversed")
  np.testing.assert_array_equal(reverse, 1 - mask)
  assert units(scores, 0.25, order="random").sum() == 12


def procedure(**given):
  return PruneUnits(
    **{"ratios": (0.1, 0.5), "attribution": Attribution(MASKS), **given}
  )


@pytest.mark.parametrize(
  ("given", "words"),
  [
    ({"ratios": (0.5, 0.1)}, "shares from 0 to below 1, in rising order"),
    ({"ratios": (1.0,)}, r"`PruneUnits.ratios` \(RATIOS\) is"),
    ({"order": "best"}, r"`PruneUnits.order` \(PRUNE_ORDER\) is 'best'"),
    ({"multiple": 0}, r"`PruneUnits.multiple` \(UNITS_MULTIPLE\) must be"),
  ],
)
def test_what_cannot_be_pruned(given, words):
  with pytest.raises(ValueError, match=words):
    procedure(**given)


def test_the_largest_share_that_loses_little():
  scores = {"whole": 90.0, named(0.1): 89.5, named(0.5): 88.0}
  done = [Result(name, 1, 1, {"accuracy": x}) for name, x in scores.items()]
  chosen = [
    procedure(metric="accuracy", tolerance=t).chosen(done) for t in (0.0, 1.0, 2.0)
  ]
  assert chosen == [0.1, 0.1, 0.5]
  losses = [Result(one.name, 1, 1, {"loss": one.scores["accuracy"]}) for one in done]
  assert procedure().chosen(losses) == 0.5
  with pytest.raises(ValueError, match="`PruneUnits.metric` is 'f1', which no"):
    procedure(metric="f1").chosen(done)


@pytest.mark.slow
def test_a_run_masks_units_and_trains_the_prompt_on(tmp_path, tiny_folder, cache):
  shutil.copytree(tiny_folder, tmp_path / "backbone")
  text = process_tools.RECIPE.replace("prompt_tuning.gin", "skip_neurons.gin")
  text += "TRAIN_STEPS = 2\nEVAL_PERIOD = 0\nRATIOS = (0, 0.5)\nUNITS_MULTIPLE = 1\n"
  text += "TOLERANCE = 100.0\n"
  process_tools.write_task(tmp_path, f"{tmp_path}/backbone", text)
  flags = [f"--gin_file={tmp_path}/recipe.gin", f"--gin.MODEL_DIR='{tmp_path}/run'"]
  config.run_verb(train.train, flags)
  folders = sorted((tmp_path / "run" / "phases").iterdir())
  assert [path.name[3:] for path in folders] == [
    *("whole", "score", "masked_000", "masked_500", "final")
  ]
  losses = [
    json.loads((folders[i] / "result.json").read_text())["scores"]["loss"]
    for i in (0, 2, 3)
  ]
  # Nothing masked is the whole; something masked is something else.
  assert losses[0] == pytest.approx(losses[1], rel=1e-6) and losses[2] != losses[1]
  whole, final = (product.load(folders[i] / "prompt") for i in (0, 4))
  masks = branches.flatten(final.frozen)
  assert set(masks) == set(MASKS)
  for mask in masks.values():
    assert set(np.unique(mask)) == {0, 1} and (mask.mean(-1) == 0.5).all()
  one, other = (branches.flatten(x.trainable) for x in (whole, final))
  assert list(one) == ["prompt/task/parameterise/prompt"]
  moved = np.abs(one[MASK_TASK] - other[MASK_TASK]).max()
  assert 0 < moved and final.card["phase"] == "final"


MASK_TASK = "prompt/task/parameterise/prompt"


def test_ones_are_the_plain_prompt(case):
  plain = tools.case("prompt_tuning", PROMPT_LENGTH=4)
  flat = branches.flatten(case.params)
  params = put(plain.params, **{"prompt/parameterise/prompt": flat[MASK_TASK]})
  model = PromptedModel(tools.BACKBONE, plain.model.prompt)
  found = np.asarray(model.logits(params, case.batch()))
  tools.assert_close(case.plain_logits, found)
