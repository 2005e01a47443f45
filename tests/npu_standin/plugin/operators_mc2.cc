// SPDX-License-Identifier: Apache-2.0
// Reference form of fused_mm_allreduce: the product of two matrices, summed over the devices of a group. The product is
// rounded before it is sent, as without the fusion, so both give the same bits.

#include "operators.h"

extern "C" long npu_standin_sum(const char* group, void* values, long count, int half);  // runtime.cc

namespace {

std::vector<Tensor> Product(const Tensor& x1, const Tensor& x2, const paddle::optional<Tensor>& bias, std::string hcom,
                            std::string reduce_op, int64_t comm_turn) {
  Count("fused_mm_allreduce");
  PD_CHECK(x1.shape().size() == 2 && x2.shape().size() == 2, "fused_mm_allreduce: both inputs must be matrices");
  PD_CHECK(x1.shape()[1] == x2.shape()[0], "fused_mm_allreduce: the matrices do not fit together");
  PD_CHECK(x1.dtype() == paddle::DataType::BFLOAT16 && x2.dtype() == x1.dtype(),
           "fused_mm_allreduce: the stand-in sums bfloat16 only");
  PD_CHECK(!bias && reduce_op == "sum" && comm_turn == 0, "fused_mm_allreduce: sum without a bias only");
  Tensor out = paddle::matmul(x1, x2);
  PD_CHECK(npu_standin_sum(hcom.c_str(), out.data(), out.numel(), 1) == 0, "fused_mm_allreduce: no group ", hcom);
  return {out};
}

}  // namespace

PD_BUILD_OP(fused_mm_allreduce)
    .Inputs({"x1", "x2", paddle::Optional("bias")})
    .Outputs({"result"})
    .Attrs({"hcom:std::string", "reduce_op:std::string", "comm_turn:int64_t"})
    .SetKernelFn(PD_KERNEL(Product));
