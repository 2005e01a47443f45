// SPDX-License-Identifier: Apache-2.0
// Reference forms of the fused NPU operators rms_norm_npu and fused_rope, on host memory, and the counters of all calls.
// They compute in float32 and refuse what a card (or the plug-in) refuses or gets wrong, so that a caller that breaks a
// rule fails here.

#include "operators.h"

#include <cmath>
#include <map>
#include <mutex>

namespace {

std::mutex counters_lock;
std::map<std::string, long>& Counters() {
  static std::map<std::string, long> counters;
  return counters;
}

}  // namespace

void Count(const std::string& name) {
  std::lock_guard<std::mutex> guard(counters_lock);
  ++Counters()[name];
}

namespace {

// ---- rms_norm_npu -------------------------------------------------------------------------------------------------

std::vector<Tensor> RmsNorm(const Tensor& x, const Tensor& gamma, float epsilon) {
  Count("rms_norm_npu");
  PD_CHECK(gamma.shape().size() == 1 && gamma.shape()[0] == x.shape().back(), "rms_norm_npu: gamma must be [D]");
  const auto values = Read(x), weight = Read(gamma);
  const int64_t width = weight.size(), rows = values.size() / width;
  std::vector<float> y(values.size()), rstd(rows);
  for (int64_t r = 0; r < rows; ++r) {
    float sum = 0;
    for (int64_t d = 0; d < width; ++d) sum += values[r * width + d] * values[r * width + d];
    rstd[r] = 1.0f / std::sqrt(sum / width + epsilon);
    for (int64_t d = 0; d < width; ++d) y[r * width + d] = values[r * width + d] * rstd[r] * weight[d];
  }
  Shape stats = x.shape();
  stats.back() = 1;
  // As in the plug-in: y takes the data type of gamma.
  return {Write(y, x.shape(), gamma.dtype(), x.place()), Write(rstd, stats, paddle::DataType::FLOAT32, x.place())};
}

std::vector<Tensor> RmsNormGrad(const Tensor& dy, const Tensor& x, const Tensor& rstd_in, const Tensor& gamma) {
  Count("rms_norm_npu_grad");
  const auto g = Read(dy), values = Read(x), rstd = Read(rstd_in), weight = Read(gamma);
  const int64_t width = weight.size(), rows = values.size() / width;
  std::vector<float> dx(values.size()), dgamma(width, 0.0f);
  for (int64_t r = 0; r < rows; ++r) {
    float mean = 0;
    for (int64_t d = 0; d < width; ++d) mean += g[r * width + d] * weight[d] * values[r * width + d];
    mean = mean * rstd[r] * rstd[r] / width;
    for (int64_t d = 0; d < width; ++d) {
      dx[r * width + d] = rstd[r] * (g[r * width + d] * weight[d] - values[r * width + d] * mean);
      dgamma[d] += g[r * width + d] * values[r * width + d] * rstd[r];
    }
  }
  // As in the plug-in: the gradient of gamma is float32 whatever gamma is.
  return {Write(dx, x.shape(), x.dtype(), x.place()),
          Write(dgamma, gamma.shape(), paddle::DataType::FLOAT32, x.place())};
}

// ---- fused_rope ---------------------------------------------------------------------------------------------------

void CheckRope(const Tensor& q, const Tensor& cos, const Tensor& sin) {
  const Shape shape = q.shape();
  PD_CHECK(shape.size() == 4 && shape[3] % 64 == 0, "fused_rope: [B, S, N, D] with D a multiple of 64");
  PD_CHECK((cos.shape() == Shape{1, shape[1], 1, shape[3]}) && sin.shape() == cos.shape(),
           "fused_rope: cos and sin must be [1, S, 1, D]");
  PD_CHECK(cos.dtype() == q.dtype() && sin.dtype() == q.dtype(), "fused_rope: cos and sin in the data type of q");
}

std::vector<float> Turn(const Tensor& x, const Tensor& cos_in, const Tensor& sin_in, bool back) {
  const auto values = Read(x), cos = Read(cos_in), sin = Read(sin_in);
  const int64_t length = x.shape()[1], heads = x.shape()[2], width = x.shape()[3], half = width / 2;
  std::vector<float> out(values.size());
  for (int64_t row = 0; row < int64_t(values.size()) / width; ++row) {
    const int64_t place = row / heads % length * width;
    const float* in = &values[row * width];
    for (int64_t d = 0; d < half; ++d) {
      const float a = in[d], b = in[d + half];
      if (back) {
        out[row * width + d] = a * cos[place + d] + b * sin[place + d + half];
        out[row * width + d + half] = b * cos[place + d + half] - a * sin[place + d];
      } else {
        out[row * width + d] = a * cos[place + d] - b * sin[place + d];
        out[row * width + d + half] = b * cos[place + d + half] + a * sin[place + d + half];
      }
    }
  }
  return out;
}

std::vector<Tensor> Rope(const Tensor& q, const Tensor& cos, const Tensor& sin) {
  Count("fused_rope");
  CheckRope(q, cos, sin);
  return {Write(Turn(q, cos, sin, false), q.shape(), q.dtype(), q.place())};
}

std::vector<Tensor> RopeGrad(const Tensor& q, const Tensor& grad, const Tensor& cos, const Tensor& sin) {
  Count("fused_rope_grad");
  CheckRope(q, cos, sin);
  return {Write(Turn(grad, cos, sin, true), q.shape(), q.dtype(), q.place())};
}

}  // namespace

extern "C" long npu_standin_calls(const char* name) {
  std::lock_guard<std::mutex> guard(counters_lock);
  auto found = Counters().find(name);
  return found == Counters().end() ? 0 : found->second;
}
extern "C" void npu_standin_count(const char* name) { Count(name); }
extern "C" void npu_standin_reset() {
  std::lock_guard<std::mutex> guard(counters_lock);
  Counters().clear();
}

PD_BUILD_OP(rms_norm_npu)
    .Inputs({"x", "gamma"})
    .Outputs({"y", "rstd"})
    .Attrs({"epsilon: float"})
    .SetKernelFn(PD_KERNEL(RmsNorm));
PD_BUILD_GRAD_OP(rms_norm_npu)
    .Inputs({paddle::Grad("y"), "x", "rstd", "gamma"})
    .Outputs({paddle::Grad("x"), paddle::Grad("gamma")})
    .SetKernelFn(PD_KERNEL(RmsNormGrad));

PD_BUILD_OP(fused_rope)
    .Inputs({"query", "cos", "sin"})
    .Outputs({"query_out"})
    .SetKernelFn(PD_KERNEL(Rope));
PD_BUILD_GRAD_OP(fused_rope)
    .Inputs({"query", paddle::Grad("query_out"), "cos", "sin"})
    .Outputs({paddle::Grad("query")})
    .SetKernelFn(PD_KERNEL(RopeGrad));
