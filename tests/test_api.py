"""The Python names: what arguments do, and what is refused in the caller's words."""

import copy
import importlib.util
import json
import pickle

import jax
import numpy as np
import optax
import pytest

import prompt_tuning as pt
from prompt_tuning import arguments, keywords, train, tuning
from prompt_tuning.core import describe
from prompt_tuning.engine import config, fit, gin_state
from prompt_tuning.engine.optimizer import AdamW
from prompt_tuning.engine.programs import Programs
from prompt_tuning.outputs.choice import Choice
from prompt_tuning.outputs.text import Greedy

PAIRS = [("a good film", "good"), ("a bad film", "bad")] * 2
LABELS = ["bad", "good"]


@pytest.fixture(scope="module")
def model(tiny_folder):
  return pt.load_model(tiny_folder)


@pytest.fixture(scope="module")
def prompt(model):
  return pt.tune(model, PAIRS, steps=0, prompt_length=3)


class Heard(tuning.Quiet):
  def __init__(self):
    super().__init__()
    self.said = []

  def say(self, text):
    self.said.append(text)


class Seen(Exception):
  """What would be fitted, instead of the fit."""


@pytest.fixture
def sentence(model, monkeypatch):
  """Calls `tune`; returns what reaches `fit.fit`, which compiles nothing."""
  found = {}

  def stop(prompted, params, vocabulary, task, layout, recipe, output, _, teachers):
    found.update(model=prompted, task=task, layout=layout, recipe=recipe, output=output)
    raise Seen

  monkeypatch.setattr(fit, "fit", stop)

  def seen(pairs=PAIRS, **arguments):
    found.clear()
    with pytest.raises(Seen):
      pt.tune(model, pairs, **{"prompt_length": 3, **arguments})
    return dict(found)

  return seen


# ---- arguments of tune act


def test_plain_overrides_act(sentence):
  found = sentence(
    validation=PAIRS,
    pack_segments=2,
    buckets=3,
    eval_examples=2,
    task_feature_lengths={"inputs": 40},
    dropout_rate=0.5,
    log_period=7,
    patience=4,
    truncate=True,
    prompt_place="end",
    batch_size=np.int64(8),
  )
  recipe, layout = found["recipe"], found["layout"]
  assert (recipe.pack_segments, recipe.buckets, recipe.eval_examples) == (2, 3, 2)
  assert found["model"].segments == 2
  assert (layout.inputs, layout.targets, layout.truncate) == (40, 16, True)
  assert layout.place == "end"
  assert recipe.dropout_rate and found["model"].backbone.config.dropout_rate == 0.5
  assert (recipe.plan.log_period, recipe.plan.patience, recipe.batch_size) == (7, 4, 8)


def test_dropout_trains_otherwise_and_answers_alike(model):
  found = [
    pt.tune(model, PAIRS, steps=2, prompt_length=3, batch_size=4, dropout_rate=rate)
    for rate in (0.0, 0.5)
  ]
  flat = [jax.tree.leaves(product.trainable)[0] for product in found]
  assert np.abs(flat[0] - flat[1]).max() > 1e-3
  assert model.loaded.backbone.config.dropout_rate == 0
  first, second = (pt.classify(model, found[1], ["a film"])[1] for _ in range(2))
  np.testing.assert_array_equal(first, second)


def test_the_rate_given_overrules_the_backbones_own(model):
  dropping = pt.load_model(model.loaded.name)
  backbone = dropping.loaded.backbone.recast(dropout_rate=0.3)
  assert backbone.config.dropout_rate == 0.3
  assert backbone.recast(dropout_rate=0.0) == dropping.loaded.backbone
  with pytest.raises(ValueError, match="emb_dim.* no switches.*dropout_rate"):
    backbone.recast(emb_dim=3)


@pytest.mark.parametrize("name", sorted(keywords.REFUSED))
def test_what_tune_does_not_take_is_refused_by_name(model, name):
  for spelt in (name, name.upper()):
    with pytest.raises(ValueError, match=f"`{spelt}` is not for tune: "):
      pt.tune(model, PAIRS, **{spelt: "x"})


@pytest.mark.parametrize("method", ["prompt_tuning", "s_idpg_phm", "full_fine_tuning"])
def test_every_macro_acts_or_is_refused(method):
  with gin_state.isolated():
    files = ["gin/train.gin", "gin/schedules/warmup_linear.gin"]
    config.parse([*files, f"gin/methods/{method}.gin"], check=False)
    acts = gin_state.reached({*tuning.WANTED.split(), "OPTIMIZER", "OUTPUT"})
    silent = {name.lower() for name in config.names() - acts}
  assert silent <= {*keywords.REFUSED, *keywords.NAMED}


@pytest.mark.parametrize(
  ("given", "words"),
  [
    ({"steps": 2.5}, "`steps` is 2.5; it must be a whole number"),
    ({"steps": -1}, "`steps` is -1"),
    ({"steps": True}, "`steps` is True"),
    ({"seed": 2**70}, "`seed` is"),
    ({"learning_rate": -1}, "`learning_rate` is -1"),
    ({"learning_rate": float("nan")}, "`learning_rate` is nan; it must be finite"),
    ({"lerning_rate": 1}, "no argument 'lerning_rate'.*'learning_rate'"),
    ({"LABELS": LABELS}, "`LABELS` is an argument of tune in lower case: labels="),
    ({"PROMPT_LENGTH": 4}, "`prompt_length` is given twice"),
    ({"prompt_length": 0}, "`prompt_length` is 0; .*from 1 to 4096"),
    ({"batch_size": 3, "microbatches": 2}, "`batch_size` is 3"),
    ({"eval_period": 5}, "`eval_period` is about evaluation"),
    ({"patience": 5}, "`patience` is about evaluation"),
    ({"output": "greedy"}, "`output` answers validation"),
    ({"validation": PAIRS, "output": "gredy"}, "'gredy'.*'greedy'"),
    ({"validation": PAIRS, "output": 5}, "`output` is 5"),
    ({"validation": PAIRS, "best_metric": "f1"}, "`best_metric` is 'f1'.* an output"),
    ({"validation": PAIRS, "output": "none", "metrics": "rouge"}, "`metrics` score"),
    ({"metrics": "acuracy"}, "`metrics` names 'acuracy'.*'accuracy'"),
    ({"labels": "bad"}, r"`labels` is the one text 'bad'; give a list: labels="),
    ({"labels": [0, 1]}, r"`labels\[0\]` is 0; labels are texts"),
    ({"labels": ["good", "x"]}, r"`train\[1\]` has the target 'bad'.*`labels`"),
    ({"task_feature_lengths": 48}, "`task_feature_lengths` is 48"),
    ({"batch_size": object()}, "`batch_size` is <object"),
    ({"optimizer": "sgd"}, "`optimizer` is 'sgd'; the names are.*optax"),
    ({"optimizer": 3}, "`optimizer` is 3"),
    ({"optimizer": optax.sgd(0.1), "learning_rate": 0.1}, "`learning_rate` would do"),
    ({"init": "text"}, "needs `prompt_text`: give prompt_text="),
    ({"init": "txt"}, "initialisation 'txt'"),
    ({"method": "ipt"}, "no method 'ipt'"),
    ({"method": "full_fine_tuning", "PROMPT_LENGTH": None}, "`prompt_length`"),
  ],
)
def test_what_does_not_fit_is_refused(model, given, words, monkeypatch):
  monkeypatch.setattr(fit, "run", lambda *a, **k: pytest.fail("it ran"))
  with pytest.raises(ValueError, match=words) as error:
    pt.tune(model, PAIRS, **{"steps": 2, "prompt_length": 3, **given})
  assert not any(word in str(error.value) for word in ("Lists.", "The macro", "--gin"))


def test_init_without_a_prompt(model):
  with pytest.raises(ValueError, match="`init` is 'text'.*draws no prompt"):
    pt.tune(model, PAIRS, method="full_fine_tuning", init="text")


# ---- labels, metrics, outputs, optimisers


def test_guessed_labels_are_said(model):
  heard = Heard()
  product = pt.tune(model, PAIRS, steps=0, prompt_length=3, recorder=heard)
  assert product.card["task"]["labels"] == LABELS
  assert product.card["task"]["labels_guessed"] is True
  assert "labels ['bad', 'good']; give labels=" in heard.said[0]
  heard = Heard()
  given = pt.tune(
    model, PAIRS, steps=0, prompt_length=3, labels=("good", "bad"), recorder=heard
  )
  assert given.card["task"]["labels"] == ["good", "bad"]
  assert "labels_guessed" not in given.card["task"] and not heard.said


def test_an_unseen_validation_target_is_a_label_or_makes_text(sentence):
  seen = sentence(validation=[("a dull film", "dull"), ("a film", "bad")])
  assert seen["task"].labels == ("bad", "dull", "good")
  assert isinstance(seen["output"], Choice)
  numbers = [(f"pair {i}", f"{i / 5}") for i in range(20)]
  seen = sentence(numbers, validation=[("pair 99", "7.7")])
  assert seen["task"].labels is None and seen["task"].metrics == ("exact_match",)
  assert seen["output"] == Greedy(seen["layout"].targets)


def test_one_example_a_class_with_labels(model):
  one = [("a good film", "good"), ("a bad film", "bad")]
  given = {"steps": 0, "prompt_length": 3, "validation": one}
  assert "accuracy" in pt.tune(model, one, labels=LABELS, **given).card["scores"]
  found = pt.tune(model, one, **given).card
  assert found["task"]["labels"] is None and "exact_match" in found["scores"]


def test_outputs_by_name_and_as_objects(sentence):
  assert sentence(validation=PAIRS, output="none")["output"] is None
  found = sentence(validation=PAIRS, output="beam", beams=2, decode_steps=3)["output"]
  assert (found.loop, found.beams, found.steps) == ("beam_search", 2, 3)
  found = sentence(validation=PAIRS, normalize_by_length=True)["output"]
  assert found == Choice(normalize_by_length=True)
  mine = Choice(chunk=1)
  assert sentence(validation=PAIRS, output=mine)["output"] is mine
  found = sentence(validation=PAIRS, metrics=["f1_macro"], labels=LABELS)
  assert found["task"].metrics == ("f1_macro",)
  assert found["recipe"].plan.metric == "loss"


def test_optimisers(model, sentence):
  assert sentence(optimizer="adamw")["recipe"].optimizer.rule == AdamW()
  found = sentence(optimizer=AdamW(b1=0.5), learning_rate=0.2, steps=20)["recipe"]
  assert found.optimizer.rule == AdamW(b1=0.5)
  assert float(found.optimizer.schedule(2)) == pytest.approx(0.2)


def test_a_transformation_of_optax_is_used_as_it_is(model):
  heard = Heard()
  given = {"prompt_length": 3, "batch_size": 4, "recorder": heard}
  before = pt.tune(model, PAIRS, steps=0, **given)
  after = pt.tune(
    model, PAIRS, steps=1, log_period=1, optimizer=optax.sgd(0.0, momentum=0.9), **given
  )
  for a, b in zip(
    jax.tree.leaves(before.trainable), jax.tree.leaves(after.trainable), strict=True
  ):
    np.testing.assert_array_equal(a, b)
  (line,) = [line for line in heard.lines if line["split"] == "train"]
  assert "loss" in line and "learning_rate" not in line
  assert "GradientTransformation" in after.card["given"]["optimizer"]
  assert " at 0x" not in json.dumps(after.card)


def test_the_card_repeats_the_run(model, tmp_path):
  product = pt.tune(model, PAIRS, steps=1, seed=5, prompt_length=3, batch_size=4)
  card = product.card
  assert (card["seed"], card["steps"], card["step"]) == (5, 1, 1)
  assert card["versions"] == {"library": pt.__version__, "jax": jax.__version__}
  for line in ("SEED = 5", "TRAIN_STEPS = 1", "PROMPT_LENGTH = 3", "BATCH_SIZE = 4"):
    assert f"{line}\n" in card["gin"]
  product.save(tmp_path / "prompt")
  assert pt.load_prompt(str(tmp_path / "prompt")).card["gin"] == card["gin"]
  # The text is a configuration, whole but for the data.
  (tmp_path / "again.gin").write_text(card["gin"])
  with gin_state.isolated():
    config.parse([str(tmp_path / "again.gin")])
    again = config.macro("PROMPT")
  assert describe.describe(again) == describe.describe(product.module)


# ---- texts, labels and pairs


class Column:
  """What numpy's arrays and pandas' columns have in common."""

  def __init__(self, values):
    self.values = values

  def tolist(self):
    return list(self.values)


class Table:
  def __init__(self, **columns):
    self.columns = list(columns)
    self.rows = list(zip(*columns.values(), strict=True))

  def __iter__(self):
    return iter(self.columns)

  def itertuples(self, index, name):
    assert (index, name) == (False, None)
    return iter(self.rows)


def ways(values):
  yield list(values)
  yield tuple(values)
  yield np.array(values)
  yield np.array(values, object)
  yield Column(values)
  yield (value for value in values)
  yield dict.fromkeys(values).keys()


def test_lists_of_texts_may_come_in_many_ways():
  for given in ways(["a film", "b"]):
    assert arguments.inputs("texts", given) == ["a film", "b"]
  for given in ways(["bad", "good"]):
    found = arguments.labels(given)
    assert found == ("bad", "good") and all(type(label) is str for label in found)
  right = [("a", "x"), ("b", "y")]
  table = Table(text=["a", "b"], label=["x", "y"])
  for given in (right, np.array(right), (pair for pair in right), table):
    assert arguments.pairs("train", given) == right
  with pytest.raises(ValueError, match=r"columns \['a', 'b', 'c'\].*train=table\[\["):
    arguments.pairs("train", Table(a=[1], b=[2], c=[3]))
  with pytest.raises(ValueError, match=r'`texts` is a table.*texts=table\["a"\]'):
    arguments.inputs("texts", Table(a=["x"]))


@pytest.mark.skipif(not importlib.util.find_spec("pandas"), reason="pandas is absent")
def test_pandas():
  import pandas

  table = pandas.DataFrame({"text": ["a", "b"], "label": ["x", "y"]})
  assert arguments.pairs("train", table) == [("a", "x"), ("b", "y")]
  assert arguments.inputs("texts", table["text"]) == ["a", "b"]
  with pytest.raises(ValueError, match=r"`texts\[1\]` is nan"):
    arguments.inputs("texts", pandas.Series(["a", float("nan")]))


@pytest.mark.parametrize(
  ("texts", "labels", "words"),
  [
    ("a film", LABELS, r'`texts` is the one text \'a film\'; give a list: texts=\["a'),
    (b"a film", LABELS, "`texts` is the one text"),
    (np.array("a film"), LABELS, "`texts` is the one text"),
    (5, LABELS, r"`texts` is 5 \(int\); give a list"),
    (None, LABELS, "`texts` is None"),
    ({"a film"}, LABELS, r"\(set\); give a list"),
    ({"text": "a"}, LABELS, r"\(dict\); give a list"),
    (["a", None], LABELS, r"`texts\[1\]` is None; it must be a text"),
    (["a"], "bad", "`labels` is the one text 'bad'"),
    (["a"], [0, 1], r"`labels\[0\]` is 0; labels are texts.*'0'"),
    (["a"], np.arange(2), r"`labels\[0\]` is 0"),
    (["a"], [], "`labels` is empty"),
    (["a"], ["x", ""], r"`labels\[1\]` is ''"),
    (["a"], ["x", "y", "x"], "`labels` names 'x' twice"),
    ([], "bad", "`labels` is the one text 'bad'"),
  ],
)
def test_classify_refuses_in_the_callers_words(model, prompt, texts, labels, words):
  with pytest.raises(ValueError, match=words):
    pt.classify(model, prompt, texts, labels)


def test_other_verbs_refuse_alike(model, prompt):
  with pytest.raises(ValueError, match="`texts` is the one text"):
    pt.predict(model, prompt, "a film")
  with pytest.raises(ValueError, match="`steps` is 2.5"):
    pt.predict(model, prompt, ["a film"], 2.5)
  with pytest.raises(ValueError, match="`pairs` is the one text"):
    pt.score(model, prompt, "a film")
  with pytest.raises(
    ValueError, match=r"`train\[0\]` must be .input text, target text., got 'ab'"
  ):
    pt.tune(model, ["ab", "cd"])
  with pytest.raises(ValueError, match="`prompt` is 'runs/x'; give what"):
    pt.classify(model, "runs/x", ["a film"], LABELS)
  with pytest.raises(ValueError, match="`model` is 'mini'; give what `load_model`"):
    pt.tune("mini", PAIRS)
  with pytest.raises(ValueError, match="`labels` is None.*card names none"):
    pt.classify(model, None, ["a film"])


def test_labels_of_the_card(model, prompt):
  answers, scores = pt.classify(model, prompt, ["a film", "b"])
  assert scores.shape == (2, 2) and set(answers) <= set(LABELS)
  np.testing.assert_array_equal(
    scores, pt.classify(model, prompt, ["a film", "b"], LABELS)[1]
  )
  assert pt.classify(model, prompt, [])[1].shape == (0, 2)


# ---- programs are kept


def test_the_second_answer_traces_nothing(model, prompt):
  traced = []

  def count(event, seconds, **_):
    if event == "/jax/core/compile/jaxpr_trace_duration":
      traced.append(seconds)

  def ask(product):
    pt.classify(model, product, ["a film", "b", "c"], LABELS)
    pt.predict(model, product, ["a film"], 2)
    pt.score(model, product, PAIRS)

  other = pt.tune(model, PAIRS, steps=0, seed=1, prompt_length=3)
  jax.monitoring.register_event_duration_secs_listener(count)
  try:
    pt.classify(model, prompt, ["a film"], ["x", "y"])
    assert traced, "the event is not what a trace is called"
    ask(prompt)
    traced.clear()
    ask(prompt)
    # A prompt of the same method shares them; so do four texts and three.
    ask(other)
    pt.classify(model, prompt, ["x", "y", "z", "w"], LABELS)
    assert not traced
  finally:
    jax.monitoring.unregister_event_duration_listener(count)


def test_programs_are_bounded():
  programs, made = Programs(2), []

  def get(asked):
    return programs.get(None, asked, lambda: made.append(asked) or asked)

  assert [get(asked) for asked in "abacab"] == list("abacab")
  assert made == ["a", "b", "c", "b"] and len(programs) == 2


def test_the_verb_drops_at_its_rate_without_a_backbone_file(
  model, tmp_path, monkeypatch
):
  """A folder's architecture says 0; the configuration binds the rate alone."""
  seen = []

  def stop(prompted, params, vocabulary, task, layout, recipe, output, *_):
    seen.append((prompted.backbone.config.dropout_rate, recipe.dropout_rate > 0))
    raise Seen

  monkeypatch.setattr(fit, "prepare", stop)
  (tmp_path / "rows.tsv").write_text("text\tlabel\na film\tgood\n")
  files = ["gin/train.gin", "gin/tasks/files.gin", "gin/methods/prompt_tuning.gin"]
  bindings = [
    f"MODEL_DIR = '{tmp_path}/run'",
    f"TRAIN_FILE = '{tmp_path}/rows.tsv'",
    "INPUTS = '{text}'",
    f"INITIAL_CHECKPOINT_PATH = '{model.loaded.name}'",
    "PROMPT_LENGTH = 3",
    f"VALIDATION_FILE = '{tmp_path}/rows.tsv'",
  ]
  with gin_state.isolated():
    for rate in (0.25, 0.0):
      config.parse(files, [*bindings, f"DROPOUT_RATE = {rate}"])
      with pytest.raises(Seen):
        config.call(train.train)
  assert seen == [(0.25, True), (0.0, False)]


def test_prompts_and_models_are_copied_and_sent(model, prompt):
  """By copy and by pickle, to threads and to processes; what is compiled is not."""
  scores = pt.classify(model, prompt, ["a film"], LABELS)[1]
  for made in (copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))):
    for whole, part in ((made(model), prompt), (model, made(prompt))):
      found = pt.classify(whole, part, ["a film"], LABELS)[1]
      np.testing.assert_array_equal(found, scores)


@pytest.mark.parametrize(
  ("asked", "words"),
  [
    (lambda m, p: pt.classify(m, p, ["a\ud800"], LABELS), r"`texts\[0\]` .* surrogate"),
    (lambda m, p: pt.predict(m, p, ["a", "b\0"]), r"`texts\[1\]` .* NUL"),
    (lambda m, p: pt.predict(m, p, ["<prompt> <prompt>"]), "<prompt> 2 times"),
    (lambda m, p: pt.classify(m, p, ["a"], ["x\ud800", "y"]), r"`labels\[0\]` .* surr"),
    (lambda m, p: pt.score(m, p, [("a", "\udfff")]), r"`pairs\[0\]` .* surrogate"),
    (lambda m, p: pt.classify(m, p, ["a"], LABELS, "yes"), "`normalize_by_length` is"),
    (lambda m, p: pt.predict(m, p, ["a"], inputs=5), "`inputs` is 5; .* a template"),
    (lambda m, p: m.logits([[-5]], [[1]]), "`inputs` must be ids from 0 to 8191"),
    (lambda m, p: m.logits([[1]], [[8192]]), "`targets` must be ids from 0 to 8191"),
    (lambda m, p: m.logits([[2**40]], [[1]]), "`inputs` must be ids from 0 to 8191"),
    (lambda m, p: m.logits(np.zeros((1, 0), int), [[1]]), r"got int64 \(1, 0\)"),
    (lambda m, p: m.logits([[1], [1, 2]], [[1]]), "all rows of one length"),
    (lambda m, p: pt.tune(m, [("a", "b")], method=5), "`method` is 5"),
    (lambda m, p: pt.load_model("mini", dtype="float16"), "`dtype` must be one of"),
    (lambda m, p: pt.load_model(5), "named by a text or a path, got 5"),
    (lambda m, p: pt.load_prompt(None), "named by a text or a path, got None"),
    (lambda m, p: pt.load_prompt("x" * 300), "cannot be the name of a file"),
    (lambda m, p: pt.load_model("x\0"), "cannot be the name of a file"),
    (lambda m, p: p.save(b"x"), "named by a text or a path, got b'x'"),
    (lambda m, p: p.save("/proc/x"), "'/proc/x' cannot be written"),
  ],
)
def test_what_no_question_can_hold(model, prompt, asked, words):
  """Each of these was an answer of nonsense, or an error from deep inside."""
  with pytest.raises(ValueError, match=words):
    asked(model, prompt)


def test_a_home_is_the_users(prompt, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.chdir(tmp_path)
  prompt.save("~/mine")
  assert pt.load_prompt("~/mine").parameters == prompt.parameters
  assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_prompt_of_a_killed_write_is_found(prompt, tmp_path):
  """Whole, but not yet in its place."""
  prompt.save(tmp_path / ".prompt_tuning.new")
  assert pt.load_prompt(tmp_path).parameters == prompt.parameters


def test_objectives_and_teachers_reach_the_run(sentence, model):
  from prompt_tuning.objectives.distil import Distil

  found = sentence(objective=Distil("a"), teachers={})
  assert found["recipe"].objective == Distil("a")
  with pytest.raises(ValueError, match="`teachers` names 'a'"):
    pt.tune(model, PAIRS, objective=Distil("a"), teachers={"a": "/no/such/folder"})
