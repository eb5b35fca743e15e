"""How a run ends: signals, evaluations left, pipes that close."""

import os
import signal
import subprocess
import sys
import time

import pytest
from run_tools import lines, start

from prompt_tuning.engine import (
  early,
  evaluate,
  fit,
  interrupt,
  log,
)


def tensors(folder):
  return (folder / "prompt" / "prompt.safetensors").read_bytes()


# ---- how a run ends


def told_at(monkeypatch, step, number):
  """A signal after a step."""
  before = log.Log.step

  def tell(self, done):
    before(self, done)
    if done == step:
      os.kill(os.getpid(), number)

  monkeypatch.setattr(log.Log, "step", tell)


@pytest.mark.parametrize(
  ("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_other_signals_end_a_run_as_sigterm_does(
  work, whole, capsys, monkeypatch, number, code
):
  name = f"told-{code}"
  handlers = [signal.getsignal(n) for n in interrupt.CODES]
  with monkeypatch.context() as patch:
    told_at(patch, 4, number)
    with pytest.raises(SystemExit) as stop:
      start(work, name)
  assert stop.value.code == code
  assert "Told to end at step 4. Give the same command" in capsys.readouterr().out
  assert [signal.getsignal(n) for n in interrupt.CODES] == handlers
  start(work, name)
  assert "Resumed from step 4." in capsys.readouterr().out
  assert tensors(work / name) == tensors(whole)


def test_an_evaluation_is_left_and_made_up_for(work, whole, capsys, monkeypatch):
  loss, seen = evaluate.Evaluator.loss, []

  def slow(self, params, examples):
    seen.append(len(examples))
    before = self.between

    def between():
      before()
      if len(seen) == 2:
        os.kill(os.getpid(), signal.SIGTERM)

    self.between = between
    return loss(self, params, examples)

  for step, flags in ((6, ()), (3, ("SAVE_PERIOD=2",))):
    name = f"left-{step}"
    with monkeypatch.context() as patch:
      patch.setattr(evaluate.Evaluator, "loss", slow)
      seen[:] = [0] if step == 3 else []
      with pytest.raises(SystemExit) as stop:
        start(work, name, *flags)
    assert stop.value.code == 143
    assert f"Told to end at step {step}." in capsys.readouterr().out
    validated = [x["step"] for x in lines(work / name) if x["split"] == "validation"]
    assert validated == [3][: step // 6]
    assert (work / name / "checkpoints" / str(step)).is_dir()
    start(work, name, *flags)
    assert f"Resumed from step {step}." in capsys.readouterr().out
    assert tensors(work / name) == tensors(whole)
    for folder in (work / name, whole):
      found = [x for x in lines(folder) if x["split"] == "validation"]
      assert [x["step"] for x in found] == [3, 6]
    assert found == [x for x in lines(work / name) if x["split"] == "validation"]


SIGNALS = """
import sys, time
from prompt_tuning.engine import interrupt
with interrupt.on_signals() as told:
  print("ready", flush=True)
  while not told(0):
    time.sleep(0.01)
  print("told", flush=True)
  time.sleep(60)
"""


def test_a_second_signal_ends_at_once(root):
  child = subprocess.Popen(
    [sys.executable, "-c", SIGNALS],
    env={**os.environ, "PYTHONPATH": str(root)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    assert child.stdout.readline() == "ready\n"
    # Twice within a moment is once: `timeout` does so.
    child.send_signal(signal.SIGINT)
    child.send_signal(signal.SIGTERM)
    assert child.stdout.readline() == "told\n"
    time.sleep(2 * interrupt.ONCE)
    assert child.poll() is None
    begin = time.monotonic()
    child.send_signal(signal.SIGINT)
    assert child.wait(10) == 130
    assert time.monotonic() - begin < 5
    assert "ended at once" in child.stderr.read()
  finally:
    child.kill()
    child.communicate()


def test_ctrl_c_before_training_is_a_line(work, capsys, monkeypatch):
  def interrupted(*args):
    raise KeyboardInterrupt

  monkeypatch.setattr(fit, "prepare", interrupted)
  with pytest.raises(SystemExit) as stop:
    start(work, "early")
  assert stop.value.code == 130
  assert "before training began; nothing was written" in capsys.readouterr().err
  assert not (work / "early").exists()


def test_ctrl_c_while_a_program_starts_is_a_line(root):
  code = (
    "from prompt_tuning.engine import early; early.catch(); print('ready', flush=1)"
  )
  child = subprocess.Popen(
    [sys.executable, "-c", f"{code}; import time; time.sleep(60)"],
    env={**os.environ, "PYTHONPATH": str(root)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert child.stdout.readline() == "ready\n"
  child.send_signal(signal.SIGINT)
  _, said = child.communicate(timeout=30)
  assert child.returncode == early.EXIT_CODE == interrupt.CODES[signal.SIGINT]
  assert len(said.splitlines()) == 1 and "Told to end" in said


PIPE = """
import sys
from prompt_tuning.engine.log import Log
log = Log(sys.argv[1], 4, tensorboard=False)
log.say("ready")
sys.stdin.readline()
for step in range(1, 5):
  log.write(step, "train", {"loss": 1.0})
  log.step(step)
log.close()
print("a last word")
"""


def test_a_closed_pipe_ends_no_run(root, tmp_path):
  child = subprocess.Popen(
    [sys.executable, "-c", PIPE, str(tmp_path)],
    env={**os.environ, "PYTHONPATH": str(root)},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert child.stdout.readline() == "ready\n"
  child.stdout.close()
  child.stdin.write("\n")
  child.stdin.close()
  assert (child.wait(60), child.stderr.read()) == (0, "")
  child.stderr.close()
  assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
