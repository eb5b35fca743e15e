"""Peak memory while a checkpoint of the shape of T5 1.1 XL is read.

  python benchmarks/read_memory.py [--layers=24] [--format=hugging_face] [--scan]
    [--stored=bfloat16] [--weights_dtype=bfloat16] [--folder=DIR]

Writes a checkpoint of repeated numbers (kept in --folder, if given), reads it in a
process of its own, and prints that process's peak resident size beside what it keeps
and the largest array. The peak above the process's size before reading must stay under
the sum of the two.
"""

import argparse
import dataclasses
import json
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from prompt_tuning.backbones.t5.backbone import T5
from prompt_tuning.backbones.t5.config import T5Config
from prompt_tuning.core.trainable import flatten
from prompt_tuning.interop import huggingface, source, t5x
from prompt_tuning.interop.load import open_source

# Width, heads and feed-forward of T5 1.1 XL; --layers counts each stack.
XL = T5Config(32128, 2048, 32, 64, 5120, 24, 24)
MIB = 1 << 20


def repeated(config: T5Config, dtype: str) -> dict:
  """Weights whose rows are all the same, which take no memory."""
  rng = np.random.default_rng(0)

  def one(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    row = rng.normal(size=leaf.shape[-1]).astype(jax.numpy.dtype(dtype))
    return np.broadcast_to(row, leaf.shape)

  return jax.tree.map(one, T5(config).shapes())


def write(folder: pathlib.Path, kind: str, config: T5Config, dtype: str) -> None:
  params = repeated(config, dtype)
  if kind == "hugging_face":
    huggingface.write(folder, T5(config), params, shard_bytes=1 << 30)
  elif kind == "t5x":
    t5x.write_legacy(folder, T5(config), params)
  else:
    t5x.write_orbax(folder, T5(config), params)


def resident(field: str) -> int:
  """Bytes of this process: VmHWM is the most so far, VmRSS what it is now."""
  try:
    text = pathlib.Path("/proc/self/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith(field))
    return int(line.split()[1]) << 10
  except (OSError, StopIteration):
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def read(folder: str, scan: bool, weights_dtype: str | None) -> None:
  """What the child does."""
  opened = open_source(pathlib.Path(folder))
  backbone = T5(dataclasses.replace(opened.config, scan_layers=scan))
  jax.block_until_ready(jax.numpy.zeros(1))
  before, start = resident("VmRSS"), time.monotonic()
  _, params = source.load(opened, backbone, dtype=weights_dtype)
  seconds = time.monotonic() - start
  sizes = {name: leaf.nbytes for name, leaf in flatten(params).items()}
  found = {
    "before": before,
    "peak": resident("VmHWM"),
    "kept": sum(sizes.values()),
    "largest": max(sizes.values()),
    "seconds": seconds,
    "sum": float(jax.numpy.sum(params["encoder"]["encoder_norm"]["scale"])),
  }
  print(json.dumps(found))


def measured(args: argparse.Namespace, folder: str) -> tuple[dict, str | None]:
  """What the child says of itself, and what `time -v` says of it."""
  command = [sys.executable, __file__, "--child", f"--folder={folder}"]
  command += ["--scan"] * args.scan
  if args.weights_dtype:
    command.append(f"--weights_dtype={args.weights_dtype}")
  timer = shutil.which("time")
  done = subprocess.run(
    [timer, "-v", *command] if timer else command,
    capture_output=True,
    text=True,
    check=True,
  )
  lines = [line for line in done.stderr.splitlines() if "Maximum resident" in line]
  found = json.loads(done.stdout.splitlines()[-1])
  return found, lines[0].strip() if lines else None


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--layers", type=int, default=24)
  parser.add_argument(
    "--format", default="hugging_face", choices=("hugging_face", "t5x", "orbax")
  )
  parser.add_argument("--stored", default="bfloat16")
  parser.add_argument("--weights_dtype")
  parser.add_argument("--scan", action="store_true")
  parser.add_argument("--folder")
  parser.add_argument("--child", action="store_true")
  args = parser.parse_args()
  if args.child:
    read(args.folder, args.scan, args.weights_dtype)
    return
  config = dataclasses.replace(
    XL, num_encoder_layers=args.layers, num_decoder_layers=args.layers
  )
  with tempfile.TemporaryDirectory() as aside:
    folder = pathlib.Path(args.folder or aside) / args.format
    if not folder.exists():
      write(folder, args.format, config, args.stored)
    on_disk = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    found, timed = measured(args, str(folder))
  used, room = found["peak"] - found["before"], found["kept"] + found["largest"]
  rows = {
    "files": on_disk,
    "kept": found["kept"],
    "largest array": found["largest"],
    "process before reading": found["before"],
    "process at its peak": found["peak"],
    "peak above before": used,
    "kept + largest": room,
  }
  for name, value in rows.items():
    print(f"{name:24s} {value / MIB:10,.0f} MiB")
  print(f"{'seconds':24s} {found['seconds']:10.1f}")
  if timed:
    print(timed)
  print("within bounds" if used <= room else "ABOVE BOUNDS")
  raise SystemExit(used > room)


if __name__ == "__main__":
  main()
