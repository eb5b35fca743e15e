"""What a job's programs need of a chip: memory, time, and what would fit instead."""

import dataclasses
import itertools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from prompt_tuning.core import trainable as branches
from prompt_tuning.engine import hlo, sharding
from prompt_tuning.engine.abstract import Job
from prompt_tuning.engine.chips import GIB, Chip

REMATS = ("none", "dots", "full")


def measure(job: Job, chip: Chip, programs: Sequence[str]) -> dict[str, Any]:
  """Compiles programs; what each needs, and what all of them need together.

  `flops` are those of matrix products of a whole training step over all chips (of the
  first program asked for, where that is another).
  """
  found = {name: program(job, chip, name) for name in programs}
  first = found[programs[0]]
  trains, _ = branches.split(job.params, job.trainable)
  return {
    "fits": all(one["fits"] for one in found.values()),
    "bytes_per_chip": max(one["bytes_per_chip"] for one in found.values()),
    "chip_bytes": chip.memory,
    "flops": first["flops"],
    "compile_seconds": first["compile_seconds"],
    "parameters": branches.count(job.params),
    "trained": branches.count(trains),
    "setting": setting(job),
    "weights": weights(job),
    "programs": found,
  }


def setting(job: Job) -> dict[str, Any]:
  """What a search may change, and the sizes that go with it."""
  config = getattr(job.model.backbone, "config", None)
  return {
    "mesh": job.place.describe(),
    "num_partitions": job.recipe.sharding.model_size,
    "batch_size": job.recipe.batch_size,
    "microbatches": job.recipe.microbatches,
    "remat_policy": getattr(config, "remat_policy", "none"),
    "scan_layers": getattr(config, "scan_layers", False),
    "lengths": job.layout.lengths["inputs"],
  }


def weights(job: Job) -> dict[str, int]:
  """Bytes on one chip of what lives there between steps."""
  trains, frozen = branches.split(job.params, job.trainable)

  def held(tree: Any, places: Any) -> int:
    sizes = jax.tree.map(sharding.bytes_per_device, tree, places)
    return sum(jax.tree.leaves(sizes))

  slots = jax.eval_shape(job.transform.init, trains)
  return {
    "frozen": held(frozen, job.places.frozen),
    "trained": held(trains, job.places.trainable),
    "optimiser": held(slots, job.places.state.optimizer),
  }


def program(job: Job, chip: Chip, name: str) -> dict[str, Any]:
  """Compiles one program and reads what it costs."""
  start = time.monotonic()
  try:
    compiled = job.lower(name).compile()
  except jax.errors.JaxRuntimeError as error:
    return _too_large(error, chip, time.monotonic() - start)
  seconds = time.monotonic() - start
  memory = compiled.memory_analysis()
  arguments = memory.argument_size_in_bytes - memory.alias_size_in_bytes
  size = arguments + memory.output_size_in_bytes + memory.temp_size_in_bytes
  size += memory.generated_code_size_in_bytes
  steps = getattr(job.output, "steps", 1)
  done = hlo.work(compiled.as_text(), unknown=steps)
  times = {
    "compute": done.flops / chip.flops,
    "memory": done.bytes / chip.bandwidth,
    "links": done.sent / chip.links,
  }
  return {
    "fits": size <= chip.memory,
    "bytes_per_chip": size,
    "arguments": memory.argument_size_in_bytes,
    "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
    "temporaries": memory.temp_size_in_bytes,
    "activations_kept": done.kept,
    "flops": done.flops * job.place.size,
    "flops_per_chip": done.flops,
    "bytes_moved_per_chip": done.bytes,
    "collectives": {
      kind: {"count": count, "bytes": made, "sent": sent}
      for kind, (count, made, sent) in sorted(done.collectives.items())
    },
    "largest_all_gather": done.gathered,
    "compile_seconds": round(seconds, 1),
    "roofline_seconds": times,
    "step_seconds": max(times.values()),
    "bound_by": max(times, key=times.get),
  }


def _too_large(error: Exception, chip: Chip, seconds: float) -> dict[str, Any]:
  text = str(error)
  # libtpu has two ways of saying so; the second counts temporaries alone.
  used = re.search(r"(?:Used |temporaries \()([\d.]+)([MGT])\b", text)
  if "RESOURCE_EXHAUSTED" not in text or used is None:
    raise ValueError(f"The compiler refused the program: {text[:2000]}") from error
  unit = {"M": 2**20, "G": GIB, "T": 2**40}[used.group(2)]
  return {
    "fits": False,
    "bytes_per_chip": int(float(used.group(1)) * unit),
    "flops": 0,
    "compile_seconds": round(seconds, 1),
  }


def changed(job: Job, devices: Any, partitions: int, remat: str, parts: int) -> Job:
  """The same job with another mesh, remat policy and number of microbatches.

  Raises:
    ValueError: if batches do not divide by them.
  """
  config = dataclasses.replace(job.model.backbone.config, remat_policy=remat)
  backbone = dataclasses.replace(job.model.backbone, config=config)
  own = dataclasses.replace(
    job.recipe.sharding, num_partitions=partitions, model_parallel_submesh=None
  )
  recipe = dataclasses.replace(job.recipe, microbatches=parts, sharding=own)
  model = dataclasses.replace(job.model, backbone=backbone)
  found = dataclasses.replace(job, model=model, recipe=recipe, place=own.over(devices))
  found.check()
  return found


def candidates(job: Job, devices: Any) -> Iterator[Job]:
  """Other settings, those that change least first."""
  own = job.recipe.sharding.model_size
  remat = job.model.backbone.config.remat_policy
  parts = job.recipe.microbatches
  steps = [
    (abs(a) + b + abs(c), a, b, c)
    for a in (0, 1, 2, 3, -1, -2, -3)
    for b in range(len(REMATS))
    for c in (0, 1, 2, -1)
  ]
  for _, a, b, c in sorted(steps):
    policy = REMATS[(REMATS.index(remat) + b) % len(REMATS)]
    partitions, micro = own * 2**a, parts * 2**c
    if (a, b, c) == (0, 0, 0) or partitions < 1 or micro < 1:
      continue
    if partitions != int(partitions) or micro != int(micro):
      continue
    try:
      yield changed(job, devices, int(partitions), policy, int(micro))
    except ValueError:
      continue


def nearest(
  job: Job,
  chip: Chip,
  devices: Any,
  programs: Sequence[str],
  say: Callable[[str], None],
  tries: int = 8,
) -> dict[str, Any] | None:
  """The nearest setting that fits, or None if none of the nearest few does.

  Each compiles for as long as the job itself does; `say` hears of them one by one.
  """
  for other in itertools.islice(candidates(job, devices), tries):
    found = measure(other, chip, programs)
    say(_tried({**found["setting"], **found}))
    if found["fits"]:
      return found
  return None


def search(
  job: Job, chip: Chip, devices: Any, say: Callable[[str], None], tries: int = 12
) -> list[dict[str, Any]]:
  """Training steps of several settings: those that fit first, the quickest in front."""
  rows = []
  for other in itertools.islice(
    itertools.chain([job], candidates(job, devices)), tries
  ):
    rows.append({**setting(other), **program(other, chip, "train")})
    say(_tried(rows[-1]))
  return sorted(rows, key=lambda row: (not row["fits"], row.get("step_seconds", 0)))


def table(found: dict[str, Any]) -> str:
  """A report to read."""
  lines = [
    f"{found['topology']}: {found['chips']} chips, {found['setting']['mesh']}",
    f"parameters {found['parameters']:,}, of which {found['trained']:,} train",
    "weights on a chip: "
    + ", ".join(f"{name} {_size(n)}" for name, n in found["weights"].items()),
    "",
    f"{'step':8}{'a chip':>11}{'temporary':>11}{'FLOPs':>10}{'moved':>11}{'sent':>11}"
    f"{'roofline':>12}  {'bound by':10}{'compiled':>9}",
  ]
  lines += [_row(name, one) for name, one in found["programs"].items()]
  for name, one in found["programs"].items():
    for kind, own in one.get("collectives", {}).items():
      lines.append(f"  {name}: {own['count']} x {kind}, {_size(own['bytes'])}")
  lines.append("")
  share = found["bytes_per_chip"] / found["chip_bytes"]
  verdict = "fits" if found["fits"] else "does not fit"
  of = f"{_size(found['bytes_per_chip'])} of {_size(found['chip_bytes'])}"
  lines.append(f"{verdict}: {of} a chip ({share:.0%})")
  if "nearest" in found:
    other = found["nearest"]
    lines.append(
      "none of the nearest settings fits"
      if other is None
      else f"nearest that fits: {_changes(other['setting'])} "
      f"({_size(other['bytes_per_chip'])} a chip)"
    )
  lines += map(_tried, found.get("search", ()))
  return "\n".join(lines)


def _tried(row: dict[str, Any]) -> str:
  time = f"{row['step_seconds'] * 1e3:.1f} ms" if "step_seconds" in row else ""
  verdict = "fits" if row["fits"] else "too large"
  return f"  {verdict:10}{_size(row['bytes_per_chip']):>10}{time:>13}  {_changes(row)}"


def _changes(own: dict[str, Any]) -> str:
  names = ("num_partitions", "remat_policy", "microbatches")
  return ", ".join(f"{name.upper()} = {own[name]!r}" for name in names)


def _row(name: str, one: dict[str, Any]) -> str:
  size = f"{name:8}{_size(one['bytes_per_chip']):>11}"
  if "step_seconds" not in one:
    return f"{size}  the compiler found no room for it ({one['compile_seconds']} s)"
  sent = sum(own["sent"] for own in one["collectives"].values())
  return (
    f"{size}{_size(one['temporaries']):>11}{one['flops']:>10.2e}"
    f"{_size(one['bytes_moved_per_chip']):>11}{_size(sent):>11}"
    f"{one['step_seconds'] * 1e3:>9.1f} ms  {one['bound_by']:10}"
    f"{one['compile_seconds']:>7.1f} s"
  )


def _size(count: float) -> str:
  for unit, size in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
    if count >= size:
      return f"{count / size:.2f} {unit}"
  return f"{count:.0f} B"
