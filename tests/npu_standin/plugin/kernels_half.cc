// SPDX-License-Identifier: Apache-2.0
// Half-precision kernels of the stand-in: those that an Ascend plug-in of the first LLaVA era had in bfloat16, and the
// CPU has not. What plug-ins lack (subtract, squeeze, topk, dropout, flatten, ...) or lacked in their first releases
// (gather, sigmoid) is left out on purpose: a bfloat16 model that uses it fails here as it fails there.

#include "delegate.h"
#include "paddle/phi/kernels/activation_grad_kernel.h"
#include "paddle/phi/kernels/activation_kernel.h"
#include "paddle/phi/kernels/adamw_kernel.h"
#include "paddle/phi/kernels/amp_kernel.h"
#include "paddle/phi/kernels/concat_grad_kernel.h"
#include "paddle/phi/kernels/concat_kernel.h"
#include "paddle/phi/kernels/conv_grad_kernel.h"
#include "paddle/phi/kernels/conv_kernel.h"
#include "paddle/phi/kernels/elementwise_add_grad_kernel.h"
#include "paddle/phi/kernels/elementwise_add_kernel.h"
#include "paddle/phi/kernels/elementwise_divide_grad_kernel.h"
#include "paddle/phi/kernels/elementwise_divide_kernel.h"
#include "paddle/phi/kernels/elementwise_multiply_kernel.h"
#include "paddle/phi/kernels/elementwise_subtract_grad_kernel.h"
#include "paddle/phi/kernels/elementwise_subtract_kernel.h"
#include "paddle/phi/kernels/embedding_grad_kernel.h"
#include "paddle/phi/kernels/embedding_kernel.h"
#include "paddle/phi/kernels/expand_grad_kernel.h"
#include "paddle/phi/kernels/expand_kernel.h"
#include "paddle/phi/kernels/full_kernel.h"
#include "paddle/phi/kernels/gelu_grad_kernel.h"
#include "paddle/phi/kernels/gelu_kernel.h"
#include "paddle/phi/kernels/layer_norm_grad_kernel.h"
#include "paddle/phi/kernels/layer_norm_kernel.h"
#include "paddle/phi/kernels/matmul_grad_kernel.h"
#include "paddle/phi/kernels/matmul_kernel.h"
#include "paddle/phi/kernels/reduce_sum_grad_kernel.h"
#include "paddle/phi/kernels/reduce_sum_kernel.h"
#include "paddle/phi/kernels/scale_kernel.h"
#include "paddle/phi/kernels/scatter_kernel.h"
#include "paddle/phi/kernels/slice_grad_kernel.h"
#include "paddle/phi/kernels/slice_kernel.h"
#include "paddle/phi/kernels/softmax_grad_kernel.h"
#include "paddle/phi/kernels/softmax_kernel.h"
#include "paddle/phi/kernels/split_kernel.h"
#include "paddle/phi/kernels/squared_l2_norm_kernel.h"
#include "paddle/phi/kernels/squeeze_grad_kernel.h"
#include "paddle/phi/kernels/squeeze_kernel.h"
#include "paddle/phi/kernels/swiglu_grad_kernel.h"
#include "paddle/phi/kernels/swiglu_kernel.h"
#include "paddle/phi/kernels/transpose_grad_kernel.h"
#include "paddle/phi/kernels/transpose_kernel.h"
#include "paddle/phi/kernels/unsqueeze_grad_kernel.h"
#include "paddle/phi/kernels/unsqueeze_kernel.h"
#include "paddle/phi/kernels/where_grad_kernel.h"
#include "paddle/phi/kernels/where_kernel.h"

STANDIN_HALF("add", AddKernel)
STANDIN_HALF("add_grad", AddGradKernel)
STANDIN_HALF("multiply", MultiplyKernel)
STANDIN_HALF("divide", DivideKernel)
STANDIN_HALF("divide_grad", DivideGradKernel)
STANDIN_HALF("matmul", MatmulKernel)
STANDIN_HALF("matmul_grad", MatmulGradKernel)
STANDIN_HALF("scale", ScaleKernel)
STANDIN_HALF("sum", SumKernel)
STANDIN_HALF("sum_grad", ReduceSumGradKernel)
STANDIN_HALF("softmax", SoftmaxKernel)
STANDIN_HALF("softmax_grad", SoftmaxGradKernel)
STANDIN_HALF("layer_norm", LayerNormKernel)
STANDIN_HALF("layer_norm_grad", LayerNormGradKernel)
STANDIN_HALF("silu", SiluKernel)
STANDIN_HALF("silu_grad", SiluGradKernel)
STANDIN_HALF("gelu", GeluKernel)
STANDIN_HALF("gelu_grad", GeluGradKernel)
STANDIN_HALF("expand", ExpandKernel)
STANDIN_HALF("expand_grad", ExpandGradKernel)
STANDIN_HALF("transpose", TransposeKernel)
STANDIN_HALF("transpose_grad", TransposeGradKernel)
STANDIN_HALF("concat", ConcatKernel)
STANDIN_HALF("concat_grad", ConcatGradKernel)
STANDIN_HALF("split_with_num", SplitWithNumKernel)
STANDIN_HALF("slice", SliceKernel)
STANDIN_HALF("slice_grad", SliceGradKernel)
STANDIN_HALF("scatter", ScatterKernel)
STANDIN_HALF("conv2d", ConvKernel)
STANDIN_HALF("conv2d_grad", ConvGradKernel)
STANDIN_HALF("where", WhereKernel)
STANDIN_HALF("where_grad", WhereGradKernel)
STANDIN_HALF("squared_l2_norm", SquaredL2NormKernel)
STANDIN_HALF("full", FullKernel)
STANDIN_HALF("full_like", FullLikeKernel)
STANDIN_HALF("unsqueeze", UnsqueezeKernel)
STANDIN_HALF("unsqueeze_grad", UnsqueezeGradKernel)

// The plug-in has these in float16 and not in bfloat16.
STANDIN_FLOAT16("subtract", SubtractKernel)
STANDIN_FLOAT16("subtract_grad", SubtractGradKernel)
STANDIN_FLOAT16("squeeze", SqueezeKernel)
STANDIN_FLOAT16("squeeze_grad", SqueezeGradKernel)

// The plug-in has these in float32 too; that of the loss scale is not known in bfloat16, which needs none.
STANDIN_FLOAT16("check_finite_and_unscale", CheckFiniteAndUnscaleKernel)
STANDIN_FLOAT("embedding", EmbeddingKernel)
STANDIN_FLOAT("embedding_grad", EmbeddingGradKernel)  // the fallback would leave its result on the host
STANDIN_FLOAT("split", SplitKernel)
STANDIN_FLOAT("swiglu", SwiGLUKernel)
STANDIN_FLOAT("swiglu_grad", SwiGLUGradKernel)

// AdamW of a half-precision parameter. With master weights the CPU kernel would ignore them: here it updates the
// float32 master, and the parameter is its rounding.
template <standin::DataType kType>
struct AdamW {
  static constexpr const char* kName = "adamw";

  static void Run(const phi::DeviceContext& context, const phi::DenseTensor& param, const phi::DenseTensor& grad,
                  const phi::DenseTensor& rate, const phi::DenseTensor& moment1, const phi::DenseTensor& moment2,
                  const paddle::optional<phi::DenseTensor>& moment2_max, const phi::DenseTensor& beta1_pow,
                  const phi::DenseTensor& beta2_pow, const paddle::optional<phi::DenseTensor>& master,
                  const paddle::optional<phi::DenseTensor>& skip, const phi::Scalar& beta1, const phi::Scalar& beta2,
                  const phi::Scalar& epsilon, float ratio, float decay, bool with_decay, bool lazy, int64_t rows,
                  bool multi_precision, bool global_beta_pow, bool amsgrad, phi::DenseTensor* param_out,
                  phi::DenseTensor* moment1_out, phi::DenseTensor* moment2_out, phi::DenseTensor* moment2_max_out,
                  phi::DenseTensor* beta1_pow_out, phi::DenseTensor* beta2_pow_out, phi::DenseTensor* master_out) {
    const bool wide = multi_precision && master;
    Plain::Run(context, wide ? master.get() : param, grad, rate, moment1, moment2, moment2_max, beta1_pow, beta2_pow,
               paddle::none, skip, beta1, beta2, epsilon, ratio, decay, with_decay, lazy, rows, false,
               global_beta_pow, amsgrad, wide ? master_out : param_out, moment1_out, moment2_out, moment2_max_out,
               beta1_pow_out, beta2_pow_out, nullptr);
    if (!wide) return;
    param_out->Resize(master_out->dims());
    void* to = context.Alloc(param_out, kType);
    standin::Narrow(kType, master_out->data(), to, master_out->numel());
  }

  using Signature = decltype(&phi::AdamwDenseKernel<float, phi::CPUContext>);
  using Plain = standin::Delegate<&kName, kType, Signature>;

  AdamW() { Plain::Register(reinterpret_cast<void*>(&Run)); }
};
static AdamW<phi::DataType::BFLOAT16> adamw_bfloat16;
static AdamW<phi::DataType::FLOAT16> adamw_float16;
