"""Trains through XManager: one job on a machine of Vertex AI or Kubernetes, or here.

  IMAGE=REGISTRY/prompt_tuning:1 RESOURCE=a100=8 \\
    xmanager launch configs/launch/xmanager_launch.py -- -- --gin_file=RECIPE \\
    --gin.MODEL_DIR="'gs://bucket/runs/x'"
  python configs/launch/xmanager_launch.py --dry-run --gin_file=RECIPE ...

The first `--` ends the flags of xmanager itself, the second those of absl.

  IMAGE     container image with the library and jax for the machine (README.md)
  RESOURCE  NAME=COUNT of `xm.JobRequirements`: a100=8, h100=8, tpu_v5e=8, local_gpu=1
  EXECUTOR  vertex (default), kubernetes or local
  TITLE     of the experiment (default prompt_tuning)
"""

import os
import pathlib
import shlex
import sys
from collections.abc import Sequence

MODULE = "prompt_tuning.train"
EXECUTORS = {"vertex": "Vertex", "kubernetes": "Kubernetes", "local": "Local"}


def settings() -> tuple[str, dict[str, int], str]:
  """(image, requirements, name of the executor's class).

  Raises:
    ValueError: for a setting that is missing or makes no sense.
  """
  image = os.environ.get("IMAGE", "")
  name, _, count = os.environ.get("RESOURCE", "").partition("=")
  executor = os.environ.get("EXECUTOR", "vertex")
  if not image:
    raise ValueError("set IMAGE to a container image with the library.")
  if not name or not count.isdigit():
    raise ValueError("set RESOURCE to NAME=COUNT, such as a100=8.")
  if executor not in EXECUTORS:
    raise ValueError(f"`EXECUTOR` must be one of {list(EXECUTORS)}, got {executor!r}.")
  return image, {name: int(count)}, EXECUTORS[executor]


def launch(flags: Sequence[str]) -> None:
  """Builds a container around the image that runs the line, and adds it as a job."""
  from xmanager import xm, xm_local

  image, resource, executor_name = settings()
  executor = getattr(xm_local, executor_name)(xm.JobRequirements(**resource))
  spec = xm.PythonContainer(
    entrypoint=xm.ModuleName(MODULE),
    path=str(pathlib.Path(__file__).resolve().parent),
    base_image=image,
    docker_instructions=["WORKDIR /workdir"],
  )
  title = os.environ.get("TITLE", "prompt_tuning")
  with xm_local.create_experiment(experiment_title=title) as experiment:
    packageable = xm.Packageable(executable_spec=spec, executor_spec=executor.Spec())
    [executable] = experiment.package([packageable])
    experiment.add(xm.Job(executable=executable, executor=executor, args=list(flags)))


def main(argv: Sequence[str]) -> None:
  """What `xmanager launch` calls."""
  flags = [flag for flag in argv[1:] if flag != "--dry-run"]
  try:
    settings()
    if not flags:
      raise ValueError("no flags of training; give at least --gin_file=RECIPE.")
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2) from error
  if "--dry-run" in argv:
    print(shlex.join(["python", "-m", MODULE, *flags]))
  else:
    launch(flags)


if __name__ == "__main__":
  if "--dry-run" not in sys.argv:
    raise SystemExit(__doc__)
  main(sys.argv)
