"""Few-shot draws."""

import time

import pytest
from mixture_tools import inputs, task

from prompt_tuning.data import (
  fewshot,
  lists,
  mixtures,
  registered,
)

# --- few shots


def test_few_shots_of_each_label():
  drawn = fewshot.FewShot(task("films", 40), 4, 7)
  targets = [example["targets"] for example in drawn.examples("train")]
  assert sorted(targets) == ["bad"] * 4 + ["good"] * 4
  assert drawn.labels == ("good", "bad") and drawn.metrics == ("accuracy",)
  assert drawn.name == "films_4shot_7"
  assert len(drawn.examples("validation")) == 2


def test_draws_are_seeded_and_nested():
  films = task("films", 40)
  four, again, eight, other = (
    inputs(fewshot.FewShot(films, shots, seed).examples("train"))
    for shots, seed in ((4, 7), (4, 7), (8, 7), (4, 8))
  )
  assert four == again and four != other and set(four) < set(eight)


def test_validation_shots_are_disjoint_and_leave_the_rest_to_be_had():
  films = task("films", 40)
  plain = fewshot.FewShot(films, 4, 7)
  drawn = fewshot.FewShot(films, 4, 7, validation_shots=6)
  assert drawn.splits == ("train", "validation", "full_validation")
  assert drawn.examples("train") == plain.examples("train")
  validation = inputs(drawn.examples("validation"))
  assert len(validation) == 12
  assert not set(validation) & set(inputs(drawn.examples("train")))
  assert drawn.examples("full_validation") == films.examples("validation")


def one_in_twenty(count=200):
  return [(f"{i}", "rare" if i % 20 == 19 else "common") for i in range(count)]


def test_few_shots_without_labels_are_drawn_by_targets_that_repeat(caplog):
  drawn = fewshot.FewShot(lists.Lists(one_in_twenty()), 8).examples("train")
  targets = [example["targets"] for example in drawn]
  assert sorted(targets) == ["common"] * 8 + ["rare"] * 8
  labelled = lists.Lists(one_in_twenty(), labels=("common", "rare"))
  assert drawn == fewshot.FewShot(labelled, 8).examples("train")
  assert not caplog.messages


def test_few_shots_that_cannot_be_drawn_by_targets_say_so(caplog):
  drawn = fewshot.FewShot(lists.Lists(one_in_twenty(40)), 8).examples("train")
  assert len(drawn) == 8
  (line,) = caplog.messages
  assert "only 2 examples have the target 'rare'" in line and "altogether" in line
  caplog.clear()
  free = lists.Lists([(f"q {i}", f"a {i}") for i in range(10)])
  assert len(fewshot.FewShot(free, 3).examples("train")) == 3
  (line,) = caplog.messages
  assert "10 different targets in 10 examples" in line and "LABELS" in line


def test_few_shots_of_many_labels_take_no_longer_than_reading_them():
  labels = tuple(f"{i}" for i in range(20_000))
  start = time.monotonic()
  (chosen,) = fewshot.draw(labels, labels, [1], 0, "shots", "it")
  assert chosen == list(range(20_000))
  assert time.monotonic() - start < 5


@pytest.mark.parametrize("shots", [0, -1, 2.5, "2", True])
def test_shots_are_whole_numbers(shots):
  with pytest.raises(ValueError, match="FewShot.shots.*whole number, at least 1"):
    fewshot.FewShot(task("films", 10), shots)
  with pytest.raises(ValueError, match="FewShot.seed.*whole number, at least 0"):
    fewshot.FewShot(task("films", 10), 1, -1)


def test_few_shots_without_labels_are_drawn_from_all():
  free = lists.Lists([(f"q {i}", f"a {i}") for i in range(10)])
  assert len(fewshot.FewShot(free, 3).examples("train")) == 3


def test_too_few_examples_are_refused():
  films = task("films", 10)
  with pytest.raises(ValueError, match="asks for 6 examples of the label 'bad'.*has 5"):
    fewshot.FewShot(films, 6).examples("train")
  with pytest.raises(ValueError, match=r"asks for 3 \+ 3 examples"):
    fewshot.FewShot(films, 3, validation_shots=3).examples("validation")
  with pytest.raises(ValueError, match="no split 'train'"):
    fewshot.FewShot(task("films", 4, train=None), 1)


def test_few_shots_of_a_registered_task_keep_its_own_metrics(module):
  own = registered.Registered("registered_pairs", module)
  drawn = fewshot.FewShot(own, 2, 0)
  assert drawn.judged and not drawn.metrics
  right = [example["targets"] for example in drawn.examples("train")]
  assert drawn.score(right, "train") == {"own": 100.0}
  assert drawn.score(["good", "x", "x"], "validation")["own"] < 50
  assert mixtures.Mixture([task("a", 2), own]).judged
  assert not mixtures.Mixture([task("a", 2, metrics=())]).judged
