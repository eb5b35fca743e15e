"""Files: templates, labels, filters, draws, and errors that name file and line."""

import gzip

import pytest

from prompt_tuning.data import files

TSV = 'text\tlabel\na film\t0\nA "quoted" one\t1\n'


@pytest.fixture
def write(tmp_path):
  def save(content, name="train.tsv"):
    data = content if isinstance(content, bytes) else content.encode("utf-8")
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return str(path)

  return save


def read(path, split="train", **fields):
  return files.Files(**{split: path, **fields}).examples(split)


def refused(match, path, **fields):
  with pytest.raises(ValueError, match=match):
    read(path, **fields)


@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz"])
def test_tsv_is_unquoted(write, name):
  assert read(write(TSV, name)) == [
    {"inputs": "a film", "targets": "0"},
    {"inputs": 'A "quoted" one', "targets": "1"},
  ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz"])
def test_jsonl_scalars_become_text(write, name):
  rows = [
    '{"text": "x", "label": true, "n": 1.50, "m": null, "deep": [1]}',
    "",
    '{"text": "y\\u2028z", "label": false, "n": 2, "m": "", "deep": {}}',
  ]
  template = {"inputs": "{text}|{n}|{m}"}
  assert read(write("\r\n".join(rows) + "\n", name), **template) == [
    {"inputs": "x|1.50|", "targets": "True"},
    {"inputs": "y\u2028z|2|", "targets": "False"},
  ]


def test_lines_end_at_line_feeds_alone(write):
  path = write("\ufefftext\tlabel\r\na\x0bb\u0085c\td\r\n\r\n")
  assert read(path) == [{"inputs": "a\x0bb\u0085c", "targets": "d"}]


def test_templates(write):
  path = write("a b\tlabel\tc.d\nx\ty\tz\n")
  fields = {"inputs": "{{{a b}}} <prompt> {c.d}", "targets": "is {label}"}
  assert read(path, **fields) == [{"inputs": "{x} <prompt> z", "targets": "is y"}]


@pytest.mark.parametrize("template", ["{", "a } b", "{}", "{a", "{a{b}"])
def test_stray_braces_are_refused(template):
  with pytest.raises(ValueError, match="Files.inputs.*position"):
    files.Files(train="a.tsv", inputs=template)
  with pytest.raises(ValueError, match="Files.targets.*position"):
    files.Files(train="a.tsv", targets=template)


def test_a_mark_stands_once():
  with pytest.raises(ValueError, match="more than once"):
    files.Files(train="a.tsv", inputs="<prompt> {a} <prompt>")


def test_a_mark_in_a_text_is_refused(write):
  refused("train.tsv line 2: a text holds <prompt>", write("text\tlabel\n<prompt>\ta"))


def test_label_map_gives_words_and_labels(write):
  task = files.Files(train=write(TSV), label_map={0: "bad", "1": "good"})
  assert [e["targets"] for e in task.examples("train")] == ["bad", "good"]
  assert task.labels == ("bad", "good")
  free = files.Files(train=write(TSV), label_map={0: "bad"}, targets="so {label}")
  assert free.labels is None


def test_the_map_may_apply_to_another_column(write):
  path = write("text\tgrade\nx\tA\n")
  fields = {"label_column": "grade", "targets": "{grade}", "label_map": {"A": "fine"}}
  assert read(path, **fields) == [{"inputs": "x", "targets": "fine"}]


def test_without_targets_a_file_can_be_predicted_on(write):
  path = write("text\nx\n", "t.tsv")
  assert read(path, "test", targets=None) == [{"inputs": "x", "targets": ""}]


def test_rows_keep_what_they_name(write):
  content = "seed\tsplit\ttext\tlabel\n" + "".join(
    f"{seed}\t{split}\t{split} {seed}\tx\n" for seed in (13, 21) for split in ("a", "b")
  )
  path = write(content)
  rows = {"train": {"seed": 21, "split": "a"}, "validation": {"split": "b"}}
  task = files.Files(train=path, validation=path, test=path, rows=rows)
  kept = {split: [e["inputs"] for e in task.examples(split)] for split in task.splits}
  assert kept["train"] == ["a 21"]
  assert kept["validation"] == ["b 13", "b 21"]
  assert len(kept["test"]) == 4
  assert len(read(path, rows={"seed": "13"})) == 2
  refused(r"'seed' equal to '7'.*There are \['13', '21'\]", path, rows={"seed": 7})
  refused("Files.rows.*'sed'.*There are", path, rows={"sed": 7})
  refused("Files.rows.*must be", path, rows={"train": {"seed": 1}, "seed": 1})
  refused("Files.rows.*must be", path, rows={"trian": {"seed": 1}})


def test_shots_are_drawn_from_train_alone(write):
  path = write(
    "text\tlabel\n" + "".join(f"row {i}\t{'ab'[i % 2]}\n" for i in range(40))
  )
  fields = {"train": path, "validation": path, "labels": ("a", "b")}

  def drawn(shots, seed):
    task = files.Files(**fields, shots=shots, shot_seed=seed)
    return [(e["inputs"], e["targets"]) for e in task.examples("train")]

  four = drawn(4, seed=1)
  assert sorted(target for _, target in four) == ["a"] * 4 + ["b"] * 4
  assert drawn(4, seed=1) == four != drawn(4, seed=2)
  assert set(drawn(2, seed=1)) < set(four)
  task = files.Files(**fields, shots=4)
  assert len(task.examples("validation")) == 40
  with pytest.raises(ValueError, match="asks for 21 examples of the label 'a'.*has 20"):
    drawn(21, seed=1)
  with pytest.raises(ValueError, match="Files.shots.*at least 1"):
    drawn(0, seed=1)


def test_paths_start_at_the_directory(write, tmp_path, monkeypatch):
  path = write(TSV)
  assert read("train.tsv", directory=str(tmp_path)) == read(path)
  assert read(path, directory="/nowhere") == read(path)
  monkeypatch.chdir(tmp_path)
  assert read("train.tsv") == read(path)
  assert files._join("/a", "gs://b/c.tsv") == "gs://b/c.tsv"
  assert files._join("gs://a/", "c.tsv") == "gs://a/c.tsv"


def test_files_that_cannot_be_read(write, tmp_path):
  refused("Files.train.*'/no/such.tsv', which does not exist", "/no/such.tsv")
  (tmp_path / "d.tsv").mkdir()
  refused("cannot be read", str(tmp_path / "d.tsv"))
  refused("must end in one of .tsv", write("a b\n", "a.txt"))
  gz = tmp_path / "plain.tsv.gz"
  gz.write_bytes(TSV.encode())
  refused("plain.tsv.gz', which is no whole gzip file", str(gz))
  gz.write_bytes(gzip.compress(TSV.encode())[:-9])
  refused("no whole gzip file", str(gz))


@pytest.mark.parametrize("content", ["", "text\tlabel\n", "\n"])
def test_files_without_rows(write, content):
  refused("train.tsv", write(content))


def test_tsv_that_does_not_fit(write):
  refused(r"line 3 has 1 fields.*2 columns: \['text'", write("text\tlabel\na\tb\nc\n"))
  refused("line 3 has 1 fields", write("text\tlabel\na\tb\n\nc\td\n"))
  refused("line 2 has 3 fields", write("text\tlabel\na\tb\tc\n"))
  refused("line 1 names the column 'text' twice", write("text\ttext\na\tb\n"))
  refused("line 1 must name the columns", write("text\t\na\tb\n"))
  refused(
    "line 3 is not UTF-8: byte 0xe9 at its position 2",
    write(b"text\tlabel\na\tb\n" + "dé\tc\n".encode("latin-1")),
  )


def test_columns_that_are_not_there(write):
  path = write(TSV)
  columns = r"\['text', 'label'\]"
  refused(f"Files.inputs.*column 'body'.*{columns}", path, inputs="{body}")
  refused("Files.targets.*column 'answer'", path, targets="{answer}")
  fields = {"label_column": "grade", "label_map": {"0": "x"}}
  refused("Files.label_column.*'grade'", path, **fields)
  rows = '{"text": "a", "label": "b"}\n{"text": "c"}\n'
  refused("line 2: `Files.targets` asks for the column 'label'", write(rows, "a.jsonl"))


def test_jsonl_that_does_not_fit(write):
  refused(r"a.jsonl line 1 holds a JSON list", write("[1]\n", "a.jsonl"))
  refused(r"a.jsonl line 2 is not JSON", write('{"a": 1}\n{"a": \n', "a.jsonl"))
  refused("line 1 has the key 'a' twice", write('{"a": 1, "a": 2}', "a.jsonl"))
  refused(
    r"line 1: the column 'text' .* holds \['b'\]",
    write('{"text": ["b"], "label": "c"}', "a.jsonl"),
  )


def test_labels_that_do_not_fit(write):
  path = write(TSV)
  match = "line 3: the label '1' is not in `Files.label_map`"
  refused(match, path, label_map={0: "x"})
  refused(r"line 3: the target '1' is not among", path, labels=("0", "2"))
  refused("line 2: the target is empty", write("text\tlabel\nx\t \n"))


def test_an_empty_field_may_be_an_input(write):
  assert read(write("text\tlabel\n\tb\n"))[0]["inputs"] == ""


def test_a_task_needs_a_file():
  with pytest.raises(ValueError, match="names no file"):
    files.Files()
