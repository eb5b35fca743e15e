#!/usr/bin/env bash
# Submits training to a GKE cluster through xpk, on a slice of TPUs.
#
#   CLUSTER=mine WORKLOAD=rte-1 TPU_TYPE=v5litepod-16 IMAGE=REGISTRY/prompt_tuning:1 \
#     configs/launch/gke_xpk.sh [--dry-run] --gin_file=RECIPE \
#     --gin.MODEL_DIR="'gs://bucket/runs/x'"
#
# CLUSTER, WORKLOAD  the cluster, and a name for this run
# TPU_TYPE           such as v5litepod-16; SLICES of it (default 1)
# IMAGE              container image with the library and jax[tpu] (README.md)
# ZONE, PROJECT      if they are not gcloud's own
# RESTARTS           after a failure of a machine or an eviction (default 50)
# PYTHON             interpreter in the image (default python)
#
# An evicted run is given two minutes to save, ends with 143, which xpk starts again, and
# goes on. A wrong configuration ends with 2, which it does not.

set -euo pipefail
source "$(dirname "$0")/common.sh"
need CLUSTER WORKLOAD TPU_TYPE IMAGE

workload=(
  xpk workload create
  --cluster="$CLUSTER"
  --workload="$WORKLOAD"
  --tpu-type="$TPU_TYPE"
  --num-slices="${SLICES:-1}"
  --docker-image="$IMAGE"
  --max-restarts="${RESTARTS:-50}"
  --termination-grace-period-seconds=120
)
[[ -n "${ZONE:-}" ]] && workload+=(--zone="$ZONE")
[[ -n "${PROJECT:-}" ]] && workload+=(--project="$PROJECT")

launch "${workload[@]}" --command="$(quoted "${TRAIN[@]}" --multiprocess)"
