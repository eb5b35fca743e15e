"""Every benchmark at toy size: what it prints, what it writes, what it refuses."""

import gzip
import json
import os
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "benchmarks"))
import arithmetic
import decode
import generators
import gpu
import int8_weights
import memory
import ours
import products
import real_lengths
import scaling
import startup
import theirs
import timing
import train_step
import vs_peft
import vs_t5x

# These compile many programs; the suite has a budget of minutes.
thorough = pytest.mark.skipif(
  not os.environ.get("PROMPT_TUNING_THOROUGH"),
  reason="set PROMPT_TUNING_THOROUGH=1 to run every benchmark at toy size",
)

SIZES = {
  "width": 16,
  "heads": 2,
  "head_width": 8,
  "ff": 24,
  "vocabulary": 64,
  "encoder_layers": 1,
  "decoder_layers": 1,
  "batch": 2,
  "inputs": 8,
  "targets": 3,
  "prompt": 4,
  "generator": 8,
  "dropout": 0.0,
}
TOY = [f"--{name}={value}" for name, value in SIZES.items()]
QUICK = ["--product=16", "--rounds=2", "--warmup=1"]


@pytest.fixture
def run(tmp_path, capsys):
  """Runs a benchmark at toy size: what it returns, which is what it writes."""

  def call(module, *flags, sizes=(*TOY, *QUICK)):
    file = tmp_path / "found.json"
    found = module.main([*sizes, *flags, f"--json={file}"])
    assert json.loads(file.read_text()) == json.loads(json.dumps(found))
    assert [path.name for path in tmp_path.glob("*.part")] == []
    printed = capsys.readouterr().out
    assert timing.device() in printed
    for row in found["rows"]:
      assert str(next(iter(row.values()))) in printed
    return found

  return call


# ---- what they share


def test_sides_take_turns_and_warm_up_uncounted():
  calls = []

  def side(name, told=None):
    return lambda: (calls.append(name), told)[1]

  found = timing.take_turns({"a": side("a"), "b": side("b", 7.0)}, 3, 1)
  assert "".join(calls) == "ba" + "ab" + "ba" + "ab"
  assert found["b"].seconds == (7.0, 7.0, 7.0)
  assert len(found["a"].seconds) == 3 and found["a"].median < 1
  with pytest.raises(ValueError, match="rounds >= 1.*got 1 sides, 0 and 1"):
    timing.take_turns({"a": side("a")}, 0, 1)


def test_medians_spread_and_tables():
  times = timing.Times((1.0, 2.0, 3.0, 4.0, 100.0))
  assert (times.median, times.ms) == (3.0, 3000.0)
  assert times.spread == pytest.approx((4 - 2) / 2 / 3)
  lines = timing.table([{"side": "a", "ms": 1234.5}, {"side": "bb", "ms": None}])
  assert lines.splitlines()[0] == "| side |   ms |"
  assert lines.splitlines()[2:] == ["|    a | 1234 |", "|   bb |    - |"]


def test_peak_and_memory_are_measured():
  args = timing.flags("Doc.").parse_args(["--product=32", "--rounds=2"])
  found = timing.measure({"nothing": lambda: None}, args)
  assert list(found.times) == ["nothing"] and found.peak > 0
  assert timing.measure({"nothing": lambda: None}, _without_product(args)).peak is None
  assert 0 < timing.resident() <= timing.resident(peak=True)


def _without_product(args):
  args.product = 0
  return args


def test_a_child_answers_with_its_last_line(tmp_path):
  script = tmp_path / "script.py"
  script.write_text(
    "import os, sys\nprint('words')\n"
    'print(\'{"a": ["%s", "%s"]}\' % (sys.argv[1], os.environ[\'LETTER\']))'
  )
  assert timing.child(str(script), ["x"], LETTER="y") == {"a": ["x", "y"]}
  script.write_text("raise SystemExit(3)")
  with pytest.raises(RuntimeError, match="script.py ended with 3"):
    timing.child(str(script), [])


def test_weights_are_those_of_the_backbone():
  shape = ours.Sizes(**SIZES, dtype="bfloat16", scan=True)
  params = shape.params()
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(
    lambda x: x.shape, shape.backbone().shapes()
  )
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
  kernel = params["encoder"]["layers"]["mlp"]["wi_0"]["kernel"]
  assert 0.1 < float(kernel.std()) < 0.5  # H^-0.5 = 0.25


# ---- ours


@thorough
def test_train_step(run):
  found = run(train_step, "--methods=prompt_tuning,s_idpg_phm")
  plain, coded = found["rows"]
  shape = ours.Sizes(**SIZES)
  need = arithmetic.need(shape).prompt_step
  assert plain["trains"] == 4 * 16
  assert plain["model_gflop"] == pytest.approx(need / 1e9)
  code = arithmetic.code(shape)
  assert coded["model_gflop"] * 1e9 == pytest.approx(need + code.forward)
  assert coded["compiled_gflop"] > plain["compiled_gflop"] > plain["model_gflop"]
  for row in (plain, coded):
    ideal = row["model_gflop"] / found["peak_gflops"]
    assert row["over_ideal"] == pytest.approx(row["ms"] / 1000 / ideal)
    assert row["temporaries_mb"] > 0 and row["compile_s"] > 0
  assert found["settings"]["inputs"] == 8


@thorough
def test_generators(run):
  found = run(generators, "--methods=s_idpg_phm+cached")
  plain, cached = found["rows"]
  assert plain["over_plain"] == plain["over_plain_paired"] == 1
  assert cached["over_plain"] == pytest.approx(cached["ms"] / plain["ms"])
  # Far less than the pass of the encoder that the cache saves.
  shape = ours.Sizes(**SIZES)
  pass_ = arithmetic.code(shape).forward / arithmetic.need(shape).prompt_step
  assert 1 < cached["gflop_over_plain"] < 1 + pass_


@thorough
def test_products(run):
  found = run(products)
  row = found["rows"][0]
  # Queries of 2 rows of 4 + 8 positions: 24 x 16 x 16 multiplications and additions.
  assert row["gflop"] == pytest.approx(2 * 24 * 16 * 16 / 1e9)
  assert row["xla_gflops"] > 0
  if found["asked"]:
    ratio = row["xla_gflops"] / row["asked_gflops"]
    assert row["asked_over_xla"] == pytest.approx(ratio)


def test_operations_of_a_product():
  made = products.products(ours.Sizes(**SIZES))
  scores = made["attention, scores"]
  assert scores.operations == 2 * (2 * 2 * 12 * 12 * 8)
  for product in made.values():
    arrays = (jnp.zeros(shape) for shape in (product.left, product.right))
    assert jnp.einsum(product.spec, *arrays).ndim == product.spec[::-1].index(">")


@thorough
def test_memory(run, monkeypatch):
  def child(script, argv):
    assert script == memory.__file__
    return memory.main(list(argv))

  monkeypatch.setattr(timing, "child", child)
  monkeypatch.setattr(memory, "copies", lambda shape: [])
  found = run(memory, "--steps=1", f"--optimizer={sorted(ours.RULES)[0]}")
  prompt, full = found["rows"]
  assert prompt["temporaries_mb"] < full["temporaries_mb"]
  assert found["peak_ratio"] == pytest.approx(
    prompt["resident_mb"] / full["resident_mb"]
  )
  monkeypatch.setattr(memory, "copies", lambda shape: ["a/kernel"])
  with pytest.raises(SystemExit, match="float32 copies.*a/kernel"):
    run(memory, "--steps=1", "--optimizer=adafactor")


def test_float32_copies_are_found():
  frozen = {
    "a": {"kernel": jax.ShapeDtypeStruct((4, 6), "bfloat16")},
    "b": {"kernel": jax.ShapeDtypeStruct((5, 6, 4), "bfloat16")},
  }

  def narrow(tree, x):
    x = x @ tree["a"]["kernel"]
    return jax.lax.scan(lambda x, k: (x @ k @ k.T, None), x, tree["b"]["kernel"])[0]

  def wide(tree, x):
    tree = jax.tree.map(lambda k: k.astype("float32"), tree)
    return narrow(tree, x)

  x = jax.ShapeDtypeStruct((3, 4), "bfloat16")
  copied = [
    memory.wide_copies(jax.jit(step).trace(frozen, x), frozen, scanned=True)
    for step in (narrow, wide)
  ]
  assert copied == [[], ["a/kernel", "b/kernel"]]


def test_no_matrix_of_the_backbone_is_widened():
  shape = ours.Sizes(**{**SIZES, "width": 24, "ff": 40})
  assert memory.copies(shape) == []


@thorough
def test_scaling(run):
  flags = ["--prompts=4,6", "--lengths=", "--batches=", "--layers="]
  found = run(scaling, *flags, "--depths=1,2", "--compiles=1")
  assert [row["changed"] for row in found["rows"]] == ["as given", "prompt 6"]
  less, more = (row["model_gflop"] for row in found["rows"])
  assert less < more
  ratio = found["compile_s_2+2"] / found["compile_s_1+1"]
  assert found["compile_ratio"] == pytest.approx(ratio)


@thorough
def test_decode(run):
  found = run(decode, "--steps=3", "--beams=1,2")
  assert [row["side"] for row in found["rows"]] == ["ours greedy", "ours beam 2"]
  for row in found["rows"]:
    assert row["tokens"] == 2 * 3
    assert row["tokens_s"] == pytest.approx(6 / row["ms"] * 1000)


@pytest.fixture
def sst2(tmp_path, vocabulary_file):
  """Flags for a folder with short texts in the form of SST-2."""
  rows = [(" ".join(["film"] * (1 + i % 3)), "negative") for i in range(40)]
  (tmp_path / "sst2").mkdir()
  with gzip.open(tmp_path / "sst2" / "train.tsv.gz", "wt") as out:
    out.writelines(f"{text}\t{label}\n" for text, label in [("text", "label"), *rows])
  return [
    f"--data={tmp_path}",
    f"--vocab_file={vocabulary_file}",
    "--tasks=sst2",
    "--vocabulary=8192",
    "--inputs=28",
    "--batches=3",
    "--buckets=2",
  ]


@thorough
def test_real_lengths(run, sst2):
  found = run(real_lengths, *sst2)
  packed, padded, bucketed = found["rows"]
  assert packed["shape"] == padded["shape"] == "2x32"
  assert padded["examples_a_step"] == 2 < packed["examples_a_step"]
  assert packed["filled"] > padded["filled"]
  assert bucketed["filled"] >= padded["filled"]
  ratio = packed["examples_s"] / padded["examples_s"]
  assert found["sst2"]["packed_over_padded"] == pytest.approx(ratio)
  assert found["sst2"]["packed_over_peft"] is None


@thorough
def test_gpu(run):
  flags = ["--small", "--no-xxl", "--batch=1", *QUICK]
  found = run(gpu, *flags, sizes=())
  (row,) = found["rows"]
  assert (row["model"], row["side"]) == ("XL", "ours")
  assert found["settings"]["inputs"] == gpu.SMALL["inputs"]
  share = row["model_tflops"] / found["peak_tflops"]
  assert found["mfu"] == row["mfu"] == pytest.approx(share)
  assert 0 < row["mfu_encoder"] < row["mfu"]


@thorough
def test_int8_weights(run, tiny_folder):
  found = run(int8_weights, f"--backbone={tiny_folder}", "--steps=0", sizes=())
  stored, half, narrow = found["rows"]
  assert stored["logits_max"] == 0 and stored["same_best_%"] == 100
  assert 0 < half["logits_rms"] < narrow["logits_rms"] < 0.2 * found["logits_std"]
  assert narrow["megabytes"] < half["megabytes"] < stored["megabytes"]


@thorough
def test_startup(run, monkeypatch, tiny_folder):
  def child(script, argv, **environment):
    seen.append(environment["JAX_ENABLE_COMPILATION_CACHE"])
    return startup.main(list(argv))

  seen = []
  monkeypatch.setattr(timing, "child", child)
  flags = [f"--backbone={tiny_folder}", "--rounds=1", "--caches=off"]
  found = run(startup, *flags, sizes=())
  (row,) = found["rows"]
  assert seen == ["false"] and row["cache"] == "off"
  stages = [row[name] for name in ("import_s", "load_s", "first_step_s")]
  assert stages == sorted(stages) and stages[0] > 0
  assert startup.environment("warm", "d")["JAX_COMPILATION_CACHE_DIR"] == "d"


# ---- beside PEFT

STUB = """
import json, sys
print(json.dumps({"versions": {}, "device": "cpu", "threads": 2}), flush=True)
for line in sys.stdin:
  order = json.loads(line)
  answer = {"parameters": PARAMETERS, "flops of " + order["name"]: 2e9}
  if order["do"] == "run":
    answer = {"seconds": 0.5 if order["name"] == "peft" else 0.25}
  print(json.dumps(answer), flush=True)
"""


def stub(tmp_path, parameters):
  """A worker that only says how long it took."""
  file = tmp_path / "stub.py"
  file.write_text(STUB.replace("PARAMETERS", str(parameters)))
  return file


@thorough
def test_vs_peft_with_a_process_that_says_half_a_second(run, monkeypatch, tmp_path):
  shape = ours.Sizes(**SIZES)
  weights = sum(leaf.size for leaf in jax.tree.leaves(shape.shapes()))
  monkeypatch.setattr(theirs.Peft, "script", stub(tmp_path, weights))
  found = run(vs_peft, f"--peft_python={sys.executable}", "--no-full")
  assert found["peft_ms"] == 500
  assert found["ratio"] == pytest.approx(found["ours_ms"] / 500)
  assert found["full_ratio"] is None
  monkeypatch.setattr(theirs.Peft, "script", stub(tmp_path, weights + 1))
  with (
    theirs.Peft(sys.executable) as peft,
    pytest.raises(RuntimeError, match="weights"),
  ):
    peft.train("peft", shape, [shape.ids()])


def test_where_peft_is_absent(capsys, tmp_path, monkeypatch):
  monkeypatch.setattr(theirs.Peft, "needs", ("torch_of_nowhere",))
  with pytest.raises(theirs.AbsentError, match="torch_of_nowhere.*--peft_python"):
    theirs.Peft()
  with theirs.optional(None) as peft:
    assert peft is None
  assert "Without PEFT" in capsys.readouterr().out
  worker = tmp_path / "worker.py"
  worker.write_text('print(\'{"absent": "no peft"}\')')
  monkeypatch.setattr(theirs.Peft, "script", worker)
  with pytest.raises(theirs.AbsentError, match="no peft"):
    theirs.Peft(sys.executable)


def test_t5x_side(run, monkeypatch, tmp_path):
  """A worker that says half a second; T5X itself where T5X_PYTHON names it."""
  shape = ours.Sizes(**SIZES)
  weights = sum(leaf.size for leaf in jax.tree.leaves(shape.shapes()))
  named = os.environ.get("T5X_PYTHON")
  if not named:
    monkeypatch.setattr(theirs.T5X, "script", stub(tmp_path, weights))
  found = run(vs_t5x, f"--t5x_python={named or sys.executable}", "--no-one_hot")
  assert found["ratio"] == pytest.approx(found["ours_ms"] / found["t5x_ms"])
  assert found["one_hot_ratio"] is None
  ours_row, t5x_row = found["rows"]
  if named:
    # T5X multiplies what ours does, and embeds by a gather.
    assert t5x_row["gflop"] == pytest.approx(ours_row["gflop"], rel=0.1)
  else:
    assert t5x_row["ms"] == 250 and t5x_row["gflop"] == 2


def peft_python():
  """An interpreter with PEFT: PEFT_PYTHON, or this one."""
  named = os.environ.get("PEFT_PYTHON")
  if named or all(map(theirs.importlib.util.find_spec, theirs.Peft.needs)):
    return named
  return pytest.skip("torch, transformers and peft are not installed")


@pytest.mark.parametrize("optimizer", sorted(ours.RULES))
def test_peft_itself(optimizer, tmp_path):
  shape = ours.Sizes(**SIZES, optimizer=optimizer)
  start = time.perf_counter()
  with theirs.Peft(peft_python()) as peft:
    prompt = peft.train("prompt", shape, [shape.ids()])
    full = peft.train("full", shape, [shape.ids(), shape.ids(1)], prompted=False)
    written = peft.generate("written", shape, shape.ids(), 3, 2)
    spent = prompt(), full(2), written()
    assert set(peft.facts["versions"]) == {"torch", "transformers", "peft"}
  assert min(spent) > 0 and sum(spent) < time.perf_counter() - start
