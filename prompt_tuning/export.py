"""Writes a trained prompt for other libraries.

  python -m prompt_tuning.export --to=numpy --prompt=runs/x/prompt --output=x.npy
  python -m prompt_tuning.export --to=peft --prompt=runs/x/prompt --output=adapter
  python -m prompt_tuning.export --to=t5x --prompt=runs/x/prompt --output=model
  python -m prompt_tuning.export --to=huggingface --checkpoint=mini --output=model
  python -m prompt_tuning.export --to=stablehlo --prompt=runs/x/prompt \\
    --output=artifact --platforms=cpu,cuda,tpu --labels negative positive
  python -m prompt_tuning.export --to=savedmodel --prompt=runs/x/prompt --output=model

`huggingface` writes a backbone, and `t5x` (`t5x_orbax` for the newer of its formats) a
backbone with the prompt in its branch, or without `--prompt` the backbone alone;
`stablehlo` (which `interop.serving` loads) and `savedmodel` write backbone and prompt,
whatever its kind, as programs that answer. `--checkpoint` names another backbone than
the one in the prompt's card.
"""

if __name__ == "__main__":
  # Before anything slow is imported.
  from prompt_tuning.engine import early
  from prompt_tuning.terminal import usage

  usage.show("export")
  early.begin()

import os
import sys
from collections.abc import Sequence
from typing import Any

from prompt_tuning import answer, api
from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.core import files, folders
from prompt_tuning.engine import ended
from prompt_tuning.engine.flags import Parser
from prompt_tuning.engine.product import Product
from prompt_tuning.interop import (
  huggingface,
  one_task,
  peft,
  prompts,
  savedmodel,
  serving_export,
  serving_programs,
  serving_settings,
  t5x,
)
from prompt_tuning.interop.load import load

T5X = {"t5x": t5x.write_legacy, "t5x_orbax": t5x.write_orbax}
SERVING = {"stablehlo": serving_export.write, "savedmodel": savedmodel.write}
FORMATS = ("numpy", "peft", *T5X, "huggingface", *SERVING)
NUMPY = b"\x93NUMPY"
# What is written into the folder itself whatever is exported, and which of it is ours.
FOLDERS = {
  "peft": (folders.listed, (peft.CONFIG, peft.WEIGHTS)),
  "huggingface": (folders.listed, ("config.json",)),
  "stablehlo": (serving_export.owned, serving_export.ALWAYS),
  "savedmodel": (folders.listed, savedmodel.ALWAYS),
}


def export(
  to: str,
  output: str,
  prompt: str | None = None,
  checkpoint: str | None = None,
  dtype: str | None = None,
  vocabulary: Any = None,
  task: Any = None,
  **settings: Any,
) -> None:
  """Writes `output`, whole or not at all.

  Args:
    to: one of `FORMATS`. output: file (numpy) or folder. What this library wrote
      there before is replaced, what else a folder holds stays.
    prompt: folder of the prompt; see `interop.prompts.load` for what else it may be.
    checkpoint: backbone; None for the one in the prompt's card.
    dtype: of activations when served; see `api.load_model`.
    vocabulary: of the backbone, as in `api.load_model`.
    task: of a prompt that tells tasks apart, the one (by number or name) whose prompt
      is written alone, as fixed vectors.
    **settings: of what is served; see `interop.serving_settings.Settings`.

  Raises:
    ValueError: if the format cannot hold the prompt, or an argument is missing or makes
      no sense.
  """
  if to not in FORMATS:
    raise ValueError(f"`to` must be one of {FORMATS}, got {to!r}.")
  if to not in SERVING and (settings or dtype):
    given = sorted([*settings, *(["dtype"] if dtype else [])])
    raise ValueError(f"{given} belong to {list(SERVING)}, not to {to!r}.")
  if prompt is not None and _same_folder(output, prompt):
    raise ValueError(
      f"`output` is {output!r}, the folder of the prompt that is read. Name another."
    )
  _check_output(to, output)
  if to == "huggingface" or (to in T5X and prompt is None):
    if checkpoint is None:
      raise ValueError("`checkpoint` is missing; give the backbone to write.")
    loaded = load(checkpoint, None, vocabulary)
    _check_family(to, loaded.backbone)
    if to in T5X:
      T5X[to](output, loaded.backbone, loaded.params)
      return
    huggingface.write(output, loaded.backbone, loaded.params, loaded.vocabulary_path)
    return
  if prompt is None and task is not None:
    raise ValueError(f"`task` is {task!r}, of a `prompt` that is missing.")
  if prompt is None:
    raise ValueError("`prompt` is missing; give the folder of a trained prompt.")
  if vocabulary is not None and to in ("numpy", "peft"):
    raise ValueError(f"`vocabulary` is {vocabulary!r}, but {to!r} writes none.")
  chosen = serving_settings.Settings(**settings)
  made = prompts.load(prompt)
  if task is not None:
    made = one_task.of_task(made, task)
  if to == "numpy":
    prompts.write_numpy(output, made)
  elif to == "peft":
    prompts.write_peft(output, made, checkpoint)
  elif to in T5X:
    prompts.fold(made)
    loaded = load(_backbone(made, checkpoint), None, vocabulary)
    _check_family(to, loaded.backbone)
    made.check(loaded.fingerprint, loaded.backbone.spec.width)
    prompts.write_t5x(output, made, loaded.backbone, loaded.params, T5X[to])
  else:
    place = _backbone(made, checkpoint)
    loaded = api.load_model(place, dtype, vocabulary=vocabulary).loaded
    ready = answer.session(loaded, made)
    SERVING[to](output, serving_programs.servable(ready, chosen))


def _check_family(to: str, backbone: Any) -> None:
  if backbone.family != T5.family:
    raise ValueError(
      f"`to` is {to!r}, which holds backbones of the family {T5.family}; this one is "
      f"of the family {backbone.family}. Serve it with stablehlo."
    )


def _same_folder(one: str, other: str) -> bool:
  if files.is_remote(one) or files.is_remote(other):
    return one.rstrip("/") == other.rstrip("/")
  return os.path.isdir(one) and os.path.realpath(one) == os.path.realpath(other)


def _check_output(to: str, output: str) -> None:
  """Refuses a place that cannot be written before a model of any size is read."""
  if to != "numpy":
    folders.check(output, *FOLDERS.get(to, ()))
    return
  folders.check(files.at(output).parent)
  files.check_replaceable(output, lambda there: files.head(there, 6) == NUMPY)


def _backbone(made: Product, checkpoint: str | None) -> str:
  return checkpoint or made.backbone


def main(argv: Sequence[str] | None = None) -> None:
  parser = Parser(
    prog="python -m prompt_tuning.export", description=__doc__.splitlines()[0]
  )
  parser.add_argument("--to", required=True, choices=FORMATS)
  parser.add_argument("--output", required=True)
  parser.add_argument("--prompt")
  parser.add_argument("--checkpoint")
  parser.add_argument(
    "--vocabulary", help="tokeniser, where none is beside the backbone"
  )
  parser.add_argument("--task", help="of many: the one whose prompt is written alone")
  served = parser.add_argument_group("what is served (stablehlo, savedmodel)")
  served.add_argument("--platforms", type=lambda text: text.split(","))
  served.add_argument("--steps", type=int, help="tokens to write at most")
  served.add_argument("--beams", type=int, help="1 (default) is greedy")
  served.add_argument("--alpha", type=float, help="of the beams' length penalty")
  served.add_argument("--length_penalty", choices=("brevity", "power"))
  served.add_argument("--labels", nargs="+", help="default: those of the prompt's task")
  served.add_argument("--normalize_by_length", action="store_true", default=None)
  served.add_argument("--dtype", choices=("float32", "bfloat16"), help="of activations")
  args = parser.parse_args(argv)
  given = {name: value for name, value in vars(args).items() if value is not None}
  try:
    with ended.in_one_line():
      export(**given)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2) from error
  print(f"{args.to}: {args.output}")


if __name__ == "__main__":
  with ended.at_once():
    main()
