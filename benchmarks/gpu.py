"""T5 1.1 XL in bfloat16 on one card: how much of the card a prompt step uses.

  python benchmarks/gpu.py [--small] [--peft_python=PATH] [--json=FILE]

Inputs of 512 tokens behind a prompt of 100. `mfu`: operations of the model (4 N per
encoder token plus attention; of the decoder only its keys and values of each of them)
a second, over those of a large bfloat16 product in the same run. Targets as short as
these read the encoder without such keys and values: `mfu_encoder` leaves them out.
Then PEFT's step in turns with ours, and XXL: a step, and what the card held at the
most. `--small` shrinks everything for a CPU.
"""

import dataclasses
import gc
from typing import Any

import arithmetic
import jax
import ours
import theirs
import timing

XL = {
  "width": 2048,
  "heads": 32,
  "ff": 5120,
  "encoder_layers": 24,
  "decoder_layers": 24,
  "batch": 16,
  "inputs": 512,
  "prompt": 100,
  "dropout": 0.0,
  "dtype": "bfloat16",
  "scan": True,
}
# T5 1.1 XXL, where it differs from XL.
XXL = {"width": 4096, "heads": 64, "ff": 10240}
SMALL = {
  "width": 64,
  "heads": 2,
  "ff": 128,
  "vocabulary": 512,
  "encoder_layers": 2,
  "decoder_layers": 2,
  "batch": 2,
  "inputs": 32,
  "prompt": 8,
}
SMALL_XXL = {"width": 128, "heads": 4, "ff": 256}


def peak_bytes() -> int | None:
  """Bytes that the card held at the most so far; None on a CPU."""
  return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def row(model: str, side: str, shape: ours.Sizes, times: Any, found: Any) -> dict:
  """One line of the table."""
  length = shape.inputs + shape.prompt
  alone = dataclasses.replace(shape, decoder_layers=0)
  rate, least = (
    arithmetic.encoder(one, shape.batch, length).prompt_step / times.median
    for one in (shape, alone)
  )
  return {
    "model": model,
    "side": side,
    "ms": times.ms,
    "spread": times.spread,
    "encoder_tokens_s": shape.batch * length / times.median,
    "model_tflops": rate / 1e12,
    "mfu": rate / found.peak if found.peak else None,
    "mfu_encoder": least / found.peak if found.peak else None,
  }


def xl(shape: ours.Sizes, args: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """Ours and, where it is installed, PEFT's step of the same shape."""
  training = ours.build("prompt_tuning", shape, shape.params())
  sides: dict[str, Any] = {"ours": training}
  with theirs.optional(args.peft_python, args.their_pages) as peft:
    if peft:
      batch = shape.ids()
      sides["peft"] = peft.train("peft", shape, [batch], compile=args.peft_compile)
    found = timing.measure(sides, args)
    peft_bytes = peft.peak() if peft else None
  rows = [row("XL", name, shape, times, found) for name, times in found.times.items()]
  single = {
    "peak_tflops": found.peak and found.peak / 1e12,
    "mfu": rows[0]["mfu"],
    "ratio": None,
    "temporaries_gb": training.temporaries / 1e9,
    "xl_peak_gb": _gb(peak_bytes()),
    "peft_peak_gb": _gb(peft_bytes),
  }
  if "peft" in found.times:
    single["ratio"] = found.times["ours"].median / found.times["peft"].median
  return rows, single


def xxl(shape: ours.Sizes, args: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """Steps of XXL, and what the card held at the most."""
  training = ours.build("prompt_tuning", shape, shape.params())
  found = timing.measure({"ours": training}, args)
  rows = [row("XXL", "ours", shape, found.times["ours"], found)]
  held = {"xxl_mfu": rows[0]["mfu"], "xxl_peak_gb": _gb(peak_bytes())}
  return rows, held | {"xxl_temporaries_gb": training.temporaries / 1e9}


def _gb(count: int | None) -> float | None:
  return None if count is None else count / 1e9


def main(argv: list[str] | None = None) -> dict[str, Any]:
  parser = timing.flags(__doc__, rounds=10, size=8192)
  ours.add_flags(parser, **XL)
  theirs.add_flags(parser)
  parser.add_argument("--small", action="store_true", help="toy sizes")
  parser.add_argument("--xxl", action=timing.SWITCH, default=True)
  parser.add_argument("--xxl_batch", type=int, default=2)
  parser.add_argument("--xxl_remat", default="full")
  args = parser.parse_args(argv)
  if args.small:
    args.product = min(args.product, 256)
    args.__dict__.update(SMALL)
  shape = ours.sizes(args)
  rows, single = xl(shape, args)
  if args.xxl:
    gc.collect()
    bigger = SMALL_XXL if args.small else XXL
    changes = bigger | {"batch": args.xxl_batch, "remat": args.xxl_remat}
    more, held = xxl(dataclasses.replace(shape, **changes), args)
    rows, single = rows + more, single | held
  return timing.finish(args, rows, single)


if __name__ == "__main__":
  main()
