#!/usr/bin/env bash
# What each worker of a TPU pod runs:
#   bash tpu.sh          where TPU_WORKER_ID and TPU_WORKER_HOSTNAMES are set
#   bash tpu.sh K/N      on worker K, from 0, of N, where they are not
set -euo pipefail
process=${1:-}
if [ -z "$process" ]; then
    if [ -z "${TPU_WORKER_ID:-}" ] || [ -z "${TPU_WORKER_HOSTNAMES:-}" ]; then
        echo "TPU_WORKER_ID and TPU_WORKER_HOSTNAMES are not set: bash $0 K/N, on worker K of N" >&2
        exit 2
    fi
    IFS=, read -ra workers <<<"$TPU_WORKER_HOSTNAMES"
    process="$TPU_WORKER_ID/${#workers[@]}"
fi
# Each process computes on the chips of its own worker, and waits for no other.
unset TPU_WORKER_ID TPU_WORKER_HOSTNAMES
export CLOUD_TPU_TASK_ID=0 TPU_PROCESS_BOUNDS=1,1,1 TPU_CHIPS_PER_PROCESS_BOUNDS=@{chips}
exec bash @{worker} "$process"
