# shellcheck shell=bash disable=SC2034  # the variables are for the script that sources this
# Which machine of how many is this? Sourced by launch.sh; it only reads variables and calls scontrol.
#
# detect_cluster sets NNODES, NODE_RANK, MASTER_ADDR (empty on one machine), MASTER_PORT and FOUND_BY, from the first of
#   1 NNODES, NODE_RANK, MASTER_ADDR              set by hand
#   2 SLURM_NNODES, SLURM_NODEID, SLURM_JOB_NODELIST   Slurm (srun, one task for each machine)
#   3 VC_<TASK>_HOSTS, VC_TASK_INDEX               Volcano (plugins svc and env) and ModelArts; <TASK> is WORKER unless VC_TASK
#                                                 names another, in capitals
#   4 PADDLE_TRAINERS_NUM, PADDLE_TRAINER_ID, MASTER_IP or PADDLE_TRAINERS   platforms made for paddle
#   5 nothing: one machine
# What contradicts itself is an error with exit code 2, never a guess.

cluster_error() {
  echo "error: $1" >&2
  return 2
}

detect_cluster() {
  MASTER_PORT="${MASTER_PORT:-36677}"
  local task hosts_name hosts first_of
  task="${VC_TASK:-WORKER}"
  hosts_name="VC_${task}_HOSTS"
  hosts="${!hosts_name:-}"
  if [ -n "${NNODES:-}" ]; then
    FOUND_BY="NNODES"
    NODE_RANK="${NODE_RANK:-0}"
    MASTER_ADDR="${MASTER_ADDR:-}"
  elif [ -n "${SLURM_JOB_NODELIST:-}" ]; then
    FOUND_BY="Slurm"
    NNODES="${SLURM_NNODES:-${SLURM_JOB_NUM_NODES:-1}}"
    NODE_RANK="${SLURM_NODEID:-0}"
    first_of="$(scontrol show hostnames "$SLURM_JOB_NODELIST")" || {
      cluster_error "scontrol show hostnames $SLURM_JOB_NODELIST failed; give NNODES, NODE_RANK and MASTER_ADDR by hand"
      return 2
    }
    MASTER_ADDR="${MASTER_ADDR:-${first_of%%$'\n'*}}"
    if [ "$NNODES" -gt 1 ] && [ "${SLURM_NTASKS_PER_NODE:-1}" != 1 ]; then
      cluster_error "SLURM_NTASKS_PER_NODE=$SLURM_NTASKS_PER_NODE: one task for each machine, which starts its own ranks"
      return 2
    fi
  elif [ -n "$hosts" ]; then
    FOUND_BY="$([ -n "${MA_CURRENT_IP:-}" ] && echo ModelArts || echo Volcano)"
    local counted
    counted="$(echo "$hosts" | tr ',' '\n' | grep -c .)"
    NNODES="${MA_NUM_HOSTS:-$counted}"
    NODE_RANK="${VC_TASK_INDEX:-0}"
    MASTER_ADDR="${MASTER_ADDR:-${hosts%%,*}}"
    if [ "$NNODES" != "$counted" ]; then
      cluster_error "MA_NUM_HOSTS=$NNODES, but $hosts_name holds $counted hosts"
      return 2
    fi
  elif [ -n "${PADDLE_TRAINERS_NUM:-}" ]; then
    FOUND_BY="PADDLE_TRAINERS_NUM"
    NNODES="$PADDLE_TRAINERS_NUM"
    NODE_RANK="${PADDLE_TRAINER_ID:-0}"
    first_of="${PADDLE_TRAINERS:-}"
    MASTER_ADDR="${MASTER_ADDR:-${MASTER_IP:-${first_of%%,*}}}"
  else
    FOUND_BY="this machine alone"
    NNODES=1
    NODE_RANK=0
    MASTER_ADDR=""
  fi
  check_cluster
}

check_cluster() {
  case "$NNODES" in '' | *[!0-9]* | 0) cluster_error "NNODES=$NNODES: expected a number of machines" || return 2 ;; esac
  case "$NODE_RANK" in '' | *[!0-9]*) cluster_error "NODE_RANK=$NODE_RANK: expected a number from 0" || return 2 ;; esac
  if [ "$NODE_RANK" -ge "$NNODES" ]; then
    cluster_error "NODE_RANK=$NODE_RANK, but there are $NNODES machines, numbered from 0"
    return 2
  fi
  if [ "$NNODES" -gt 1 ] && [ -z "$MASTER_ADDR" ]; then
    cluster_error "$NNODES machines, but no address of machine 0: set MASTER_ADDR"
    return 2
  fi
  if [ "$NNODES" -eq 1 ]; then MASTER_ADDR=""; fi
}

# Paddle's launcher opens the meeting place only where the address of machine 0 is, as text, its own. A name never is, and
# what a machine takes for its own address may be 127.0.1.1. So both become numbers: MASTER_ADDR, and POD_IP, which the
# launcher reads. A name may come late: Kubernetes publishes that of a pod when the pod has an address.
find_addresses() {
  local found
  found="$("$1" - "$MASTER_ADDR" "$NODE_RANK" "${NAME_SECONDS:-120}" <<'PYTHON'
import socket, sys, time

name, rank, patience = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
until = time.monotonic() + patience
while True:
    try:
        master = socket.gethostbyname(name)
        break
    except OSError as error:
        if time.monotonic() > until:
            sys.exit(f"error: MASTER_ADDR={name}: the name is not known here ({error}); give the address of machine 0")
        time.sleep(2)


def own(towards):
    """Address of this machine on the way to another one. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((towards, 9))
        return probe.getsockname()[0]


if master.startswith("127."):
    if rank:
        sys.exit(f"error: MASTER_ADDR={name} is {master} on machine {rank}, that is this machine; give that of machine 0")
    master = own("192.0.2.1")  # an address that nobody has (RFC 5737): the way out
print(master, master if rank == 0 else own(master))
PYTHON
  )" || return 2
  MASTER_ADDR="${found% *}"
  POD_IP="${found#* }"
}

# Cards of this machine: CARDS, else what ASCEND_RT_VISIBLE_DEVICES leaves, else what ModelArts says, else all that the
# driver shows (DEV_FOLDER is /dev, elsewhere in tests).
count_cards() {
  if [ -n "${CARDS:-}" ]; then
    echo "$CARDS"
  elif [ -n "${ASCEND_RT_VISIBLE_DEVICES:-}" ]; then
    echo "$ASCEND_RT_VISIBLE_DEVICES" | tr ',' '\n' | grep -c .
  elif [ "${MA_NUM_GPUS:-0}" -gt 0 ]; then
    echo "$MA_NUM_GPUS"
  else
    find "${DEV_FOLDER:-/dev}" -maxdepth 1 -name 'davinci[0-9]*' | grep -c . || true
  fi
}
