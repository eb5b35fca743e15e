"""One forward pass, many terms: counts, teachers, weights of an objective's own."""

import dataclasses
from typing import ClassVar
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import method_tools as tools
import numpy as np
import pytest

from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.stacking import stack_layers
from prompt_tuning.core import trainable as branches
from prompt_tuning.core.forward import Forward
from prompt_tuning.core.ids import MARKS
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.core.prompt import Drawn
from prompt_tuning.core.randomness import streams
from prompt_tuning.engine import config, step, terms
from prompt_tuning.objectives import objective as objectives
from prompt_tuning.objectives.choices import Choices
from prompt_tuning.objectives.cross_entropy import CrossEntropy
from prompt_tuning.objectives.distil import Distil, DistilStates
from prompt_tuning.objectives.info_bound import InfoBound
from prompt_tuning.objectives.objective import Objective, Term, Weighted

LABELS = ("ab", "c", "cda")
WORDS = objectives.Words(tools.encode, 1)


@pytest.fixture(scope="module")
def case():
  return tools.case("prompt_tuning")


@pytest.fixture(scope="module")
def batch(case):
  """Rows whose targets are labels, but for the last one."""
  rows = [dict(row) for row in case.rows]
  for i, row in enumerate(rows[:-1]):
    ids = [*tools.encode(LABELS[i % 3]), 1]
    row["targets"] = np.asarray(ids, np.int32)
  return dataclasses.replace(case, rows=rows).batch()


@pytest.fixture(scope="module")
def taught(case):
  """The model with a teacher that is another prompt, and one that is the same."""
  model = dataclasses.replace(
    case.model, teachers={"other": case.model.prompt, "same": case.model.prompt}
  )
  held = jax.tree.map(lambda x: x + 0.5, case.params["prompt"])
  teachers = {"other": held, "same": case.params["prompt"]}
  return model, {**case.params, "teacher": teachers}


def run(objective, model, params, batch, key=None):
  """(loss, gradient in the prompt, terms)."""
  trains, frozen = branches.split(params, ("prompt", "objective"))

  def loss(trains):
    forward = Forward(model, branches.merge(trains, frozen), batch, key)
    found = objectives.terms(objective, forward)
    return objectives.mean(objective, found), found

  (value, found), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(trains)
  return float(value), gradient, found


@dataclasses.dataclass(frozen=True)
class Rows(Objective):
  """Counts rows where cross-entropy counts tokens; reads no part of the backbone."""

  def count(self, batch, ids):
    return jnp.float32(len(batch["inputs"]))

  def __call__(self, forward):
    square = jnp.square(forward.injection.get("encoder.input").vectors).mean()
    # Another value in each part of the batch.
    total = square * forward.batch["inputs"].sum().astype(jnp.float32)
    return Term(
      total, self.count(forward.batch, forward.ids), {"rows": (total, total * 0 + 1)}
    )


def test_terms_with_other_counts_add_up_over_microbatches(case, batch):
  both = Weighted([CrossEntropy(), Weighted([Rows()], [0.5])], [1.0, 0.2])
  trains, frozen = case.split
  found = {}
  for parts in (1, 4):
    gradient = jax.jit(step.gradients(case.model, both, parts))
    grads, terms_ = gradient(trains, frozen, batch, None)
    share = 1 / terms_[0].weight
    scaled = jax.tree.map(lambda g, s=share: g * s, grads)
    found[parts] = scaled, objectives.mean(both, terms_)
  jax.tree.map(lambda a, b: tools.assert_close(a, b, 1e-5), found[1], found[4])
  loss, gradient, _ = run(both, case.model, case.params, batch)
  tools.assert_close(found[1][1], loss)
  jax.tree.map(lambda a, b: tools.assert_close(a, b, 1e-5), found[1][0], gradient)


def test_terms_share_one_pass(case, batch):
  many = Weighted([CrossEntropy()] * 3, [1.0, 1.0, 1.0])

  with (
    mock.patch.object(T5, "encode", autospec=True, side_effect=T5.encode) as encode,
    mock.patch.object(T5, "states", autospec=True, side_effect=T5.states) as states,
  ):
    jax.eval_shape(
      lambda: objectives.terms(many, Forward(case.model, case.params, batch))
    )
  assert (encode.call_count, states.call_count) == (1, 1)


def test_a_weight_of_zero_is_the_plain_run(taught, batch):
  model, params = taught
  plain = run(CrossEntropy(), model, params, batch)
  both = Weighted([CrossEntropy(), Distil("other")], [1.0, 0.0])
  loss, gradient, _ = run(both, model, params, batch)
  assert loss == plain[0]
  jax.tree.map(np.testing.assert_array_equal, gradient, plain[1])


TERMS = [
  Distil("same"),
  Distil("same", "mse"),
  DistilStates("same"),
  DistilStates("same", "decoder"),
  DistilStates("same", layers="states"),
  DistilStates("same", "decoder", "hidden"),
]


@pytest.mark.parametrize("term", TERMS)
def test_a_student_like_its_teacher_has_nothing_to_learn(taught, batch, term):
  loss, gradient, _ = run(term, *taught, batch)
  assert loss == pytest.approx(0, abs=1e-6)
  assert all(np.abs(x).max() < 1e-5 for x in jax.tree.leaves(gradient))
  other = dataclasses.replace(term, teacher="other")
  loss, gradient, _ = run(other, *taught, batch)
  assert loss > 1e-4
  assert any(np.abs(x).max() > 1e-5 for x in jax.tree.leaves(gradient))


def test_distillation_against_numpy(taught, batch):
  model, params = taught
  student = np.asarray(model.logits(params, batch), np.float64)
  own = {"backbone": params["backbone"], "prompt": params["teacher"]["other"]}
  teacher = np.asarray(model.logits(own, batch), np.float64)
  real = np.asarray(batch["targets"]) > 0

  def log_softmax(x):
    return (
      x
      - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))
      - (x.max(-1, keepdims=True))
    )

  for t in (1.0, 3.0):
    p, q = log_softmax(teacher / t), log_softmax(student / t)
    want = ((np.exp(p) * (p - q)).sum(-1) * t**2)[real].mean()
    found, _, _ = run(Distil("other", temperature=t), model, params, batch)
    assert found == pytest.approx(want, rel=1e-4)
  want = np.square(student - teacher).mean(-1)[real].mean()
  assert run(Distil("other", "mse"), model, params, batch)[0] == pytest.approx(
    want, rel=1e-4
  )
  (left, mask), (right, _) = (
    Forward(model, one, batch).encoded for one in (params, own)
  )
  want = np.square(np.asarray(left) - right).mean(-1)[np.asarray(mask)].mean()
  found, _, _ = run(DistilStates("other"), model, params, batch)
  assert found == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("name", ["states", "hidden"])
def test_traces_are_those_of_every_layer(taught, batch, name):
  """Scanned and unrolled alike; the pass itself stays what it is to the bit."""
  model, params = taught
  forward = Forward(model, params, batch)
  forward.asked |= {f"encoder.{name}", f"decoder.{name}"}
  plain = Forward(model, params, batch)
  np.testing.assert_array_equal(forward.states, plain.states)
  config = dataclasses.replace(model.backbone.config, scan_layers=True)
  scanned = dataclasses.replace(model, backbone=T5(config))
  stacked = {**params, "backbone": stack_layers(params["backbone"], config)}
  other = Forward(scanned, stacked, batch)
  other.asked = forward.asked
  width = {"states": config.emb_dim, "hidden": config.mlp_dim}[name]
  for side, depth in (("encoder", config.num_encoder_layers), ("decoder", None)):
    found = forward.trace(f"{side}.{name}")
    assert found.shape[0] == (depth or config.num_decoder_layers)
    assert found.shape[-1] == width
    tools.assert_close(other.trace(f"{side}.{name}"), found)
  if name == "states":
    scale = params["backbone"]["decoder"]["decoder_norm"]["scale"]
    last = np.asarray(forward.trace("decoder.states")[-1], np.float64)
    root = np.sqrt(np.square(last).mean(-1, keepdims=True) + 1e-6)
    tools.assert_close(forward.states, last / root * np.asarray(scale))


def test_every_layer_is_compared_against_numpy(taught, batch):
  model, params = taught
  own = {"backbone": params["backbone"], "prompt": params["teacher"]["other"]}
  pair = [Forward(model, one, batch) for one in (params, own)]
  for one in pair:
    one.asked |= {"decoder.hidden"}
  left, right = (np.asarray(one.trace("decoder.hidden"), np.float64) for one in pair)
  real = np.asarray(batch["targets"]) > 0
  want = np.square(left - right).mean((0, -1))[real].mean()
  term = DistilStates("other", "decoder", "hidden")
  found, _, _ = run(term, model, params, batch)
  assert found == pytest.approx(want, rel=1e-4)


def test_no_gradient_reaches_a_teacher(taught, batch):
  model, params = taught
  trains, frozen = branches.split(params, ("prompt", "teacher"))

  def loss(trains):
    forward = Forward(model, branches.merge(trains, frozen), batch)
    return Distil("other")(forward).total

  gradient = jax.jit(jax.grad(loss))(trains)
  assert all(not np.any(x) for x in jax.tree.leaves(gradient["teacher"]))
  assert any(np.any(x) for x in jax.tree.leaves(gradient["prompt"]))


# ---- choices


@pytest.fixture(scope="module")
def label_logs(case, batch):
  """Log-probabilities of each label's tokens [B K U] and which are real, by numpy."""
  rows = [[*tools.encode(label), 1] for label in LABELS]
  logs = np.full((len(batch["inputs"]), 3, max(map(len, rows))), np.nan)
  for k, row in enumerate(rows):
    ids = np.broadcast_to(np.asarray(row, np.int32), (len(logs), len(row)))
    shifted = np.pad(ids, ((0, 0), (1, 0)))[:, :-1]
    index = np.full(ids.shape, -1, np.int32)
    targets = {"targets": ids, "decoder_inputs": shifted, "decoder_prompt_index": index}
    logits = np.asarray(case.model.logits(case.params, {**batch, **targets}))
    log_z = np.log(np.exp(logits).sum(-1))
    logs[:, k, : len(row)] = np.take_along_axis(logits, ids[..., None], -1)[..., 0]
    logs[:, k, : len(row)] -= log_z
  return logs


@pytest.mark.parametrize("chunk", [0, 1])
@pytest.mark.parametrize("kind", ["normalised", "hinge", "perceptron", "unlikelihood"])
def test_choices_against_numpy(case, batch, label_logs, kind, chunk):
  term = Choices(kind, chunk=chunk).bound(WORDS, LABELS)
  tokens = (~np.isnan(label_logs)).sum(-1)
  scores = np.nansum(label_logs, -1) / tokens
  wanted, counted = 0.0, 0
  for b in range(len(scores) - 1):
    right = b % 3
    wrong = [k for k in range(3) if k != right]
    if kind == "unlikelihood":
      lost = -np.log(1 - np.exp(label_logs[b, wrong]) + 0.01)
      wanted += np.nansum(lost)
      counted += (~np.isnan(lost)).sum()
      continue
    counted += 1
    own = scores[b, right]
    if kind == "normalised":
      wanted += np.log(np.exp(scores[b]).sum()) - own
    elif kind == "hinge":
      wanted += np.maximum(0, 1 - own + scores[b, wrong]).sum()
    else:
      wanted += scores[b].max() - own
  loss, gradient, (found,) = run(term, case.model, case.params, batch)
  assert float(found.weight) == counted == float(term.count(batch, MARKS))
  assert loss == pytest.approx(wanted / counted, rel=1e-4)
  assert any(np.abs(x).max() > 1e-6 for x in jax.tree.leaves(gradient))


def test_choices_do_not_hang_on_the_order_of_labels(case, batch):
  one, other = (
    run(Choices().bound(WORDS, labels), case.model, case.params, batch)[0]
    for labels in (LABELS, LABELS[::-1])
  )
  assert one == pytest.approx(other, rel=1e-5)
  alone = Choices().bound(WORDS, LABELS[:1])
  assert run(alone, case.model, case.params, batch)[0] == pytest.approx(0, abs=1e-6)


def test_choices_find_targets_behind_a_prompt_of_the_decoder(batch):
  case = tools.case("prompt_tuning_decoder")
  rows = [dict(row) for row in case.rows]
  for row in rows:
    row["targets"] = np.asarray([*tools.encode("c"), 1], np.int32)
  fed = dataclasses.replace(case, rows=rows).batch()
  term = Choices().bound(WORDS, LABELS)
  loss, _, (found,) = run(term, case.model, case.params, fed)
  assert float(found.weight) == len(rows) and loss > 0


# ---- InfoPrompt


@pytest.fixture(scope="module")
def informed(case, batch):
  term = InfoBound(width=3).bound(WORDS, LABELS)
  own = terms.branch(term, case.model, case.params, 0)
  # Away from the start, where biases are 0.
  own = tools.random_params(own, salt="info")
  return term, {**case.params, **own}


def test_info_bound_has_the_numbers_of_its_sheet(case, informed):
  term, params = informed
  H, n, C = tools.H, 3, len(LABELS)
  count = C * H + (H * H + H) + 2 * (H * n + n) + (n * H + H)
  assert branches.count(params["objective"]) == count
  drawn = terms.branch(term, case.model, case.params, 0)["objective"]["info"]
  ids = jnp.asarray(tools.encode(LABELS[0]))
  rows = case.model.backbone.embed(case.params["backbone"], ids)
  tools.assert_close(drawn["words"][0], rows.mean(0))


def test_info_bound_against_numpy(case, batch, informed):
  term, params = informed
  loss, gradient, (found,) = run(term, case.model, params, batch)
  own = jax.tree.map(lambda x: np.asarray(x, np.float64), params["objective"]["info"])
  backbone = case.model.backbone
  tokens = np.asarray(backbone.embed(params["backbone"], batch["inputs"]), np.float64)
  text = (np.asarray(batch["inputs"]) > 0) & (np.asarray(batch["prompt_index"]) < 0)
  q = (
    np.asarray(params["prompt"]["parameterise"]["prompt"]).reshape(-1, tools.H).mean(0)
  )
  c = own["words"].mean(0)

  def cosine(a, b):
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)

  def affine(name, x):
    return x @ own[name]["kernel"] + own[name]["bias"]

  # The state at the first target, and without a prompt at all.
  first = np.asarray(case.model.states(params, batch), np.float64)[:, 0]
  bare = tools.case("unprompted")
  bare_model = PromptedModel(backbone)
  bare_batch = dataclasses.replace(bare, model=bare_model, rows=case.rows).batch()
  bare_batch |= {
    name: batch[name] for name in ("targets", "decoder_inputs", "decoder_prompt_index")
  }
  alone = {"backbone": params["backbone"]}
  unprompted = np.asarray(bare_model.states(alone, bare_batch), np.float64)[:, 0]
  kl, outs = 0.0, []
  for f in (first, unprompted):
    mean, spread = affine("mean", f), np.clip(affine("spread", f), -2, 10)
    kl = kl + ((np.exp(2 * spread) + mean**2 - 1) / 2 - spread).sum(-1)
    outs.append(affine("out", mean))
  k, B = affine("key", q), len(first)
  others = np.exp(cosine(outs[1], k) / 0.1).sum() * 4
  total = 0.0
  for b in range(B):
    s = np.exp(cosine(q, c) / 0.1)
    head = -np.log(s / (s + np.exp(cosine(tokens[b][text[b]], c) / 0.1).sum()))
    s = np.exp(cosine(outs[0][b], k) / 0.1)
    total += 0.1 * head + 0.2 * -np.log(s / (s + others)) + 0.1 * kl[b]
  assert loss == pytest.approx(total / B, rel=1e-4)
  bounds = {name: float(x / w) for name, (x, w) in found.metrics.items()}
  assert bounds["info_bound_text"] <= np.log(4 * B + 1)
  flat = branches.flatten(gradient)
  assert all(np.isfinite(x).all() and np.abs(x).max() > 0 for x in flat.values())


def test_the_key_of_info_bound_hands_no_gradient_to_the_prompt(case, batch, informed):
  term, params = informed
  text = dataclasses.replace(term, gamma=0.0, kl=0.0)
  _, gradient, _ = run(text, case.model, params, batch)
  assert any(np.abs(x).max() > 1e-7 for x in jax.tree.leaves(gradient["prompt"]))
  # Cut off the backbone's own way: nothing is left.
  with mock.patch.object(Forward, "first", property(lambda self: _cut(self))):
    trains, frozen = branches.split(params, ("prompt",))

    def loss(trains):
      forward = Forward(case.model, branches.merge(trains, frozen), batch)
      return text(forward).total

    gradient = jax.grad(loss)(trains)
  assert not any(np.any(x) for x in jax.tree.leaves(gradient))


def _cut(forward):
  return jax.lax.stop_gradient(forward.states[:, 0])


def test_noise_is_another_in_each_step(case, batch, informed):
  term, params = informed
  first, second = (
    run(term, case.model, params, batch, jax.random.key(seed))[0] for seed in (0, 1)
  )
  assert first != second


# ---- what a card keeps, and what cannot be computed without a run


def test_an_objective_goes_into_a_card_and_back():
  both = Weighted(
    (CrossEntropy(0.1), Choices("hinge"), Distil("a"), InfoBound()),
    (1.0, 0.5, 2.0, 1.0),
  )
  assert terms.of({"objective": terms.said(both)}) == both
  kept = terms.answering(both)
  assert kept == Weighted((CrossEntropy(0.1), Choices("hinge")), (1.0, 0.5))
  assert terms.answering(Distil("a")) == CrossEntropy() == terms.of({})
  word = {"class": "prompt_tuning.parameterisers.dense:Dense"}
  with pytest.raises(ValueError, match="not a term of an objective"):
    terms.of({"objective": word})


@pytest.mark.parametrize(
  "make, words",
  [
    (lambda: Distil("a", "cosine"), "Distil.kind"),
    (lambda: Distil("a", temperature=0.0), "Distil.temperature"),
    (lambda: DistilStates("a", "cross"), "DistilStates.side"),
    (lambda: Choices("softmax"), "Choices.kind"),
    (lambda: Choices().bound(WORDS, None), "LABELS"),
    (lambda: Weighted([CrossEntropy()], [0.0]), "nothing is lowered"),
    (lambda: InfoBound(width=0), "InfoBound.width"),
    (lambda: InfoBound().bound(WORDS, ()), "LABELS"),
    (lambda: objectives.parts(Weighted([InfoBound()] * 2, [1, 1])), "name of its own"),
  ],
)
def test_what_does_not_fit_is_refused(make, words):
  with pytest.raises(ValueError, match=words):
    make()


def test_teachers_must_be_there_and_of_the_same_lengths(case):
  with pytest.raises(ValueError, match="TEACHERS names"):
    terms.check_teachers(Distil("source"), case.model)
  longer = tools.case("prompt_tuning", PROMPT_LENGTH=7).model.prompt
  model = dataclasses.replace(case.model, teachers={"source": longer})
  with pytest.raises(ValueError, match="the same PROMPT_LENGTH"):
    terms.check_teachers(Distil("source"), model)


@pytest.mark.parametrize("name", ["tfew", "infoprompt"])
def test_methods_bind_their_objective(name):
  config.parse(
    ["gin/train.gin", f"gin/methods/{name}.gin"],
    ["PROMPT_LENGTH = 6", "TASK = None", "MODEL_DIR = None"][name == "tfew" :],
  )
  found = config.macro("OBJECTIVE")
  kinds = [type(part.objective).__name__ for part in objectives.parts(found)]
  assert kinds[0] == "CrossEntropy" and len(kinds) == (3 if name == "tfew" else 2)


# ---- what words tell beside their prompt, and what they draw


class Noisy(nn.Module):
  """Adds noise of a stream of its own, and tells of its size."""

  noise: ClassVar[tuple[str, ...]] = ("sample",)

  @nn.compact
  def __call__(self, drawn, code, spec, train=False):
    made = drawn.prompt
    if train:
      made = made + jax.random.normal(self.make_rng("sample"), made.shape)
    self.sow("aux", "size", jnp.square(made).mean())
    return Drawn(made, drawn.mask)


def test_words_sow_numbers_and_draw_their_own_noise(case, batch):
  prompt = case.model.prompt.clone(transforms=(Noisy(),))
  assert streams(prompt) == {"sample"} and not streams(case.model.prompt)
  model = dataclasses.replace(case.model, prompt=prompt)
  found = {}
  for seed in (None, 0, 0, 1):
    key = None if seed is None else jax.random.key(seed)
    forward = Forward(model, case.params, batch, key)
    vectors = forward.injection.get("encoder.input").vectors
    (size,) = forward.aux["transforms_0/size"]
    tools.assert_close(size, np.square(vectors).mean())
    tools.assert_close(found.setdefault(seed, vectors), vectors)
  plain = case.model.inject(case.params, batch).get("encoder.input").vectors
  np.testing.assert_array_equal(found[None], plain)
  assert np.abs(found[0] - found[1]).max() > 0.1
