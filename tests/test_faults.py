"""Jobs that are killed, that meet each other, or that find no place to write."""

import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.engine import checkpoint, lock, state


@pytest.mark.slow
def test_three_kills_change_nothing(root, tmp_path):
  """Compile, step and save; `benchmarks/faults.py --kills=30` is the whole trial."""
  code = (
    "import pathlib, json, sys; sys.path.insert(0, 'benchmarks'); import faults; "
    f"folder = pathlib.Path({str(tmp_path)!r}); found = faults.run(folder, 3, 1); "
    "print(json.dumps([found, faults.compare(folder)]))"
  )
  environment = {**os.environ, "PYTHONPATH": str(root)}
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=root,
    env=environment,
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert done.returncode == 0, done.stderr[-4000:]
  records, differ = json.loads(done.stdout.splitlines()[-1])
  assert [record["phase"] for record in records] == ["compile", "step", "save"]
  assert differ == []


# ---- checkpoints


def make_state(step=0, width=3):
  trainable = {"prompt": {"a": jnp.arange(float(width)), "b": jnp.ones((2, 2))}}
  slots = {"mu": jax.tree.map(jnp.zeros_like, trainable)}
  return state.TrainState(jnp.int32(step), trainable, slots)


@pytest.fixture
def saved(tmp_path):
  """Checkpoints of steps 2 and 4."""
  store = checkpoint.Checkpoints(tmp_path / "checkpoints")
  for number in (2, 4):
    store.save(make_state(number))
  store.close()
  return tmp_path / "checkpoints"


def spoil(folder: pathlib.Path, how: str):
  """Damages a checkpoint as disks and copies do."""
  manifest = folder / "default" / "manifest.ocdbt"
  data = [p for p in (folder / "default").glob("**/d/*") if p.is_file()]
  assert data
  if how == "manifest":
    manifest.write_bytes(b"x")
  elif how == "truncated":
    for path in data:
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  elif how == "removed":
    for path in data:
      path.unlink()
  else:
    for path in data:
      path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("how", ["manifest", "truncated", "removed", "zeroed"])
def test_the_checkpoint_before_a_damaged_one_takes_its_place(saved, how):
  spoil(saved / "4", how)
  store, said = checkpoint.Checkpoints(saved), []
  found = store.resume(make_state(), said.append)
  assert int(found.step) == 2 == store.newest()
  jax.tree.map(np.testing.assert_array_equal, found, make_state(2))
  assert said == [
    "The checkpoint of step 4 is damaged and was put aside; going back to step 2."
  ]
  assert (saved / "damaged-4").is_dir()
  # Its step can be saved again.
  store.save(make_state(4))
  store.close()
  assert checkpoint.Checkpoints(saved).newest() == 4


def test_where_all_are_damaged_the_run_starts_anew(saved):
  for step in ("2", "4"):
    spoil(saved / step, "manifest")
  store, said = checkpoint.Checkpoints(saved), []
  assert store.resume(make_state(), said.append) is None
  assert len(said) == 2 and said[1].endswith("put aside; starting anew.")
  store.close()


def test_another_runs_checkpoint_is_no_damaged_one(saved):
  store = checkpoint.Checkpoints(saved)
  with pytest.raises(ValueError, match="cannot be restored"):
    store.resume(make_state(width=5), pytest.fail)
  assert store.newest() == 4
  store.close()


def test_a_checkpoint_for_which_there_is_no_room(saved, monkeypatch):
  store = checkpoint.Checkpoints(saved)

  def full(*args, **settings):
    raise RuntimeError("RESOURCE_EXHAUSTED: write: No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(store._manager, "save", full)
    with pytest.raises(OSError, match="No space left.*Those before it are whole"):
      store.save(make_state(6))
  store.close()
  assert checkpoint.Checkpoints(saved).newest() == 4


# ---- one job a folder


def test_the_second_job_is_refused(tmp_path):
  folder = tmp_path / "run"
  lock.check(folder)
  assert not folder.exists()
  with lock.held(folder):
    for enter in (lambda: lock.check(folder), lambda: lock.held(folder).__enter__()):
      with pytest.raises(ValueError, match=f"in use by process {os.getpid()} on "):
        enter()
  assert list(folder.iterdir()) == []
  with lock.held(folder):
    pass


def test_what_a_dead_job_leaves_stops_nobody(tmp_path):
  # The file alone: importing the library takes long.
  code = (
    "import os, pathlib, runpy, signal; "
    f"held = runpy.run_path({lock.__file__!r})['held']; "
    f"job = held(pathlib.Path({str(tmp_path)!r})); "
    "job.__enter__(); os.kill(os.getpid(), signal.SIGKILL)"
  )
  assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
  assert (tmp_path / lock.NAME).exists()
  lock.check(tmp_path)
  with lock.held(tmp_path):
    pass


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch, caplog):
  def unknown(*args):
    raise OSError(38, "Function not implemented")

  monkeypatch.setattr(fcntl, "flock", unknown)
  with lock.held(tmp_path):
    assert "knows no locks" in caplog.text


def test_a_folder_that_cannot_be_written():
  # Nobody can, not even root.
  with pytest.raises(ValueError, match="`MODEL_DIR` '/proc/run' cannot be written"):
    lock.held(pathlib.Path("/proc/run")).__enter__()
