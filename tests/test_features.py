"""Virtual positions, padding, packing, and the order of batches."""

import itertools
import logging
import threading

import numpy as np
import pytest

from prompt_tuning.core.ids import MARKS
from prompt_tuning.data import batches as batching
from prompt_tuning.data import packing, suited, vocabularies
from prompt_tuning.data.converter import PromptFeatureConverter
from prompt_tuning.data.features import Layout, pad
from prompt_tuning.data.lists import Lists
from prompt_tuning.data.packing import pack
from prompt_tuning.engine.examples import validation_part

EXAMPLE = {"inputs": [11, 12, 13, 1], "targets": [21, 22, 1]}


def random_examples(count, seed=0, longest=6):
  draw = np.random.default_rng(seed)

  def ids():
    return [*draw.integers(3, 90, draw.integers(1, longest)), 1]

  return [{"inputs": ids(), "targets": ids()[-3:]} for _ in range(count)]


def equal(left, right):
  assert left.keys() == right.keys()
  for name in left:
    np.testing.assert_array_equal(left[name], right[name], err_msg=name)


# ---- layout


@pytest.mark.parametrize(
  ("place", "before"), [("front", 0), ("after_first", 1), ("end", 3), ("mark", 2)]
)
def test_reserved_positions(place, before):
  row = Layout(6, 4, 2, 0, place).convert({**EXAMPLE, "mark": 2})
  ids = EXAMPLE["inputs"]
  expected = [*ids[:before], MARKS.reserved, MARKS.reserved, *ids[before:]]
  assert row["inputs"].tolist() == expected
  index = [-1] * before + [0, 1] + [-1] * (4 - before)
  assert row["prompt_index"].tolist() == index
  assert row["targets"].tolist() == [21, 22, 1]
  assert row["decoder_inputs"].tolist() == [0, 21, 22]


def test_reserved_positions_of_the_decoder():
  row = pad(Layout(5, 4, 0, 2).convert(EXAMPLE), Layout(5, 4, 0, 2).lengths)
  assert row["targets"].tolist() == [0, 0, 21, 22, 1, 0]
  assert row["decoder_inputs"].tolist() == [MARKS.reserved] * 2 + [0, 21, 22, 0]
  assert row["decoder_prompt_index"].tolist() == [0, 1, -1, -1, -1, -1]
  assert row["inputs"].tolist() == [11, 12, 13, 1, 0]
  assert row["prompt_index"].tolist() == [-1] * 5


def test_other_features_pass():
  example = {**EXAMPLE, "task": 3, "external": np.ones(4), "inputs_pretokenized": b"x"}
  row = pad(Layout(6, 4).convert(example), Layout(6, 4).lengths)
  assert row["task"] == 3 and row["external"].shape == (4,)
  assert "inputs_pretokenized" not in row


def test_what_is_too_long_is_cut_only_when_told_to():
  short = Layout(3, 2, 1, truncate=True).convert(EXAMPLE)
  assert short["inputs"].tolist() == [MARKS.reserved, 11, 12, 1]
  assert short["targets"].tolist() == [21, 1]
  for layout, name in [(Layout(3, 9), "inputs"), (Layout(9, 2), "targets")]:
    with pytest.raises(ValueError, match=rf"\['{name}'\], or set TRUNCATE = True"):
      layout.convert(EXAMPLE)


def test_a_mark_beyond_the_cut_stands_before_the_end():
  row = Layout(3, 3, 1, 0, "mark", truncate=True).convert({**EXAMPLE, "mark": 3})
  assert row["inputs"].tolist() == [11, 12, MARKS.reserved, 1]
  assert Layout(3, 3, 2, 0, "end").convert({"inputs": [], "targets": [1]})[
    "prompt_index"
  ].tolist() == [0, 1]


@pytest.mark.parametrize(
  ("settings", "words"),
  [
    ((4, 4, 1, 0, "middle"), "`PROMPT_PLACE` must be one of.*'middle'"),
    ((0, 4), r"`TASK_FEATURE_LENGTHS\['inputs'\]` must be at least 1, got 0"),
    ((4, -1), r"`TASK_FEATURE_LENGTHS\['targets'\]`"),
  ],
)
def test_wrong_layouts_are_refused(settings, words):
  with pytest.raises(ValueError, match=words):
    Layout(*settings)


def test_a_missing_mark_is_refused():
  with pytest.raises(ValueError, match="has no <prompt>"):
    Layout(6, 4, 2, 0, "mark").convert({**EXAMPLE, "mark": -1})


# ---- checks of a split


def test_long_examples_are_counted(caplog):
  examples = [{"inputs": [5] * n, "targets": [5] * 2} for n in (3, 8, 9)]
  with pytest.raises(ValueError) as caught:
    batching.check_lengths(examples, Layout(7, 2), "train")
  assert "2 of 3 examples of the split 'train' have inputs longer than the 7" in str(
    caught.value
  )
  assert "the longest: 9" in str(caught.value)
  with caplog.at_level(logging.WARNING):
    batching.check_lengths(examples, Layout(7, 2, truncate=True), "train")
  assert "2 of 3" in caplog.text and "They are cut" in caplog.text
  with pytest.raises(ValueError, match="3 of 3.*targets longer than the 1"):
    batching.check_lengths(examples, Layout(9, 1), "train")
  with pytest.raises(ValueError, match="'train' holds no examples"):
    batching.check_lengths([], Layout(9, 2), "train")


def test_a_part_of_a_sorted_validation_split_has_all_labels(vocabulary_file):
  vocabulary = vocabularies.sentencepiece(vocabulary_file)
  rows = [(f"text {i}", "ab"[i >= 50]) for i in range(100)]
  task = Lists(train=rows[:1], validation=rows)

  whole = validation_part(task, vocabulary, None)
  part = validation_part(task, vocabulary, 20)
  assert validation_part(task, vocabulary, 100).numbers == whole.numbers == range(100)
  assert validation_part(task, vocabulary, 20).numbers == part.numbers
  assert part.numbers == sorted(set(part.numbers)) and len(part.numbers) == 20
  for example, number in zip(part.examples, part.numbers, strict=True):
    assert example["inputs_pretokenized"] == rows[number][0].encode()
  right = [rows[number][1] for number in part.numbers]
  assert 3 < right.count("b") < 17
  assert task.score(right, "validation", part.numbers) == {"accuracy": 100.0}


def test_targets_of_unknown_pieces_alone_are_refused(vocabulary_file):
  vocabulary = vocabularies.sentencepiece(vocabulary_file)
  fits = Lists(train=[("x", "good"), ("x", "good \u6f22"), ("x", "caf\u00e9")])
  batching.check_targets(fits.tokens(vocabulary, "train"), vocabulary, "train")
  task = Lists(train=[("x", "good"), ("x", "\u6f22 \u5b57")])
  with pytest.raises(ValueError) as caught:
    batching.check_targets(task.tokens(vocabulary, "train"), vocabulary, "train")
  message = str(caught.value)
  assert "'\u6f22 \u5b57' of example 1 of the split 'train'" in message
  assert "vocabulary" in message
  batching.check_labels(["good", "bad"], vocabulary)
  batching.check_labels(None, vocabulary)
  batching.check_labels(["\u6f22"], vocabularies.byte())
  with pytest.raises(ValueError, match="label '\u6f22' .*all its pieces are unknown"):
    batching.check_labels(["good", "\u6f22"], vocabulary)


def test_targets_that_are_not_given_back_are_counted(vocabulary_file, caplog):
  vocabulary = vocabularies.sentencepiece(vocabulary_file)
  rows = [("x", target) for target in ("very  good", "very  good", "bad", " fine ")]
  examples = Lists(train=rows).tokens(vocabulary, "train")
  suited.check_targets(examples, vocabulary, "train")
  (line,) = caplog.messages
  assert "2 of 4 targets" in line and "'very  good' is read as 'very good'" in line
  caplog.clear()
  suited.check_targets(examples, vocabulary, "train", ["very  good", "bad"])
  own = Lists(train=rows).tokens(vocabularies.byte(), "train")
  suited.check_targets(own, vocabularies.byte(), "train")
  assert not caplog.messages


def test_targets_of_end_marks_alone_are_refused(vocabulary_file):
  vocabulary = vocabularies.sentencepiece(vocabulary_file)
  examples = Lists(train=[("x", "very good")]).tokens(vocabulary, "train")
  with pytest.raises(ValueError, match="nothing but end marks.*'targets'"):
    suited.check_lengths(examples, Layout(9, 1, truncate=True), "train")
  empty = [{"targets": [vocabulary.eos_id], "targets_pretokenized": b""}]
  with pytest.raises(ValueError, match="example 1 of the split 'train' is empty"):
    suited.check_targets([*examples, *empty], vocabulary, "train")


# ---- packing


def test_far_more_segments_than_a_row_holds_are_fewer(caplog):
  layout = Layout(128, 64, 20)
  assert packing.useful(8, layout) == 8 and packing.useful(1, layout) == 1
  assert not caplog.messages
  assert packing.useful(1000, layout) == 7
  (line,) = caplog.messages
  assert "PACK_SEGMENTS is 1000" in line and "taken as 7" in line
  most = packing.useful(1000, LAYOUT)
  few, many = (
    taken(random_examples(40), 8, pack_segments=segments) for segments in (most, 1000)
  )
  for left, right in zip(few, many, strict=True):
    equal(left, right)


def unpacked(rows):
  """The examples of packed rows, each as its (inputs, targets) ids."""
  found = []
  for row in rows:
    for segment in range(1, row["segment_ids"].max() + 1):
      mine = row["segment_ids"] == segment
      theirs = row["decoder_segment_ids"] == segment
      found.append((tuple(row["inputs"][mine]), tuple(row["targets"][theirs])))
  return found


@pytest.mark.parametrize(("segments", "open_rows"), [(1, 64), (3, 64), (8, 2)])
def test_packing_keeps_every_example_once(segments, open_rows):
  layout = Layout(8, 3, 2)
  examples = [layout.convert(example) for example in random_examples(41)]
  rows = list(pack(examples, 24, 9, segments, open_rows))
  expected = [(tuple(e["inputs"]), tuple(e["targets"])) for e in examples]
  assert sorted(unpacked(rows)) == sorted(expected)
  most = max(row["segment_ids"].max() for row in rows)
  assert most == segments if segments < 8 else 2 < most <= 8
  # No row is left half empty while examples wait: packing pays.
  used = sum((row["segment_ids"] > 0).mean() for row in rows) / len(rows)
  assert used > (0.7 if segments > 1 else 0.2)


def test_a_packed_row():
  layout = Layout(6, 3, 1)
  examples = [EXAMPLE, {"inputs": [14, 1], "targets": [23, 1]}]
  (row,) = pack([layout.convert(example) for example in examples], 10, 7, 4)
  R = MARKS.reserved
  equal(
    row,
    {
      "inputs": [R, 11, 12, 13, 1, R, 14, 1, 0, 0],
      "prompt_index": [0, -1, -1, -1, -1, 0, -1, -1, -1, -1],
      "segment_ids": [1, 1, 1, 1, 1, 2, 2, 2, 0, 0],
      "targets": [21, 22, 1, 23, 1, 0, 0],
      "decoder_inputs": [0, 21, 22, 0, 23, 0, 0],
      "decoder_prompt_index": [-1] * 7,
      "decoder_segment_ids": [1, 1, 1, 2, 2, 0, 0],
    },
  )


def test_an_example_longer_than_a_row_is_refused():
  examples = [Layout(9, 9).convert(EXAMPLE)]
  with pytest.raises(ValueError, match="4 inputs and 3 targets does not fit.*3 and 9"):
    list(pack(examples, 3, 9, 2))


# ---- batches

LAYOUT = Layout(8, 4, 2)


def taken(source, steps, first=0, **settings):
  found = batching.train_batches(source, LAYOUT, 4, 7, first, **settings)
  return list(itertools.islice(found, steps))


@pytest.mark.parametrize("segments", [1, 3])
@pytest.mark.parametrize("streams", [False, True])
def test_batches_resume_at_any_step(streams, segments):
  examples = random_examples(11)
  source = (lambda: itertools.cycle(examples)) if streams else examples
  whole = taken(source, 9, pack_segments=segments)
  for first in (1, 2, 3, 7):
    rest = taken(source, 9 - first, first, pack_segments=segments)
    for left, right in zip(rest, whole[first:], strict=True):
      equal(left, right)


def test_each_epoch_holds_every_example_in_an_order_of_its_own():
  rows = list(itertools.islice(batching.shuffled(range(11), 7), 33))
  epochs = [rows[:11], rows[11:22], rows[22:]]
  assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
  assert epochs[0] != epochs[1] != epochs[2]
  assert rows == list(itertools.islice(batching.shuffled(range(11), 7), 33))
  assert rows[:11] != list(itertools.islice(batching.shuffled(range(11), 8), 11))
  assert rows[17:] == list(itertools.islice(batching.shuffled(range(11), 7, 17), 16))


def test_shapes_of_batches():
  (batch,) = taken(random_examples(5), 1)
  shapes = {name: value.shape for name, value in batch.items()}
  assert shapes["inputs"] == shapes["prompt_index"] == (4, 10)
  assert shapes["targets"] == shapes["decoder_inputs"] == (4, 4)
  (batch,) = taken(random_examples(5), 1, pack_segments=2)
  assert batch["segment_ids"].shape == (4, 10)


def test_a_stream_that_ends_gives_full_batches_alone():
  examples = random_examples(11)
  assert len(list(batching.train_batches(lambda: examples, LAYOUT, 4, 0))) == 2


def test_long_examples_of_a_stream_are_refused_on_the_way():
  examples = [*random_examples(4), {"inputs": [5] * 9, "targets": [5]}]
  found = batching.train_batches(lambda: itertools.cycle(examples), LAYOUT, 4, 0)
  next(found)
  with pytest.raises(ValueError, match="9 inputs, more than the 8"):
    next(found)


def rows_of(lengths):
  return [
    {"inputs": np.full(n, i + 3), "targets": np.array([5, 1])}
    for i, n in enumerate(lengths)
  ]


def test_few_batches_keep_the_order_and_fill_the_last_one_up():
  found = list(batching.every(rows_of([3, 9, 20, 2, 7]), Layout(64, 8, 2), 2))
  assert [numbers for _, numbers in found] == [[0, 1], [2, 3], [4]]
  assert {batch["inputs"].shape for batch, _ in found} == {(2, 34)}
  assert (found[-1][0]["inputs"][0] == found[-1][0]["inputs"][1]).all()


def test_many_batches_put_short_examples_together(monkeypatch):
  monkeypatch.setattr(batching, "MANY", 2)
  lengths = [30, 3, 40, 16, 2, 9, 17, 5]
  found = list(batching.every(rows_of(lengths), Layout(50, 8, 2), 2))
  assert [numbers for _, numbers in found] == [[4, 1], [7, 5], [3, 6], [0, 2]]
  # 16, 32 or what the longest needs, and two positions for the prompt.
  assert [b["inputs"].shape[1] for b, _ in found] == [18, 18, 34, 50]
  for batch, numbers in found:
    for row, number in zip(batch["inputs"], numbers, strict=True):
      assert (row[2:] == number + 3).sum() == lengths[number]


# ---- reading ahead


def test_ahead_keeps_the_order():
  assert list(batching.ahead(iter(range(50)), 3)) == list(range(50))


def test_ahead_closes_its_thread():
  before = threading.active_count()
  read = []

  def endless():
    for i in itertools.count():
      read.append(i)
      yield i

  feed = batching.ahead(endless(), 2)
  assert [next(feed), next(feed)] == [0, 1]
  assert threading.active_count() == before + 1
  feed.close()
  assert threading.active_count() == before
  # Never far ahead: two in the queue, one in hand.
  assert len(read) <= 2 + 2 + 1
  unread = batching.ahead(endless())
  unread.close()
  assert threading.active_count() == before


def test_ahead_passes_errors_on():
  def breaks():
    yield 1
    raise OSError("the disk is gone")

  feed = batching.ahead(breaks())
  assert next(feed) == 1
  with pytest.raises(OSError, match="the disk is gone"):
    next(feed)
  assert list(feed) == []


# ---- SeqIO


@pytest.mark.parametrize("layout", [Layout(9, 4, 3), Layout(9, 4, 2, 1, "end")])
def test_the_seqio_converter_is_the_layout(vocabulary_file, layout):
  vocabulary = vocabularies.sentencepiece(vocabulary_file)
  pairs = [("a film", "good"), ("not my kind of film", "bad"), ("x", "so so")]
  if layout.place == "mark":
    pairs = [(f"{source} <prompt> {source}", target) for source, target in pairs]
  task = Lists(train=pairs)
  rows = task.tokens(vocabulary, "train")
  converter = PromptFeatureConverter(layout)
  lengths = {"inputs": layout.inputs, "targets": layout.targets}
  found = converter(task.dataset(vocabulary, "train"), lengths).as_numpy_iterator()
  for row, example in zip(found, rows, strict=True):
    expected = pad(layout.convert(example), layout.lengths)
    equal(
      row,
      {name: expected[name] for name in PromptFeatureConverter.MODEL_FEATURES},
    )
    assert all(value.dtype == np.int32 for value in row.values())
  assert converter.get_model_feature_lengths(lengths) == layout.lengths


def test_the_seqio_converter_takes_what_seqio_has_trimmed(vocabulary_file):
  vocabulary = vocabularies.sentencepiece(vocabulary_file)
  pairs = [("one two three four five six", "good")]
  built = Lists(name="features_test", train=pairs).build(vocabulary)
  lengths = {"inputs": 4, "targets": 3}
  data = built.get_dataset(lengths, "train", shuffle=False)
  (row,) = PromptFeatureConverter(Layout(4, 3, 2))(data, lengths)
  ids = vocabulary.encode(pairs[0][0])
  assert row["inputs"].numpy().tolist() == [MARKS.reserved, MARKS.reserved, *ids[:3], 1]
  assert row["prompt_index"].numpy().tolist() == [0, 1, -1, -1, -1, -1]
