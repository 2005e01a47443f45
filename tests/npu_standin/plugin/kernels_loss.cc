// SPDX-License-Identifier: Apache-2.0
// Cross entropy with the limits of the plug-in's kernels. One form computes it in the operator
// SparseSoftmaxCrossEntropyWithLogits, which takes no negative label; the gradient of another takes the second axis of the
// logits for the vocabulary, so it is right for two axes only; with another ignore_index than -100 a third one copies
// everything to the host and back.

#include "delegate.h"
#include "paddle/common/exception.h"
#include "paddle/phi/kernels/cross_entropy_grad_kernel.h"
#include "paddle/phi/kernels/cross_entropy_kernel.h"

namespace {

using phi::DataType;
using phi::DenseTensor;

void Check(const DenseTensor& wide, const DenseTensor& label, bool soft, int ignored) {
  const char* who = "stand-in npu: cross_entropy_with_softmax ";
  PD_CHECK(wide.dims().size() == 2, who, "takes logits of two axes");
  PD_CHECK(!soft && ignored == -100, who, "is computed on the host with these options");
  for (int64_t i = 0; i < label.numel(); ++i) {
    const int64_t value = label.dtype() == DataType::INT32 ? label.data<int32_t>()[i] : label.data<int64_t>()[i];
    PD_CHECK(value >= 0 && value < wide.dims()[1], who, "takes no label out of the vocabulary");
  }
}

template <DataType kType>
struct CrossEntropy {
  static constexpr const char* kName = "cross_entropy_with_softmax";
  static constexpr const char* kGradName = "cross_entropy_with_softmax_grad";
  using Host = standin::Delegate<&kName, kType, decltype(&phi::CrossEntropyWithSoftmaxKernel<float, phi::CPUContext>)>;
  using HostGrad =
      standin::Delegate<&kGradName, kType, decltype(&phi::CrossEntropyWithSoftmaxGradKernel<float, phi::CPUContext>)>;

  static void Run(const phi::DeviceContext& context, const DenseTensor& logits, const DenseTensor& label, bool soft,
                  bool use_softmax, bool stable, int ignored, int axis, DenseTensor* softmax, DenseTensor* loss) {
    Check(logits, label, soft, ignored);
    Host::Run(context, logits, label, soft, use_softmax, stable, ignored, axis, softmax, loss);
  }

  static void RunGrad(const phi::DeviceContext& context, const DenseTensor& label, const DenseTensor& softmax,
                      const DenseTensor& loss_grad, bool soft, bool use_softmax, bool stable, int ignored, int axis,
                      DenseTensor* logits_grad) {
    Check(softmax, label, soft, ignored);
    HostGrad::Run(context, label, softmax, loss_grad, soft, use_softmax, stable, ignored, axis, logits_grad);
  }

  CrossEntropy() {
    Host::Register(reinterpret_cast<void*>(&Run));
    HostGrad::Register(reinterpret_cast<void*>(&RunGrad));
  }
};

CrossEntropy<DataType::FLOAT32> in_float32;
CrossEntropy<DataType::FLOAT16> in_float16;

}  // namespace
