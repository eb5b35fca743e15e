"""PANDA: how alike tasks are, and a student that learns as much; ProMoT's phases."""

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
from prompt_tuning.core.forward import Forward
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.engine import config, product
from prompt_tuning.objectives.cross_entropy import CrossEntropy
from prompt_tuning.objectives.distil import Distil
from prompt_tuning.objectives.objective import Weighted, Words
from prompt_tuning.procedures import similarity
from prompt_tuning.procedures.measure import Probe
from prompt_tuning.procedures.phase import Result
from prompt_tuning.procedures.similarity import NAME, TaskEmbedding
from prompt_tuning.procedures.transfer import TABLE, Transfer


@pytest.fixture(scope="module")
def case():
  return tools.case("panda", PROMPT_LENGTH=4)


# ---- the metric


def test_cosines():
  one, other = np.array([1.0, 2.0, 0.0]), np.array([0.0, 2.0, 1.0])
  assert similarity.cosine(one, other) == similarity.cosine(other, one)
  assert similarity.cosine(one, other) == pytest.approx(4 / 5)
  assert similarity.cosine(one, 3 * one) == pytest.approx(1)
  assert similarity.cosine(one, -one) == pytest.approx(-1)
  assert similarity.cosine(one, 0 * one) == 0
  table = np.arange(6.0).reshape(1, 2, 3)
  np.testing.assert_array_equal(similarity.rows(table), [1.5, 2.5, 3.5])


def embedded(case, sizes, params=None):
  params = case.params if params is None else params
  measure, asked = TaskEmbedding(), Probe(case.model, params, None)
  add = jax.jit(lambda total, batch, w: measure.add(total, asked, batch, w))
  total, first = measure.init(asked), 0
  for size in sizes:
    rows = case.rows[first : first + size]
    first += size
    # Rows that only fill the batch weigh nothing.
    weight_B = jnp.array([1.0] * len(rows) + [0.0])
    total = add(total, case.batch([*rows, rows[0]]), weight_B)
  return measure.finish(jax.tree.map(np.asarray, total))[NAME]


def test_an_embedding_is_the_mean_change_of_the_first_state(case):
  found = embedded(case, [len(case.rows)])
  forward = Forward(case.model, case.params, case.batch())
  wanted = np.asarray(forward.first - forward.unprompted().first).mean(0)
  np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose(embedded(case, [3, 5]), found, rtol=1e-3, atol=1e-5)
  other = tools.changed(case, parameterise__prompt=0.1)
  assert -1 < similarity.cosine(found, embedded(case, [8], other.params)) < 0.999


# ---- what the student learns


def test_labels_alone_are_compared(case):
  """Columns of labels and the end mark; equal prompts are 0 and give no gradient."""
  own, labels = case.params["prompt"], ("ab", "b")
  params = {**case.params, "teacher": {"source": {"parameterise": {
    "prompt": own["parameterise"]["prompt"] + 0.2}}}}  # fmt: skip
  model = PromptedModel(
    tools.BACKBONE, case.model.prompt, 1, {"source": case.model.prompt}
  )
  term = Distil("source", "mse", over="labels").bound(Words(tools.encode, 1), labels)
  assert term.pieces == (1, *sorted({*tools.encode("ab")}))
  forward = Forward(model, params, case.batch())
  found = term(forward)
  pair = [np.asarray(x.logits(x.states)) for x in (forward, forward.teacher("source"))]
  apart = np.square(np.subtract(*pair))[..., list(term.pieces)].mean(-1)
  wanted = np.where(np.asarray(forward.real), apart, 0).sum()
  np.testing.assert_allclose(found.total, wanted, rtol=1e-4)
  same = {**params, "teacher": {"source": own}}
  assert float(term(Forward(model, same, case.batch())).total) == 0
  with pytest.raises(ValueError, match="`Distil.over` is 'labels', but the task names"):
    Distil("source", over="labels").bound(Words(tools.encode, 1), None)
  with pytest.raises(ValueError, match="`Distil.over` must be one of"):
    Distil("source", over="some")


def procedure(**given):
  terms = CrossEntropy(), Distil("source", "mse")

  def objective(weights):
    return Weighted(terms, weights)

  return Transfer(**{"source": "task", "objective": objective, **given})


def followed(made, arrays=None, tables=None):
  """Phases of a procedure, each done at once."""
  found, done = [], []
  while (phase := made.next(done)) is not None:
    found.append(phase)
    held = {NAME: (arrays or {}).get(phase.name)}
    table = (tables or {}).get(phase.name)
    done.append(Result(phase.name, 1, arrays=held, open=lambda t=table: {TABLE: t}))
  return found


def test_the_student_learns_as_much_as_the_tasks_are_alike():
  one, other = np.array([3.0, 4.0]), np.array([4.0, 3.0])
  found = followed(procedure(), {"of_source": one, "of_target": other})
  names = ["source", "probe", "of_source", "of_target", "teacher", "student"]
  assert [phase.name for phase in found] == names
  assert found[-1].objective.weights == pytest.approx((1.0, 0.1 * 24 / 25))
  assert found[-1].teachers == {"source": "teacher"} and not found[-1].start
  assert found[0].task == "task" and found[4].start == {"prompt": "source:prompt"}
  # Unlike tasks teach nothing.
  found = followed(procedure(), {"of_source": one, "of_target": -one})
  assert found[-1].objective.weights == (1.0, 0.0)
  tables = {"source": one[None, None], "probe": other[None, None]}
  found = followed(procedure(kind="rows"), tables=tables)
  assert found[-1].objective.weights[1] == pytest.approx(0.1 * 24 / 25)
  found = followed(procedure(kind="one", weight=0.3))
  assert [phase.name for phase in found] == ["source", "teacher", "student"]
  assert found[-1].objective.weights == (1.0, 0.3)
  with pytest.raises(ValueError, match=r"`Transfer.kind` \(SIMILARITY\) is 'x'"):
    procedure(kind="x")


# ---- whole runs


def recipe(work, tiny_folder, method, more):
  shutil.copytree(tiny_folder, work / "backbone")
  text = process_tools.RECIPE.replace("prompt_tuning.gin", f"{method}.gin")
  process_tools.write_task(work, f"{work}/backbone", text + "TRAIN_STEPS = 2\n" + more)
  return [f"--gin_file={work}/recipe.gin", f"--gin.MODEL_DIR='{work}/run'"]


def scores(folder):
  return json.loads((folder / "result.json").read_text())["scores"]


@pytest.mark.slow
def test_a_run_of_panda(tmp_path, tiny_folder, cache):
  more = "SOURCE_TASK = %TASK\nSOURCE_STEPS = 2\nPROBE_STEPS = 1\nEVAL_PERIOD = 0\n"
  config.run_verb(train.train, recipe(tmp_path, tiny_folder, "panda", more))
  folders = sorted((tmp_path / "run" / "phases").iterdir())
  assert [path.name[3:] for path in folders] == [
    *("source", "probe", "of_source", "of_target", "teacher", "student")
  ]
  assert "distil_mse" in scores(folders[-1]) and "distil_mse" not in scores(folders[0])
  made = product.load(tmp_path / "run")
  assert made.card["phase"] == "student"
  assert list(branches.flatten(made.trainable)) == [TABLE] and not made.frozen


@pytest.mark.slow
def test_a_run_of_promot(tmp_path, tiny_folder, cache):
  """The model waits for the prompt, then the prompt for the model; then it goes."""
  more = "FORMAT_STEPS = 2\nEVAL_PERIOD = 0\n"
  config.run_verb(train.train, recipe(tmp_path, tiny_folder, "promot", more))
  folders = sorted((tmp_path / "run" / "phases").iterdir())
  form, tuned, off = (product.load(folder / "prompt") for folder in folders)
  assert list(branches.flatten(form.trainable)) == [TABLE]
  assert list(branches.flatten(tuned.frozen)) == [TABLE]
  np.testing.assert_array_equal(
    branches.flatten(tuned.frozen)[TABLE], branches.flatten(form.trainable)[TABLE]
  )
  one, other = (branches.flatten(x.trainable) for x in (tuned, off))
  assert one and set(one) == set(other) and off.module is None
  for path, value in one.items():
    assert path.startswith("backbone/")
    np.testing.assert_array_equal(value, other[path])
  assert scores(folders[1])["loss"] != scores(folders[2])["loss"]
  assert product.load(tmp_path / "run").module is None
