#!/usr/bin/env bash
# Trains on all GPUs of this machine.
#
#   configs/launch/multi_gpu.sh [--dry-run] --gin_file=RECIPE --gin.MODEL_DIR="'runs/x'"
#
# PROCESSES  1 (default): one process drives all GPUs, which is simplest and as fast.
#            N: N processes with a GPU each, as a cluster would run them.
# PORT       of their coordinator (default 12321)
# PYTHON     interpreter (default python)
#
# Ends with the code of the first process that failed.

set -euo pipefail
source "$(dirname "$0")/common.sh"

processes=${PROCESSES:-1}
if [[ "$processes" -eq 1 ]]; then
  launch "${TRAIN[@]}"
  exit
fi

started=()
# SIGTERM is for the processes, which save and end with 143.
trap 'kill -TERM "${started[@]}" 2>/dev/null || true' TERM INT
for ((i = 0; i < processes; i++)); do
  member=(
    env
    JAX_COORDINATOR_ADDRESS="localhost:${PORT:-12321}"
    JAX_NUM_PROCESSES="$processes"
    JAX_PROCESS_ID="$i"
    CUDA_VISIBLE_DEVICES="$i"
    "${TRAIN[@]}"
  )
  if $DRY_RUN; then
    launch "${member[@]}"
  else
    "${member[@]}" &
    started+=("$!")
  fi
done

# When one fails, JAX ends the others, which would wait for it.
code=0
for process in ${started[@]+"${started[@]}"}; do
  status=0
  wait "$process" || status=$?
  # A signal that is trapped ends `wait`, not the process.
  while kill -0 "$process" 2>/dev/null; do
    status=0
    wait "$process" || status=$?
  done
  [[ "$code" -ne 0 ]] || code=$status
done
exit "$code"
