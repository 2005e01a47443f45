# shellcheck shell=bash disable=SC2034  # the variables are for the script that sources this
# Which machine of how many is this? Sourced by launch.sh; it only reads variables and calls scontrol.
#
# detect_cluster sets NNODES, NODE_RANK, MASTER_ADDR (empty on one machine), MASTER_PORT and FOUND_BY, from the first of
#   1 NNODES, NODE_RANK, MASTER_ADDR              set by hand
#   2 SLURM_NNODES, SLURM_NODEID, SLURM_JOB_NODELIST   Slurm (srun, one task for each machine)
#   3 VC_<TASK>_HOSTS, VC_TASK_INDEX               Volcano (plugins svc and env) and ModelArts; <TASK> is WORKER unless VC_TASK
#                                                 names another, in capitals. With VC_MASTER_HOSTS beside the workers the
#                                                 master is machine 0; each task counts its own index from 0 then, so a
#                                                 machine is found by its host name
#   4 PADDLE_TRAINERS_NUM, PADDLE_TRAINER_ID, MASTER_IP or PADDLE_TRAINERS   platforms made for paddle
#   5 nothing: one machine
# What contradicts itself, or leaves open which machine this is, is an error with exit code 2, never a guess.

cluster_error() {
  echo "error: $1" >&2
  return 2
}

# A whole number without leading zeros: $(( )) would read 08 as octal.
whole() {
  case "$2" in '' | *[!0-9]* | ????????????????*) cluster_error "$1=$2: expected $3" || return 2 ;; esac
  echo "$((10#$2))"
}

detect_cluster() {
  MASTER_PORT="${MASTER_PORT:-36677}"
  RANK_NAME="NODE_RANK"
  if [ -n "${NNODES:-}" ]; then
    FOUND_BY="NNODES"
    NODE_RANK="${NODE_RANK:-}"
    MASTER_ADDR="${MASTER_ADDR:-}"
  elif [ -n "${SLURM_JOB_NODELIST:-}" ]; then
    from_slurm || return 2
  elif [ -n "$(volcano_hosts)" ]; then
    from_volcano || return 2
  elif [ -n "${PADDLE_TRAINERS_NUM:-}" ]; then
    FOUND_BY="PADDLE_TRAINERS_NUM"
    RANK_NAME="PADDLE_TRAINER_ID"
    NNODES="$PADDLE_TRAINERS_NUM"
    NODE_RANK="${PADDLE_TRAINER_ID:-}"
    local trainers="${PADDLE_TRAINERS:-}"
    MASTER_ADDR="${MASTER_ADDR:-${MASTER_IP:-${trainers%%,*}}}"
  else
    FOUND_BY="this machine alone"
    # Each machine would train alone, and all of them into one output_dir.
    case "${NODE_RANK:-0}" in *[!0]*)
      cluster_error "NODE_RANK=$NODE_RANK, but nothing says how many machines there are: set NNODES, or unset NODE_RANK"
      return 2
      ;;
    esac
    NNODES=1
    NODE_RANK=0
    MASTER_ADDR=""
  fi
  check_cluster
}

from_slurm() {
  FOUND_BY="Slurm"
  RANK_NAME="SLURM_NODEID"
  NNODES="${SLURM_NNODES:-${SLURM_JOB_NUM_NODES:-1}}"
  NODE_RANK="${SLURM_NODEID:-}"
  local all
  all="$(scontrol show hostnames "$SLURM_JOB_NODELIST")" || {
    cluster_error "scontrol show hostnames $SLURM_JOB_NODELIST failed; give NNODES, NODE_RANK and MASTER_ADDR by hand"
    return 2
  }
  MASTER_ADDR="${MASTER_ADDR:-${all%%$'\n'*}}"
  if [ "$NNODES" != 1 ] && [ "${SLURM_NTASKS_PER_NODE:-1}" != 1 ]; then
    cluster_error "SLURM_NTASKS_PER_NODE=$SLURM_NTASKS_PER_NODE: one task for each machine, which starts its own ranks"
    return 2
  fi
}

# The machines of a Volcano job in their order, with commas: the master's, unless VC_TASK names one task, then the workers'.
volcano_hosts() {
  local name="VC_${VC_TASK:-WORKER}_HOSTS"
  local workers="${!name:-}" masters=""
  if [ -z "${VC_TASK:-}" ]; then masters="${VC_MASTER_HOSTS:-}"; fi
  echo "$masters${masters:+${workers:+,}}$workers"
}

from_volcano() {
  FOUND_BY="$([ -n "${MA_CURRENT_IP:-}" ] && echo ModelArts || echo Volcano)"
  RANK_NAME="VC_TASK_INDEX"
  local hosts counted
  hosts="$(volcano_hosts)"
  counted="$(echo "$hosts" | tr ',' '\n' | grep -c .)"
  NNODES="${MA_NUM_HOSTS:-$counted}"
  NODE_RANK="${VC_TASK_INDEX:-}"
  MASTER_ADDR="${MASTER_ADDR:-${hosts%%,*}}"
  if [ "$NNODES" != "$counted" ]; then
    cluster_error "MA_NUM_HOSTS=$NNODES, but VC_${VC_TASK:-WORKER}_HOSTS holds $counted hosts"
    return 2
  fi
  if [ -z "${VC_TASK:-}" ] && [ -n "${VC_MASTER_HOSTS:-}" ] && [ -n "${VC_WORKER_HOSTS:-}" ]; then
    local own
    own="$(hostname)"
    NODE_RANK="$(echo "$hosts" | tr ',' '\n' | sed 's/\..*//' | grep -nxF "${own%%.*}" | head -n 1 | cut -d: -f1)"
    if [ -z "$NODE_RANK" ]; then
      cluster_error "this machine, $own, is none of $hosts (VC_MASTER_HOSTS, VC_WORKER_HOSTS); give NNODES, NODE_RANK \
and MASTER_ADDR by hand, or VC_TASK=WORKER when only the workers train"
      return 2
    fi
    NODE_RANK=$((NODE_RANK - 1))
  fi
}

check_cluster() {
  NNODES="$(whole NNODES "$NNODES" "a number of machines from 1")" || return 2
  if [ "$NNODES" -eq 0 ]; then cluster_error "NNODES=0: expected a number of machines from 1" || return 2; fi
  if [ "$NNODES" -gt 1 ] && [ -z "$NODE_RANK" ]; then
    cluster_error "$NNODES machines (by $FOUND_BY), but nothing says which of them this is: set $RANK_NAME, on each machine \
another number from 0 to $((NNODES - 1))"
    return 2
  fi
  NODE_RANK="$(whole "$RANK_NAME" "${NODE_RANK:-0}" "a number from 0")" || return 2
  MASTER_PORT="$(whole MASTER_PORT "$MASTER_PORT" "a port from 1 to 65535")" || return 2
  if [ "$MASTER_PORT" -lt 1 ] || [ "$MASTER_PORT" -gt 65535 ]; then
    cluster_error "MASTER_PORT=$MASTER_PORT: expected a port from 1 to 65535"
    return 2
  fi
  if [ "$NODE_RANK" -ge "$NNODES" ]; then
    cluster_error "$RANK_NAME=$NODE_RANK, but there are $NNODES machines, numbered from 0"
    return 2
  fi
  if [ "$NNODES" -eq 1 ]; then MASTER_ADDR=""; fi
  if [ "$NNODES" -gt 1 ] && [ -z "$MASTER_ADDR" ]; then
    cluster_error "$NNODES machines, but no address of machine 0: set MASTER_ADDR"
    return 2
  fi
  case "$MASTER_ADDR" in *:*)
    cluster_error "MASTER_ADDR=$MASTER_ADDR: expected a name or an IPv4 address, without a port; paddle's launcher takes \
no IPv6 address"
    return 2
    ;;
  esac
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
            try:
                only = socket.getaddrinfo(name, None, socket.AF_INET6)[0][4][0]
            except OSError:
                sys.exit(f"error: MASTER_ADDR={name}: the name is not known here ({error}); give the address of machine 0")
            sys.exit(
                f"error: MASTER_ADDR={name}: its only address is {only}, and paddle's launcher takes no IPv6; "
                "give machine 0 an IPv4 address too, and name that"
            )
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
    whole CARDS "$CARDS" "a number of cards"
  elif [ -n "${ASCEND_RT_VISIBLE_DEVICES:-}" ]; then
    echo "$ASCEND_RT_VISIBLE_DEVICES" | tr ',' '\n' | grep -c .
  elif [ -n "${MA_NUM_GPUS:-}" ] && [ "$MA_NUM_GPUS" != 0 ]; then
    whole MA_NUM_GPUS "$MA_NUM_GPUS" "a number of cards"
  else
    find "${DEV_FOLDER:-/dev}" -maxdepth 1 -name 'davinci[0-9]*' | grep -c . || true
  fi
}
