// SPDX-License-Identifier: Apache-2.0
// Kernels that write into the memory of their result, in the types that the CPU has too.
//
// Paddle's fallback to the CPU gives the result new memory. For `x.add_(y)` that means: x leaves the buffer that it was a
// part of. Sharded training keeps parameters and gradients as parts of one buffer, updates the parts and sends the buffer,
// so it needs what a real plug-in does: a kernel of its own, which leaves the result where it was.

#include "delegate.h"
#include "paddle/phi/kernels/adamw_kernel.h"
#include "paddle/phi/kernels/clip_kernel.h"
#include "paddle/phi/kernels/elementwise_add_kernel.h"
#include "paddle/phi/kernels/elementwise_divide_kernel.h"
#include "paddle/phi/kernels/elementwise_multiply_kernel.h"
#include "paddle/phi/kernels/elementwise_subtract_kernel.h"
#include "paddle/phi/kernels/scale_kernel.h"

STANDIN_WIDE("add", AddKernel)
STANDIN_WIDE("subtract", SubtractKernel)
STANDIN_WIDE("multiply", MultiplyKernel)
STANDIN_WIDE("divide", DivideKernel)
STANDIN_WIDE("scale", ScaleKernel)
STANDIN_WIDE("clip", ClipKernel)
STANDIN_FLOAT32("adamw", AdamwDenseKernel)
