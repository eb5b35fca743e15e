#!/usr/bin/env bash
# Trains on one GPU of this machine.
#
#   configs/launch/one_gpu.sh [--dry-run] --gin_file=RECIPE --gin.MODEL_DIR="'runs/x'"
#
# GPU     which one (default 0)
# PYTHON  interpreter (default python)

set -euo pipefail
source "$(dirname "$0")/common.sh"

launch env CUDA_VISIBLE_DEVICES="${GPU:-0}" "${TRAIN[@]}"
