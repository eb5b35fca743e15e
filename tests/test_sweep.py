"""A sweep: every point is a run, what is done stays, the table says what came."""

import json
import re
import statistics

import process_tools
import pytest

from prompt_tuning import sweep, train
from prompt_tuning.engine import product

RECIPE = process_tools.RECIPE + (
  "TRAIN_STEPS = 2\nEVAL_PERIOD = 2\nLOG_PERIOD = 2\nSAVE_PERIOD = 2\n"
)


@pytest.fixture(scope="module")
def work(tmp_path_factory, tiny_folder, cache):
  folder = tmp_path_factory.mktemp("sweep")
  process_tools.write_task(folder, tiny_folder, RECIPE, 8)
  return folder


def words(work, *more):
  return [f"--gin_file={work}/recipe.gin", "--output", f"{work}/out", *more]


@pytest.mark.slow
def test_a_sweep_goes_on_and_says_what_came(work, capsys, monkeypatch):
  argv = words(work, "--grid", "LEARNING_RATE=[0.01, 0.3]", "--seeds=2")
  calls = []
  real = train.Job.run

  def run(self):
    if len(calls) == 2:
      raise SystemExit(143)
    calls.append(self.folder)
    return real(self)

  monkeypatch.setattr(train.Job, "run", run)
  with pytest.raises(SystemExit) as stop:
    sweep.main(argv)
  assert stop.value.code == 143
  kept = (work / "out" / "LEARNING_RATE=0.01" / "seed-0" / "metrics.jsonl").read_bytes()
  monkeypatch.setattr(train.Job, "run", real)
  capsys.readouterr()
  sweep.main(argv)
  out = capsys.readouterr().out
  assert out.count("finished at step 2") == 2
  assert (calls[0] / "metrics.jsonl").read_bytes() == kept
  rows = json.loads((work / "out" / "table.json").read_text())
  assert [row["LEARNING_RATE"] for row in rows] == [0.01, 0.3]
  for row in rows:
    folder = work / "out" / f"LEARNING_RATE={row['LEARNING_RATE']}"
    found = [product.load(folder / f"seed-{k}").card["scores"]["loss"] for k in (0, 1)]
    assert row["each"] == found and row["metric"] == "loss"
    assert row["mean"] == statistics.fmean(found)
    assert row["spread"] == statistics.stdev(found)
  assert rows[0]["each"][0] != rows[0]["each"][1]
  assert (work / "out" / "sweep.png").stat().st_size > 5000
  assert "run 4 of 4: LEARNING_RATE=0.3, SEED=1" in out and "mean" in out


def test_points_are_all_combinations():
  found = sweep.Sweep({"A": [1, 2], "B": ["x y", None]}, [0], sweep.files.at("o"), [])
  assert [tuple(point.values()) for point in found.points] == [
    (1, "x y"),
    (1, None),
    (2, "x y"),
    (2, None),
  ]
  assert str(found.place(found.points[0], 5)) == "o/A=1,B=x_y/seed-5"
  assert found.flags(found.points[0], 5)[:2] == ["--gin.A=1", "--gin.B='x y'"]


@pytest.mark.parametrize(
  ("more", "says"),
  [
    ([], "`--grid` is missing"),
    (["--grid", "LEARNING_RATE=0.1"], "it must be a macro and its values"),
    (["--grid", "learning_rate=[1]"], "it must be a macro and its values"),
    (["--grid", "SEED=[1]"], "set by the sweep itself"),
    (["--grid", "A=[1]", "--grid", "A=[2]"], "given twice"),
    (["--grid", "A=[1]", "--seeds=0"], "`--seeds` is 0"),
    (["--grid", "A=[1]", "--gin.SEED=3"], "`--gin.SEED=3` is set by the sweep"),
    (["--grid", "LERNING_RATE=[1]"], "'LERNING_RATE'.*'LEARNING_RATE'"),
    (["--grid", "PROMPT_LENGTH=[2,-1]"], "`PROMPT_LENGTH` is -1"),
    (["--grid", "BEST_METRIC=['l','l/']"], "folders of the same name"),
  ],
)
def test_what_does_not_fit(work, more, says, capsys, monkeypatch):
  monkeypatch.setattr(train.Job, "run", lambda self: pytest.fail("it ran"))
  with pytest.raises(SystemExit) as stop:
    sweep.main(words(work, *more))
  (line,) = capsys.readouterr().err.splitlines()
  assert stop.value.code == 2
  assert re.search(says, line), line


def test_a_score_that_there_is_not(work, capsys):
  argv = words(work, "--grid", "LEARNING_RATE=[0.01]", "--seeds=1", "--metric=f1")
  with pytest.raises(SystemExit):
    sweep.main(argv)
  assert "`--metric` 'f1' is no score of" in capsys.readouterr().err
