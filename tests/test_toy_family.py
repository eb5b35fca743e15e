"""A second family does all that the library does: nothing assumes a T5."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_family import files
from toy_family.backbone import Toy
from toy_family.letters import Letters

import prompt_tuning as pt
from prompt_tuning.conditions.pooled import Encoding
from prompt_tuning.core import trainable as branches
from prompt_tuning.core.backbone import Backbone
from prompt_tuning.core.ids import Ids
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.core.prompt import Prompt
from prompt_tuning.data.batches import stack
from prompt_tuning.data.features import Layout, pad
from prompt_tuning.data.packing import pack
from prompt_tuning.decoding import decode, score
from prompt_tuning.engine import step
from prompt_tuning.inits import uniform
from prompt_tuning.interop import families
from prompt_tuning.interop.load import found_at
from prompt_tuning.objectives.cross_entropy import CrossEntropy
from prompt_tuning.outputs.text import Beam, Greedy, Sample
from prompt_tuning.parameterisers.dense import Dense
from prompt_tuning.parameterisers.mlp import Bottleneck
from prompt_tuning.tuning import Quiet

P, T, U, S = 3, 12, 7, 3


@pytest.fixture(scope="module", autouse=True)
def _ranks_may_differ():
  """The toy is short and says no axes; what the library adds is checked elsewhere."""
  before = jax.config.jax_numpy_rank_promotion
  jax.config.update("jax_numpy_rank_promotion", "allow")
  yield
  jax.config.update("jax_numpy_rank_promotion", before)


INIT = uniform.symmetric(0.7)
FAMILIES = {
  # 0 is a word, and the tokenizer pads with its end mark.
  "no pad": Toy(),
  "own pad": Toy(ids=Ids(pad=4, start=9, end=3, reserved=0)),
}
TEXTS = ["a cold soup", "aa", "a film i like", "no", "fine food", "l"]
LABELS = ("bad", "good")


@pytest.fixture(params=FAMILIES, scope="module")
def toy(request):
  return FAMILIES[request.param]


@pytest.fixture(scope="module")
def weights(toy):
  return jax.tree.map(lambda x: 1.5 * x, toy.init(jax.random.key(1)))


@pytest.fixture(autouse=True, scope="module")
def known():
  families.KNOWN.append(files)
  yield
  families.KNOWN.remove(files)


def prompts():
  table = Dense(INIT)
  generated = Bottleneck(8, 0.0, INIT, INIT)
  return {
    "bare": None,
    "input": Prompt(P, table, "decoder.input"),
    "kv": Prompt(P, table, "decoder.kv"),
    "encoding": Prompt(P, generated, "decoder.input", Encoding()),
  }


CASES = [*[("no pad", name) for name in prompts()], ("own pad", "input")]


@pytest.fixture(params=CASES, ids="-".join, scope="module")
def case(request):
  """(model, params)"""
  family, name = request.param
  toy = FAMILIES[family]
  weights = jax.tree.map(lambda x: 1.5 * x, toy.init(jax.random.key(1)))
  model = PromptedModel(toy, prompts()[name])
  drawn = model.init_prompt(jax.random.key(2), weights)
  return model, {"backbone": weights, **({"prompt": drawn} if drawn else {})}


def examples(toy, texts=TEXTS):
  letters = Letters(toy.ids)
  targets = ("good", "bad", "a", "bad food", "ok", "fine")

  def closed(text, most):
    return np.array([*letters.encode(text)[: most - 1], toy.ids.end], np.int32)

  return [
    {"inputs": closed(text, T + 1), "targets": closed(target, U)}
    for text, target in zip(texts, targets, strict=True)
  ]


def batch_of(model, rows, more=0):
  layout = Layout.of(model, T + 1 + more, U)
  return layout, stack(
    [pad(layout.convert(row), layout.lengths, layout.form) for row in rows]
  )


def test_both_families_fulfil_the_contract(toy):
  from prompt_tuning.backbones.t5.backbone import T5
  from prompt_tuning.backbones.t5.config import T5Config

  for backbone in (toy, T5(T5Config(23, 8, 2, 4, 12, 1, 1))):
    assert isinstance(backbone, Backbone)
    assert families.of(backbone.family).NAME == backbone.family
    wanted = {"dropout_rate", "dtype", "weights_dtype", "scan_layers", "remat_policy"}
    assert wanted <= set(backbone.switches)
    assert backbone.recast(**backbone.switches) == backbone


def test_the_states_are_those_of_one_row_typed_in_whole(toy, weights):
  """Each target's logits, against its text, prompt words and targets read as one."""
  model = PromptedModel(toy, Prompt(P, Dense(INIT), "decoder.input"))
  words = np.array([5, 0 if toy.ids.pad else 1, 7])
  table = {"parameterise": {"prompt": weights["table"][words][None]}}
  rows = examples(toy)
  _, batch = batch_of(model, rows)
  found = model.logits({"backbone": weights, "prompt": table}, batch)
  for b, row in enumerate(rows):
    text = row["inputs"][:-1] if row["inputs"][-1] == toy.ids.end else row["inputs"]
    whole = np.array([*words, *text, *row["targets"][:-1]])[None]
    states = toy.encode_rows(weights, toy.embed(weights, whole), whole >= 0)
    wanted = np.asarray(toy.logits(weights, states))[0, -len(row["targets"]) :]
    np.testing.assert_allclose(found[b, : len(wanted)], wanted, atol=2e-4)


def test_padding_and_other_targets_are_invisible(case):
  model, params = case
  rows = examples(model.backbone)
  _, short = batch_of(model, rows)
  _, long = batch_of(model, rows, more=5)
  one, other = (np.asarray(model.logits(params, b)) for b in (short, long))
  for b, row in enumerate(rows):
    n = len(row["targets"])
    np.testing.assert_allclose(one[b, :n], other[b, :n], atol=2e-4)
  if model.prompt is not None:
    turned = {**short, "targets": short["targets"][::-1]}
    pair = [model.inject(params, b) for b in (short, turned)]
    jax.tree.map(np.testing.assert_array_equal, *pair)


def test_packed_rows_train_as_padded_ones_do(case):
  model, params = case
  rows = examples(model.backbone)
  layout, batch = batch_of(model, rows)
  converted = [layout.convert(row) for row in rows]
  many = dataclasses.replace(model, segments=S)
  packed = stack(list(pack(converted, 40, 20, S, form=layout.form)))
  assert packed["segment_ids"].max() > 1
  trains, frozen = branches.split(params, ["prompt"] if model.prompt else ["backbone"])

  def run(model, batch):
    return step.gradients(model, CrossEntropy(0.01), 1)(trains, frozen, batch, None)

  (one, (left,)), (other, (right,)) = run(model, batch), run(many, packed)
  real = sum(len(row["targets"]) for row in rows)
  assert float(left.weight) == float(right.weight) == real
  np.testing.assert_allclose(left.total, right.total, rtol=1e-4)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), one, other)


def test_cached_steps_equal_teacher_forcing(case):
  model, params = case
  toy, rows = model.backbone, examples(model.backbone)
  _, batch = batch_of(model, rows)
  wanted = np.asarray(model.logits(params, batch))
  reading, injection = model.read(params, batch)
  given = params["backbone"], reading
  logits, memory, cache = toy.prefill(*given, U - 1, injection)
  for u in range(U):
    for b, row in enumerate(rows):
      if u < len(row["targets"]):
        np.testing.assert_allclose(logits[b], wanted[b, u], atol=5e-4)
    if u < U - 1:
      fed = batch["targets"][:, u], memory, cache, jnp.int32(u)
      logits, cache = toy.extend(params["backbone"], *fed)


def test_answers(case):
  """Words are the likeliest after those before them; a beam knows its chances."""
  model, params = case
  ids = model.backbone.spec.ids
  rows = examples(model.backbone)
  _, batch = batch_of(model, rows)
  for output in (Greedy(4), Sample(4, top_k=1), Beam(4, 2)):
    written, total = map(np.asarray, decode.generate(model, params, batch, output))
    if output.loop == "beam_search":
      written, total = written[:, 0], total[:, 0]
    again = {
      **batch,
      **model.backbone.format.written(written, {}, batch_words(model, rows)),
    }
    best = np.asarray(model.logits(params, again)).argmax(-1)
    real = np.asarray(ids.is_real(written))
    if output.loop != "beam_search":
      np.testing.assert_array_equal(written[real], best[real])
    np.testing.assert_allclose(score.score(model, params, again), total, atol=2e-3)
    ended = np.cumsum(written == ids.end, 1) - (written == ids.end) > 0
    np.testing.assert_array_equal(~real, ended)


def batch_words(model, rows):
  """Inputs without the prompt's positions, padded."""
  bare = dataclasses.replace(model, prompt=None)
  return batch_of(bare, rows)[1]["inputs"]


def test_label_scores_are_those_of_each_label_alone(case):
  model, params = case
  rows = examples(model.backbone)
  ids, letters = model.backbone.spec.ids, Letters(model.backbone.spec.ids)
  targets = [[*letters.encode(label), ids.end] for label in LABELS]
  labels = np.full((2, U), ids.pad)
  for row, own in zip(labels, targets, strict=True):
    row[: len(own)] = own
  _, batch = batch_of(model, rows)
  found = np.asarray(score.choice_scores(model, params, batch, labels))
  for k, own in enumerate(targets):
    alone = [{**row, "targets": np.array(own, np.int32)} for row in rows]
    wanted = score.score(model, params, batch_of(model, alone)[1])
    np.testing.assert_allclose(found[:, k], wanted, atol=1e-3)


def test_a_vocabulary_of_another_family_is_refused(toy, weights, tmp_path):
  files.save(tmp_path / "toy", toy, weights)
  with pytest.raises(ValueError, match="ends a text with .*give its own vocabulary"):
    ids = dataclasses.replace(toy.ids, pad=5, end=3 if toy.ids.end != 3 else 1)
    pt.load_model(str(tmp_path / "toy"), vocabulary=Letters(ids))


def test_a_folder_of_no_family_is_refused_in_one_sentence(tmp_path):
  (tmp_path / "config.json").write_text('{"model_type": "owl"}')
  with pytest.raises(ValueError, match="model_type 'owl'.*of a T5, .*; of a toy, "):
    found_at(tmp_path)


@pytest.mark.parametrize(
  ("method", "more"),
  [
    ("prompt_tuning_decoder", {"pack_segments": 3}),
    ("prefix_tuning_decoder", {"buckets": 2}),
  ],
)
def test_it_tunes_saves_loads_and_answers(toy, weights, tmp_path, method, more):
  files.save(tmp_path / "toy", toy, weights)
  model = pt.load_model(str(tmp_path / "toy"), vocabulary=Letters(toy.ids))
  assert model.loaded.backbone == toy
  rules = {letter: "good" if letter in "ace" else "bad" for letter in "abcdef"}
  train = [(f"{a} {b}", rule) for a, rule in rules.items() for b in "gh"]
  recorder = Quiet()
  prompt = pt.tune(
    model,
    train,
    method,
    train,
    steps=60,
    prompt_length=4,
    learning_rate=0.1,
    batch_size=6,
    labels=LABELS,
    optimizer="adamw",
    recorder=recorder,
    eval_period=10,
    **more,
  )
  lost = [line["loss"] for line in recorder.lines if line["split"] == "validation"]
  assert lost[-1] < 0.85 * lost[0]
  assert prompt.card["backbone"]["family"] == "toy"
  assert {"loss", "accuracy"} <= set(prompt.card["scores"])
  prompt.save(tmp_path / "prompt")
  again = pt.load_prompt(str(tmp_path / "prompt"))
  texts = [text for text, _ in train]
  labels, scores = pt.classify(model, prompt, texts)
  others, found = pt.classify(model, again, texts)
  assert labels == others
  np.testing.assert_array_equal(scores, found)
  wanted = pt.score(model, again, [(text, "good") for text in texts])
  np.testing.assert_allclose(found[:, 1], wanted, atol=1e-3)
  words = pt.predict(model, again, texts, steps=4)
  assert len(words) == len(texts) and all(isinstance(word, str) for word in words)
