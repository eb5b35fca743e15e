"""Equalities between methods, and between a method and what it is said to compute."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import method_tools as tools
import numpy as np
import pytest

from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.core import trainable as branches
from prompt_tuning.core.injection import Injection
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.data.batches import stack
from prompt_tuning.data.features import PLACES, pad
from prompt_tuning.engine import step
from prompt_tuning.objectives.cross_entropy import CrossEntropy

P = tools.NUMBERS["PROMPT_LENGTH"]
IDPG = [name for name in tools.METHODS if name.startswith("s_idpg")]
ADD = [name for name in tools.METHODS if re.fullmatch("ipt_.*_add", name)]
CONCAT = [name for name in tools.METHODS if re.fullmatch("ipt_.*_concat", name)]


@pytest.fixture(scope="module")
def get(tmp_path_factory):
  """Method -> its case, each built once."""
  folder, found = tmp_path_factory.mktemp("arrays"), {}

  def case(name):
    if name not in found:
      found[name] = tools.case(name, folder)
    return found[name]

  return case


def static(get, table_PH):
  """Prompt tuning with a given table."""
  return tools.changed(get("prompt_tuning"), parameterise__prompt=table_PH)


def embed(ids):
  return np.asarray(tools.backbone_params()["token_embedder"]["embedding"])[ids]


def by_hand(x_BTH, mask_BT, x_BUH):
  """Logits from embeddings, through the network alone."""
  module = tools.BACKBONE.module()
  params = {"params": tools.backbone_params()}
  encoded = module.apply(params, jnp.asarray(x_BTH), mask_BT, method="encode")
  states = module.apply(params, jnp.asarray(x_BUH), encoded, mask_BT, method="decode")
  return np.asarray(module.apply(params, states, method="logits"))


def fill(rows, length):
  """Rows of vectors, pads behind them, and the mask."""
  pad_H = embed(0)
  x = np.stack([np.concatenate([r, [pad_H] * (length - len(r))]) for r in rows])
  mask = np.arange(length)[None] < np.array([len(r) for r in rows])[:, None]
  return x, mask


def decoder_embeddings(case):
  return embed(np.asarray(case.batch()["decoder_inputs"]))


def test_unprompted_is_the_bare_network(get):
  case = get("unprompted")
  batch = case.batch()
  bare = tools.BACKBONE.module().apply(
    {"params": tools.backbone_params()}, batch["inputs"], batch["decoder_inputs"]
  )
  np.testing.assert_array_equal(case.plain_logits, bare)


def test_rows_of_words_are_the_words_typed_in(get):
  bare = get("unprompted")
  words = tools.encode("please")
  assert len(words) == P
  typed = [
    {**row, "inputs": np.append(words, row["inputs"]).astype(np.int32)}
    for row in bare.rows
  ]
  prompted = static(get, embed(words))
  tools.assert_close(prompted.plain_logits, bare.logits(bare.batch(typed)))
  assert np.abs(prompted.plain_logits - bare.plain_logits).max() > 0.1


@pytest.mark.parametrize("place", PLACES)
def test_virtual_positions_are_concatenation(get, place):
  case = get("prompt_tuning")
  prompt = tools.leaf(case, "parameterise/prompt")[0]
  layout = dataclasses.replace(case.layout, place=place)
  converted, vectors = [], []
  for number, row in enumerate(case.rows):
    mark = number % len(row["inputs"])
    features = layout.convert({**row, "mark": mark})
    del features["external"]
    converted.append(pad(features, layout.lengths))
    length = len(row["inputs"])
    at = {"front": 0, "after_first": 1, "end": length - 1, "mark": mark}[place]
    tokens = embed(row["inputs"])
    vectors.append(np.concatenate([tokens[:at], prompt, tokens[at:]]))
  batch = {name: jnp.asarray(value) for name, value in stack(converted).items()}
  x, mask = fill(vectors, tools.T)
  wanted = by_hand(x, mask, decoder_embeddings(case))
  tools.assert_close(case.logits(batch), wanted)


def test_decoder_positions_are_concatenation(get):
  case = get("prompt_tuning_decoder")
  prompt = tools.leaf(case, "parameterise/prompt")[0]
  x, mask = fill([embed(row["inputs"]) for row in case.rows], tools.T)
  starts = [np.append([0], row["targets"][:-1]) for row in case.rows]
  y, _ = fill([np.concatenate([prompt, embed(ids)]) for ids in starts], tools.U)
  wanted = by_hand(x, mask, y)
  for number, row in enumerate(case.rows):
    length = P + len(row["targets"])
    tools.assert_close(case.plain_logits[number, :length], wanted[number, :length])


def test_private_vectors_are_concatenation(get):
  case = get("ipt_random")
  table = tools.leaf(case, "condition/table")
  x, mask = fill([embed(row["inputs"]) for row in case.rows], tools.T - P)
  # A slot without a token keeps its place in front, masked.
  found = [len(row["inputs"][:P]) for row in case.rows]
  assert min(found) < P
  slots = np.stack([table[np.resize(row["inputs"], P)] for row in case.rows])
  x = np.concatenate([slots, x], axis=1)
  mask = np.concatenate([np.arange(P) < np.array(found)[:, None], mask], axis=1)
  wanted = by_hand(x, mask, decoder_embeddings(case))
  tools.assert_close(case.plain_logits, wanted)


@pytest.mark.parametrize("name", ["ipt_random", "ipt_random_concat"])
def test_masked_slots_do_not_matter(get, name):
  case = get(name)
  injection = case.model.inject(case.params, case.batch())
  slots = injection.get("encoder.input")
  mask = np.asarray(slots.mask)
  lengths = [min(P, len(row["inputs"])) for row in case.rows]
  np.testing.assert_array_equal(mask[:, -P:].sum(1), lengths)
  assert mask[:, :-P].all()
  noisy = jnp.where(mask[..., None], slots.vectors, 7.0)
  batch, params = case.batch(), case.params["backbone"]
  injection = Injection({"encoder.input": slots.replace(vectors=noisy)})
  encoded, seen = tools.BACKBONE.encode(params, batch, injection)
  logits = tools.BACKBONE.decode(params, batch, encoded, seen, injection)
  tools.assert_close(logits, case.plain_logits)


@pytest.mark.parametrize("name", IDPG)
def test_generator_without_output_kernel_is_prompt_tuning(get, name):
  case = get(name)
  kernel = "up_b" if "phm" in name else "up_kernel"
  off = tools.changed(case, **{f"parameterise__{kernel}": 0})
  bias = tools.leaf(case, "parameterise/up_bias")
  vectors = off.vectors(off.batch())
  np.testing.assert_array_equal(vectors, np.broadcast_to(bias, vectors.shape))
  assert np.abs(case.vectors(case.batch()) - bias).max() > 0.1
  if name in ("s_idpg_dnn", "s_idpg_phm"):
    tools.assert_close(off.logits(), static(get, bias[0]).logits())


@pytest.mark.parametrize("name", ADD)
def test_added_prompt_of_scale_zero_is_prompt_tuning(get, name, tmp_path):
  off = tools.case(name, tmp_path, INSTANCE_SCALE=0.0)
  table = tools.leaf(off, "transforms_0/table")
  vectors = off.vectors(off.batch())
  np.testing.assert_array_equal(vectors, np.broadcast_to(table, vectors.shape))
  found = off.model.inject(off.params, off.batch())
  assert found.get("encoder.input").mask is None
  tools.assert_close(off.logits(), static(get, table[0]).logits())


def test_added_prompt_of_zeros_is_prompt_tuning(get):
  for case in (
    tools.changed(get("ipt_random_add"), condition__table=0),
    tools.changed(get("ipt_mlp_add"), condition__table=0, parameterise__out_bias=0),
  ):
    table = tools.leaf(case, "transforms_0/table")
    vectors = case.vectors(case.batch())
    np.testing.assert_array_equal(vectors, np.broadcast_to(table, vectors.shape))


@pytest.mark.parametrize("name", ADD)
def test_added_prompt_is_table_plus_scaled_prompt(get, name):
  case, part = get(name), get(name.removesuffix("_add"))
  both = {**case.params["prompt"]}
  table = np.asarray(both.pop("transforms_0")["table"])
  alone = dataclasses.replace(part, params={**part.params, "prompt": both})
  wanted = table + alone.vectors(alone.batch())
  tools.assert_close(case.vectors(case.batch()), wanted, 1e-6)


@pytest.mark.parametrize("name", CONCAT)
def test_joined_prompts_stand_side_by_side(get, name):
  case, part = get(name), get(name.removesuffix("_concat"))
  params = case.params["prompt"]
  task = np.asarray(params["task"]["parameterise"]["prompt"])
  alone = dataclasses.replace(
    part, params={**part.params, "prompt": params["instance"]}
  )
  vectors, length = case.vectors(case.batch()), tools.NUMBERS["TASK_LENGTH"]
  assert vectors.shape[1] == length + P
  left, right = vectors[:, :length], vectors[:, length:]
  np.testing.assert_array_equal(left, np.broadcast_to(task, left.shape))
  np.testing.assert_array_equal(right, alone.vectors(alone.batch()))


def test_private_vectors_are_rows_of_the_table(get):
  case = get("ipt_random")
  table, vectors = tools.leaf(case, "condition/table"), case.vectors(case.batch())
  for row, found in zip(case.rows, vectors, strict=True):
    wanted = table[row["inputs"][:P]]
    np.testing.assert_array_equal(found[: len(wanted)], wanted)
    assert not found[len(wanted) :].any()


@pytest.mark.parametrize("name", ["ipt_random", "ipt_mlp"])
def test_only_rows_that_were_looked_up_get_gradient(get, name):
  case = get(name)
  gradients = step.gradients(case.model, CrossEntropy(), 1)
  found, _ = gradients(*case.split, case.batch(), None)
  rows = np.asarray(found["prompt"]["condition"]["table"]).any(axis=1)
  read = {int(i) for row in case.rows for i in row["inputs"][:P]}
  assert set(np.flatnonzero(rows)) == read


def test_order_matters_to_private_vectors_and_not_to_their_mean(get):
  swap = np.array([3, 1, 4, 0, 5, 2])
  for name in ("ipt_random", "ipt_mlp"):
    case = get(name)
    rows = [row for row in case.rows if len(row["inputs"]) >= P]
    shuffled = [
      {**row, "inputs": np.append(row["inputs"][:P][swap], row["inputs"][P:])}
      for row in rows
    ]
    fill_up = case.rows[: tools.B - len(rows)]
    before = case.vectors(case.batch(rows + fill_up))[: len(rows)]
    after = case.vectors(case.batch(shuffled + fill_up))[: len(rows)]
    if name == "ipt_random":
      np.testing.assert_array_equal(after, before[:, swap])
      assert (after != before).any()
    else:
      tools.assert_close(after, before, 1e-6)


def test_three_filters_span_three_dimensions(get):
  case = get("ipt_cnn")
  vectors = case.vectors(case.batch()).reshape(tools.B, -1)
  spread = vectors - tools.leaf(case, "parameterise/out_bias")
  assert np.linalg.matrix_rank(spread, tol=1e-4) == 3


@pytest.mark.parametrize("name", ["ipt_pretrained", "ipt_mlp_fixed"])
def test_saved_table_is_where_the_private_vectors_start(name, tmp_path):
  case = tools.case(name, tmp_path)
  drawn = case.model.init_prompt(jax.random.key(0), case.params["backbone"])
  saved = np.load(tmp_path / "PRETRAINED_TABLE.npy").astype(np.float32)
  np.testing.assert_array_equal(drawn["condition"]["table"], saved)
  assert ("condition" in case.split[0]["prompt"]) == (name == "ipt_pretrained")


T5_BASE = {"vocab_size": 32128, "emb_dim": 768}
ROBERTA_LARGE = {"vocab_size": 50265, "emb_dim": 1024}
IDPG_SIZES = {"PROMPT_LENGTH": 5, "GENERATOR_WIDTH": 256, "PHM_ORDER": 16}
IPT_SIZES = {"PROMPT_LENGTH": 100, "LSTM_UNITS": 64}
SHARED = {**IDPG_SIZES, "PHM_SHARED": True}
PUBLISHED = [
  ("prompt_tuning", "", T5_BASE, IPT_SIZES, 76_800),
  ("s_idpg_dnn", "", T5_BASE, IDPG_SIZES, 1_183_744),
  ("s_idpg_phm", "", T5_BASE, SHARED, 81_920),
  ("s_idpg_phm", "", T5_BASE, IDPG_SIZES, 86_016),
  ("s_idpg_phm", "", ROBERTA_LARGE, SHARED, 107_776),
  # The paper leaves biases out of this one.
  ("s_idpg_dnn", "kernel", ROBERTA_LARGE, IDPG_SIZES, 1_572_864),
  ("ipt_random", "", T5_BASE, IPT_SIZES, 24_674_304),
  ("ipt_random", "", ROBERTA_LARGE, IPT_SIZES, 51_471_360),
  ("ipt_cnn", "parameterise", T5_BASE, IPT_SIZES, 316_419),
  ("ipt_rnn", "parameterise", T5_BASE, IPT_SIZES, 10_433_536),
  ("ipt_mlp", "parameterise", T5_BASE, IPT_SIZES, 59_059_200),
  ("ipt_cnn", "parameterise", ROBERTA_LARGE, IPT_SIZES, 421_891),
  ("ipt_rnn", "parameterise", ROBERTA_LARGE, IPT_SIZES, 13_867_008),
  ("ipt_mlp", "parameterise", ROBERTA_LARGE, IPT_SIZES, 104_960_000),
]


@pytest.mark.parametrize("name, part, size, numbers, count", PUBLISHED)
def test_published_counts(name, part, size, numbers, count):
  method = tools.load(name, **numbers)
  backbone = T5(
    T5Config(
      **size, num_heads=8, head_dim=4, mlp_dim=8, num_encoder_layers=1,
      num_decoder_layers=1,
    )
  )  # fmt: skip
  shapes = PromptedModel(backbone, method.prompt).prompt_shapes(backbone.shapes())
  flat = branches.flatten(shapes)
  assert count == sum(leaf.size for path, leaf in flat.items() if part in path)
