"""The pages: links lead somewhere, commands parse, code runs, numbers are so."""

import importlib.util
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

import prompt_tuning as pt
from prompt_tuning import api, sweep
from prompt_tuning.engine import config, gin_state, library, macros
from prompt_tuning.terminal import listing, short, usage

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.M | re.S)
PROGRAM = re.compile(
  r"\s*(?:\.venv/bin/)?(?:prompt-tuning |python -m prompt_tuning\.)(?!\w+\.)(\S.*)"
)
# What a page's command may read.
COLUMNS = ("text", "label", "question", "passage")
TABLES = ("train.tsv", "dev.tsv", "fresh.tsv", "inputs.tsv")
# Written with room for what a reader fills in.
OPEN = re.compile(r"\.\.\.|\b(VERB|RUN|FOLDER|NAME)\b|<")


def blocks(page, kind):
  return [text for name, text in BLOCK.findall(page.read_text()) if name == kind]


def commands():
  """(page, arguments behind the program) of each command that can be given."""
  found = []
  for page in [*PAGES, ROOT / "README.md"]:
    text = page.read_text().replace("\\\n", " ")
    lines = [line for _, body in BLOCK.findall(text) for line in body.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))
    for line in lines:
      match = PROGRAM.match(line)
      if match and not OPEN.search(line) and not re.match(r"\S+: ", match.group(1)):
        found.append((page.name, match.group(1)))
  return sorted(set(found))


@pytest.fixture
def here(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  row = "\t".join(["a film"] + ["good"] + ["why"] * 2)
  other = "\t".join(["a play"] + ["bad"] + ["how"] * 2)
  for name in TABLES:
    lines = ["\t".join(COLUMNS), *[row, other] * 3]
    (tmp_path / name).write_text("\n".join(lines) + "\n")
  (tmp_path / "mine.gin").write_text('include "configs/demo/prompt_tuning.gin"\n')


def test_there_are_commands():
  found = {text.split()[0] for _, text in commands()}
  assert set(usage.USAGES) - {"precompile"} <= found and len(commands()) > 40


@pytest.mark.parametrize(("page", "text"), commands())
def test_commands_parse(page, text, here, monkeypatch):
  verb, *argv = shlex.split(text)
  if verb.startswith("--") or "--help" in argv or len(argv) == 0:
    assert verb in (*usage.USAGES, "--help"), text
    return
  assert verb in usage.USAGES, text
  argv = [word.strip("[]") if word.startswith("[--") else word for word in argv]
  gin = [word for word in argv if word.startswith("--gin")]
  if verb in ("train", "eval", "infer") and any("--gin_file" in w for w in gin):
    with gin_state.isolated():
      config.parse_flags(argv, f"prompt_tuning.{verb}")
  elif verb == "train":
    if "--backbone" not in argv:
      assert short.spelt_out("train", argv)
    short.read("train", argv)
  elif verb in ("eval", "infer"):
    given, _ = short.read(verb, argv)
    assert given.run
  elif verb == "sweep":
    grids = [argv[i + 1] for i, word in enumerate(argv) if word == "--grid"]
    assert sweep.grid(grids).keys() <= {record.name for record in macros.table()}
    if "--data" in argv or gin:
      sweep.read(argv)
  elif verb == "list":
    assert listing.listed(*argv)
  else:
    for word in gin:
      assert not word.startswith("--gin_file") or word.split("=")[1] in library.texts()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_gin_and_python_of_a_page(page, tmp_path):
  for number, text in enumerate(blocks(page, "gin")):
    (tmp_path / f"{number}.gin").write_text(text)
    with gin_state.isolated():
      config.parse([str(tmp_path / f"{number}.gin")], check=False)
  for text in blocks(page, "python"):
    compile(text, page.name, "exec")


PYTHON = ["python"] + ["choose"] * ("PROMPT_TUNING_THOROUGH" in os.environ)


@pytest.mark.parametrize("name", PYTHON)
def test_python_of_a_page_runs(name, here, tiny_folder, monkeypatch):
  load = api.load_model
  monkeypatch.setattr(api, "load_model", lambda name: load(tiny_folder))
  names = {"__name__": "page"}
  for text in blocks(DOCS / f"{name}.md", "python"):
    exec(compile(text, name, "exec"), names)


def test_the_table_of_methods_is_so():
  model = pt.load_model("mini")
  rows = re.findall(
    r"^\|[^|]*\| `(\w+)` \| ([\d,]+) \|", (DOCS / "choose.md").read_text(), re.M
  )
  assert len(rows) > 12
  for name, count in rows:
    said = re.search(r"^trains +(\S+)", model.summary(name), re.M).group(1)
    assert said == ("nothing" if count == "0" else count), name


def test_names_in_backticks_are_there():
  known = {record.name for record in macros.table()} | {"NO_COLOR"}
  for page in PAGES:
    for name in re.findall(r"`([A-Z][A-Z_]{3,})`", page.read_text()):
      assert name in known, f"{page.name}: {name}"
    for name in re.findall(r"`(gin/[\w/]+\.gin)`", page.read_text()):
      assert name in library.texts(), f"{page.name}: {name}"
  text = (DOCS / "from_peft.md").read_text()
  for cell in re.findall(r"^\| `\w+Config` \| ([^|]+) \|", text, re.M):
    assert set(re.findall(r"`(\w+)`", cell)) <= set(library.methods()), cell


def test_verbs_are_what_help_prints():
  text = (DOCS / "verbs.md").read_text()
  for verb, own in usage.USAGES.items():
    assert f"## {verb}\n\n```text\n{own.text(verb)}\n```\n" in text


def test_links_and_the_list_of_pages():
  listed = re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
  there = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
  assert sorted(listed) == sorted(there)
  for page in DOCS.rglob("*.md"):
    for link in re.findall(r"\]\(([^)#]+)", BLOCK.sub("", page.read_text())):
      assert link.startswith("http") or (page.parent / link).is_file(), (page, link)


@pytest.mark.skipif(
  importlib.util.find_spec("mkdocs") is None, reason="mkdocs is an extra"
)
def test_the_site_builds(tmp_path):
  command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)]
  subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
  assert (tmp_path / "index.html").is_file()
