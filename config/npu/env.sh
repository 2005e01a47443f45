# Flags for Ascend NPUs. The plug-in reads them while paddle is loaded, so: source config/npu/env.sh, then the command.
# A value that is set already is kept.

# Tensors stay in the plain layout; the private one is for fp16 matrices with sides that are multiples of 16.
export FLAGS_npu_storage_format="${FLAGS_npu_storage_format:-0}"
# Views are copied: kernels that work on strided memory are slow there.
export FLAGS_use_stride_kernel="${FLAGS_use_stride_kernel:-0}"
# Operators are not compiled anew for every new shape.
export FLAGS_npu_jit_compile="${FLAGS_npu_jit_compile:-0}"
# Newer kernels for scale and split. Only values that begin with t, y or 1 mean true.
export FLAGS_npu_scale_aclnn="${FLAGS_npu_scale_aclnn:-True}"
export FLAGS_npu_split_aclnn="${FLAGS_npu_split_aclnn:-True}"
export FLAGS_allocator_strategy="${FLAGS_allocator_strategy:-auto_growth}"
# Operators that fail on the device when nothing is compiled; they run on the CPU.
export CUSTOM_DEVICE_BLACK_LIST="${CUSTOM_DEVICE_BLACK_LIST:-set_value,set_value_with_tensor}"
