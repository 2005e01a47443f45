#!/bin/sh
# One training run on all devices of a machine, or of several machines.
#
#   sh paddlemix/tools/train.sh CONFIG.json [--key value ...]
#
# Environment:
#   DEVICES       devices of this machine, for example 0,1,2,3 (default: all)
#   NPROC         processes on this machine, for a CPU run
#   BACKEND       communication backend (default: what paddle chooses, gloo on a machine without cards); gloo on one machine
#                 keeps the processes on the CPU
#   NNODES        number of machines (default: that of MPI or the platform, else 1)
#   NODE_RANK     number of this machine, from 0 (default: that of MPI or the platform); needed with several machines
#   MASTER_ADDR   address of machine 0; needed with several machines
#   MASTER_PORT   its port (default 36677)
#   LOG_DIR       folder of the logs of the processes (default ./log)
#   PYTHON        interpreter (default python)
#   DRY_RUN=1     print the command instead of running it
set -eu

if [ $# -lt 1 ]; then
  echo "usage: sh $0 CONFIG.json [--key value ...]" >&2
  exit 2
fi

here=$(cd "$(dirname "$0")" && pwd)
nnodes=${NNODES:-${OMPI_COMM_WORLD_SIZE:-${PADDLE_TRAINERS_NUM:-1}}}
rank=${NODE_RANK:-${OMPI_COMM_WORLD_RANK:-${PADDLE_TRAINER_ID:-}}}
master=${MASTER_ADDR:-${POD_0_IP:-}}
case "$nnodes" in '' | *[!0-9]* | 0)
  echo "error: NNODES=$nnodes: expected a number of machines from 1" >&2
  exit 2
  ;;
esac

# Up to paddle 3.0 the launcher serves an npu only where this variable names it. The device of the run is that of its
# flags, else of its config, else an npu where the driver shows cards (DEV_FOLDER is /dev, elsewhere in tests).
config=
if [ -f "$1" ]; then config=$1; fi
device=
previous=
for word in "$@"; do
  case "$previous:$word" in
    --device:*) device=$word ;;
    *:--device=*) device=${word#--device=} ;;
  esac
  previous=$word
done
if [ -z "$device" ] && [ -n "$config" ]; then
  device=$(sed -n 's/.*"device"[[:space:]]*:[[:space:]]*"\([a-z]*\).*/\1/p' "$config" | tail -n 1)
fi
if [ -z "$device" ]; then
  for card in "${DEV_FOLDER:-/dev}"/davinci[0-9]*; do
    if [ -e "$card" ]; then device=npu; fi
  done
fi
case "$device" in
  npu*) export PADDLE_XCCL_BACKEND="${PADDLE_XCCL_BACKEND:-npu}" ;;
  cpu | gpu*) unset PADDLE_XCCL_BACKEND ;;
esac

python=${PYTHON:-python}
if [ "${DRY_RUN:-0}" != 1 ] && ! "$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("paddle") is None)'; then
  exec "$python" "$here/supervised_finetune.py" "$@"  # it says what is missing, and what to type
fi
set -- "$here/supervised_finetune.py" "$@"
# A flag for the backend takes paddle's older launcher, which knows gloo on one machine only, and then as a mode of its
# own; the newer one takes gloo by itself where there is no card.
mode="--run_mode collective"
if [ "${BACKEND:-}" = gloo ] && [ "$nnodes" -gt 1 ]; then
  export PADDLE_DISTRI_BACKEND=gloo
elif [ -n "${BACKEND:-}" ]; then
  if [ "$BACKEND" = gloo ]; then mode=; fi
  set -- --backend "$BACKEND" "$@"
fi
if [ -n "${NPROC:-}" ]; then set -- --nproc_per_node "$NPROC" "$@"; fi
if [ -n "${DEVICES:-}" ]; then set -- --devices "$DEVICES" "$@"; fi
if [ "$nnodes" -gt 1 ]; then
  if [ -z "$master" ]; then
    echo "error: $nnodes machines, but MASTER_ADDR is not set: give the address of machine 0" >&2
    exit 2
  fi
  case "$master" in *:*)
    echo "error: MASTER_ADDR=$master: expected a name or an IPv4 address, without a port; paddle's launcher takes no IPv6" >&2
    exit 2
    ;;
  esac
  case "$rank" in '' | *[!0-9]*)
    echo "error: $nnodes machines, NODE_RANK=$rank: set it to the number of this machine, from 0 to $((nnodes - 1))" >&2
    exit 2
    ;;
  esac
  if [ "$rank" -ge "$nnodes" ]; then
    echo "error: NODE_RANK=$rank, but there are $nnodes machines, numbered from 0" >&2
    exit 2
  fi
  set -- --master "$master:${MASTER_PORT:-36677}" --nnodes "$nnodes" --rank "$rank" "$@"
else
  # Each machine would train alone.
  case "${NODE_RANK:-0}" in *[!0]*)
    echo "error: NODE_RANK=$NODE_RANK, but there is 1 machine: set NNODES to their number, or unset NODE_RANK" >&2
    exit 2
    ;;
  esac
fi
# shellcheck disable=SC2086 # the mode is two words or none
set -- "$python" -u -m paddle.distributed.launch --log_dir "${LOG_DIR:-./log}" $mode "$@"

# What an outer scheduler set for its own processes would be taken for ours.
unset PADDLE_ELASTIC_JOB_ID PADDLE_TRAINER_ENDPOINTS DISTRIBUTED_TRAINER_ENDPOINTS FLAGS_START_PORT \
  PADDLE_ELASTIC_TIMEOUT PADDLE_TRAINERS_NUM PADDLE_TRAINER_ID PADDLE_WORKERS_IP_PORT_LIST PADDLE_TRAINERS \
  PADDLE_NUM_GRADIENT_SERVERS 2>/dev/null || true

if [ "${DRY_RUN:-0}" = 1 ]; then
  echo "${PADDLE_XCCL_BACKEND:+PADDLE_XCCL_BACKEND=$PADDLE_XCCL_BACKEND }$*"
  exit 0
fi
exec "$@"
