"""Pre-training text: what is cut out can be put back, in the shares asked for."""

import gzip

import numpy as np
import pytest
import tensorflow as tf

from prompt_tuning.data import pretrain, vocabularies

WORDS = "the a film was and it good bad very long short seen first last music".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Plain and gzipped lines of 40 to 100 words, and a TSV of prompted texts."""
  path = tmp_path_factory.mktemp("pretrain")
  draw = np.random.default_rng(0)
  lines = [
    " ".join(WORDS[i] for i in draw.integers(0, len(WORDS), draw.integers(40, 100)))
    for _ in range(16)
  ]
  (path / "a.txt").write_text("\n".join(lines[:8]) + "\n")
  (path / "b.txt").write_text("\n".join(lines[8:]) + "\n")
  (path / "v.txt.gz").write_bytes(gzip.compress("\n".join(lines[:3]).encode()))
  rows = [f"s{i}\tis it good? {lines[i]}\t{WORDS[i]} {lines[i]}" for i in range(6)]
  header = "source\tinputs\ttargets"
  (path / "p.tsv").write_text("\n".join([header, *rows]) + "\n")
  return path


@pytest.fixture(scope="module", autouse=True)
def small_window():
  """So few pieces need no window of thousands."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(pretrain._Streamed, "window", 64)
    yield


@pytest.fixture(scope="module")
def vocabulary(vocabulary_file):
  return vocabularies.sentencepiece(vocabulary_file)


def task(kind, folder, **fields):
  settings = {"train": ["a.txt", "b.txt"], "shortest": 16, "longest": 48, **fields}
  return kind(name="t", directory=str(folder), **settings)


def read(source, vocabulary, split="train", **settings):
  data = source.dataset(vocabulary, split, **settings)
  return [
    (row["inputs"].tolist(), row["targets"].tolist())
    for row in data.as_numpy_iterator()
  ]


def restored(inputs, targets, first):
  """The ids before corruption: each sentinel of the inputs gives way to its span."""
  spans, current = {}, None
  for piece in targets:
    if piece > first - 100:
      current = spans.setdefault(piece, [])
    else:
      current.append(piece)
  ids = []
  for piece in inputs:
    ids += spans.pop(piece) if piece > first - 100 else [piece]
  assert not spans, "a span of the targets has no sentinel in the inputs"
  return ids


@pytest.mark.parametrize(("density", "span"), [(0.15, 3.0), (0.5, 2.0), (0.3, 6.0)])
def test_corrupted_spans_can_be_put_back(density, span):
  first = 8099
  cut = tf.function(
    lambda ids, seeds: pretrain.corrupt_spans(ids, seeds, first, density, span),
    input_signature=[
      tf.TensorSpec([None], tf.int32),
      tf.TensorSpec([2, 2], tf.int32),
    ],
  )
  shares, lengths, starts = [], [], set()
  for seed, total in enumerate([2, 3, 7, *[40, 100, 113] * 20]):
    ids = np.arange(10, 10 + total, dtype=np.int32)
    inputs, targets = (x.numpy().tolist() for x in cut(ids, [[seed, 1], [seed, 2]]))
    assert restored(inputs, targets, first) == ids.tolist()
    sentinels = [piece for piece in targets if piece > 5000]
    assert sentinels == list(range(first, first - len(sentinels), -1))
    assert [piece for piece in inputs if piece > 5000] == sentinels
    # It begins with a kept span, as Raffel et al. do, and ends with a cut one.
    assert inputs[0] == 10 and inputs[-1] == sentinels[-1]
    if total >= 40:
      removed = len(targets) - len(sentinels)
      assert removed == round(total * density)
      shares.append(removed / total)
      lengths.append(removed / len(sentinels))
      starts.add(inputs.index(first))
  assert np.mean(shares) == pytest.approx(density, rel=0.05)
  assert np.mean(lengths) == pytest.approx(span, rel=0.2)
  assert len(starts) > 5, "spans stand at random places"


@pytest.fixture(scope="module")
def rows(folder, vocabulary):
  """Span corruption of all lines."""
  return read(task(pretrain.SpanCorruption, folder), vocabulary)


def test_span_corruption(folder, vocabulary, rows):
  first = vocabulary.vocab_size - 1
  pieces = [restored(i[:-1], t[:-1], first) for i, t in rows]
  assert all(row[-1] == vocabulary.eos_id for pair in rows for row in pair)
  assert all(8 <= len(piece) <= 48 for piece in pieces)
  lines = "".join((folder / name).read_text() for name in ("a.txt", "b.txt"))
  ids = [vocabulary.encode(line) for line in lines.splitlines()]
  # All text is there, but for ends of lines shorter than 8 pieces.
  assert sum(map(len, pieces)) > 0.9 * sum(map(len, ids))
  joined = [" ".join(map(str, line)) for line in ids]
  assert all(any(" ".join(map(str, p)) in line for line in joined) for p in pieces)
  assert rows != read(task(pretrain.SpanCorruption, folder), vocabulary, seed=1)


def test_shuffled_epochs(folder, vocabulary, rows):
  source = task(pretrain.SpanCorruption, folder)
  twice = read(source, vocabulary, shuffle=True, epochs=2)
  assert len(twice) > 1.5 * len(rows)
  assert twice == read(source, vocabulary, shuffle=True, epochs=2)
  assert twice[: len(rows)] != rows


def test_prefix_language_model(folder, vocabulary):
  rows = read(task(pretrain.PrefixLanguageModel, folder, answer=9), vocabulary)
  text = " ".join(
    " ".join(map(str, vocabulary.encode(line)))
    for name in ("a.txt", "b.txt")
    for line in (folder / name).read_text().splitlines()
  )
  for inputs, targets in rows:
    assert 1 <= len(targets) - 1 <= 9 and len(inputs) > 1
    assert inputs[-1] == targets[-1] == vocabulary.eos_id
    # The targets go on where the inputs end.
    assert " ".join(map(str, inputs[:-1] + targets[:-1])) in text
  assert len({len(targets) for _, targets in rows}) > 3


def test_prompted_texts(folder, vocabulary):
  fields = {"train": ["p.tsv"], "longest": 20, "answer": 5}
  rows = read(task(pretrain.PromptedTexts, folder, **fields), vocabulary)
  assert len(rows) == 6, "the header is no example"
  for number, (inputs, targets) in enumerate(rows):
    assert len(inputs) == 21 and len(targets) == 6
    assert vocabulary.decode(inputs[:3]).startswith("is it")
    assert vocabulary.decode(targets[:5]).startswith(WORDS[number])


def test_blend(folder, vocabulary):
  tasks = [
    task(pretrain.SpanCorruption, folder, validation=["v.txt.gz"]),
    task(pretrain.PromptedTexts, folder, train=["p.tsv"], longest=20),
  ]
  blend = pretrain.Blend(name="b", tasks=tasks, rates=[3.0, 1.0])
  assert blend.splits == ("train", "validation")
  data = blend.dataset(vocabulary, "train", shuffle=True, epochs=None).take(200)
  found = [row["inputs"].tolist() for row in data.as_numpy_iterator()]
  corrupted = sum(vocabulary.vocab_size - 1 in row for row in found) / len(found)
  assert corrupted == pytest.approx(0.75, abs=0.1)
  held_out = read(blend, vocabulary, "validation")
  assert held_out and all(vocabulary.vocab_size - 1 in row for row, _ in held_out)
  with pytest.raises(ValueError, match="no split 'test'"):
    blend.dataset(vocabulary, "test")
  for rates in ([1.0], [1.0, 0.0], [float("nan"), 1.0], [1.0, float("inf")]):
    with pytest.raises(ValueError, match="one positive rate for each"):
      pretrain.Blend(name="b", tasks=tasks, rates=rates)


def test_wrong_files_are_refused(folder, vocabulary):
  missing = task(pretrain.SpanCorruption, folder, train=["a.txt", "c.txt"])
  with pytest.raises(ValueError, match="missing: .*c.txt.*PRETRAIN_DIR"):
    read(missing, vocabulary)
  mixed = task(pretrain.SpanCorruption, folder, train=["a.txt", "v.txt.gz"])
  with pytest.raises(ValueError, match="either .gz or plain"):
    read(mixed, vocabulary)
