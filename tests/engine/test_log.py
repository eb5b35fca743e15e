"""The log and the report."""

import json

import jax

from prompt_tuning.core import trainable as branches
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.core.prompt import Prompt
from prompt_tuning.engine import (
  optimizer,
  report,
  sharding,
)
from prompt_tuning.engine.log import Log
from prompt_tuning.engine.ready import places
from prompt_tuning.engine.recipe import Recipe
from prompt_tuning.inits import uniform
from prompt_tuning.interop.load import load
from prompt_tuning.parameterisers.dense import Dense


def test_log_lines(tmp_path, capsys):
  log = Log(tmp_path / "run", 4, tensorboard=False)
  log.write(2, "train", {"loss": 1.5})
  log.write(4, "validation", {"loss": 1.25, "accuracy": 50.0})
  log.step(4)
  log.close()
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line) for line in lines] == [
    {"step": 2, "split": "train", "loss": 1.5},
    {"step": 4, "split": "validation", "loss": 1.25, "accuracy": 50.0},
  ]
  assert "step 4/4 validation: loss 1.25  accuracy 50" in capsys.readouterr().out


def test_a_resumed_log_repeats_no_step(tmp_path):
  path = tmp_path / "metrics.jsonl"
  lines = [json.dumps({"step": n, "split": "train", "loss": 1.0}) for n in (1, 2, 3)]
  path.write_text("\n".join(lines) + '\n{"step": 4, "spl')
  log = Log(tmp_path, 9, first=2, tensorboard=False, quiet=True)
  log.write(3, "train", {"loss": 0.5})
  log.close()
  found = [json.loads(line) for line in path.read_text().splitlines()]
  assert [(line["step"], line["loss"]) for line in found] == [(1, 1), (2, 1), (3, 0.5)]
  assert list(tmp_path.iterdir()) == [path]


def test_the_report_lists_every_parameter(tmp_path, tiny_folder):
  loaded = load(tiny_folder)
  prompt = Prompt(3, Dense(uniform.symmetric(0.5)), "encoder.input")
  model = PromptedModel(loaded.backbone, prompt)
  recipe = Recipe(
    ("prompt",), None, None, None, sharding=sharding.Sharding(rules=[("batch", "data")])
  )
  place, transform = recipe.sharding.over(), optimizer.AdamW()(lambda step: 0.1)
  params = {"backbone": loaded.params, "prompt": model.prompt_shapes(loaded.params)}
  found = places(model, params, ("prompt",), transform, place)
  text = report.info_text(model, params, recipe, transform, place, found)
  (tmp_path / "model-info.txt").write_text(text)
  lines = (tmp_path / "model-info.txt").read_text().splitlines()
  frozen, trains = branches.count(loaded.params), 3 * 16
  assert lines[0] == f"parameters {frozen + trains:,}, of which {trains:,} train"
  rows = [line for line in lines if line.startswith(("trains", "frozen"))]
  assert len(rows) == len(jax.tree.leaves(loaded.params)) + 1
  (row,) = [row for row in rows if row.startswith("trains")]
  assert "prompt/" in row and "[1x3x16]" in row
  assert any("embed" in row and "vocab" in row for row in rows)
  report.learning_curve(tmp_path)
  assert not (tmp_path / "learning-curve.png").exists()
