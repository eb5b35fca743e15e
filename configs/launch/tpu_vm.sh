#!/usr/bin/env bash
# Trains on a Cloud TPU VM or a slice of a pod: the same line on every worker.
#
#   TPU_NAME=mine ZONE=us-west4-a configs/launch/tpu_vm.sh [--dry-run] \
#     --gin_file=RECIPE --gin.MODEL_DIR="'gs://bucket/runs/x'"
#
# TPU_NAME, ZONE  the TPU, which exists already (README.md says how to make one)
# PROJECT         if it is not gcloud's own
# DIRECTORY       on the workers, to run in (default: the home)
# PYTHON          interpreter on the workers (default python)

set -euo pipefail
source "$(dirname "$0")/common.sh"
need TPU_NAME ZONE

line=$(quoted "${TRAIN[@]}" --multiprocess)
[[ -n "${DIRECTORY:-}" ]] && line="cd $(quoted "$DIRECTORY") && $line"
remote=(gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE")
[[ -n "${PROJECT:-}" ]] && remote+=(--project="$PROJECT")

launch "${remote[@]}" --worker=all --command="$line"
