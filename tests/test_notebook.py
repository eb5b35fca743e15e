"""What a notebook has: examples from anywhere, and how what came of them is shown."""

import copy
import importlib
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest
from source_tools import PAIRS, READ, ROWS, Pandas, written

import prompt_tuning as pt
from prompt_tuning import catalogue, train, tuning
from prompt_tuning.engine import config, gin_state, listed


@pytest.fixture(scope="module")
def model(tiny_folder):
  return pt.load_model(tiny_folder)


@pytest.fixture(scope="module")
def prompt(model):
  return pt.tune(
    *(model, PAIRS, "prompt_tuning", PAIRS, 4),
    prompt_length=3,
    eval_period=2,
    log_period=2,
    batch_size=2,
    learning_rate=0.03,
  )


# ---- examples from anywhere


def test_a_template_is_kept_and_answers_follow_it(model, tmp_path):
  made = pt.tune(model, Pandas(ROWS), steps=0, prompt_length=3, **READ)
  assert made.card["reading"]["inputs"] == "review: {text}"
  one = pt.classify(model, made, ["a film"])[1]
  whole = pt.classify(model, made, ["review: a film"], inputs="{text}")[1]
  np.testing.assert_array_equal(one, whole)
  assert pt.evaluate(model, made, PAIRS) == pt.evaluate(model, made, Pandas(ROWS))
  named = [{"text": text, "label": mood, "id": 7} for text, mood in PAIRS]
  with pytest.raises(ValueError, match="named columns, and the other holds pairs"):
    pt.tune(model, Pandas(named), validation=PAIRS)


# ---- how long, and who watches


def test_epochs_are_steps(model):
  def steps(**given):
    return tuning.steps_of(
      given.pop("steps", None), given.pop("epochs", None), 10, given
    )

  assert steps(epochs=1) == 1 and steps(epochs=3, batch_size=4) == 8
  assert steps(epochs=0.5, BATCH_SIZE=2) == 3 and steps() == 300
  for given, words in (
    ({"epochs": 1, "steps": 2}, "`steps` and `epochs` both"),
    ({"epochs": 0}, "`epochs` is 0; it must be a number above 0"),
    ({"epochs": True}, "`epochs` is True"),
    ({"epochs": 1, "pack_segments": 2}, "`epochs` counts batches of single"),
  ):
    with pytest.raises(ValueError, match=words):
      steps(**given)


def test_callbacks_hear_every_line_and_may_end_it(model):
  heard = []

  def hear(step, metrics):
    heard.append((step, metrics["split"]))
    if step == 4:
      raise StopIteration("enough")

  options = {"prompt_length": 3, "log_period": 2, "steps": 8, "batch_size": 2}
  with pytest.raises(StopIteration, match="enough"):
    pt.tune(model, PAIRS, callbacks=hear, **options)
  assert heard == [(2, "train"), (4, "train")]
  with pytest.raises(ValueError, match="`callbacks` is 5; give functions"):
    pt.tune(model, PAIRS, callbacks=5, **options)


def test_a_bar_says_how_it_goes(model, capfd, monkeypatch):
  monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
  options = {"prompt_length": 3, "steps": 2, "batch_size": 2}
  pt.tune(model, PAIRS, validation=PAIRS, **options)
  shown = "".join(capfd.readouterr())
  for text in ("tune", "2/2", "loss=", "rate=", "accuracy=", "taken for the labels"):
    assert text in shown
  pt.tune(model, PAIRS, progress=False, **options)
  assert capfd.readouterr().err == ""


def test_nothing_is_written_where_nobody_watches(model, capfd):
  pt.tune(model, PAIRS, steps=2, prompt_length=3, batch_size=2)
  assert capfd.readouterr() == ("", "")


# ---- what came of it


def test_a_product_is_short(prompt):
  text = repr(prompt)
  assert text.startswith("Product(method='prompt_tuning', trained=48, step=")
  assert "accuracy=" in text and len(text) < 300 and "[[" not in text


def test_history_and_plot(prompt, tmp_path):
  splits = [(row["step"], row["split"]) for row in prompt.history]
  assert splits == [(2, "train"), (2, "validation"), (4, "train"), (4, "validation")]
  prompt.plot(tmp_path / "curve.png")
  assert (tmp_path / "curve.png").stat().st_size > 5000
  assert pickle.loads(pickle.dumps(prompt)).history == prompt.history
  assert copy.deepcopy(prompt).history is prompt.history


def test_a_saved_prompt_has_no_history_of_its_own(prompt, tmp_path, model):
  prompt.save(tmp_path / "p")
  again = pt.load_prompt(tmp_path / "p")
  assert again.history == [] and repr(again) == repr(prompt)
  for refused in (again.plot, again.to_gin, again.nearest_tokens):
    with pytest.raises(ValueError, match="history|recipe|give model="):
      refused()
  assert again.nearest_tokens(1, model)


def test_nearest_tokens_are_those_of_the_table(model):
  text = "film good"
  made = pt.tune(model, PAIRS, steps=0, init="text", prompt_text=text, prompt_length=2)
  words = [row["nearest"][0] for row in made.nearest_tokens(2)]
  ids = model.loaded.vocabulary.encode(text)
  spelt = [model.loaded.vocabulary.decode([i]).strip() for i in ids]
  assert words == [f"{word} 1.00" for word in spelt]
  assert [len(row["nearest"]) for row in made.nearest_tokens(2)] == [2, 2]
  with pytest.raises(ValueError, match="`k` is 0"):
    made.nearest_tokens(0)


def test_words_are_near_nothing_where_there_are_none(model):
  options = {"steps": 0, "progress": False}
  inside = pt.tune(model, PAIRS, "prefix_tuning", prompt_length=2, **options)
  with pytest.raises(ValueError, match="inside the layers"):
    inside.nearest_tokens()
  reading = pt.tune(model, PAIRS, "s_idpg_dnn", prompt_length=2, **options)
  with pytest.raises(ValueError, match="reads its input"):
    reading.nearest_tokens()
  assert "trained" in pt.inspect(reading) and "nearest" not in pt.inspect(reading)


# ---- the recipe of a run


def run_of(text, folder):
  """The prompt of a run of `train` on a recipe's text."""
  folder.mkdir()
  (folder / "run.gin").write_text(text)
  with gin_state.isolated():
    bindings = [f"MODEL_DIR = '{folder}/run'", "TENSORBOARD = False"]
    config.parse([str(folder / "run.gin")], bindings)
    config.call(train.train)
  return pt.load_prompt(folder / "run")


def same(one, other):
  pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
  return all(np.array_equal(a, b) for a, b in pairs)


def test_a_run_of_to_gin_makes_the_same_prompt(prompt, tmp_path):
  text = prompt.to_gin()
  again = run_of(text, tmp_path / "lists")
  assert same(again.trainable, prompt.trainable)
  assert again.card["scores"] == pytest.approx(prompt.card["scores"])
  assert [row["step"] for row in again.history] == [2, 2, 4, 4]


def test_to_gin_of_a_file_names_it(model, tmp_path):
  path = written(tmp_path, "a.tsv", ROWS)
  options = {"steps": 2, "prompt_length": 3, "batch_size": 2, "optimizer": "adamw"}
  made = pt.tune(model, path, **options, **READ)
  text = made.to_gin()
  assert f"TRAIN_FILE = '{path}'" in text and "AdamW()" in text
  assert same(run_of(text, tmp_path / "run").trainable, made.trainable)


def test_what_gin_cannot_say(model):
  from prompt_tuning.engine.optimizer import AdamW

  options = {"steps": 0, "prompt_length": 3}
  made = pt.tune(model, PAIRS, optimizer=AdamW(), **options)
  with pytest.raises(ValueError, match="`optimizer` was given as an object"):
    made.to_gin()
  half = pt.load_model(model.loaded.name, dtype="bfloat16")
  with pytest.raises(ValueError, match="dtype='bfloat16'"):
    pt.tune(half, PAIRS, **options).to_gin()


# ---- tables


def test_lists_say_what_there_is():
  names = [row["name"] for row in pt.methods()]
  assert names == config.methods() and all(row["what"] for row in pt.methods())
  assert [row["name"] for row in pt.methods("decoder")][0] != names[0]
  assert all(row["what"] for row in [*pt.backbones(), *pt.tasks()])
  assert all(row["what"] for row in catalogue.recipes())
  with pytest.raises(ValueError, match="Nothing here fits 'promt_tuning'.*prompt_tun"):
    pt.methods("promt_tuning")
  with pytest.raises(ValueError, match="`pattern` is 5"):
    pt.tasks(5)


def test_a_room_may_be_called_and_stays_a_room():
  import prompt_tuning.backbones.t5

  assert pt.backbones is prompt_tuning.backbones
  assert pt.backbones("mini")[0]["name"] == "mini"
  with pytest.raises(ValueError, match="`prompt` is 5"):
    importlib.import_module("prompt_tuning.inspect")(5)


def test_rows_show_themselves():
  rows = listed.Rows([{"a": "<b>", "n": 1234}, {"a": "x", "n": None, "each": [1.5]}])
  assert repr(rows).splitlines()[0].split() == ["a", "n", "each"]
  assert "1,234" in repr(rows) and "&lt;b&gt;" in rows._repr_html_()
  if importlib.util.find_spec("pandas") is None:
    with pytest.raises(ValueError, match="pip install pandas"):
      rows.frame()
  else:
    assert list(rows.frame().columns) == ["a", "n", "each"]


def test_compare_and_evaluate(model, tmp_path):
  found = pt.compare(
    *(model, PAIRS, ["prompt_tuning", "bitfit"]),
    seeds=2,
    test=PAIRS,
    steps=0,
  )
  assert {row["method"] for row in found} == {"prompt_tuning", "bitfit"}
  for row in found:
    assert len(row["each"]) == 2 and row["metric"] == "accuracy"
    assert row["mean"] == pytest.approx(np.mean(row["each"]))
    assert row["spread"] == pytest.approx(np.std(row["each"], ddof=1))
    assert row["trained"] > 0 and row["seconds"] > 0
  found.plot(tmp_path / "means.png")
  assert (tmp_path / "means.png").stat().st_size > 5000
  for given, words in (
    ({"methods": ["promt_tuning"], "validation": PAIRS}, "Did you mean 'prompt_tuning"),
    ({"methods": ["bitfit"]}, "`validation` and `test` are both None"),
    ({"methods": [], "validation": PAIRS}, "name each method once"),
    ({"methods": ["bitfit"], "validation": PAIRS, "seeds": 0}, "`seeds` is 0"),
  ):
    with pytest.raises(ValueError, match=words):
      pt.compare(model, PAIRS, **given)


def test_evaluate_repeats_the_scores_of_tuning(model, prompt):
  assert pt.evaluate(model, prompt, PAIRS) == pytest.approx(prompt.card["scores"])
  written = pt.evaluate(model, None, PAIRS, metrics="exact_match")
  assert written["exact_match"] == 0
  with pytest.raises(ValueError, match="`labels` is the one text"):
    pt.evaluate(model, prompt, PAIRS, labels="good")


# ---- the names


def test_every_name_is_there_and_none_is_slow():
  code = (
    "import sys, time; start = time.monotonic()\n"
    "import prompt_tuning as pt\n"
    "assert time.monotonic() - start < 1 and 'jax' not in sys.modules\n"
    "for name in pt.__all__: assert callable(getattr(pt, name)), name\n"
    "assert 'tensorflow' not in sys.modules and set(pt.__all__) <= set(dir(pt))\n"
    "try: pt.tuen\n"
    "except AttributeError: print('refused')\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=False
  )
  assert done.stdout == "refused\n", done.stderr


def test_type_checkers_see_the_names(root):
  """What `if TYPE_CHECKING` imports is what `__getattr__` finds."""
  text = (root / "prompt_tuning" / "__init__.py").read_text()
  for name in pt.__all__:
    (module,) = [
      line.split()[1] for line in text.splitlines() if line.endswith(f" as {name}")
    ]
    assert getattr(importlib.import_module(module), name) is not None
    assert pt._WHERE[name] == module
  assert (root / "prompt_tuning" / "py.typed").exists()
