"""Writers keep what is not theirs, and a kill leaves the old or the new files."""

import concurrent.futures
import contextlib
import functools
import os
import pathlib
import shutil

import pytest

from prompt_tuning.core import files, folders, owned
from prompt_tuning.core.folders import whole_folder


def write(folder, names, which=owned.listed, **rest):
  with whole_folder(folder, which, **rest) as aside:
    for name, text in names.items():
      (aside / name).parent.mkdir(parents=True, exist_ok=True)
      (aside / name).write_text(text)


def read(folder):
  return {
    path.relative_to(folder).as_posix(): path.read_text()
    for path in sorted(folder.rglob("*"))
    if path.is_file() and path.name != owned.MANIFEST
  }


def test_a_folder_of_somebody_keeps_what_it_holds(tmp_path):
  place = tmp_path / "thesis"
  (place / "notes").mkdir(parents=True)
  (place / "results.csv").write_text("1,2")
  (place / "notes" / "a.txt").write_text("kept")
  write(place, {"config.json": "one", "deep/b": "one"})
  write(place, {"config.json": "two", "more": "two"})
  assert read(place) == {
    "config.json": "two",
    "more": "two",
    "notes/a.txt": "kept",
    "results.csv": "1,2",
  }
  assert [path.name for path in tmp_path.iterdir()] == ["thesis"]


def test_the_current_directory(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "mine").write_text("kept")
  write(".", {"a": "one"})
  write("", {"a": "two"})
  assert read(tmp_path) == {"a": "two", "mine": "kept"}


@pytest.mark.parametrize("name", ["card.json", "deep/card.json"])
def test_a_file_of_somebody_is_not_replaced(tmp_path, name):
  (tmp_path / name).parent.mkdir(exist_ok=True)
  (tmp_path / name).write_text("mine")
  for expected in ((), (name,)):
    with pytest.raises(ValueError, match="was not written by this library"):
      write(tmp_path, {name: "theirs", "other": "x"}, expected=expected)
  assert read(tmp_path) == {name: "mine"}
  assert {p.name for p in tmp_path.iterdir()} == {pathlib.Path(name).parts[0]}


def test_a_file_that_was_changed_since_is_somebodys(tmp_path):
  write(tmp_path, {"a": "one"})
  (tmp_path / "a").write_text("edited")
  with pytest.raises(ValueError, match="'a', which was not written"):
    write(tmp_path, {"a": "two"})
  write(tmp_path, {"b": "two"})
  assert read(tmp_path) == {"a": "edited", "b": "two"}


@pytest.mark.parametrize("below", ["", "inside"])
def test_a_file_in_the_place_of_a_folder(tmp_path, below):
  (tmp_path / "card.json").write_text("mine")
  with pytest.raises(ValueError, match="card.json' is a file. Name another folder"):
    write(tmp_path / "card.json" / below, {"a": "x"})
  assert read(tmp_path) == {"card.json": "mine"}


def test_a_folder_or_a_link_in_the_place_of_a_file(tmp_path):
  place, outside = tmp_path / "place", tmp_path / "outside"
  place.mkdir()
  outside.mkdir()
  (place / "a").mkdir()
  (place / "linked").symlink_to(outside)
  (place / "file").symlink_to(outside / "nothing")
  for name in ("a", "linked/b", "file"):
    with pytest.raises(ValueError, match="was not written by this library"):
      write(place, {name: "x"})
  assert not read(outside)


def test_a_manifest_of_a_stranger_frees_nothing(tmp_path):
  (tmp_path / "mine").write_text("kept")
  place = tmp_path / "place"
  place.mkdir()
  (place / "own").write_text("kept")
  digest = owned.digest_of(tmp_path / "mine")
  for text in (
    f'{{"writer": "prompt_tuning", "files": {{"../mine": "{digest}", "own": "0"}}}}',
    f'{{"files": {{"own": "{digest}"}}}}',
    '{"writer": "prompt_tuning", "files": [1]}',
    "[" * 100_000,
    "no json",
  ):
    (place / owned.MANIFEST).write_text(text)
    with pytest.raises(ValueError, match="was not written by this library"):
      write(place, {"own": "x"})
  assert read(tmp_path) == {"mine": "kept", "place/own": "kept"}


@pytest.mark.parametrize("killed_at", range(6))
def test_a_kill_leaves_the_old_or_the_new_files(tmp_path, monkeypatch, killed_at):
  """Each step of a write in turn is the last one that a process makes."""
  old, new = {"a": "old", "b": "old"}, {"a": "new", "b": "new"}
  (tmp_path / "mine").write_text("kept")
  write(tmp_path, old)
  left = killed_at

  class Killed(BaseException):
    pass

  def stop(real):
    def step(*args):
      nonlocal left
      if not left:
        raise Killed
      left -= 1
      return real(*args)

    return step

  with monkeypatch.context() as patch:
    for name in ("rename", "replace"):
      patch.setattr(os, name, stop(getattr(os, name)))
    # What an exception would tidy up stays, as after a kill.
    patch.setattr(folders.shutil, "rmtree", lambda *args, **rest: None)
    if killed_at < 4:
      with pytest.raises(Killed):
        write(tmp_path, new)
    else:
      write(tmp_path, new)
  found = {name: folders.current(tmp_path, name).read_text() for name in old}
  assert found == (new if killed_at else old)
  files.sweep(tmp_path)
  write(tmp_path, {"a": "next", "b": "next"})
  assert read(tmp_path) == {"a": "next", "b": "next", "mine": "kept"}
  assert {p.name for p in tmp_path.iterdir()} == {"a", "b", "mine", owned.MANIFEST}


def test_a_manifest_may_stand_beside_the_folder(tmp_path):
  """For formats that admit no other file: T5X compares what a checkpoint holds."""
  place = tmp_path / "model" / "checkpoint_0"
  write(place, {"a": "one", "b": "one"}, owned.listed_beside)
  write(place, {"a": "two"}, owned.listed_beside)
  assert {path.name: path.read_text() for path in place.iterdir()} == {"a": "two"}
  (place / "a").write_text("mine")
  with pytest.raises(ValueError, match="'a', which was not written"):
    write(place, {"a": "three"}, owned.listed_beside)
  assert (place / "a").read_text() == "mine"


def test_modes_are_those_of_the_mask(tmp_path):
  before = os.umask(0o027)
  try:
    with whole_folder(tmp_path / "x") as aside:
      (aside / "secret").write_text("x")
      (aside / "secret").chmod(0o600)
  finally:
    os.umask(before)
  assert (tmp_path / "x").stat().st_mode & 0o777 == 0o750
  assert (tmp_path / "x" / "secret").stat().st_mode & 0o777 == 0o640


def test_only_what_was_written_aside_is_swept(tmp_path):
  kept = {".ssh.old", ".git.old", ".notes.tmp", ".a.b.c", ".lock", ".x.tmp.png"}
  for name in kept:
    (tmp_path / name).mkdir()
    (tmp_path / name / "id").write_text("x")
  ours = files.ASIDE.format("0a1b2c3d"), files.ASIDE.format("metrics.jsonl.77")
  (tmp_path / ours[0]).mkdir()
  (tmp_path / ours[0] / "card.json").write_text("{}")
  (tmp_path / ours[1]).write_text("x")
  files.sweep(tmp_path)
  assert {path.name for path in tmp_path.iterdir()} == kept


def test_a_file_is_written_over_ours_alone(tmp_path):
  path = tmp_path / "report.json"
  files.write_text(path, "ours 1")
  files.write_text(path, "ours 2", files.begins(b"ours"))
  path.write_text("mine")
  with pytest.raises(ValueError, match="nothing in it says that this library wrote it"):
    files.write_text(path, "ours 3", files.begins(b"ours"))
  assert path.read_text() == "mine"
  (tmp_path / "folder").mkdir()
  os.mkfifo(tmp_path / "pipe")
  for name in ("folder", "pipe"):
    with pytest.raises(ValueError, match="name a file to write"):
      files.write_text(tmp_path / name, "x")


def test_a_link_in_a_manifest_of_a_stranger_leads_nowhere(tmp_path):
  """Whoever wrote it knows what is in an empty file."""
  outside, place = tmp_path / "outside", tmp_path / "place"
  outside.mkdir()
  (outside / "__init__.py").write_text("")
  write(place, {"a": "one"})
  (place / "linked").symlink_to(outside)
  digest = owned.digest_of(outside / "__init__.py")
  (place / owned.MANIFEST).write_text(
    f'{{"writer": "prompt_tuning", "files": {{"linked/__init__.py": "{digest}"}}}}'
  )
  write(place, {"b": "two"})
  assert read(outside) == {"__init__.py": ""}


@pytest.mark.parametrize("kind", ["folder", "link", "file", "plan"])
def test_what_a_stranger_left_waiting_replaces_nothing(tmp_path, kind):
  place, waiting = tmp_path / "place", tmp_path / "place" / folders.NEW
  place.mkdir()
  (place / "mine").write_text("kept")
  (tmp_path / "elsewhere").mkdir()
  if kind == "link":
    waiting.symlink_to(tmp_path / "elsewhere")
  elif kind == "file":
    waiting.write_text("x")
  else:
    waiting.mkdir()
    (waiting / "mine").write_text("theirs")
    if kind == "plan":
      (waiting / ".prompt_tuning.plan").write_text('{"files": ["mine"], "before": {}}')
  with pytest.raises(ValueError, match="was not written by this library"):
    write(place, {"a": "x"})
  assert (place / "mine").read_text() == "kept"
  assert not (place / "a").exists()


@pytest.mark.parametrize("which", [owned.listed, owned.listed_beside])
@pytest.mark.parametrize("killed_at", range(6))
def test_after_a_kill_nothing_old_is_left(tmp_path, monkeypatch, which, killed_at):
  """The next write knows what the one before would have removed."""
  place, left = tmp_path / "place", killed_at
  write(place, {"old/deep/a": "old", "b": "old"}, which)

  def stop(real, *args):
    nonlocal left
    if not left:
      raise KeyboardInterrupt
    left -= 1
    return real(*args)

  with monkeypatch.context() as patch:
    for name in ("rename", "replace", "unlink"):
      patch.setattr(os, name, functools.partial(stop, getattr(os, name)))
    patch.setattr(folders.shutil, "rmtree", lambda *args, **rest: None)
    with contextlib.suppress(KeyboardInterrupt):
      write(place, {"b": "new", "c": "new"}, which)
  files.sweep(place)
  files.sweep(tmp_path)
  write(place, {"b": "next"}, which)
  assert read(place) == {"b": "next"}
  assert not (place / "old").exists()


def test_a_new_folder_is_ours_after_a_kill(tmp_path, monkeypatch):
  """However few of its renames were made."""
  place = tmp_path / "checkpoint_0"
  for killed_at in range(3):
    left = killed_at

    def stop(real, *args):
      nonlocal left
      if not left:
        raise KeyboardInterrupt
      left -= 1
      return real(*args)

    with monkeypatch.context() as patch:
      for name in ("rename", "replace"):
        patch.setattr(os, name, functools.partial(stop, getattr(os, name)))
      with contextlib.suppress(KeyboardInterrupt):
        write(place, {"a": "one"}, owned.listed_beside)
    write(place, {"a": "two"}, owned.listed_beside)
    assert read(place) == {"a": "two"}
    shutil.rmtree(place)


def test_an_error_leaves_no_folders(tmp_path):
  with pytest.raises(KeyError), whole_folder(tmp_path / "a" / "b" / "c"):
    raise KeyError
  assert not [*tmp_path.iterdir()]


def test_many_writers_at_once(tmp_path):
  """Each leaves its files whole, the last one's stand."""

  def one(number):
    write(tmp_path / "place", {name: str(number) for name in "abc"})
    files.write_text(tmp_path / "report", str(number) * 1000)

  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    list(pool.map(one, range(40)))
  assert len(set(read(tmp_path / "place").values())) == 1
  assert len((tmp_path / "report").read_text()) in (1000, 2000)
  assert {path.name for path in tmp_path.iterdir()} == {"place", "report"}


def test_names_of_any_letters(tmp_path):
  path = tmp_path / ("\u65e5" * 85)  # 255 bytes, the most that there may be
  files.write_text(path, "one")
  assert path.read_text() == "one"
  for name in ("\u65e5" * 86, "a\0b"):
    with pytest.raises(ValueError, match="cannot be the name of a file"):
      files.write_text(tmp_path / name, "one")
