"""Tests run on the CPU with quick compiles; 8 virtual devices where asked for."""

import os
import pathlib
import tempfile

import pytest
import quick

# Before jax is imported: tiny programs compile several times faster unoptimised.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A vector that meets the wrong axis is silent where ranks may differ; see `core.axes`.
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Programs that take long to compile are compiled once for all workers and children,
# and nothing is written to the home of whoever runs the tests.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  _PROGRAMS = tempfile.TemporaryDirectory(prefix="prompt_tuning_tests_")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _PROGRAMS.name
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
for _flag in quick.FLAGS.split():
  _FLAGS = os.environ.get("XLA_FLAGS", "")
  if _flag.split("=")[0] not in _FLAGS:
    os.environ["XLA_FLAGS"] = f"{_FLAGS} {_flag}".strip()

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
  """A file's tests run in one worker: they share what they compile."""
  from xdist.scheduler import LoadFileScheduling

  # Files with few tests are not the quick ones; left for the end, they run alone.
  config.option.loadscopereorder = False
  return LoadFileScheduling(config, log)


@pytest.fixture(scope="session")
def root() -> pathlib.Path:
  """The project's own folder."""
  return ROOT


@pytest.fixture(scope="session")
def vocabulary_file() -> str:
  """The SentencePiece file that comes with the library."""
  return str(ROOT / "prompt_tuning" / "demo" / "mini" / "spiece.model")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, vocabulary_file) -> str:
  """A backbone folder with random weights and the embedded vocabulary."""
  import jax

  from prompt_tuning.backbones.t5 import files
  from prompt_tuning.backbones.t5.backbone import T5
  from prompt_tuning.backbones.t5.config import T5Config

  backbone = T5(T5Config(8192, 16, 2, 8, 32, 1, 1))
  folder = tmp_path_factory.mktemp("backbones") / "tiny"
  params = jax.jit(backbone.init)(jax.random.key(0))
  files.save(folder, backbone, params, vocabulary_file)
  return str(folder)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  """Compiled programs, shared by the runs and processes of a test file."""
  import jax
  from jax.experimental.compilation_cache import compilation_cache

  folder = str(tmp_path_factory.mktemp("cache"))
  settings = {
    "jax_compilation_cache_dir": folder,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
  }
  before = {name: getattr(jax.config, name) for name in settings}

  def use(values):
    for name, value in values.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()

  use(settings)
  yield {name.upper(): str(value) for name, value in settings.items()}
  use(before)
