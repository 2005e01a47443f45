# shellcheck shell=bash
# Variables for Ascend NPUs. Use: source config/npu/env.sh, then the command in the same shell.
# The plug-in reads its flags once, while paddle is loaded; what is set later has no effect.
# A variable that is set already is kept. Commands told to use an npu set the first block themselves and name what is
# wrong; this file is for everything else, and for what no process can set for itself (CANN's paths, LD_PRELOAD).

# --- 0. Presets of paddle's images ----------------------------------------------------------------------------------
# The images of paddle for the NPU set these two to values that the sections below explain away. They are nobody's
# choice, so they are taken out here and set below; KEEP_IMAGE_PRESETS=1 keeps them.
if [ "${KEEP_IMAGE_PRESETS:-0}" != 1 ]; then
  if [ "${FLAGS_allocator_strategy:-}" = naive_best_fit ]; then
    echo "env.sh: FLAGS_allocator_strategy=naive_best_fit, a preset of paddle's image, becomes auto_growth" >&2
    unset FLAGS_allocator_strategy
  fi
  if [ "${HCCL_CONNECT_TIMEOUT:-}" = 7200 ]; then
    echo "env.sh: HCCL_CONNECT_TIMEOUT=7200, a preset of paddle's image, becomes 1800" >&2
    unset HCCL_CONNECT_TIMEOUT
  fi
fi

# --- 1. Flags of the plug-in: the recommended set -------------------------------------------------------------------
# A switch FLAGS_npu_* is on when its value begins with t, y or 1, or is empty. Everything else means off, also "on". A
# switch of paddle's own (FLAGS_use_stride_kernel) takes 1, true, 0 and false, and ignores everything else.

# Tensors stay in the plain layout. The private layout is for float16 matrices whose sides are multiples of 16; with the
# odd lengths of pictures and text it costs a conversion before and after each operator.
export FLAGS_npu_storage_format="${FLAGS_npu_storage_format:-0}"
# Views are copied at once. The kernels that work on strided memory are slow on the device.
export FLAGS_use_stride_kernel="${FLAGS_use_stride_kernel:-0}"
# Operators are taken from CANN's ready-made library. With 1 (the plug-in's own default) each new shape is compiled
# first, which takes minutes for the first steps.
export FLAGS_npu_jit_compile="${FLAGS_npu_jit_compile:-0}"
# The newer kernels (aclnn) for scale and split; off in the plug-in unless asked for.
export FLAGS_npu_scale_aclnn="${FLAGS_npu_scale_aclnn:-True}"
export FLAGS_npu_split_aclnn="${FLAGS_npu_split_aclnn:-True}"
# Memory is taken from the card as it is needed. naive_best_fit reserves most of it at once.
export FLAGS_allocator_strategy="${FLAGS_allocator_strategy:-auto_growth}"
# Two operators that fail on the device when nothing is compiled; they run on the CPU. Commas, no spaces.
export CUSTOM_DEVICE_BLACK_LIST="${CUSTOM_DEVICE_BLACK_LIST:-set_value,set_value_with_tensor}"

# --- 2. CANN's own paths --------------------------------------------------------------------------------------------
# set_env.sh of CANN reads variables that may not exist yet, which ends a script under "set -u".
ascend_set_env="${ASCEND_SET_ENV:-/usr/local/Ascend/ascend-toolkit/set_env.sh}"
if [ -z "${ASCEND_OPP_PATH:-}" ] && [ -r "$ascend_set_env" ]; then
  export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-}" PYTHONPATH="${PYTHONPATH:-}"
  # shellcheck disable=SC1090  # the file is CANN's
  . "$ascend_set_env"
fi
unset ascend_set_env

# --- 3. ARM machines ------------------------------------------------------------------------------------------------
# Without it: "libgomp.so.1: cannot allocate memory in static TLS block" when paddle is imported.
ascend_libgomp=/usr/lib/aarch64-linux-gnu/libgomp.so.1
if [ "$(uname -m)" = aarch64 ] && [ -e "$ascend_libgomp" ]; then
  case ":${LD_PRELOAD:-}:" in
    *libgomp*) ;;
    *) export LD_PRELOAD="$ascend_libgomp${LD_PRELOAD:+:$LD_PRELOAD}" ;;
  esac
fi
unset ascend_libgomp

# --- 4. Communication -----------------------------------------------------------------------------------------------
# Which plug-in paddle's launcher and collectives serve. Up to paddle 3.0 the launcher asks only this variable: without it
# it takes the machine for one without cards, and --devices 0,1 ends with "substring not found".
export PADDLE_XCCL_BACKEND="${PADDLE_XCCL_BACKEND:-npu}"
# Seconds that a rank waits for the others at the start (120 to 7200). Loading a 34B model takes its time, and ranks do
# not end at the same moment. With 7200 a job whose machine died at the start holds the others for two hours.
export HCCL_CONNECT_TIMEOUT="${HCCL_CONNECT_TIMEOUT:-1800}"
# Seconds until a collective that hangs is given up. Saving a checkpoint happens between two of them.
export HCCL_EXEC_TIMEOUT="${HCCL_EXEC_TIMEOUT:-3600}"
# The list of allowed addresses is not used: ranks find each other through paddle's store.
export HCCL_WHITELIST_DISABLE="${HCCL_WHITELIST_DISABLE:-1}"
# Only errors in CANN's log (0 debug ... 3 error).
export ASCEND_GLOBAL_LOG_LEVEL="${ASCEND_GLOBAL_LOG_LEVEL:-3}"

# --- 5. For you to decide; nothing is set here ----------------------------------------------------------------------
# ASCEND_RT_VISIBLE_DEVICES=0,1,2,3   cards of this process, counted from 0, rising, no spaces. An 8-card machine has 0 to
#                                     7: "8" is no card and not a number of cards. CANN ignores what it cannot read.
# HCCL_SOCKET_IFNAME==eth0            network interface between machines: =eth0 is exactly this one, eth all that begin
#                                     so, ^docker all others. HCCL_IF_IP=10.0.0.1 gives an address instead.
# HCCL_INTRA_PCIE_ENABLE=0 with HCCL_INTRA_ROCE_ENABLE=1   cards of one machine talk over the network instead of PCIe.
# HCCL_OP_BASE_FFTS_MODE_ENABLE=TRUE, MULTI_STREAM_MEMORY_REUSE=1   tuning that others use for large models; measure first.
# npu_deterministic=true, HCCL_DETERMINISTIC=true   equal runs give equal numbers; slower.
# FLAGS_npu_check_nan_inf=1, FLAGS_npu_blocking_run=1   for finding a fault: the first operator with a bad number; an error
#                                     where it happens instead of later. Both slow.
# FLAGS_npu_profiling_dir=DIR         where the profile goes.
# PADDLEMIX_NPU_FUSED=auto|0|1        our fused operators; per operator PADDLEMIX_NPU_FUSED_{ATTENTION,RMS_NORM,ROPE,SWIGLU}.
# CUSTOM_DEVICE_ROOT                  folder of the plug-in; paddle finds an installed one by itself.
# RANK_TABLE_FILE                     not needed: paddle tells the ranks of each other.
