"""The program: help that fits a screen, lists, and short forms of the verbs."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest

import prompt_tuning as pt
from prompt_tuning import eval as eval_verb
from prompt_tuning import infer, precompile, train
from prompt_tuning.core import hushed
from prompt_tuning.engine import config, gin_state, library, macros, summary
from prompt_tuning.terminal import listing, main, short, usage

ROWS = [("a good film", "good"), ("a bad film", "bad")] * 4
VERBS = {
  "train": train.train,
  "eval": eval_verb.evaluate_prompt,
  "infer": infer.infer,
}


@pytest.fixture
def here(tmp_path, monkeypatch):
  """A folder with two tables, to stand in."""
  monkeypatch.chdir(tmp_path)
  for name in ("train.tsv", "dev.tsv", "fresh.tsv"):
    rows = "".join(f"{text}\t{mood}\n" for text, mood in ROWS)
    (tmp_path / name).write_text("text\tlabel\n" + rows)
  return tmp_path


def refused(capsys, function, *args):
  capsys.readouterr()
  with pytest.raises(SystemExit) as stop:
    function(*args)
  assert stop.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  return line


# ---- help


@pytest.mark.parametrize("verb", sorted(usage.USAGES))
def test_help_fits_a_screen(verb, capsys):
  with pytest.raises(SystemExit) as stop:
    main.main([verb, "--help"])
  lines = capsys.readouterr().out.splitlines()
  assert stop.value.code == 0 and len(lines) <= 24
  assert max(map(len, lines)) <= 92 and max(map(len, lines[1:])) <= 82
  assert len(usage.USAGES[verb].examples) == 3


@pytest.mark.parametrize("verb", ["train", "eval", "infer", "precompile"])
def test_what_help_names_is_there(verb):
  known = {record.name for record in macros.table()}
  for name, _ in usage.USAGES[verb].macros:
    assert name == "RUN" or name.startswith("--") or name in known, name
  for example in usage.USAGES[verb].examples:
    for word in shlex.split(example):
      if word.startswith("--gin_file="):
        assert word.partition("=")[2] in library.texts(), word


def test_examples_of_gin_parse(monkeypatch):
  monkeypatch.setattr(config, "call", lambda verb: verb)
  for verb, function in VERBS.items():
    for example in usage.USAGES[verb].examples:
      if "--gin_file" in example:
        with gin_state.isolated():
          assert config.run_verb(function, shlex.split(example)) is function
  for example in usage.USAGES["precompile"].examples:
    precompile.split_flags(shlex.split(example))


def test_a_long_command_is_written_in_lines_that_a_shell_joins():
  command = "prog --a=\"'x y'\" " + " ".join(f"--flag{i}=value" for i in range(12))
  lines = usage.wrapped(command)
  assert len(lines) > 1 and max(map(len, lines)) < 82
  joined = "\n".join(lines).replace("\\\n", " ")
  assert shlex.split(joined) == shlex.split(command)


def test_unknown_verbs(capsys):
  assert "did you mean train?" in refused(capsys, main.main, ["trian"])
  assert "takes one of methods" in refused(capsys, main.main, ["list", "words"])
  assert "Did you mean 'lora'" in refused(
    capsys, main.main, ["list", "methods", "lorra"]
  )
  with pytest.raises(SystemExit):
    main.main([])
  out = capsys.readouterr().out
  assert all(f"\n  {verb} " in out for verb in usage.USAGES)


def test_the_program_is_quick_and_becomes_the_verb(root, monkeypatch):
  seen = []
  monkeypatch.setattr(os, "execv", lambda path, words: seen.append((path, words)))
  main.main(["eval", "runs/x", "--split=test"])
  words = [sys.executable, "-m", "prompt_tuning.eval", "runs/x", "--split=test"]
  assert seen == [(sys.executable, words)]
  done = subprocess.run(
    [sys.executable, "-X", "importtime", "-m", "prompt_tuning", "list", "tasks"],
    capture_output=True,
    text=True,
    cwd=root,
    check=True,
  )
  assert "files" in done.stdout and "jax" not in done.stderr
  assert "prompt-tuning = prompt_tuning.terminal.main:main" in (
    root / "setup.py"
  ).read_text(encoding="utf-8")


# ---- lists


@pytest.mark.parametrize("kind", listing.KINDS)
def test_lists(kind, capsys):
  main.main(["list", kind])
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == len(listing.listed(kind)) > 5
  assert all(len(line.split()) > 1 for line in lines)


def test_a_line_fits_where_it_is_read():
  rows = listing.listed("methods", "mpt*")
  assert max(map(len, listing.lines(rows, None))) > 100
  assert {len(line) for line in listing.lines(rows, 60)} == {60}


# ---- short forms


def test_a_run_from_a_table_to_answers(here, tiny_folder, capsys):
  words = ["--data", "train.tsv", "--validation", "dev.tsv", "--backbone", tiny_folder]
  words += ["--steps=2", "--prompt_length=3", "--batch_size=4", "--test=fresh.tsv"]
  flags = short.spelt_out("train", [*words, "--gin.TENSORBOARD=False"])
  run = "runs/train-prompt_tuning"
  assert flags[:2] == [f"--gin_file={run}/recipe.gin", f"--gin.MODEL_DIR='{run}'"]
  config.run_verb(train.train, flags)
  out = capsys.readouterr().out
  assert 'include "gin/tasks/files.gin"\n' in out and "INPUTS = '{text}'" in out
  opened, _, closed = out.partition("step 1/2 train")
  for text in (
    "trains    48 of 268,576 numbers (0.018 %)",
    "files: 8 train, 8 validation",
    "labels    good 4, bad 4",
    "example   [3 prompt slots] a good film -> good",
    f"output    {run}",
  ):
    assert text in opened, opened
  assert "validation " in closed and "best, step" in closed
  assert f"next: python -m prompt_tuning.eval {run} --split test" in closed
  made = pt.tune(
    *(pt.load_model(tiny_folder), "train.tsv", "prompt_tuning", "dev.tsv", 2),
    prompt_length=3,
    batch_size=4,
  )
  assert pt.load_prompt(run).card["scores"] == pytest.approx(made.card["scores"])

  config.run_verb(eval_verb.evaluate_prompt, short.spelt_out("eval", [run]))
  scores = json.loads((here / run / "eval/metrics-validation.json").read_text())
  assert scores == pytest.approx(made.card["scores"])
  flags = short.spelt_out("eval", [run, "--data=fresh.tsv", "--output=other"])
  config.run_verb(eval_verb.evaluate_prompt, flags)
  assert (here / "other/predictions-test.jsonl").is_file()
  config.run_verb(infer.infer, short.spelt_out("infer", [run, "fresh.tsv"]))
  lines = (here / "fresh.answers.jsonl").read_text().splitlines()
  assert [json.loads(line)["input"] for line in lines] == [text for text, _ in ROWS]

  again = [*words[:-4], "--steps=3", "--prompt_length=3", "--batch_size=4"]
  assert short.spelt_out("train", again)[1] == f"--gin.MODEL_DIR='{run}'"
  other = [*words[:-4], "--steps=2", "--prompt_length=4", "--batch_size=4"]
  line = refused(capsys, short.spelt_out, "train", other)
  assert "another recipe (PROMPT_LENGTH: 3 there, 4 now)" in line


@pytest.mark.parametrize(
  ("verb", "words", "says"),
  [
    ("train", "--data nil.tsv", "`--data"),
    ("train", "--data train.tsv --input txt", "no column 'txt'.*--input and --label"),
    ("train", "--data train.tsv --lable x", "Unknown flag '--lable' in a short form"),
    ("train", "--data train.tsv --method promt_tuning", "Did you mean 'prompt_tuning'"),
    ("train", "--data train.tsv --epochs 1 --steps 2", "`steps` and `epochs` both"),
    ("train", "--data train.tsv --backbone nil", "nil"),
    ("train", "--data train.tsv --eval_period 5", "`eval_period` is about evaluation"),
    ("train", "--data train.tsv --write", "`--write` says how validation"),
    ("train", "--data train.tsv --gin.MODEL_DIR='x'", "is said by --output"),
    ("eval", "nil", "'nil' holds no config.gin"),
  ],
)
def test_what_does_not_fit_a_short_form(verb, words, says, here, capsys):
  line = refused(capsys, short.spelt_out, verb, shlex.split(words))
  assert line.startswith("error: ")

  assert re.search(says, line), line
  assert not (here / "runs").exists()


def test_other_flags_pass_as_they_are():
  for verb in VERBS:
    argv = ["--gin_file=x.gin", "--gin.SEED=1"]
    assert short.spelt_out(verb, argv) == argv


def test_quotes_are_those_of_a_shell():
  for flag in ("--gin.A='x'", "--gin.A='a b'", "--gin.A='$x'", "--gin.A=3", "a b"):
    assert shlex.split(short.quoted(flag)) == [flag]


# ---- screens


def test_closing_is_a_table():
  lines = [
    {"step": s, "split": "validation", "loss": s, "f1": 9 - s} for s in (2, 4, 6)
  ]
  found = summary.closing(lines, 4).splitlines()
  assert found[0].split("  ")[0] == "validation" and "best, step 4" in found[0]
  assert found[1].split() == ["f1", "7", "5", "3"]
  assert summary.closing([{"step": 1, "split": "train"}], 1) == ""


def test_an_import_that_speaks_is_hushed_unless_it_fails(capfd):
  with hushed.errors():
    os.write(2, b"noise\n")
  with pytest.raises(ImportError), hushed.errors():
    os.write(2, b"why\n")
    raise ImportError
  os.write(2, b"after\n")
  assert capfd.readouterr().err == "why\nafter\n"
