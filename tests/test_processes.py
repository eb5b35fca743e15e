"""Several processes as one: shares of the data, flags, real runs of two or four."""

import itertools
import json
import os

import jax
import numpy as np
import process_tools
import pytest

from prompt_tuning import eval as eval_verb
from prompt_tuning import train
from prompt_tuning.core.trainable import flatten
from prompt_tuning.data import batches
from prompt_tuning.data.features import Layout
from prompt_tuning.engine import config, distributed, examples, product
from prompt_tuning.interop.load import load

BATCH = process_tools.BATCH


# ---- shares of the data

PAIRS = [{"inputs": [2 + i] * (1 + i % 5), "targets": [3 + i, 1]} for i in range(11)]


def joined(shares):
  """Batches of several processes side by side."""
  for parts in zip(*shares, strict=True):
    yield {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("kind", ["memory", "stream", "packed", "buckets"])
def test_shares_of_a_batch_are_the_batch(kind, first):
  source = PAIRS
  if kind == "stream":
    source = lambda: itertools.cycle(PAIRS)  # noqa: E731
  segments, lengths = 3 if kind == "packed" else 1, (3, 9) if kind == "buckets" else ()

  def run(own=None):
    made = batches.train_batches(
      source, Layout(9, 4), 8, 5, first, segments, lengths, own
    )
    return list(itertools.islice(made, 4))

  whole = run()
  shares = [run(range(start, start + 2)) for start in range(0, 8, 2)]
  for left, right in zip(joined(shares), whole, strict=True):
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize("size", [4, 8, 16])
def test_evaluation_is_shared_without_gaps(size):
  whole = list(batches.every(PAIRS, Layout(9, 4), size))
  half = size // 2
  shares = [
    list(batches.every(PAIRS, Layout(9, 4), size, range(start, start + half)))
    for start in (0, half)
  ]
  numbers = [number for _, found in whole for number in found]
  assert numbers == list(range(len(PAIRS)))
  rows = joined([[batch for batch, _ in share] for share in shares])
  for left, (right, _) in zip(rows, whole, strict=True):
    jax.tree.map(np.testing.assert_array_equal, left, right)
  # Rows that only fill up have no targets, so no token counts twice.
  targets = sum(int((batch["targets"] > 0).sum()) for batch, _ in whole)
  assert targets == 2 * len(PAIRS)


# ---- flags


@pytest.mark.parametrize(
  "flags, message",
  [
    ({"--process_count": "2"}, "missing: --coordinator_address, --process_index"),
    ({"--process_index": "one"}, "`--process_index` must be a whole number, got 'one'"),
    (
      {
        "--coordinator_address": "a:1",
        "--process_count": "2",
        "--process_index": "2",
      },
      "`--process_index` is 2; it must be below `--process_count`, 2",
    ),
  ],
)
def test_wrong_flags_are_refused(flags, message):
  with pytest.raises(ValueError, match=message):
    distributed.cluster(flags)


def test_flags_come_before_the_environment(monkeypatch):
  assert distributed.cluster({}) == distributed.Cluster()
  monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "here:1")
  monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
  monkeypatch.setenv("JAX_PROCESS_ID", "3")
  assert distributed.cluster({}) == distributed.Cluster("here:1", 4, 3)
  found = distributed.cluster({"--process_index": "1"})
  assert found == distributed.Cluster("here:1", 4, 1)
  # One process has nobody to wait for.
  distributed.start(distributed.Cluster("nowhere:1", 1, 0))
  assert distributed.is_first() and not distributed.several()


# ---- several processes, four devices in all

COUNT = 4 if os.environ.get("PROMPT_TUNING_THOROUGH") else 2


@pytest.fixture(scope="module")
def work(tmp_path_factory, tiny_folder):
  folder = tmp_path_factory.mktemp("processes")
  process_tools.write_task(folder, tiny_folder)
  return folder


def flags(work, name):
  return [f"--gin_file={work}/recipe.gin", f"--gin.MODEL_DIR='{work}/{name}'"]


@pytest.fixture(scope="module")
def several(work):
  """A run of several processes, told to end by a signal to the last at step 7."""
  shared = [*flags(work, "several"), *process_tools.DIVIDED]
  return process_tools.start(work, COUNT, shared, stop=7)


@pytest.fixture(scope="module")
def whole(work, several, cache):
  """MODEL_DIR of the same run by this process alone, meanwhile."""
  config.run_verb(train.train, flags(work, "whole"))
  return work / "whole"


@pytest.fixture(scope="module")
def ended(work, several, whole):
  """Logs, and what each process laid out."""
  found = process_tools.codes(several)
  logs = [(work / f"log-{number}").read_text() for number in range(COUNT)]
  assert found == [143] * COUNT, "\n".join(log[-3000:] for log in logs)
  return logs, process_tools.read(work, COUNT)


def lines(folder):
  text = (folder / "metrics.jsonl").read_text()
  return {(x["step"], x["split"]): x for x in map(json.loads, text.splitlines())}


def test_the_first_process_alone_speaks(work, ended):
  logs, _ = ended
  assert "step 6/24 validation" in logs[0] and "Told to end at step" in logs[0]
  for log in logs[1:]:
    assert "validation" not in log and "Told" not in log
  names = {path.name for path in (work / "several").iterdir()}
  assert names >= {"checkpoints", "config.gin", "metrics.jsonl", "model-info.txt"}
  info = (work / "several" / "model-info.txt").read_text()
  assert "mesh replica 1 x data 2 x model 2" in info


def test_each_process_reads_its_own_rows(work, ended, tiny_folder):
  _, read = ended
  # Processes along the model axis hold parts of the same rows.
  left, right = read[: COUNT // 2], read[COUNT // 2 :]
  assert all(one["eval"] == left[0]["eval"] for one in left)
  assert all(one["eval"] == right[0]["eval"] for one in right)
  config.parse([f"{work}/recipe.gin"], ["MODEL_DIR = 'unused'"])
  task, vocabulary = config.macro("TASK"), load(tiny_folder).vocabulary
  known = [
    [int(i) for i in x["inputs"]] for x in examples.read(task, vocabulary, "train")
  ]
  assert len({tuple(ids) for ids in known}) == process_tools.TRAIN
  # Seven steps at least: the first epoch and most of a second one.
  order = itertools.islice(batches.shuffled(known, 3), 7 * BATCH)
  for number, row in enumerate(order):
    step, place = divmod(number, BATCH)
    half, own = divmod(place, BATCH // 2)
    for one in (left, right)[half]:
      assert one["train"][step * BATCH // 2 + own] == row
  # Evaluation: the loss of step 6 reads each example once.
  asked = [tuple(ids) for one in (left[0], right[0]) for ids in one["eval"]]
  wanted = [tuple(x["inputs"]) for x in examples.read(task, vocabulary, "validation")]
  assert {asked.count(ids) for ids in wanted[:-1]} == {1}
  # The last one also fills up the second batch.
  assert asked.count(wanted[-1]) == 1 + 2 * BATCH - len(wanted)
  assert set(asked) == set(wanted)


def test_metrics_are_those_of_one_process(work, whole, ended):
  one, all_of_them = lines(whole), lines(work / "several")
  shared = [key for key in all_of_them if key in one]
  assert {(3, "train"), (5, "train"), (6, "train"), (6, "validation")} <= set(shared)
  for key in shared:
    found, wanted = (
      {k: v for k, v in x[key].items() if k != "split"} for x in (all_of_them, one)
    )
    assert found == pytest.approx(wanted, rel=1e-5), key


def test_one_process_goes_on_where_several_stopped(work, whole, ended, capsys):
  kept = (work / "several" / "checkpoints").iterdir()
  steps = [int(path.name) for path in kept if path.name.isdigit()]
  config.run_verb(train.train, flags(work, "several"))
  assert f"Resumed from step {max(steps)}." in capsys.readouterr().out
  left, right = (
    flatten(product.load(work / x).trainable) for x in ("several", "whole")
  )
  assert set(left) == set(right)
  for name in left:
    np.testing.assert_allclose(left[name], right[name], rtol=0, atol=1e-5)


@pytest.mark.skipif(COUNT == 2, reason="set PROMPT_TUNING_THOROUGH=1 to run it")
def test_answers_of_several_processes_are_those_of_one(work, whole):
  (work / "eval.gin").write_text(
    'include "gin/eval.gin"\ninclude "gin/tasks/files.gin"\n'
    'include "gin/outputs/choice.gin"\nINPUTS = "review: {text}"\n'
    'LABELS = ("negative", "positive")\nEVAL_BATCH_SIZE = 8\n'
    f"DATA_DIR = '{work}'\nTRAIN_FILE = None\nVALIDATION_FILE = 'validation.tsv'\n"
    f"PROMPT_DIR = '{whole}/prompt'\n"
  )

  def to(name):
    return [f"--gin_file={work}/eval.gin", f"--gin.EVAL_DIR='{work}/{name}'"]

  shared = [*to("all"), *process_tools.DIVIDED]
  assert (
    process_tools.codes(process_tools.start(work, COUNT, shared, verb="eval"))
    == [0] * COUNT
  ), (work / "log-0").read_text()[-3000:]
  config.run_verb(eval_verb.evaluate_prompt, to("one"))
  name = "predictions-validation.jsonl"
  left, right = (
    [json.loads(line) for line in (work / x / name).read_text().splitlines()]
    for x in ("all", "one")
  )
  assert len(left) == len(right) == process_tools.VALIDATION
  for mine, other in zip(left, right, strict=True):
    assert mine.pop("scores") == pytest.approx(other.pop("scores"), rel=1e-4)
    assert mine == other
