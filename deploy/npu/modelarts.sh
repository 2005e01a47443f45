#!/usr/bin/env bash
# Boot command of a ModelArts training job with a custom image (the one of deploy/npu/Dockerfile):
#   bash CODE_FOLDER/deploy/npu/modelarts.sh CONFIG.json [--key value ...]
# ModelArts gives MA_NUM_HOSTS, VC_WORKER_HOSTS, VC_TASK_INDEX and MA_NUM_GPUS, which cluster.sh reads. Its usual start
# method writes a rank table for other frameworks; paddle needs none.
#
#   OUTPUT_DIR     folder of the results (an output of the job); the checkpoints lie there, so that a job that is
#                  restarted after a fault goes on from the newest
set -euo pipefail

if [ $# -lt 1 ]; then
  echo "usage: bash $0 CONFIG.json [--key value ...]" >&2
  exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
case "${MA_NUM_GPUS:-0}" in 0 | *[!0-9]*)
  echo "error: MA_NUM_GPUS=${MA_NUM_GPUS:-} (cards of this container): is this a ModelArts job with Ascend cards?" >&2
  exit 2
  ;;
esac
export LOG_DIR="${LOG_DIR:-${MA_LOG_DIR:-./log}}"
if [ -n "${OUTPUT_DIR:-}" ]; then set -- "$@" --output_dir "$OUTPUT_DIR"; fi
# exec: the platform's SIGTERM has to reach launch.sh.
exec bash "$root/deploy/npu/launch.sh" "$@"
