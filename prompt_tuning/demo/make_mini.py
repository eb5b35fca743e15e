"""Writes the embedded mini T5 from a pre-training run, in bfloat16.

  python -m prompt_tuning.demo.make_mini --run=runs/mini \\
    --vocabulary=prompt_tuning/demo/mini/spiece.model --output=prompt_tuning/demo/mini
"""

import argparse
import pathlib

import jax.numpy as jnp

from prompt_tuning.backbones.t5 import files
from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.engine import product


def make(run: pathlib.Path, vocabulary: pathlib.Path, output: pathlib.Path) -> None:
  """Replaces the weights and the configuration in `output`; other files stay."""
  made = product.load(run)
  config = T5Config(**made.card["backbone"]["architecture"])
  aside = output.parent / f".{output.name}.new"
  weights = made.trainable["backbone"]
  files.save(aside, T5(config), weights, vocabulary, jnp.bfloat16)
  output.mkdir(parents=True, exist_ok=True)
  for file in aside.iterdir():
    file.replace(output / file.name)
  aside.rmdir()
  print(f"step {made.card['step']}: {made.card['scores']}")
  size = (output / "model.safetensors").stat().st_size
  print(f"{output / 'model.safetensors'}: {size / 2**20:.1f} MiB")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--run", type=pathlib.Path, required=True)
  parser.add_argument("--vocabulary", type=pathlib.Path, required=True)
  parser.add_argument("--output", type=pathlib.Path, required=True)
  args = parser.parse_args()
  make(args.run, args.vocabulary, args.output)


if __name__ == "__main__":
  main()
