"""The cache of compiled programs, and what a step asks of the compiler."""

import os
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from prompt_tuning.core.model import PromptedModel
from prompt_tuning.data.features import Layout
from prompt_tuning.engine import compilation, fit
from prompt_tuning.engine.ready import Places
from prompt_tuning.engine.recipe import Recipe
from prompt_tuning.engine.sharding import DEFAULT


@pytest.fixture(autouse=True)
def settings():
  names = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
  )
  before = {name: getattr(jax.config, name) for name in names}
  jax.config.update("jax_enable_compilation_cache", True)
  jax.config.update("jax_compilation_cache_dir", None)
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


def test_programs_are_kept_in_the_cache_of_the_user(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  compilation.keep()
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / "prompt-tuning" / "xla")
  assert (tmp_path / "prompt-tuning" / "xla").is_dir()


def test_small_programs_are_kept_too(tmp_path, monkeypatch):
  name = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  monkeypatch.setenv(name, "3")
  before = jax.config.jax_persistent_cache_min_compile_time_secs
  compilation.keep()
  assert jax.config.jax_persistent_cache_min_compile_time_secs == before
  monkeypatch.delenv(name)
  compilation.keep()
  assert jax.config.jax_persistent_cache_min_compile_time_secs == 0
  kept = tmp_path / "prompt-tuning" / "xla"
  # JAX opens the folder once a process.
  compilation_cache.reset_cache()
  jax.block_until_ready(jax.jit(lambda x: 3 * x + 0.12345)(1.0))
  assert any(kept.iterdir())


# A job that compiles three programs of its own.
JOB = """
import sys
from prompt_tuning.engine import compilation
compilation.keep()
import jax
for number in range(3):
  jax.block_until_ready(jax.jit(lambda x: x * 3 + number)(1.0))
"""


def jobs(folder, count):
  """What so many jobs at once say, with one new cache folder."""
  environment = {**os.environ, "XDG_CACHE_HOME": str(folder)}
  environment.pop("JAX_COMPILATION_CACHE_DIR", None)
  environment.pop("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", None)
  command = [sys.executable, "-c", JOB]
  started = [
    subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    for _ in range(count)
  ]
  said = [one.communicate(timeout=120)[1] for one in started]
  assert all(one.returncode == 0 for one in started), said
  return said


def test_what_a_killed_job_leaves_in_the_cache_is_written_anew(tmp_path):
  assert jobs(tmp_path, 2) == ["", ""]
  kept = tmp_path / "prompt-tuning" / "xla"
  programs = {path: path.read_bytes() for path in kept.glob("*-cache")}
  assert len(programs) >= 3
  # Nothing goes with an entry that a kill could keep from it.
  assert {path.name.rsplit("-")[-1] for path in kept.iterdir()} == {"cache"}
  for path, data in programs.items():
    path.write_bytes(data[: len(data) // 2])
  assert jobs(tmp_path, 1) == [""]
  sizes = {path: path.stat().st_size for path in programs if path.exists()}
  assert sizes and all(size > len(programs[path]) // 2 for path, size in sizes.items())


def test_trouble_with_the_cache_is_one_line(tmp_path, monkeypatch, caplog):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  with warnings.catch_warnings():
    warnings.simplefilter("always")
    shown = []
    warnings.showwarning = lambda message, *args, **kwargs: shown.append(str(message))
    compilation.keep()
    for name in ("jit_a", "jit_b"):
      words = f"Error writing persistent compilation cache entry for {name!r}: "
      warnings.warn(f"{words}OSError: x", stacklevel=1)
    warnings.warn("of another kind", stacklevel=1)
  (line,) = [record.getMessage() for record in caplog.records]
  assert "cannot be kept in" in line and "(OSError: x)" in line
  assert shown == ["of another kind"]


def test_the_cache_is_bounded_where_a_job_starts(tmp_path):
  for number in range(4):
    path = tmp_path / f"jit_{number}-0-cache"
    path.write_bytes(b"0" * 10)
    os.utime(path, (number, number))
  (tmp_path / "notes").write_bytes(b"0" * 99)
  compilation.bound(tmp_path, 25)
  left = {path.name for path in tmp_path.iterdir()}
  assert left == {"jit_2-0-cache", "jit_3-0-cache", "notes"}


def test_what_the_user_chose_stays(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  jax.config.update("jax_compilation_cache_dir", "elsewhere")
  compilation.keep()
  assert jax.config.jax_compilation_cache_dir == "elsewhere"
  jax.config.update("jax_compilation_cache_dir", None)
  jax.config.update("jax_enable_compilation_cache", False)
  compilation.keep()
  assert jax.config.jax_compilation_cache_dir is None
  assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_made_is_done_without(tmp_path, monkeypatch):
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  compilation.keep()
  assert jax.config.jax_compilation_cache_dir is None


def test_large_steps_on_x86_cpus_alone_are_left_to_eigen(monkeypatch):
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  monkeypatch.setattr(compilation, "_known", lambda name, value: True)
  monkeypatch.setattr(compilation.platform, "machine", lambda: "x86_64")
  (name,) = compilation.options("cpu", 4096)
  assert compilation.options("cpu", 128) == compilation.options("tpu", 4096) == {}
  monkeypatch.setenv("XLA_FLAGS", f"--{name}=LIBRARY_FUSION_TYPE_DOT")
  assert compilation.options("cpu", 4096) == {}
  monkeypatch.delenv("XLA_FLAGS")
  monkeypatch.setattr(compilation.platform, "machine", lambda: "arm64")
  assert compilation.options("cpu", 4096) == {}


def test_an_option_that_xla_does_not_know_is_not_asked_for():
  assert compilation._known("xla_cpu_enable_fast_math", "False")
  assert not compilation._known("xla_cpu_no_such_option", "1")


def test_products_of_a_step_are_left_to_eigen(monkeypatch):
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  asked = compilation.options("cpu", 4096)
  if not asked:
    pytest.skip("not an x86 CPU, or an XLA without YNNPACK")
  x = jnp.ones((256, 256))
  step = jax.jit(lambda x: x @ x, compiler_options=asked)
  text = step.lower(x).compile().as_text()
  assert "ynn" not in text and " dot(" in text


def test_a_step_tells_the_positions_of_a_device_at_once(monkeypatch):
  seen = []

  def options(target, positions):
    seen.append((target, positions))
    return {}

  monkeypatch.setattr(compilation, "options", options)
  place = DEFAULT.over(jax.devices()[:1])
  recipe = Recipe(("prompt",), None, None, None, batch_size=12, microbatches=3)
  layout = Layout(inputs=28, targets=2, encoder_prompt=4)
  nowhere = Places(None, None, place.replicated)
  fit.compiled_step(PromptedModel(None), recipe, layout, None, place, nowhere)
  assert seen == [(place.platform, 4 * 32)]
