"""Short forms of the verbs, spelt out as the flags that they stand for.

train --data FILE ...      a recipe beside the run, made as `pt.tune` would
eval RUN ...               the run's own config.gin and prompt
infer RUN FILE ...         the run's prompt
"""

import pathlib
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from prompt_tuning import as_gin, keywords, sources, tuning
from prompt_tuning.core import files
from prompt_tuning.engine import ended, explain, gin_state, model_dir
from prompt_tuning.engine.flags import Parser
from prompt_tuning.interop import load, places
from prompt_tuning.interop.vocabulary import beside, located, made
from prompt_tuning.terminal.usage import wrapped
from prompt_tuning.wishes import wished

RECIPE = "recipe.gin"
# Flags that pass through.
PASSED = ("--gin", "--coordinator", "--process", "--multiprocess")
# Macros that a short form sets itself.
OWN = ("--gin.MODEL_DIR=", "--gin.EVAL_DIR=", "--gin.PROMPT_DIR=", "--gin.OUTPUT_FILE=")
# Longer inputs are cut: attention holds the square.
LONGEST = 512
# Arguments in messages of Python -> flags.
FLAGS = {
  "inputs= and targets=": "--input and --label",
  "`train": "`--data",
  "`validation": "`--validation",
  "labels=": "--gin.LABELS=",
}


def spelt_out(verb: str, argv: Sequence[str]) -> list[str]:
  """The flags of a verb; those of a short form as what it stands for.

  Raises:
    SystemExit: with one line and the code 2 for what does not fit.
  """
  argv = list(argv)
  form: Callable[[Sequence[str]], list[str]] | None = None
  if {"-h", "--help"} & set(argv):
    return argv
  if verb == "train" and any(word.split("=")[0] == "--data" for word in argv):
    form = _train
  elif verb in ("eval", "infer") and argv and not argv[0].startswith("-"):
    form = {"eval": _eval, "infer": _infer}[verb]
  if form is None:
    return argv
  try:
    return form(argv)
  except (ValueError, OSError) as error:
    text = " ".join(str(error).split())
    for name, flag in FLAGS.items() if verb == "train" else ():
      text = text.replace(name, flag)
    print(f"error: {text}", file=sys.stderr)
    raise SystemExit(2) from error


def parser(verb: str) -> Parser:
  """Reads the short form of a verb; macros and gin files are left over."""
  found = Parser(prog=f"prompt-tuning {verb}", allow_abbrev=False)
  found.add_argument("--output")
  if verb in ("eval", "infer"):
    found.add_argument("run")
  if verb == "infer":
    found.add_argument("inputs")
  if verb == "eval":
    found.add_argument("--split")
    found.add_argument("--data")
  if verb == "train":
    for name in ("data", "validation", "test", "input", "label", "init", "vocabulary"):
      found.add_argument(f"--{name}")
    found.add_argument("--method", default="prompt_tuning")
    found.add_argument("--backbone", default="mini")
    for name in ("steps", "prompt_length", "batch_size", "eval_period"):
      found.add_argument(f"--{name}", type=int)
    for name in ("epochs", "learning_rate"):
      found.add_argument(f"--{name}", type=float)
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--write", action="store_true")
  return found


def read(verb: str, argv: Sequence[str]) -> tuple[Any, list[str]]:
  """What a short form says, and the flags that it leaves to the verb.

  Raises:
    ValueError: for flags that the verb does not know either.
  """
  given, rest = parser(verb).parse_known_args(argv)
  for word in rest:
    if word.startswith(OWN):
      raise ValueError(f"`{word}` is said by --output or the folder itself here.")
    if not word.startswith(PASSED):
      raise ValueError(
        f"Unknown flag {word!r} in a short form. prompt-tuning {verb} --help names "
        "those that there are; any macro is --gin.NAME=value."
      )
  return given, rest


def _train(argv: Sequence[str]) -> list[str]:
  given, rest = read("train", argv)
  text = recipe(given)
  stem = pathlib.Path(given.data).name.split(".")[0]
  folder = given.output or f"runs/{stem}-{given.method}"
  path = _kept(folder, text)
  flags = [f"--gin_file={path}", f"--gin.MODEL_DIR={folder!r}", *rest]
  ended.say(f"{text}\nThis recipe is {path}, and the command stands for:")
  return _told("train", flags)


def recipe(given: Any) -> str:
  """The recipe of the flags of train, with the defaults of `pt.tune`."""
  splits = {
    name: sources.read(name, path, given.input, given.label)
    for name, path in (("train", given.data), ("validation", given.validation))
    if path
  }
  numbers = ("prompt_length", "batch_size", "eval_period", "learning_rate")
  overrides = {name: getattr(given, name) for name in numbers}
  overrides = {name: value for name, value in overrides.items() if value is not None}
  judged = splits.get("validation")
  if given.write and judged is None:
    raise ValueError(
      "`--write` says how validation is answered, and there is none. Give --validation."
    )
  greedy = "greedy" if given.write else None
  with keywords.in_words():
    wish = wished(
      *(splits["train"], judged, None, None, greedy),
      method=given.method,
      init=given.init,
      steps=tuning.steps_of(
        given.steps, given.epochs, len(splits["train"].pairs), overrides
      ),
      seed=given.seed,
      optimizer=None,
      overrides=keywords.checked(overrides, judged is not None),
    )
    words = _words(given.backbone, given.vocabulary)
    longest = tuning.longest_of(wish.task, words)
    cut = longest["inputs"] > LONGEST
    longest["inputs"] = min(longest["inputs"], LONGEST)
    with gin_state.isolated():
      _, names, bindings = tuning.settings_of(wish, longest, given.backbone)
  if cut:
    bindings = {**bindings, "TRUNCATE": True}
  text = as_gin.text(wish, names, bindings, splits, given.backbone, given.vocabulary)
  return text + (f"TEST_FILE = {given.test!r}\n" if given.test else "")


def _words(backbone: str, vocabulary: str | None) -> Any:
  """The vocabulary of a backbone; no weights are read."""
  place = load.MINI if backbone == "mini" else places.find(backbone)
  opened = load.open_source(place)
  rows = opened.spec.vocabulary
  if vocabulary is not None:
    return made(located(vocabulary), rows)
  if opened.vocabulary is None:
    raise ValueError(
      f"{backbone!r} holds no spiece.model and no tokenizer.json; give the path of one "
      "by --vocabulary."
    )
  return beside(opened.vocabulary, rows)


def _kept(folder: str, text: str) -> Any:
  """Writes the recipe beside its run; refuses to replace that of another one."""
  path = files.at(folder) / RECIPE
  if path.is_file() and (files.at(folder) / "config.gin").is_file():
    before = path.read_text()
    free = tuple(name for name in model_dir.MAY_CHANGE if name != "MODEL_DIR")
    differ = explain.differing_lines(before, text, free)
    if differ:
      raise ValueError(
        f"`--output` {folder!r} holds a run of another recipe "
        f"({'; '.join(differ[:3])}). Choose another folder."
      )
  files.check_replaceable(path, files.begins(as_gin.HEAD.encode()))
  files.write_text(path, text)
  return path


def _eval(argv: Sequence[str]) -> list[str]:
  given, rest = read("eval", argv)
  run = files.at(given.run)
  if not (run / "config.gin").is_file():
    raise ValueError(
      f"{given.run!r} holds no config.gin: it is no folder of train. A prompt alone is "
      "evaluated with --gin_file=gin/eval.gin and a task's file."
    )
  split = given.split or ("test" if given.data else "validation")
  prompt = run / "prompt"
  said = {
    "PROMPT_DIR": str(prompt) if prompt.is_dir() else None,
    "EVAL_DIR": given.output or str(run / "eval"),
    "SPLIT": split,
  }
  if given.data:
    if "TEST_FILE = " not in (run / "config.gin").read_text():
      raise ValueError(
        f"`--data` is for runs on files (gin/tasks/files.gin); that in {given.run!r} "
        "has another task."
      )
    said[f"{split.upper()}_FILE"] = given.data
  flags = ["--gin_file=gin/eval.gin", f"--gin_file={run / 'config.gin'}"]
  return _told("eval", [*flags, *_bound(said), *rest])


def _infer(argv: Sequence[str]) -> list[str]:
  given, rest = read("infer", argv)
  name = pathlib.Path(given.inputs)
  output = given.output or str(
    name.with_name(f"{name.name.split('.')[0]}.answers.jsonl")
  )
  prompt = files.at(given.run)
  if (prompt / "prompt").is_dir():
    prompt = prompt / "prompt"
  said = {
    "PROMPT_DIR": str(prompt),
    "INPUT_FILE": given.inputs,
    "OUTPUT_FILE": output,
  }
  return _told("infer", ["--gin_file=gin/infer.gin", *_bound(said), *rest])


def _bound(said: dict[str, Any]) -> list[str]:
  return [f"--gin.{name}={value!r}" for name, value in said.items()]


def _told(verb: str, flags: list[str]) -> list[str]:
  words = " ".join(map(quoted, flags))
  lines = wrapped(f"python -m prompt_tuning.{verb} {words}")
  ended.say("\n".join(f"  {line}" for line in lines))
  return flags


def quoted(flag: str) -> str:
  """A flag as a shell takes it; text in quotes stands inside others."""
  name, equals, value = flag.partition("=")
  if equals and "'" in value and not set('"$`\\!') & set(value):
    return f'{name}="{value}"'
  return shlex.quote(flag)
