"""Losses over labels against numpy."""

import dataclasses

import jax
import method_tools as tools
import numpy as np
import pytest
from forward_tools import LABELS, WORDS, run

from prompt_tuning.core.ids import MARKS
from prompt_tuning.objectives.choices import Choices

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
