"""Writes a trained prompt for other libraries.

  python -m prompt_tuning.export --to=numpy --prompt=runs/x/prompt --output=x.npy
  python -m prompt_tuning.export --to=peft --prompt=runs/x/prompt --output=adapter
  python -m prompt_tuning.export --to=t5x --prompt=runs/x/prompt --output=model
  python -m prompt_tuning.export --to=huggingface --checkpoint=mini --output=model

`huggingface` writes a backbone, and `t5x` (`t5x_orbax` for the newer of its formats) a
backbone with the prompt in its branch, or without `--prompt` the backbone alone.
`--checkpoint` names another backbone than the one in the prompt's card.
"""

import argparse
import sys
from collections.abc import Sequence

from prompt_tuning.interop import huggingface, prompts, t5x
from prompt_tuning.interop.load import load

T5X = {"t5x": t5x.write_legacy, "t5x_orbax": t5x.write_orbax}
FORMATS = ("numpy", "peft", *T5X, "huggingface")


def export(
  to: str, output: str, prompt: str | None = None, checkpoint: str | None = None
) -> None:
  """Writes `output`, whole or not at all.

  Args:
    to: one of `FORMATS`. output: file (numpy) or folder.
    prompt: folder of the prompt; see `interop.prompts.load` for what else it may be.
    checkpoint: backbone; None for the one in the prompt's card.

  Raises:
    ValueError: if the format cannot hold the prompt, or an argument is missing.
  """
  if to not in FORMATS:
    raise ValueError(f"`to` must be one of {FORMATS}, got {to!r}.")
  if to == "huggingface" or (to in T5X and prompt is None):
    if checkpoint is None:
      raise ValueError("`checkpoint` is missing; give the backbone to write.")
    loaded = load(checkpoint)
    if to in T5X:
      T5X[to](output, loaded.backbone, loaded.params)
      return
    huggingface.write(output, loaded.backbone, loaded.params, loaded.vocabulary_path)
    return
  if prompt is None:
    raise ValueError("`prompt` is missing; give the folder of a trained prompt.")
  made = prompts.load(prompt)
  if to == "numpy":
    prompts.write_numpy(output, made)
  elif to == "peft":
    prompts.write_peft(output, made, checkpoint)
  else:
    prompts.fold(made)
    name = checkpoint or made.card["backbone"].get("name")
    if name is None:
      raise ValueError("The prompt names no backbone; give `checkpoint`.")
    loaded = load(name)
    made.check(loaded.fingerprint, loaded.backbone.spec.width)
    prompts.write_t5x(output, made, loaded.backbone, loaded.params, T5X[to])


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
    prog="python -m prompt_tuning.export", description=__doc__.splitlines()[0]
  )
  parser.add_argument("--to", required=True, choices=FORMATS)
  parser.add_argument("--output", required=True)
  parser.add_argument("--prompt")
  parser.add_argument("--checkpoint")
  args = parser.parse_args(argv)
  try:
    export(args.to, args.output, args.prompt, args.checkpoint)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(1) from error
  print(f"{args.to}: {args.output}")


if __name__ == "__main__":
  main()
