#!/usr/bin/env bash
# One training run on the Ascend cards of this machine, or of several machines (start it once on each).
#
#   bash deploy/npu/launch.sh CONFIG.json [--key value ...]
#
# One machine:      bash deploy/npu/launch.sh config/cluster/npu_8x64g/llava_v1_5_7b.json
# Several, by hand: NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 bash deploy/npu/launch.sh CONFIG.json     (rank 1: the same)
# Slurm, Volcano, ModelArts: their variables are read (cluster.sh), nothing has to be set.
#
#   CARDS=8         cards of this machine (default: all that are visible)
#   PREFLIGHT=0     start without the check of cards, variables and the address of machine 0
#   PYTHON, LOG_DIR, MASTER_PORT   as in paddlemix/tools/train.sh; with several machines the logs are in LOG_DIR/machineN
#   NAME_SECONDS=120    how long to wait until the name of machine 0 is known
#   DRY_RUN=1       print the commands instead of running them
#
# Exit code: that of the run. 75 after a signal: a checkpoint is saved, the same command goes on from it. SIGUSR1 to any
# process of the job, or SIGTERM to this script, is passed to the ranks alone: paddle's launcher would give them 30
# seconds on SIGTERM, which is less than a large checkpoint takes. Before the first step there is nothing to save: the
# run ends with 75 at once.
set -euo pipefail

# As process 1 of a container a shell without a trap would not even be ended by SIGTERM. A command in the foreground is
# waited for first: at most NAME_SECONDS.
waiting=
# shellcheck disable=SC2329  # called by the trap
end_before_start() {
  echo "signal before the start: nothing to save" >&2
  if [ -n "$waiting" ]; then kill "$waiting" 2>/dev/null || true; fi
  exit 75
}
trap end_before_start TERM INT

if [ $# -lt 1 ]; then
  echo "usage: bash $0 CONFIG.json [--key value ...]" >&2
  exit 2
fi

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-python}

# shellcheck source=deploy/npu/cluster.sh
. "$here/cluster.sh"
detect_cluster || exit 2
cards=$(count_cards) || exit 2
if [ "$cards" -lt 1 ]; then
  echo "error: no Ascend card here (/dev/davinci0 ...): check the driver and the mounts of the container, or set CARDS" >&2
  exit 2
fi
echo "machine $NODE_RANK of $NNODES (by $FOUND_BY), $cards cards${MASTER_ADDR:+, machine 0 is $MASTER_ADDR:$MASTER_PORT}" >&2

if [ "$NNODES" -gt 1 ]; then
  if [ "${DRY_RUN:-0}" != 1 ]; then
    find_addresses "$python" || exit 2
    export POD_IP
    echo "machine 0 is $MASTER_ADDR, this machine $POD_IP" >&2
  fi
  # All machines write workerlog.0: on a shared disk each needs a folder of its own.
  LOG_DIR="${LOG_DIR:-./log}/machine$NODE_RANK"
  export LOG_DIR
fi

# shellcheck source=config/npu/env.sh
. "$root/config/npu/env.sh"
# Platforms set it for other frameworks; paddle's ranks find each other without a table.
unset RANK_TABLE_FILE

check=("$python" "$root/paddlemix/tools/doctor.py" --preflight --device npu --cards "$cards")
if [ "$NNODES" -gt 1 ]; then check+=(--master "$MASTER_ADDR:$MASTER_PORT" --rank "$NODE_RANK"); fi

export NNODES NODE_RANK MASTER_ADDR MASTER_PORT
export PYTHON="$python"
DEVICES=$(seq -s, 0 $((cards - 1)))
export DEVICES
run=(sh "$root/paddlemix/tools/train.sh" "$@" --device npu)

if [ "${DRY_RUN:-0}" = 1 ]; then
  if [ "${PREFLIGHT:-1}" = 1 ]; then echo "${check[*]}"; fi
  exec "${run[@]}"
fi
if [ "${PREFLIGHT:-1}" = 1 ]; then
  "${check[@]}" >&2 &
  waiting=$!
  wait "$waiting" || exit $?
  waiting=
fi

stopped=0
launcher=

# A rank is started with SIGUSR1 ignored, until it has begun to read its settings. SigCgt holds the signals that a process
# has a handler for; bit 9 is SIGUSR1.
# shellcheck disable=SC2329  # called in the trap
takes_usr1() {
  local name mask
  while read -r name mask; do
    if [ "$name" = SigCgt: ]; then
      # In a trap a bare "return" would give the status of the command before the trap.
      if [ $((16#${mask: -4} & 16#200)) -ne 0 ]; then return 0; else return 1; fi
    fi
  done 2>/dev/null <"/proc/$1/status"
  return 0 # it has ended, or this system does not tell
}

# shellcheck disable=SC2329  # called by the trap
ask_ranks_to_stop() {
  stopped=1
  if [ -z "$launcher" ]; then return 0; fi
  echo "signal: asking the ranks to save and stop" >&2
  local pid ranks
  ranks=$(cat "/proc/$launcher/task/$launcher/children" 2>/dev/null || pgrep -P "$launcher" || true)
  for pid in $ranks; do
    for _ in {1..600}; do
      if takes_usr1 "$pid"; then break; fi
      sleep 0.1
    done
    kill -USR1 "$pid" 2>/dev/null || true
  done
  # No rank yet: the launcher still waits for the other machines, and has nothing to save.
  if [ -z "${ranks// /}" ]; then kill -TERM "$launcher" 2>/dev/null || true; fi
}
trap ask_ranks_to_stop TERM INT

# Paddle's launcher has no handler for SIGUSR1: it has to ignore it, and what it starts sets its own.
(
  trap '' USR1
  exec "${run[@]}"
) &
launcher=$!
if [ "$stopped" = 1 ]; then ask_ranks_to_stop; fi
# Slurm sends SIGUSR1 to every process itself.
trap 'stopped=1' USR1

code=0
wait "$launcher" || code=$?
# A signal ends the wait before the launcher has ended.
while kill -0 "$launcher" 2>/dev/null; do
  code=0
  wait "$launcher" || code=$?
done
# The rank that ends first lets paddle's launcher end the others, whose code (15) it may pass on in place of the 75.
case "$stopped:$code" in 1:15 | 1:143 | 1:241) code=75 ;; esac
exit "$code"
