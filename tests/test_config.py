"""gin files and flags: what they compose to, and how each mistake is named."""

import logging

import pytest

from prompt_tuning.engine import config

BASE = """include "gin/train.gin"
MODEL_DIR = "runs/x"
TASK = None
METHOD = "prompt_tuning"
"""
# A file that names configurables must import them.
IMPORTS = """from __gin__ import dynamic_registration
from prompt_tuning import train
from prompt_tuning.engine import optimizer
"""


@pytest.fixture
def write(tmp_path):
  def save(text, name="recipe.gin"):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)

  return save


@pytest.fixture
def refused(write, caplog):
  """The one line that a recipe, with flags, is refused with."""

  def error_of(text, *flags, file="recipe.gin"):
    with pytest.raises(config.ConfigError) as caught:
      config.parse_flags([f"--gin_file={write(text, file)}", *flags], "verb")
    message = str(caught.value)
    assert "\n" not in message
    assert not caplog.records, "gin's own log is not the user's"
    return message

  return error_of


def parsed(*argv):
  config.parse_flags(list(argv), "verb")


# ---- what composes


def test_later_files_and_flags_win(write):
  first = write(BASE + "BATCH_SIZE = 4\nSEED = 4\nLOG_PERIOD = 4\n")
  second = write("BATCH_SIZE = 5\nSEED = 5\n", "second.gin")
  parsed("--gin_file", first, f"--gin_file={second}", "--gin.SEED=6")
  wanted = config.macros("LOG_PERIOD BATCH_SIZE SEED")
  assert wanted == {"LOG_PERIOD": 4, "BATCH_SIZE": 5, "SEED": 6}


def test_search_paths_come_before_the_library(write, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  write(BASE + 'include "gin/shared.gin"\n', "a/recipe.gin")
  write("SEED = 7\n", "b/gin/shared.gin")
  write("BATCH_SIZE = 8\n", "c/gin/methods/prompt_tuning.gin")
  write('include "gin/methods/prompt_tuning.gin"\n', "c/two.gin")
  paths = f"--gin_search_paths={tmp_path / 'b'},{tmp_path / 'c'}"
  parsed(paths, f"--gin_file={tmp_path / 'a/recipe.gin'}", "--gin_file=two.gin")
  assert config.macros("SEED BATCH_SIZE") == {"SEED": 7, "BATCH_SIZE": 8}
  assert "PROMPT_LENGTH" not in config.names()


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
  """A current directory with files of the library's names, which are no gin."""
  for name in ("gin/train.gin", "gin/methods/prompt_tuning.gin"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("this must not be read")
  (tmp_path / "gin/mine.gin").write_text(BASE + "SEED = 8\n")
  monkeypatch.chdir(tmp_path)
  return tmp_path


def test_names_of_the_library_are_read_from_the_library(elsewhere, caplog):
  parsed(
    "--gin_file=gin/mine.gin", "--gin_file=gin/inits/text.gin", "--gin.PROMPT_TEXT='a'"
  )
  assert config.macros("SEED BATCH_SIZE") == {"SEED": 8, "BATCH_SIZE": 32}
  (record,) = caplog.records
  assert "library's gin/train.gin was read" in record.getMessage()
  assert "--gin_search_paths=." in record.getMessage()
  assert "\n" not in record.getMessage()


def test_a_file_of_the_current_directory_may_be_meant(elsewhere):
  for flags in (
    ["--gin_search_paths=.", "--gin_file=gin/train.gin"],
    ["--gin_file=./gin/train.gin"],
    [f"--gin_file={elsewhere}/gin/train.gin"],
  ):
    with pytest.raises(config.ConfigError, match=r"train.gin, line 1"):
      parsed(*flags)


def test_tuning_from_python_reads_no_file_of_the_current_directory(elsewhere, caplog):
  import prompt_tuning as pt

  config.parse(["gin/train.gin", "gin/methods/prompt_tuning.gin"], check=False)
  assert config.macro("METHOD") == "prompt_tuning" and not caplog.records
  with pytest.raises(ValueError, match="(?i)nonsense"):
    pt.tune(pt.load_model("mini"), [("a", "b")], nonsense=1)


def test_in_the_checkout_itself_nothing_is_hidden(root, monkeypatch, caplog):
  monkeypatch.chdir(root)
  parsed("--gin_file=configs/demo/unprompted.gin", "--gin.MODEL_DIR='x'")
  assert not caplog.records


@pytest.mark.parametrize("path", ["nowhere", "", "recipe.gin"])
def test_a_search_path_that_is_no_folder(write, tmp_path, monkeypatch, path):
  monkeypatch.chdir(tmp_path)
  recipe = write(BASE)
  with pytest.raises(config.ConfigError, match="which is no folder") as caught:
    parsed(f"--gin_search_paths={tmp_path},{path}", f"--gin_file={recipe}")
  assert repr(path) in str(caught.value)


def test_a_file_without_an_end(write, refused, tmp_path):
  assert "includes itself" in refused(f'include "{tmp_path}/recipe.gin"\n')
  assert "leaves a bracket open" in refused("SEED = (1,\n")


def test_flags_may_bind_arguments_and_references(write):
  recipe = write(BASE)
  parsed(
    f"--gin_file={recipe}",
    "--gin_bindings=CLIP_NORM = 0.5",
    "--gin.optimizer.Adafactor.decay_rate=0.7",
    "--gin.SCHEDULE=@optimizer.warmup_linear()",
    "--gin.optimizer.warmup_linear.learning_rate=%LEARNING_RATE",
    "--gin.optimizer.warmup_linear.warmup_steps=2",
    "--gin.optimizer.warmup_linear.steps=10",
    "--gin.LEARNING_RATE=0.5",
  )
  optimizer = config.macro("OPTIMIZER")
  assert optimizer.clip_norm == 0.5
  assert optimizer.rule.decay_rate == 0.7
  assert float(optimizer.schedule(2)) == 0.5


def test_parse_forgets_what_was_parsed_before(write):
  parsed(f"--gin_file={write(BASE + 'SEED = 9')}")
  parsed(f"--gin_file={write(BASE)}")
  assert config.macro("SEED") == 0


def test_values_of_macros_are_called(write):
  lengths = '{"inputs": %BATCH_SIZE, "targets": 8}'
  recipe = write(BASE + f"TASK_FEATURE_LENGTHS = {lengths}")
  parsed(f"--gin_file={recipe}")
  objective, lengths = config.macros("OBJECTIVE TASK_FEATURE_LENGTHS").values()
  assert objective.z_loss == 0.0
  assert lengths == {"inputs": 32, "targets": 8}


def test_help_needs_no_configuration(capsys):
  with pytest.raises(SystemExit) as stop:
    parsed("--help")
  assert stop.value.code == 0
  assert "--gin_file" in capsys.readouterr().out


def test_every_part_of_the_library_parses(root):
  for path in [*(root / "gin").rglob("*.gin"), *(root / "configs").rglob("*.gin")]:
    # Those that import T5X are read without it in test_t5x_parts.py; what the recipe
    # of pre-training imports is slow.
    text = path.read_text()
    if "from t5x import" not in text and "data import pretrain" not in text:
      config.parse([str(path)], check=False)


# ---- flags


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    ([], ["No configuration", "--gin_file"]),
    (["--gin_file"], ["`--gin_file` needs a value"]),
    (["--batch=3"], ["Unknown flag '--batch=3'", "did you mean --gin_file=FILE"]),
    (["--gin.SEED", "3"], ["Unknown flag '--gin.SEED'", "--gin.NAME=value"]),
  ],
)
def test_wrong_flags(flags, words):
  with pytest.raises(config.ConfigError) as caught:
    parsed(*flags)
  assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("value", ["runs/x", "'runs/x", "", "a b"])
def test_text_without_quotes(refused, value):
  message = refused(BASE, f"--gin.MODEL_DIR={value}")
  assert f"--gin.MODEL_DIR={value}" in message
  assert "--gin.MODEL_DIR=\"'text'\"" in message


# ---- names


def test_all_unset_macros_are_listed_at_once(refused):
  message = refused('include "gin/train.gin"\ninclude "gin/methods/ipt_mlp.gin"\n')
  assert "must be set: MODEL_DIR, PROMPT_LENGTH, TASK." in message
  assert "--gin.MODEL_DIR=... --gin.PROMPT_LENGTH=... --gin.TASK=..." in message


def test_a_macro_that_is_read_but_never_set_is_unset(refused):
  assert "must be set: NOWHERE" in refused(BASE + "SEED = %NOWHERE\n")


@pytest.mark.parametrize(
  ("flag", "wrong", "nearest"),
  [
    ("LERNING_RATE=1", "'LERNING_RATE'", "'LEARNING_RATE'"),
    ("train.train.modle_dir='x'", "'modle_dir'", "'model_dir'"),
    ("train.trian.model_dir='x'", "'train.trian'", "train.train'"),
    ("OPTIMIZER=@optimizer.Optimiser()", "Optimiser'", "optimizer.Optimizer'"),
    ("optimiser.Optimizer.rule=1", "'optimiser.Optimizer'", "optimizer.Optimizer'"),
  ],
)
def test_unknown_names_in_flags(refused, flag, wrong, nearest):
  before, _, suggestion = refused(BASE, f"--gin.{flag}").partition("Did you mean")
  assert wrong in before
  assert nearest in suggestion


@pytest.mark.parametrize(
  ("text", "wrong", "nearest"),
  [
    ("LERNING_RATE = 3", "LERNING_RATE", "LEARNING_RATE"),
    ("PROMPT_PLCE = 'end'", "PROMPT_PLCE", "PROMPT_PLACE"),
    (IMPORTS + "train.train.modle_dir = 1", "modle_dir", "model_dir"),
    (IMPORTS + "RULE = @optimizer.Adafacto()", "Adafacto'", "optimizer.Adafactor"),
    (IMPORTS + "optimizer.constan.learning_rate = 1", "constan'", "optimizer.constant"),
    (
      "from __gin__ import dynamic_registration\n"
      "from prompt_tuning.engine import optimiser",
      "prompt_tuning.engine.optimiser",
      "prompt_tuning.engine.optimizer",
    ),
    (
      "include 'gin/methods/promt_tuning.gin'",
      "promt_tuning.gin",
      "/prompt_tuning.gin",
    ),
  ],
)
def test_unknown_names_in_files(refused, text, wrong, nearest):
  message = refused(BASE + text)
  before, _, suggestion = message.partition("Did you mean")
  assert wrong in before
  assert nearest in suggestion
  if "import" in text:
    assert "recipe.gin line" in before


def test_other_mistakes_in_files(refused):
  assert "'optimizer' was not provided by an import" in refused(
    BASE + "from __gin__ import dynamic_registration\nRULE = @optimizer.Adafactor()"
  )
  message = refused(BASE + "SEED = three")
  assert "'three'" in message and "recipe.gin, line 5" in message
  assert "quotes" in message
  assert "not UTF-8" in refused(b"SEED = '\xff'")
  assert "no configuration file" in refused(BASE, "--gin_file=nowhere/at/all.gin")


def test_macros_of_the_library_may_stay_unread(write, caplog):
  # A task file serves training and evaluation, which do not read the same.
  text = 'include "gin/eval.gin"\ninclude "gin/tasks/sst2.gin"\nDATA_DIR = "d"\n'
  recipe = write(text + 'EVAL_DIR = "e"\nBEST_METRIC = "accuracy"\n')
  parsed(f"--gin_file={recipe}")
  assert not caplog.records
  with caplog.at_level(logging.WARNING):
    parsed(f"--gin_file={recipe}", f"--gin_file={write('ZZ = 1', 'z.gin')}")
  assert "'ZZ' is set, but nothing reads it" in caplog.text


def test_nearest():
  assert "Did you mean 'b.length'?" in config.nearest("x", "lenght", {"b.length", "q"})
  assert "Did you" not in config.nearest("x", "zzz", {"alpha"})


# ---- verbs


def test_a_mistake_ends_a_verb_in_one_line(write, capsys):
  from prompt_tuning import infer, train

  with pytest.raises(SystemExit) as stop:
    config.run_verb(train.train, [f"--gin_file={write('SEED = 1')}"])
  assert stop.value.code == 2
  with pytest.raises(SystemExit):
    config.run_verb(infer.infer, [f"--gin_file={write(BASE)}"])
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 2
  assert all(line.startswith("error: ") for line in lines)
  assert "gin/train.gin" in lines[0] and "gin/infer.gin" in lines[1]


# ---- comparing configurations


def test_differing_lines(write):
  long = [f"a rather long text, number {i}" for i in range(9)]
  parsed(f"--gin_file={write(BASE + f'LABELS = {long!r}')}")
  old = config.text()
  assert config.differing_lines(old, old, ()) == []
  parsed(f"--gin_file={write(BASE + f'LABELS = {long!r}')}", "--gin.SEED=3")
  changed = config.text()
  assert config.differing_lines(old, changed, ()) == ["SEED: 0 there, 3 now"]
  assert config.differing_lines(old, changed, ("SEED",)) == []
  # The last item of a list that fills several lines.
  other = [*long[:-1], "other"]
  parsed(f"--gin_file={write(BASE + f'LABELS = {other!r}')}")
  (line,) = config.differing_lines(old, config.text(), ())
  assert line.startswith("LABELS: ") and "'other'" in line
  parsed(f"--gin_file={write(BASE)}", "--gin.optimizer.AdamW.b1=0.8")
  (_, extra) = config.differing_lines(old, config.text(), ())
  assert extra == "optimizer.AdamW.b1: unset there, 0.8 now"
