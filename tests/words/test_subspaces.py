"""Prompts in the subspaces of their tasks' tokens: the word, the measure, the rule."""

import json
import shutil

import jax
import jax.numpy as jnp
import method_tools as tools
import numpy as np
import process_tools
import pytest
from word_tools import SPEC, C, run

from prompt_tuning import train
from prompt_tuning.core import trainable as branches
from prompt_tuning.engine import config, identity, product
from prompt_tuning.inits import uniform
from prompt_tuning.parameterisers.subspace import Subspace
from prompt_tuning.procedures.measure import Probe
from prompt_tuning.procedures.phase import Result
from prompt_tuning.procedures.subspaces import WORD, Subspaces
from prompt_tuning.procedures.token_space import TokenMoments, overlap, principal

DRAW = np.random.default_rng(0)
H = 6


def moments(seed, scales=(5, 4, 3, 0.3, 0.2, 0.1)):
  """Of tokens whose variance lies along three random directions."""
  turned, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(H, H)))
  return {
    "mean": np.arange(H) * 1.0,
    "covariance": turned * np.square(scales) @ turned.T,
  }


# ---- the word


def test_a_prompt_lies_in_its_subspace():
  word = Subspace(3, uniform.normal(1.0))
  found, params = run(word, None, (1, 5, C), SPEC)
  inside_PH = found.prompt[0, 0] - params["mean"]
  assert np.linalg.matrix_rank(inside_PH, tol=1e-4) == 3
  basis_rH = params["basis"][0]
  wanted = (params["coordinates"] * params["scale"][:, None])[0] @ basis_rH
  np.testing.assert_allclose(inside_PH, wanted, rtol=1e-4, atol=1e-5)
  drawn = word.init(jax.random.key(0), None, (1, 5, C), SPEC)["params"]
  basis_rH = drawn["basis"][0]
  np.testing.assert_allclose(basis_rH @ basis_rH.T, np.eye(3), atol=1e-5)
  assert not drawn["mean"].any() and (drawn["scale"] == 1).all()


def test_all_directions_reach_every_prompt():
  word, wanted_PH = Subspace(C, uniform.zeros()), DRAW.normal(size=(5, C))
  params = dict(word.init(jax.random.key(0), None, (1, 5, C), SPEC)["params"])
  params["coordinates"] = (wanted_PH @ params["basis"][0].T)[None]
  found, _ = run(word, None, (1, 5, C), SPEC, params=params)
  np.testing.assert_allclose(found.prompt[0, 0], wanted_PH, atol=1e-4)


def test_ranks_that_do_not_fit():
  for rank in (0, C + 1):
    with pytest.raises(ValueError, match=r"`Subspace.rank` \(RANK\) is"):
      run(Subspace(rank, uniform.zeros()), None, (1, 5, C), SPEC)


# ---- the subspaces


def test_principal_directions():
  found = moments(1)
  space = principal(found, 3)
  np.testing.assert_allclose(space.basis @ space.basis.T, np.eye(3), atol=1e-6)
  np.testing.assert_allclose(space.scale, [5, 4, 3], rtol=1e-6)
  np.testing.assert_array_equal(space.mean, found["mean"])
  peaks = space.basis[np.arange(3), np.abs(space.basis).argmax(-1)]
  assert (peaks > 0).all()


def test_overlap_is_that_of_spaces_and_not_of_bases():
  one, other = (principal(moments(seed), 3).basis for seed in (1, 2))
  assert overlap(one, one) == pytest.approx(1)
  assert overlap(one, other) == pytest.approx(overlap(other, one))
  turned, _ = np.linalg.qr(DRAW.normal(size=(3, 3)))
  assert overlap(turned @ one, other) == pytest.approx(overlap(one, other))
  assert 0 < overlap(one, other) < 1


def test_what_stays_out_has_no_part():
  """Nor in the mean; where too little is left, the last rows have no scale."""
  held = principal(moments(1), 4).basis
  space = principal(moments(2), 3, [held])
  np.testing.assert_allclose(space.mean @ held.T, 0, atol=1e-6)
  np.testing.assert_allclose(space.basis[:2] @ held.T, 0, atol=1e-6)
  assert (space.scale[:2] > 0).all() and space.scale[2] == 0


def test_moments_are_those_of_the_tokens_of_inputs():
  case = tools.case("sparc", PROMPT_LENGTH=4, RANK=3)
  measure, asked = TokenMoments(), Probe(case.model, case.params, None)

  def measured(*sizes):
    total, first = measure.init(asked), 0
    for size in sizes:
      rows = case.rows[first : first + size]
      first += size
      # A row that only fills the batch weighs nothing.
      weight_B = jnp.array([1.0] * size + [0.0])
      total = measure.add(total, asked, case.batch([*rows, rows[0]]), weight_B)
    return measure.finish(jax.tree.map(np.asarray, total))

  ids = np.concatenate([row["inputs"] for row in case.rows])
  table_VH = np.asarray(tools.BACKBONE.table(tools.backbone_params()), np.float64)
  for found in (measured(8), measured(3, 5)):
    np.testing.assert_allclose(found["mean"], table_VH[ids].mean(0), atol=1e-5)
    wanted = np.cov(table_VH[ids].T, bias=True)
    np.testing.assert_allclose(found["covariance"], wanted, atol=1e-5)


# ---- the rule


def test_near_tasks_share_and_others_stand_at_right_angles():
  tasks = dict.fromkeys(("one", "again", "other"), "task")
  procedure = Subspaces(tasks, rank=2)
  arrays = {"one": moments(1), "again": moments(1), "other": moments(2)}
  done, found = [], []
  while (phase := procedure.next(done)) is not None:
    found.append(phase)
    scores = {f"{name}/accuracy": 1.0 for name in tasks}
    name = phase.name.removeprefix("space_")
    done.append(Result(phase.name, scores=scores, arrays=arrays.get(name, {})))
  assert [phase.name for phase in found] == [
    *("exam_0", "space_one", "learn_one", "exam_1"),
    *("space_again", "learn_again", "exam_2", "space_other", "learn_other", "exam_3"),
  ]
  first, again, other = (found[i].start for i in (2, 5, 8))
  path = f"{WORD}/coordinates"
  assert again[path] == f"learn_one:{path}"
  assert path not in first and path not in other
  bases = [start[f"{WORD}/basis"].value[0] for start in (first, again, other)]
  np.testing.assert_array_equal(bases[0], bases[1])
  np.testing.assert_allclose(bases[0] @ bases[2].T, 0, atol=1e-6)
  with pytest.raises(ValueError, match=r"`Subspaces.rank` \(RANK\) must be"):
    Subspaces(tasks, rank=0)


@pytest.mark.slow
def test_a_run_takes_up_the_subspace_of_a_task_with_the_same_inputs(
  tmp_path, tiny_folder, cache
):
  shutil.copytree(tiny_folder, tmp_path / "backbone")
  text = process_tools.RECIPE.replace("prompt_tuning.gin", "sparc.gin")
  text += "TRAIN_STEPS = 2\nEVAL_PERIOD = 0\nRANK = 3\nSINGLES = True\n"
  process_tools.write_task(tmp_path, f"{tmp_path}/backbone", text)
  (tmp_path / "sparc.gin").write_text(
    "from __gin__ import dynamic_registration\n"
    "from prompt_tuning.data import files\n"
    f'include "{tmp_path}/recipe.gin"\ninclude "gin/outputs/choice.gin"\n'
    'TASK_SEQUENCE = {"first": @files.Files(), "second": @flipped/files.Files()}\n'
    'flipped/files.Files:\n  name = "flipped"\n'
    '  label_map = {"positive": "negative", "negative": "positive"}\n'
  )
  flags = [f"--gin_file={tmp_path}/sparc.gin", f"--gin.MODEL_DIR='{tmp_path}/run'"]
  config.run_verb(train.train, flags)
  held = {
    name: product.load(next((tmp_path / "run" / "phases").glob(f"*_{name}")) / "prompt")
    for name in ("learn_first", "learn_second", "single_second")
  }
  frozen = {name: branches.flatten(made.frozen) for name, made in held.items()}
  for path, value in frozen["learn_first"].items():
    for name in ("learn_second", "single_second"):
      np.testing.assert_allclose(frozen[name][path], value, atol=1e-5)
  assert held["learn_first"].parameters == 4 * 3
  basis_rH = frozen["learn_first"][f"{WORD}/basis"][0]
  np.testing.assert_allclose(basis_rH @ basis_rH.T, np.eye(3), atol=1e-5)
  # And began where the first ended, bit for bit.
  started = {**frozen["learn_first"], **branches.flatten(held["learn_first"].trainable)}
  (folder,) = (tmp_path / "run" / "phases").glob("*_learn_second")
  digest = json.loads((folder / "run.json").read_text())["identity"]["start"]
  assert digest == identity.arrays(started)
  matrix = json.loads((tmp_path / "run" / "accuracy-matrix.json").read_text())
  assert matrix["figures"]["F"] == 0
