"""Steps of a few methods on meshes of 8 devices, against those of one device.

As a program it takes a folder and writes there what `test_sharding.py` reads. With
`--all` (and names of methods, or none for every one) it runs the whole grid instead,
with `--half` every mesh and rule but microbatches only where layers are scanned. It
prints a table and ends with 1 where a difference is above 1e-5:

  PYTHONPATH=. python tests/mesh_tools.py --all prompt_tuning ipt_mlp
"""

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import re
import sys
import tempfile
import time

import quick

if __name__ == "__main__":
  os.environ["JAX_PLATFORMS"] = "cpu"
  flags = "--xla_force_host_platform_device_count=8"
  flags += f" {quick.FLAGS}"
  os.environ["XLA_FLAGS"] = flags

import jax
import method_tools as tools
import numpy as np

from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.backbones.t5.stacking import stack_layers
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.engine import report, sharding
from prompt_tuning.engine.recipe import Recipe

# Four heads: a model axis of 8 cannot divide them, and leaves them whole.
CONFIG = T5Config(64, 16, 4, 4, 32, 2, 2)
ROWS = 16
MESHES = ((8, 1), (4, 2), (2, 4), (1, 8))


@dataclasses.dataclass(frozen=True)
class Setting:
  """One cell of the grid.

  Attributes:
    data, model: devices of these mesh axes; the replica axis takes the rest of 8.
    rules: file of gin/sharding/, or "replicated" (rules that divide rows alone).
    scan: scanned layers. microbatches: parts of a batch. trains: divide what trains.
    folded: read the encoder without keys and values, which such targets are long for.
  """

  data: int
  model: int
  rules: str
  scan: bool = False
  microbatches: int = 1
  trains: bool = False
  folded: bool = False

  def place(self) -> sharding.Placement:
    """The mesh of all devices and its rules."""
    rules = (("batch", ("replica", "data")),)
    if self.rules != "replicated":
      rules = tools.axis_rules(self.rules)
    replicas = 8 // (self.data * self.model)
    trains = rules if self.trains else ()
    return sharding.Sharding(self.model, None, replicas, rules, trains).over()


# A few cells, and with PROMPT_TUNING_THOROUGH every mesh; `--all` has the whole grid.
CHOSEN = {
  "prompt_tuning": [
    Setting(8, 1, "fully_sharded", scan=True, microbatches=2),
    Setting(2, 2, "fully_sharded", trains=True, folded=True),
  ],
}
if os.environ.get("PROMPT_TUNING_THOROUGH"):
  CHOSEN["prompt_tuning"] += [
    Setting(2, 4, "fully_sharded"),
    Setting(2, 2, "fully_sharded", scan=True, trains=True),
  ]
  CHOSEN["ipt_mlp"] = [
    Setting(2, 4, "model_parallel", scan=True),
    Setting(4, 2, "fully_sharded", scan=True, trains=True),
    Setting(1, 8, "model_parallel", scan=True, microbatches=2),
    Setting(8, 1, "replicated", scan=True),
  ]


def prepared(name: str, folder: str, scan: bool) -> tools.Case:
  """A method on a backbone of two layers a stack; the same weights in both forms."""
  plain = tools.case(name, folder)
  for table in pathlib.Path(folder).glob("*.npy"):
    # As long as this backbone's vocabulary is.
    shape = CONFIG.vocab_size, CONFIG.emb_dim
    np.save(table, np.random.default_rng(5).normal(size=shape))
  params = tools.random_params(T5(CONFIG).shapes())
  config = dataclasses.replace(CONFIG, scan_layers=scan, remat_policy="full")
  if scan:
    params = stack_layers(params, config)
  model = PromptedModel(T5(config), plain.method.prompt)
  drawn = tools.random_params(model.prompt_shapes(params), salt="prompt")
  whole = {"backbone": params, "prompt": drawn} if drawn else {"backbone": params}
  rows = tools.examples(count=ROWS)
  return tools.Case(plain.method, model, whole, rows)


def compared(outcome: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Loss and trained arrays of an outcome."""
  keys = [key for key in outcome if key == "loss" or key.startswith("trained/")]
  return {key: outcome[key] for key in keys}


def gathers(program: str) -> list[list[int]]:
  """Shapes that the all-gathers of a compiled program make."""
  found = re.findall(r"= \(?\w+\[([\d,]*)\][^=]*? all-gather", program)
  return [[int(n) for n in shape.split(",") if n] for shape in found]


def write(folder: str) -> None:
  """FOLDER/METHOD.json: difference and gathers of each setting, one device's loss."""
  for name, settings in CHOSEN.items():
    single = None
    found = []
    for setting in settings:
      case = prepared(name, folder, setting.scan)
      if single is None:
        alone = sharding.DEFAULT.over(jax.devices()[:1])
        single = compared(tools.take_steps(case, alone).last)
      place = setting.place()
      with tools.folding(True) if setting.folded else contextlib.nullcontext():
        taken = tools.take_steps(case, place, microbatches=setting.microbatches)
      found.append(
        {
          "setting": dataclasses.asdict(setting),
          "differences": _differences(compared(taken.last), single),
          "gathers": gathers(taken.program.as_text()),
          "info": _info(case, place, taken),
        }
      )
    text = json.dumps({"loss": float(single["loss"]), "settings": found})
    aside = pathlib.Path(folder, f"{name}.part")
    aside.write_text(text)
    aside.replace(pathlib.Path(folder, f"{name}.json"))


def _differences(left: dict, right: dict) -> dict[str, float]:
  assert set(left) == set(right)
  return {
    key: float(np.abs(left[key] - right[key]).max() / max(1, np.abs(right[key]).max()))
    for key in left
  }


def _info(case: tools.Case, place: sharding.Placement, taken: tools.Taken) -> str:
  recipe = Recipe(case.method.trainable, None, None, None)
  return report.info_text(case.model, case.params, recipe, None, place, taken.places)


def grid(names: list[str], half: bool) -> bool:
  """Prints the largest difference of every setting; whether all are small."""
  print("| method | mesh | rules | layers | microbatches | loss | trained | seconds |")
  print("|---|---|---|---|---|---|---|---|")
  sides = ("replicated", "model_parallel", "fully_sharded"), (False, True), (1, 2)
  largest = 0.0
  for name in names or tools.METHODS:
    with tempfile.TemporaryDirectory() as scratch:
      cases = {scan: prepared(name, scratch, scan) for scan in (False, True)}
    alone = sharding.DEFAULT.over(jax.devices()[:1])
    # Where the backbone trains, its two forms have other names: one reference each.
    single = {scan: tools.take_steps(cases[scan], alone).last for scan in cases}
    for (data, model), rules, scan, parts in itertools.product(MESHES, *sides):
      if half and scan != (parts > 1):
        continue
      start = time.monotonic()
      setting = Setting(data, model, rules, scan, parts, trains=rules != "replicated")
      taken = tools.take_steps(cases[scan], setting.place(), microbatches=parts)
      found = _differences(compared(taken.last), compared(single[scan]))
      largest = max(largest, *found.values())
      loss = found.pop("loss")
      layers = "scanned" if scan else "unrolled"
      cells = (name, f"{data}x{model}", rules, layers, parts)
      seconds = time.monotonic() - start
      numbers = f"{loss:.1e} | {max(found.values()):.1e} | {seconds:.0f}"
      print(f"| {' | '.join(map(str, cells))} | {numbers} |", flush=True)
  print(f"largest difference: {largest:.1e}")
  return largest <= 1e-5


if __name__ == "__main__":
  if sys.argv[1] in ("--all", "--half"):
    sys.exit(not grid(sys.argv[2:], sys.argv[1] == "--half"))
  else:
    write(sys.argv[1])
