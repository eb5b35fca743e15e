#!/usr/bin/env bash
# Submits training to Slurm: one process a GPU on every node, which JAX finds by itself.
#
#   NODES=2 GPUS_PER_NODE=8 configs/launch/slurm.sh [--dry-run] --gin_file=RECIPE \
#     --gin.MODEL_DIR="'/shared/runs/x'"
#
# NODES, GPUS_PER_NODE  size of the job (default 1 and 1)
# TIME                  limit, such as 12:00:00 (default 1:00:00)
# PARTITION, ACCOUNT    where to, if the cluster asks
# JOB_NAME              (default prompt_tuning)
# PYTHON                interpreter on the nodes (default python)
#
# Two minutes before the limit training is told to end: it saves, and the same command
# goes on from there. A job that is preempted is queued again.

set -euo pipefail
source "$(dirname "$0")/common.sh"

job=(
  sbatch
  --job-name="${JOB_NAME:-prompt_tuning}"
  --nodes="${NODES:-1}"
  --ntasks-per-node="${GPUS_PER_NODE:-1}"
  --gpus-per-node="${GPUS_PER_NODE:-1}"
  --time="${TIME:-1:00:00}"
  --signal=TERM@120
  --requeue
  --open-mode=append
)
[[ -n "${PARTITION:-}" ]] && job+=(--partition="$PARTITION")
[[ -n "${ACCOUNT:-}" ]] && job+=(--account="$ACCOUNT")

launch "${job[@]}" --wrap="srun $(quoted "${TRAIN[@]}" --multiprocess)"
