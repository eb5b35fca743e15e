"""The prompt of one task as a table of its own: what it holds, and where it goes."""

import numpy as np
import pytest
import serving_tools

import prompt_tuning as pt
from prompt_tuning import export
from prompt_tuning.interop import one_task, prompts
from prompt_tuning.interop.load import load

MEMBERS = [{"name": name, "labels": ["good", name]} for name in ("film", "food", "day")]
METHODS = ["task_prompts", "task_prompts_project", "task_prompts_concat", "mpt"]
TEXTS = ["a fine film", "dull"]


def made(tiny_folder, folder, method):
  card = {"task": {"name": "all", "tasks": MEMBERS}}
  numbers = {"PROMPT_LENGTH": 3, "TASKS": 3, "RANK": 2}
  return serving_tools.made(tiny_folder, folder, method, card=card, **numbers)


@pytest.mark.parametrize("method", METHODS)
def test_the_table_of_each_task_is_the_live_prompt(method, tiny_folder, tmp_path):
  path = made(tiny_folder, tmp_path, method)
  model, whole = pt.load_model(tiny_folder), pt.load_prompt(str(path))
  tables = []
  for k, member in enumerate(MEMBERS):
    alone = one_task.of_task(whole, member["name"])
    assert alone.card["task"]["labels"] == member["labels"]
    mine = pt.classify(model, alone, TEXTS)[1]
    live = pt.classify(model, whole, TEXTS, task=k)[1]
    np.testing.assert_allclose(mine, live, atol=1e-5)
    tables.append(prompts.fold(alone))
    np.testing.assert_array_equal(prompts.fold(one_task.of_task(whole, k)), tables[k])
    alone.save(tmp_path / "alone")
    again = pt.load_prompt(str(tmp_path / "alone"))
    np.testing.assert_array_equal(prompts.fold(again), tables[k])
  assert np.abs(tables[0] - tables[1]).max() > 0.01


def test_the_verb_writes_one_task(tiny_folder, tmp_path, capsys):
  path = made(tiny_folder, tmp_path, "mpt")
  out = tmp_path / "food.npy"
  flags = [f"--prompt={path}", f"--output={out}"]
  export.main(["--to=numpy", *flags, "--task=food"])
  whole = pt.load_prompt(str(path))
  np.testing.assert_array_equal(
    np.load(out), prompts.fold(one_task.of_task(whole, "food"))
  )
  for more, words in (
    ([], "but what it does for one task (`task`, or --task)"),
    (["--task=3"], "a number from 0 to 2, or one of ['film', 'food', 'day']"),
  ):
    with pytest.raises(SystemExit):
      export.main(["--to=numpy", *flags, *more])
    assert words in capsys.readouterr().err
  assert np.load(out).shape == (3, 16)


def product(tiny_folder, folder, method):
  """One task's product, whose card states the sizes of its backbone."""
  path = serving_tools.made(tiny_folder, folder, method, PROMPT_LENGTH=2)
  found = pt.load_prompt(str(path))
  sizes = load(tiny_folder).backbone.config.to_json()
  found.card["backbone"]["architecture"] = sizes
  return found


def test_keys_and_values_of_a_gallery(tiny_folder, tmp_path):
  one = product(tiny_folder, tmp_path, "prefix_tuning")
  alone = one_task.of_task(pt.combine({"a": one, "b": one}), "b")
  assert alone.module.names == ("encoder_kv", "decoder_kv")
  for side in ("encoder", "decoder"):
    np.testing.assert_equal(
      alone.trainable["prompt"][f"{side}_kv"], one.trainable["prompt"][side]
    )


@pytest.mark.parametrize(
  ("method", "words"),
  [("ia3", "is no table of positions"), ("ipt_mlp", "This prompt reads its input too")],
)
def test_what_is_no_table_of_a_task(method, words, tiny_folder, tmp_path):
  one = product(tiny_folder, tmp_path, method)
  with pytest.raises(ValueError, match=words):
    one_task.of_task(pt.combine({"a": one}), "a")
  with pytest.raises(ValueError, match="`task` is 0, but the prompt tells no tasks"):
    one_task.of_task(one, 0)
