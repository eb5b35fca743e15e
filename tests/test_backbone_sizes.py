"""Every file of gin/backbones/ has the parameters that it says, in both layer forms."""

import math
import pathlib
import re

import gin
import jax
import pytest

from prompt_tuning.core.backbone import Backbone

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "gin" / "backbones"
SHARED = {
  "t5_1_0",
  "t5_1_1",
  "llama",
  "gpt2_family",
  "opt",
  "pythia",
  "bert",
  "roberta",
}
NAMES = sorted({path.stem for path in FOLDER.glob("*.gin")} - SHARED)
# Counts as published with the checkpoints; the other headers follow from the shapes.
PUBLISHED = {
  "t5_1_0_small": 60_506_624,
  "t5_1_0_base": 222_903_552,
  "t5_1_0_large": 737_668_096,
  "t5_1_0_3b": 2_851_598_336,
  "t5_1_0_11b": 11_307_321_344,
  "t5_1_1_small": 76_961_152,
  "t5_1_1_base": 247_577_856,
  "t5_1_1_large": 783_150_080,
  "t5_1_1_xl": 2_849_757_184,
  "t5_1_1_xxl": 11_135_332_352,
  "mt5_small": 300_176_768,
  "mt5_base": 582_401_280,
  "mt5_large": 1_229_581_312,
  "mt5_xl": 3_742_619_648,
  "mt5_xxl": 12_921_057_280,
  "byt5_small": 299_637_760,
  "byt5_base": 581_653_248,
  "minilm": 22_713_216,
  # With the pooler and the head of masked words of the files.
  "bert_base_uncased": 110_104_890,
  # Without a pooler.
  "roberta_base": 124_697_433,
  "roberta_large": 355_412_057,
  "xlm_roberta_base": 278_295_186,
  "xlm_roberta_large": 560_142_482,
  "smollm2": 134_515_008,
  # Summed up from the shapes of their configurations.
  "gpt2": 124_439_808,
  "gpt2_medium": 354_823_168,
  "gpt2_large": 774_030_080,
  "gpt2_xl": 1_557_611_200,
  "smollm2_135m": 134_515_008,
  "smollm2_360m": 361_821_120,
  "smollm2_1_7b": 1_711_376_384,
  "tinyllama": 1_100_048_384,
  "llama2_7b": 6_738_415_616,
  "opt_125m": 125_239_296,
  "opt_1_3b": 1_315_758_080,
  "opt_2_7b": 2_651_596_800,
  "pythia_14m": 14_067_712,
  "pythia_70m": 70_426_624,
  "pythia_160m": 162_322_944,
  "pythia_410m": 405_334_016,
  "pythia_1b": 1_011_781_632,
  "pythia_1_4b": 1_414_647_808,
}


@gin.configurable(module="test_backbone_sizes")
def collect(backbone=None):
  return backbone


@pytest.fixture
def load():
  """Parses a file of gin/backbones/ and gives what its BACKBONE is."""

  def parse(name, *bindings):
    gin.clear_config()
    gin.add_config_file_search_path(str(ROOT))
    gin.parse_config_files_and_bindings(
      [f"gin/backbones/{name}.gin"],
      [*bindings, "test_backbone_sizes.collect.backbone = %BACKBONE"],
    )
    return collect()

  yield parse
  gin.clear_config()


def stated(name):
  header = (FOLDER / f"{name}.gin").read_text()
  return int(re.search(r"^# Parameters: (\d+)$", header, re.MULTILINE).group(1))


def count(backbone):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(backbone.shapes()))


def test_every_published_backbone_has_a_file():
  assert PUBLISHED.keys() <= set(NAMES)
  assert {f"byt5_{size}" for size in ("large", "xl", "xxl")} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_parameter_count_is_the_stated_one(name, load):
  backbone = load(name, "SCAN_LAYERS = True")
  assert isinstance(backbone, Backbone) and backbone.config.scan_layers
  assert count(backbone) == stated(name) == PUBLISHED.get(name, stated(name))


@pytest.mark.parametrize("name", ["t5_1_0_small", "byt5_small", "gpt2"])
def test_switches_reach_the_config_and_leave_the_weights(name, load):
  backbone = load(name)
  plain = backbone.config
  defaults = (plain.dropout_rate, plain.dtype, plain.scan_layers, plain.remat_policy)
  assert defaults == (0.0, "float32", False, "none")
  assert count(backbone) == stated(name)
  changed = load(
    name,
    "DROPOUT_RATE = 0.1",
    "ACTIVATION_DTYPE = 'bfloat16'",
    "REMAT_POLICY = 'full'",
  ).config
  switches = (changed.dropout_rate, changed.dtype, changed.remat_policy)
  assert switches == (0.1, "bfloat16", "full")
  assert changed.to_json() == plain.to_json()


@pytest.mark.parametrize("name", NAMES)
def test_first_line_says_what_it_is(name):
  lines = (FOLDER / f"{name}.gin").read_text().splitlines()
  assert lines[0].startswith("# ") and lines[0].endswith(".")
  assert len(lines) < 40
