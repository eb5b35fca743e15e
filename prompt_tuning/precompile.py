"""Compiles a recipe's steps for a TPU topology on a machine without TPUs.

  python -m prompt_tuning.precompile --gin_file=configs/pod/xxl_prompt_tuning.gin \\
    --topology=v5e:8x8 [--json=FILE] [--search] [--programs=train,eval,decode]
    [--model_info=FILE]

Prints bytes a chip, FLOPs, collectives, the roofline step time and what bounds it, and
whether it fits; where it does not, the nearest setting that does. `--search` tries mesh
shapes, remat policies and microbatches, and ranks them. Needs the extra `tpu`.
"""

if __name__ == "__main__":
  # Before anything slow is imported.
  from prompt_tuning.engine import early
  from prompt_tuning.terminal import usage

  usage.show("precompile")
  early.begin()

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import jax

from prompt_tuning.core import files
from prompt_tuning.core.model import PromptedModel
from prompt_tuning.engine import budget, chips, codes, config, ended, sharding
from prompt_tuning.engine.abstract import PROGRAMS, Job
from prompt_tuning.engine.recipe import Recipe
from prompt_tuning.engine.report import info_text
from prompt_tuning.interop.load import load
from prompt_tuning.objectives.objective import teachers
from prompt_tuning.outputs import output as outputs

WANTED = "BACKBONE INITIAL_CHECKPOINT_PATH PROMPT HEAD RECIPE READING OUTPUT"
# Its own flags, beside those of every verb.
FLAGS = ("--topology", "--search", "--json", "--programs", "--model_info")


# How a report and a list of arrays begin, by which one that may be replaced is known.
JSON, INFO = files.begins(b'{\n  "topology"'), files.begins(b"parameters ")


@dataclasses.dataclass(frozen=True)
class Flags:
  """Attributes:
  topology: such as "v5e:8x8". json: file for the report, or None.
  model_info: file for every array's shape, sharding and bytes a device, or None.
  search: whether to try other settings. programs: which steps to compile.
  """

  topology: str
  json: str | None = None
  model_info: str | None = None
  search: bool = False
  programs: tuple[str, ...] = PROGRAMS


def split_flags(argv: Sequence[str]) -> tuple[Flags, list[str]]:
  """(own flags, those of the configuration).

  Raises:
    ValueError: without a topology, or for a program that there is none of.
  """
  own: dict[str, Any] = {}
  rest = []
  arguments = list(argv)
  while arguments:
    flag = arguments.pop(0)
    name, equals, value = flag.partition("=")
    if name == "--search" and not equals:
      own["search"] = True
    elif name in FLAGS and name != "--search":
      if not equals and arguments:
        value = arguments.pop(0)
      if not value:
        raise ValueError(f"`{name}` needs a value: {name}=VALUE.")
      own[name[2:]] = value
    else:
      rest.append(flag)
  if "topology" not in own:
    raise ValueError("`--topology` is missing; give one such as v5e:8x8 or cpu:8.")
  if "programs" in own:
    own["programs"] = tuple(own["programs"].split(","))
    unknown = sorted(set(own["programs"]) - set(PROGRAMS))
    if unknown:
      raise ValueError(f"`--programs` names {unknown}; there are {PROGRAMS}.")
  return Flags(**own), rest


def job(place: sharding.Placement | None, devices: Sequence[Any]) -> Job:
  """What the parsed configuration says, on these devices.

  Raises:
    ValueError: if it names no architecture, does not fit the mesh, or asks for what
      only data can tell.
  """
  if config.is_phased():
    raise ValueError(
      "`PROCEDURE` names phases, which may train different things. Add "
      "--gin.PROCEDURE=None to compile the step of the run itself."
    )
  macros = config.macros(WANTED)
  backbone = macros["BACKBONE"]
  if backbone is None:
    if macros["INITIAL_CHECKPOINT_PATH"] is None:
      raise ValueError(
        "The configuration names no architecture; include a file of gin/backbones/."
      )
    backbone = load(macros["INITIAL_CHECKPOINT_PATH"]).backbone
  recipe = macros["RECIPE"]
  check_honoured(recipe)
  backbone = backbone.recast(dropout_rate=recipe.dropout_rate)
  segments, head = recipe.pack_segments, macros["HEAD"]
  model = PromptedModel(backbone, macros["PROMPT"], segments, head=head)
  layout = macros["READING"].layout(model)
  if recipe.cache_codes:
    codes.check(model, recipe.trainable, False)
  labels = config.macro("LABELS") if "LABELS" in config.names() else None
  place = recipe.sharding.over(devices) if place is None else place
  output = macros["OUTPUT"] or outputs.writing(None, None, layout.targets)
  found = Job(model, layout, recipe, output, len(labels or (0, 1)), place)
  found.check()
  return found


def check_honoured(recipe: Recipe) -> None:
  """Raises ValueError for what cannot be known from shapes alone, by name."""
  if recipe.buckets != 1:
    raise ValueError(
      f"`BUCKETS` is {recipe.buckets}, but lengths of buckets follow from the data, "
      "which precompile does not read. Add --gin.BUCKETS=1 to compile the longest."
    )
  if teachers(recipe.objective):
    raise ValueError(
      f"`OBJECTIVE` learns from {sorted(teachers(recipe.objective))}, prompts that "
      "precompile does not read. Compile the run without them: leave the objective of "
      "gin/objectives/distil.gin out."
    )


def report(flags: Flags, recipe_flags: Sequence[str]) -> dict[str, Any]:
  """Compiles what was asked for; the report as plain data."""
  # What takes minutes shall not end at a file that is not ours to replace.
  for path, ours in ((flags.json, JSON), (flags.model_info, INFO)):
    if path:
      files.check_replaceable(path, ours)
  config.parse_flags(recipe_flags, "prompt_tuning.precompile", False, FLAGS)
  chip, devices = chips.topology(flags.topology)
  asked = job(None, devices)
  if flags.model_info:
    recipe = asked.recipe, asked.transform, asked.place, asked.places
    text = info_text(asked.model, asked.params, *recipe)
    files.write_text(flags.model_info, text, INFO)
  found = budget.measure(asked, chip, flags.programs)
  found = {"topology": flags.topology, "chips": len(devices), **found}
  if flags.search:
    found["search"] = budget.search(asked, chip, devices, _say)
  elif not found["fits"]:
    found["nearest"] = budget.nearest(asked, chip, devices, flags.programs, _say)
  return found


def _say(line: str) -> None:
  # Each try takes as long as a compile, so whoever waits sees them come.
  print(f"tried {line.strip()}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
  argv = sys.argv[1:] if argv is None else list(argv)
  if not argv or {"-h", "--help"} & set(argv):
    print(__doc__)
    raise SystemExit(0 if argv else 2)
  try:
    flags, rest = split_flags(argv)
    # Weights and batches stay shapes: no accelerator of this machine is touched.
    jax.config.update("jax_platforms", "cpu")
    with ended.in_one_line("No report was written."):
      found = report(flags, rest)
  except (ValueError, OSError) as error:
    print(f"error: {config.one_line(error)}", file=sys.stderr)
    raise SystemExit(2) from error
  print(budget.table(found))
  if flags.json:
    text = json.dumps(found, indent=2) + "\n"
    files.write_text(flags.json, text, JSON)
    print(f"report: {flags.json}")


if __name__ == "__main__":
  with ended.at_once():
    main()
