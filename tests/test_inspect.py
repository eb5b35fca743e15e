"""The page of a run: its numbers, its words, and that texts stay texts."""

import html.parser
import json
import math

import numpy as np
import pytest
from sklearn import decomposition, metrics

import prompt_tuning as pt
from prompt_tuning.inspect import __main__ as verb
from prompt_tuning.inspect import drawings, maps, numbers, page, report
from prompt_tuning.inspect import run as runs

EVIL = '<script>alert("x")</script> & $\\frac$'
LABELS = ["bad", "good"]
PAIRS = [("a good film", "good"), ("a bad film", "bad")] * 3


def record(target, prediction, **scores):
  return {"input": EVIL, "target": target, "prediction": prediction, "scores": scores}


@pytest.fixture(scope="module")
def records():
  draw = np.random.default_rng(0)
  found = []
  for _ in range(60):
    scores = dict(zip(LABELS, map(float, draw.normal(size=2)), strict=True))
    found.append(
      record(str(draw.choice(LABELS)), max(scores, key=scores.get), **scores)
    )
  return found


def sides(records):
  return [r["target"] for r in records], [r["prediction"] for r in records]


# ---- numbers, against scikit-learn's


def test_confusion_and_scores_of_each_class(records):
  found = numbers.confusion(records, LABELS)
  expected = metrics.confusion_matrix(*sides(records), labels=LABELS)
  np.testing.assert_array_equal(found.counts, expected)
  columns = metrics.precision_recall_fscore_support(*sides(records), labels=LABELS)
  for k, row in enumerate(numbers.by_class(found)):
    for name, column in zip(("precision", "recall", "F1"), columns, strict=False):
      assert row[name] == pytest.approx(100 * column[k], abs=0.05)
    assert row["there"] == columns[3][k]


def test_classes_past_the_commonest_stand_together():
  many = [record(f"l{i}", f"l{i + 1}") for i in range(40)]
  found = numbers.confusion([*many, *many[:3]], [f"l{i}" for i in range(41)])
  assert len(found.names) == numbers.MOST_CLASSES + 1
  assert found.names[-1] == numbers.OTHER and found.counts.sum() == 43
  unknown = numbers.confusion([record("bad", "dull")], LABELS)
  assert unknown.names == [*LABELS, numbers.OTHER] and unknown.counts[0, 2] == 1


def test_calibration_is_that_of_its_definition(records):
  found = numbers.calibration(records)
  error = 0.0
  sure = [max(numbers.probabilities(r).values()) for r in records]
  right = [r["target"] == r["prediction"] for r in records]
  for low in np.arange(0, 1, 0.1):
    inside = [i for i, p in enumerate(sure) if low <= p < low + 0.1]
    if inside:
      gap = np.mean([right[i] for i in inside]) - np.mean([sure[i] for i in inside])
      error += len(inside) * abs(gap) / len(sure)
  assert found.error == pytest.approx(error) and found.counts.sum() == 60
  assert numbers.calibration([{**records[0], "scores": {}}]) is None


def test_probabilities():
  assert numbers.probabilities(record("a", "a", a=-1.0, b=-1.0)) == {"a": 0.5, "b": 0.5}
  assert numbers.probabilities(record("a", "a", a=-1e4, b=0.0))["b"] == 1
  assert numbers.probabilities(record("a", "a", a=math.nan)) is None
  assert numbers.probabilities({"scores": None}) is None


def test_worst_and_surest(records):
  worst, surest = numbers.examples(records, 5)
  assert len(worst) == len(surest) == 5
  least = min(numbers.probabilities(r)[r["target"]] for r in records)
  assert worst[0]["p(target)"] == least
  written = [{"input": "a", "target": "b", "prediction": p} for p in "abc"]
  worst, surest = numbers.examples(written, 5)
  assert [row["prediction"] for row in worst] == ["a", "c"] and surest == []


def test_the_map_is_that_of_scikit_learn():
  values = np.random.default_rng(1).normal(size=(30, 7)) * np.arange(1, 8)[None]
  points, shares = maps.components(values.astype(np.float32))
  other = decomposition.PCA(2)
  expected = other.fit_transform(values)
  np.testing.assert_allclose(np.abs(points), np.abs(expected), rtol=1e-3, atol=1e-3)
  np.testing.assert_allclose(shares, other.explained_variance_ratio_, rtol=1e-4)


def test_between_over_within():
  values = np.array([[0.0], [2.0], [10.0], [12.0]])
  # Means 1 and 11, of all 6: between 4 * 25, within 4 * 1.
  assert maps.between_within(values, ["a", "a", "b", "b"]) == pytest.approx(25)
  assert maps.between_within(values, ["a"] * 4) is None
  assert maps.components(np.ones((3, 1)))[0].shape == (3, 2)


# ---- the page


class Reader(html.parser.HTMLParser):
  """Which elements a page has, and whether each is closed."""

  VOID = ("meta", "path", "use", "rect", "br")

  def __init__(self, text):
    super().__init__()
    self.names, self.open, self.links, self.data = [], [], [], []
    self.feed(text)
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.names.append(tag)
    self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href")]
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.names.append(tag)
    self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href")]

  def handle_endtag(self, tag):
    if tag not in self.VOID:
      assert self.open.pop() == tag

  def handle_data(self, data):
    self.data.append(data)


def predicted(folder, records, split="test"):
  (folder / "eval").mkdir(exist_ok=True)
  lines = "".join(json.dumps(r) + "\n" for r in records)
  (folder / "eval" / f"predictions-{split}.jsonl").write_text(lines)


@pytest.fixture(scope="module")
def model(tiny_folder):
  return pt.load_model(tiny_folder)


def folder_of(model, folder, method):
  made = pt.tune(
    *(model, PAIRS, method, PAIRS, 2),
    prompt_length=3,
    batch_size=2,
    eval_period=1,
  )
  made.save(folder / "prompt")
  (folder / "config.gin").write_text("MODEL_DIR = 'x'\n")
  lines = "".join(json.dumps(row) + "\n" for row in made.history)
  (folder / "metrics.jsonl").write_text(lines)
  return folder


def test_a_page_of_a_fixed_prompt(model, tmp_path, records):
  folder = folder_of(model, tmp_path, "prompt_tuning")
  predicted(folder, [{**r, "target": r["target"]} for r in records])
  verb.main([str(folder), "--examples=3"])
  text = (folder / "report.html").read_text()
  found = Reader(text)
  for title in ("Summary", "Learning curves", "Answers to test", "Worst answers"):
    assert f"<h2>{title}</h2>" in text
  assert "<h2>Positions</h2>" in text and "<h2>Prompts of texts</h2>" not in text
  assert found.names.count("svg") == 4
  # Nothing is fetched, nothing runs, and a text is a text.
  assert not {"script", "img", "link", "iframe", "image"} & set(found.names)
  assert all(link.startswith("#") for link in found.links)
  assert EVIL in found.data
  again = report.text(runs.read(str(folder)), 3)
  assert again == text
  ids = [part.split('"')[0] for part in text.split(' id="')[1:]]
  assert len(set(ids)) == len(ids)


def test_a_page_of_a_prompt_that_reads(model, tmp_path, capsys):
  folder = folder_of(model, tmp_path, "s_idpg_dnn_embeddings")
  words = "a an the film play book".split()
  kept = [
    {**record(t, "good", bad=-2.0, good=-1.0), "input": f"{t} {word}"}
    for word in words
    for t in LABELS
  ]
  predicted(folder, kept)
  verb.main([str(folder), "--output", str(tmp_path / "other.html")])
  text = (tmp_path / "other.html").read_text()
  assert "<h2>Prompts of texts</h2>" in text and "<h2>Positions</h2>" not in text
  assert "the prompt of one of 12 texts" in text and "times as much as within" in text
  assert f"report: {tmp_path}/other.html" in capsys.readouterr().out


def test_a_page_without_predictions_or_backbone(model, tmp_path):
  folder = folder_of(model, tmp_path, "prompt_tuning")
  card = json.loads((folder / "prompt" / "card.json").read_text())
  card["backbone"]["name"] = "gone"
  (folder / "prompt" / "card.json").write_text(json.dumps(card))
  text = report.text(runs.read(str(folder)))
  assert "No predictions yet: python -m prompt_tuning.eval" in text
  assert "What needs the backbone: The prompt was trained on" in text


@pytest.mark.parametrize(
  ("argv", "says"),
  [
    (["nil"], "'nil' is no folder"),
    (
      ["{run}", "--split=dev"],
      "no predictions of the split 'dev' (there are ['test'])",
    ),
    (["{run}", "--examples=0"], "`--examples` is 0"),
    (["{run}", "--output={run}/metrics.jsonl"], "metrics.jsonl"),
    (["{bad}"], "line 1 is no prediction of eval"),
  ],
)
def test_what_is_refused(argv, says, model, tmp_path_factory, capsys, records):
  folder = tmp_path_factory.mktemp("run")
  pt.tune(model, PAIRS, steps=0, prompt_length=3).save(folder / "prompt")
  (folder / "metrics.jsonl").write_text("{}\n")
  predicted(folder, records[:3])
  bad = tmp_path_factory.mktemp("bad")
  pt.tune(model, PAIRS, steps=0, prompt_length=3).save(bad / "prompt")
  predicted(bad, [{"input": 1}])
  with pytest.raises(SystemExit) as stop:
    verb.main([word.format(run=folder, bad=bad) for word in argv])
  (line,) = capsys.readouterr().err.splitlines()
  assert stop.value.code == 2 and says in line


def test_labels_start_no_formulas():
  names = ["$x$", "<b>", "a" * 40]
  found = numbers.Confusion(names, np.eye(3, dtype=np.int64))
  text = drawings.svg(drawings.matrix(found), "m")
  assert "$x$" in text and "&lt;b&gt;" in text and "a" * 19 not in text
  points = maps.Map(np.eye(3, 2), (0.5, 0.5), names, None)
  assert "$x$" in drawings.svg(drawings.points(points), "p")


def test_a_section_of_nothing_is_not_there():
  assert page.section("Title", "", "") == "" and page.beside("") == ""
  assert "<h2>a &amp; b</h2>" in page.section("a & b", page.paragraph("x"))
