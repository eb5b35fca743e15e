"""`tune` leaves gin as it found it, and threads may tune at once."""

import concurrent.futures
import copy

import gin
import pytest
from gin import config as gin_config

import prompt_tuning as pt
from prompt_tuning.engine import config, gin_state

PAIRS = [("a good film", "good"), ("a bad film", "bad")] * 2


@pytest.fixture(scope="module")
def model(tiny_folder):
  return pt.load_model(tiny_folder)


def cook(minutes=1, dish=None):
  return minutes, dish


class Dense:
  """Named as a word of the library is."""

  def __init__(self, width=1):
    self.width = width


def state():
  """All that a caller can see of gin."""
  tables = ("_CONFIG", "_OPERATIVE_CONFIG", "_IMPORTS", "_SINGLETONS")
  found = {name: copy.copy(getattr(gin_config, name)) for name in tables}
  for name in ("_REGISTRY", "_CONSTANTS"):
    found[name] = dict(getattr(gin_config, name).items())
  return {
    **found,
    "inverse": dict(gin_config._INVERSE_REGISTRY),
    "prefixes": list(gin_config._LOCATION_PREFIXES),
    "locked": gin.config_is_locked(),
    "interactive": gin_config._INTERACTIVE_MODE,
    "text": gin.config_str(),
    "operative": gin.operative_config_str(),
    "scope": gin.current_scope_str(),
  }


@pytest.fixture
def caller(tmp_path):
  """A caller with bindings, macros, an import, a constant and a folder of its own."""
  with gin_state.isolated():
    gin.external_configurable(cook, "cook", module="a_caller")
    gin.external_configurable(Dense, "Dense", module="a_caller.dense")
    gin.constant("SEED", 77)
    gin.add_config_file_search_path(tmp_path)
    gin.parse_config(
      "import json\nPROMPT_LENGTH = 99\ncook.minutes = %PROMPT_LENGTH\n"
      "cook.dish = @Dense()\nDense.width = 8\nlate/cook.minutes = 5"
    )
    yield


def cooked():
  minutes, dish = gin.get_configurable("cook")()
  return minutes, dish.width


@pytest.mark.parametrize("ways", [(), ("locked",), ("interactive",)])
def test_the_callers_configuration_stays(caller, model, ways):
  assert cooked() == (99, 8)
  if "locked" in ways:
    gin.finalize()
  if "interactive" in ways:
    gin.enter_interactive_mode()
  with gin.config_scope("late"):
    before = state()
    product = pt.tune(model, PAIRS, steps=0, prompt_length=3)
    assert state() == before
    with pytest.raises(ValueError, match="`prompt_length` is 0"):
      pt.tune(model, PAIRS, steps=0, prompt_length=0)
    assert state() == before
    assert cooked() == (5, 8)
  assert cooked() == (99, 8)
  assert product.card["seed"] == 0, "a caller's constant is no macro of ours"
  assert "PROMPT_LENGTH = 3" in product.card["gin"]
  assert "SEED = 0" in product.card["gin"]


def test_a_caller_without_gin_sees_nothing(model):
  with gin_state.isolated():
    before = state()
    pt.tune(model, PAIRS, steps=0, prompt_length=3)
    assert state() == before
    assert not gin.config_str().strip()


def test_the_text_does_not_depend_on_the_caller(caller, model):
  within = pt.tune(model, PAIRS, steps=0, prompt_length=3)
  with gin_state.isolated():
    alone = pt.tune(model, PAIRS, steps=0, prompt_length=3)
  assert within.card == alone.card


def test_threads_tune_prompts_of_their_own(model):
  lengths = [3, 4, 5, 6]

  def tuned(length):
    return pt.tune(model, PAIRS, steps=1, prompt_length=length, batch_size=2)

  with concurrent.futures.ThreadPoolExecutor(len(lengths)) as pool:
    products = list(pool.map(tuned, lengths))
  for length, product in zip(lengths, products, strict=True):
    assert product.layout["encoder_prompt"] == length
    assert product.module.length == length
    assert product.parameters == length * 16
    assert f"PROMPT_LENGTH = {length}\n" in product.card["gin"]


def test_reached_follows_macros_and_arguments():
  with gin_state.isolated():
    files = ["gin/train.gin", "gin/schedules/warmup_linear.gin"]
    config.parse([*files, "gin/methods/prompt_tuning.gin"], check=False)
    found = gin_state.reached({"OPTIMIZER"})
  assert {"RULE", "LEARNING_RATE", "WARMUP_STEPS", "TRAIN_STEPS"} <= found
  assert not {"PROMPT_LENGTH", "VOCABULARY", "SAVE_PERIOD"} & found
