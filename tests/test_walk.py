"""The commands of README.md, each word wrong once: one line with a cure."""

import pathlib
import re
import shlex

import pytest

from prompt_tuning import eval as eval_verb
from prompt_tuning import export, infer, precompile, train
from prompt_tuning.engine import config

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
VERBS = {
  "train": train.train,
  "eval": eval_verb.evaluate_prompt,
  "infer": infer.infer,
}


def commands(name):
  """The arguments of README's commands for a verb, optional ones without brackets."""
  found = []
  for block in re.findall(r"^```[^\n]*\n(.*?)^```", README, re.DOTALL | re.MULTILINE):
    for line in block.replace("\\\n", " ").splitlines():
      if line.startswith(f"python -m prompt_tuning.{name} "):
        found.append(shlex.split(re.sub(r"[\[\]]", "", line))[3:])
  assert found, f"README.md shows no command of {name}"
  return found


class ReachedError(Exception):
  """What is only called when nothing was wrong."""


@pytest.fixture
def say(monkeypatch, capsys):
  """Runs a verb on arguments up to where work would start; its one line of error."""

  def reached(*args, **kwargs):
    raise ReachedError

  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(config, "call", reached)
  monkeypatch.setattr(export, "export", reached)
  monkeypatch.setattr(precompile, "job", reached)

  def run(name, argv):
    if name in VERBS:
      config.run_verb(VERBS[name], argv)
    else:
      {"export": export, "precompile": precompile}[name].main(argv)

  def error_of(name, argv):
    with pytest.raises(SystemExit) as stop:
      run(name, argv)
    assert stop.value.code in (1, 2)
    out = capsys.readouterr()
    (line,) = out.err.splitlines()
    assert line.startswith("error: ") and not out.out
    return line

  error_of.run = run
  return error_of


@pytest.mark.parametrize("name", [*VERBS, "precompile", "export"])
def test_the_commands_as_they_stand(name, say, monkeypatch):
  topology = (precompile.chips.CHIPS["cpu"], [])
  monkeypatch.setattr(precompile.chips, "topology", lambda name: topology)
  for argv in commands(name):
    with pytest.raises(ReachedError):
      say.run(name, argv)


# verb, a word of its command, the same word wrong, what the line says.
WRONG = [
  # Flags.
  (
    "train",
    "--gin_file=",
    "--gin_fil=",
    "did you mean --gin_file=configs/demo/prompt_",
  ),
  (
    "train",
    "--gin_file=",
    "-gin_file=",
    "did you mean --gin_file=configs/demo/prompt_",
  ),
  ("train", "--gin_file=", "--config=", "did you mean --gin_file=FILE?"),
  (
    "train",
    "--gin.PROMPT_LENGTH=5",
    "--gin.PROMPT_LENGTH",
    "--gin.PROMPT_LENGTH=VALUE",
  ),
  ("train", "--gin.PROMPT_LENGTH=5", "--prompt_length=5", "--gin.PROMPT_LENGTH=5?"),
  ("train", "--gin.PROMPT_LENGTH=5", "--gn.PROMPT_LENGTH=5", "--gin.PROMPT_LENGTH=5?"),
  ("train", "--gin.PROMPT_LENGTH=5", "--multi_process", "mean --multiprocess?"),
  ("train", "--gin.PROMPT_LENGTH=5", "--process_indx=0", "mean --process_index=0?"),
  ("train", "--gin.PROMPT_LENGTH=5", "--process_index=one", "must be a whole number"),
  (
    "train",
    "--gin.PROMPT_LENGTH=5",
    "--gin_bindings",
    "`--gin_bindings` needs a value",
  ),
  (
    "train",
    "--gin.PROMPT_LENGTH=5",
    "--gin_search_paths=nowhere",
    "which is no folder",
  ),
  (
    "train",
    "--gin_file=configs/demo/prompt_tuning.gin",
    "--gin_file=",
    "needs a value",
  ),
  ("precompile", "--topology=", "--topolgy=", "`--topology` is missing; give one such"),
  ("precompile", "--search", "--serch", "did you mean --search?"),
  ("precompile", "--json=FILE", "--jsn=FILE", "did you mean --json=FILE?"),
  ("precompile", "--json=FILE", "--json=", "`--json` needs a value: --json=VALUE."),
  ("export", "--prompt=", "--promt=", "did you mean --prompt?"),
  ("export", "--platforms=", "--platfrom=", "did you mean --platforms?"),
  ("export", "--output=artifact", "", "arguments are required: --output"),
  # Macros.
  ("train", "MODEL_DIR", "MODLE_DIR", "Did you mean 'MODEL_DIR'?"),
  ("train", "PROMPT_LENGTH", "PROMPT_LENGHT", "Did you mean 'PROMPT_LENGTH'?"),
  ("train", "PROMPT_LENGTH", "prompt_length", "Did you mean 'PROMPT_LENGTH'?"),
  ("train", "PROMPT_LENGTH", "train.train.prompt_length", "--gin.PROMPT_LENGTH=5."),
  ("eval", "PROMPT_DIR", "PROMT_DIR", "Did you mean 'PROMPT_DIR'?"),
  ("eval", "EVAL_DIR", "EVALDIR", "Did you mean 'EVAL_DIR'?"),
  ("eval", "SPLIT", "SPLITS", "Did you mean 'SPLIT'?"),
  ("infer", "INPUT_FILE", "INPUT_FILES", "Did you mean 'INPUT_FILE'?"),
  ("infer", "--gin.OUTPUT_FILE='answers.jsonl'", "--gin.FORCE=True", "OUTPUT_FILE=..."),
  # Files.
  (
    "train",
    "prompt_tuning.gin",
    "promt_tuning.gin",
    "mean 'configs/demo/prompt_tuning",
  ),
  ("train", "configs/demo", "config/demo", "mean 'configs/demo/prompt_tuning.gin'?"),
  ("train", "configs/demo/prompt_tuning.gin", "gin/eval.gin", "gin/train.gin does"),
  ("eval", "gin/eval.gin", "gin/evl.gin", "Did you mean 'gin/eval.gin'?"),
  ("eval", "--gin_file=gin/eval.gin", "--gin_file=gin/infer.gin", "gin/eval.gin does"),
  (
    "eval",
    "demo_sentiment.gin",
    "demo_sentimnet.gin",
    "mean 'gin/tasks/demo_sentiment",
  ),
  ("eval", "outputs/choice.gin", "output/choice.gin", "mean 'gin/outputs/choice.gin'?"),
  ("infer", "gin/infer.gin", "gin/infre.gin", "Did you mean 'gin/infer.gin'?"),
  ("precompile", "xxl_prompt_tuning", "xxl_promt_tuning", "xl_prompt_tuning.gin'?"),
  # Values.
  ("train", "'runs/sentiment'", "runs/sentiment", "--gin.MODEL_DIR=\"'text'\""),
  ("train", "'runs/sentiment'", "None", "`MODEL_DIR` is None; it must be a path"),
  ("train", "LENGTH=5", "LENGTH=five", "`PROMPT_LENGTH` is five; it must be a whole"),
  ("train", "LENGTH=5", "LENGTH='5'", "Give 5."),
  ("train", "LENGTH=5", "LENGTH=5.0", "Give 5."),
  ("train", "LENGTH=5", "LENGTH=0", "gin/methods/unprompted.gin"),
  ("train", "LENGTH=5", "LENGTH=%PROMPT_LENGHT", "must be set: PROMPT_LENGHT"),
  ("eval", "'test'", "test", "Text needs quotes inside quotes"),
  ("eval", "'test'", "1", "`SPLIT` is 1; it must be a text"),
  ("infer", "'inputs.txt'", "inputs.txt", "Text needs quotes inside quotes"),
  ("infer", "'answers.jsonl'", "None", "`OUTPUT_FILE` is None; it must be a path"),
  ("precompile", "v5e:8x8", "v5f:8x8", "must be one of ['cpu', 'v4'"),
  ("precompile", "v5e:8x8", "v5e", "such as v5e:8x8"),
  ("precompile", "--search", "--programs=train,evl", "there are ('train', "),
  ("export", "--to=stablehlo", "--to=stablhlo", "choose from"),
  ("export", "--steps=32", "--steps=many", "invalid int value: 'many'"),
]


@pytest.mark.parametrize(("name", "right", "wrong", "words"), WRONG)
def test_one_word_wrong(name, right, wrong, words, say):
  argv = next(argv for argv in commands(name) if any(right in word for word in argv))
  at = next(i for i, word in enumerate(argv) if right in word)
  changed = argv[at].replace(right, wrong)
  if right == "--gin_file=configs/demo/prompt_tuning.gin" or not changed:
    argv = [*argv[:at], *argv[at + 1 :], *([changed] if changed else [])]
  else:
    argv = [*argv[:at], changed, *argv[at + 1 :]]
  assert words in say(name, argv)
