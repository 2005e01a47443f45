// SPDX-License-Identifier: Apache-2.0
// Reference forms of the fused NPU operators under their real names, on host memory. They compute in float32 and
// refuse what a card (or the plug-in) refuses or gets wrong, so that a caller that breaks a rule fails here.
//
// Options, read from the environment when the library is loaded or called:
//   NPU_STANDIN_ABI       10 or 13 (default): old or new attributes of flash_attention_npu; "unknown": a form that nobody
//                         knows; "none": the operator is not there
//   NPU_STANDIN_FLOAT32   1 lets flash_attention_npu take float32, which a card does not

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "paddle/extension.h"

using paddle::Tensor;
using Shape = std::vector<int64_t>;

namespace {

std::mutex counters_lock;
std::map<std::string, long>& Counters() {
  static std::map<std::string, long> counters;
  return counters;
}
void Count(const std::string& name) {
  std::lock_guard<std::mutex> guard(counters_lock);
  ++Counters()[name];
}

bool Set(const char* name) {
  const char* value = std::getenv(name);
  return value && value[0] == '1';
}

std::vector<float> Read(const Tensor& tensor) {
  std::vector<float> out(tensor.numel());
  switch (tensor.dtype()) {
    case paddle::DataType::FLOAT32: std::copy_n(tensor.data<float>(), out.size(), out.begin()); break;
    case paddle::DataType::BFLOAT16:
      for (size_t i = 0; i < out.size(); ++i) out[i] = float(tensor.data<paddle::bfloat16>()[i]);
      break;
    case paddle::DataType::FLOAT16:
      for (size_t i = 0; i < out.size(); ++i) out[i] = float(tensor.data<paddle::float16>()[i]);
      break;
    default: PD_THROW("stand-in npu: no such data type in a fused operator");
  }
  return out;
}

Tensor Write(const std::vector<float>& values, const Shape& shape, paddle::DataType type, const paddle::Place& place) {
  Tensor out = paddle::empty(shape, type, place);
  switch (type) {
    case paddle::DataType::FLOAT32: std::copy(values.begin(), values.end(), out.data<float>()); break;
    case paddle::DataType::BFLOAT16:
      for (size_t i = 0; i < values.size(); ++i) out.data<paddle::bfloat16>()[i] = paddle::bfloat16(values[i]);
      break;
    default:
      for (size_t i = 0; i < values.size(); ++i) out.data<paddle::float16>()[i] = paddle::float16(values[i]);
  }
  return out;
}

bool Half(const Tensor& tensor) {
  return tensor.dtype() == paddle::DataType::FLOAT16 || tensor.dtype() == paddle::DataType::BFLOAT16;
}

// ---- flash_attention_npu ------------------------------------------------------------------------------------------

struct Sizes {
  int64_t batch, q_len, k_len, heads, kv_heads, width;
  float scale;
};

Sizes Check(const Tensor& q, const Tensor& k, const Tensor& v) {
  PD_CHECK(q.shape().size() == 4 && k.shape().size() == 4, "flash_attention_npu: inputs must be 4-D [B, S, N, D]");
  PD_CHECK(k.shape() == v.shape(), "flash_attention_npu: key and value must have one shape");
  PD_CHECK(q.dtype() == k.dtype() && q.dtype() == v.dtype(), "flash_attention_npu: one data type for q, k, v");
  const bool float32 = q.dtype() == paddle::DataType::FLOAT32 && Set("NPU_STANDIN_FLOAT32");
  PD_CHECK(Half(q) || float32, "flash_attention_npu: only float16 and bfloat16");
  Sizes s{q.shape()[0], q.shape()[1], k.shape()[1], q.shape()[2], k.shape()[2], q.shape()[3], 0};
  PD_CHECK(k.shape()[0] == s.batch && k.shape()[3] == s.width, "flash_attention_npu: batch or head width differ");
  PD_CHECK(s.heads % s.kv_heads == 0, "flash_attention_npu: heads of the query must be a multiple of those of the key");
  PD_CHECK(s.width % 16 == 0 && s.width <= 512, "flash_attention_npu: head_dim must be a multiple of 16 up to 512, got ",
           s.width);
  s.scale = 1.0f / std::sqrt(float(s.width));
  return s;
}

// Which keys are hidden: [batch][head or 0][q][k], or nothing at all.
struct Hidden {
  const bool* mask = nullptr;
  bool per_batch = false, per_head = false, causal = false, triangle = false;

  bool operator()(const Sizes& s, int64_t b, int64_t h, int64_t i, int64_t j) const {
    if (causal) return j > i;
    if (!mask) return false;          // without a mask the triangle hint is ignored
    if (triangle && j > i) return true;  // next_tokens = 0: only the band left of the top-left diagonal is computed
    const int64_t plane = (per_batch ? b : 0) * (per_head ? s.heads : 1) + (per_head ? h : 0);
    return mask[(plane * s.q_len + i) * s.k_len + j];
  }
};

Hidden Rules(const Sizes& s, const paddle::optional<Tensor>& mask, bool causal, bool triangle) {
  Hidden hidden;
  hidden.causal = causal;
  hidden.triangle = triangle;
  if (causal) {
    PD_CHECK(s.q_len == s.k_len, "flash_attention_npu: causal needs as many queries as keys");
    return hidden;
  }
  if (!mask) return hidden;
  PD_CHECK(mask->dtype() == paddle::DataType::BOOL, "flash_attention_npu: attn_mask must be bool, true is masked out");
  const Shape shape = mask->shape();
  const Shape flat{s.q_len, s.k_len}, one{1, 1, s.q_len, s.k_len}, rows{s.batch, 1, s.q_len, s.k_len},
      full{s.batch, s.heads, s.q_len, s.k_len};
  PD_CHECK(shape == flat || shape == one || shape == rows || shape == full,
           "flash_attention_npu: attn_mask must be [Sq,Sk], [1,1,Sq,Sk], [B,1,Sq,Sk] or [B,N,Sq,Sk]");
  hidden.mask = mask->data<bool>();
  hidden.per_batch = shape == rows || shape == full;
  hidden.per_head = shape == full;
  return hidden;
}

// Probabilities [B, N, Sq, Sk]; a row in which everything is masked is refused (a card returns garbage for it).
std::vector<float> Probabilities(const Sizes& s, const Hidden& hidden, const std::vector<float>& q,
                                 const std::vector<float>& k, std::vector<float>* maxima, std::vector<float>* sums) {
  std::vector<float> p(s.batch * s.heads * s.q_len * s.k_len);
  const int64_t group = s.heads / s.kv_heads;
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t h = 0; h < s.heads; ++h)
      for (int64_t i = 0; i < s.q_len; ++i) {
        float* row = &p[((b * s.heads + h) * s.q_len + i) * s.k_len];
        const float* query = &q[((b * s.q_len + i) * s.heads + h) * s.width];
        float best = -std::numeric_limits<float>::infinity();
        for (int64_t j = 0; j < s.k_len; ++j) {
          row[j] = -std::numeric_limits<float>::infinity();
          if (hidden(s, b, h, i, j)) continue;
          const float* key = &k[((b * s.k_len + j) * s.kv_heads + h / group) * s.width];
          float dot = 0;
          for (int64_t d = 0; d < s.width; ++d) dot += query[d] * key[d];
          row[j] = dot * s.scale;
          best = std::max(best, row[j]);
        }
        PD_CHECK(std::isfinite(best), "flash_attention_npu: row ", i, " of batch ", b, " has every key masked out");
        float sum = 0;
        for (int64_t j = 0; j < s.k_len; ++j) sum += row[j] = std::exp(row[j] - best);
        for (int64_t j = 0; j < s.k_len; ++j) row[j] /= sum;
        for (int64_t lane = 0; lane < 8 && maxima; ++lane) {
          (*maxima)[((b * s.heads + h) * s.q_len + i) * 8 + lane] = best;
          (*sums)[((b * s.heads + h) * s.q_len + i) * 8 + lane] = sum;
        }
      }
  return p;
}

std::vector<Tensor> Attention(const Tensor& query, const Tensor& key, const Tensor& value,
                              const paddle::optional<Tensor>& seed_offset, const paddle::optional<Tensor>& mask,
                              float dropout, bool causal, bool triangle) {
  Count("flash_attention_npu");
  const Sizes s = Check(query, key, value);
  PD_CHECK(dropout == 0.0f, "flash_attention_npu: dropout gives wrong gradients in the real operator; pass 0");
  PD_CHECK(!seed_offset, "flash_attention_npu: the stand-in takes no seed");
  const Hidden hidden = Rules(s, mask, causal, triangle);
  Count(causal ? "flash_attention_npu:causal" : mask ? "flash_attention_npu:mask" : "flash_attention_npu:plain");
  if (triangle) Count("flash_attention_npu:triangle");
  const auto q = Read(query), k = Read(key), v = Read(value);
  std::vector<float> maxima(s.batch * s.heads * s.q_len * 8), sums(maxima.size());
  const auto p = Probabilities(s, hidden, q, k, &maxima, &sums);
  std::vector<float> out(q.size(), 0.0f);
  const int64_t group = s.heads / s.kv_heads;
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t h = 0; h < s.heads; ++h)
      for (int64_t i = 0; i < s.q_len; ++i)
        for (int64_t j = 0; j < s.k_len; ++j) {
          const float weight = p[((b * s.heads + h) * s.q_len + i) * s.k_len + j];
          if (weight == 0.0f) continue;
          for (int64_t d = 0; d < s.width; ++d)
            out[((b * s.q_len + i) * s.heads + h) * s.width + d] +=
                weight * v[((b * s.k_len + j) * s.kv_heads + h / group) * s.width + d];
        }
  const auto place = query.place();
  const Shape stats{s.batch, s.heads, s.q_len, 8};
  return {Write(out, query.shape(), query.dtype(), place),
          Write(maxima, stats, paddle::DataType::FLOAT32, place),
          Write(sums, stats, paddle::DataType::FLOAT32, place),
          Write({0.0f}, {1}, query.dtype(), place),
          paddle::full({1}, 0, paddle::DataType::INT64, paddle::CPUPlace()),
          paddle::full({1}, 0, paddle::DataType::INT64, paddle::CPUPlace()),
          paddle::full({1}, 0, paddle::DataType::INT64, paddle::CPUPlace())};
}

std::vector<Tensor> AttentionGrad(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& grad_out,
                                  const paddle::optional<Tensor>& mask, const Tensor&, const Tensor&, const Tensor&,
                                  const Tensor& out, const Tensor&, const Tensor&, const Tensor&, float dropout,
                                  bool causal, bool triangle) {
  Count("flash_attention_npu_grad");
  const Sizes s = Check(query, key, value);
  PD_CHECK(dropout == 0.0f, "flash_attention_npu_grad: dropout must be 0");
  const auto q = Read(query), k = Read(key), v = Read(value), g = Read(grad_out), o = Read(out);
  const auto p = Probabilities(s, Rules(s, mask, causal, triangle), q, k, nullptr, nullptr);
  std::vector<float> dq(q.size(), 0.0f), dk(k.size(), 0.0f), dv(v.size(), 0.0f);
  const int64_t group = s.heads / s.kv_heads;
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t h = 0; h < s.heads; ++h)
      for (int64_t i = 0; i < s.q_len; ++i) {
        const int64_t row = ((b * s.q_len + i) * s.heads + h) * s.width;
        float shared = 0;  // sum over keys of p * dp, which is the product of the output and its gradient
        for (int64_t d = 0; d < s.width; ++d) shared += g[row + d] * o[row + d];
        for (int64_t j = 0; j < s.k_len; ++j) {
          const float weight = p[((b * s.heads + h) * s.q_len + i) * s.k_len + j];
          if (weight == 0.0f) continue;
          const int64_t at = ((b * s.k_len + j) * s.kv_heads + h / group) * s.width;
          float dp = 0;
          for (int64_t d = 0; d < s.width; ++d) dp += g[row + d] * v[at + d];
          const float ds = weight * (dp - shared) * s.scale;
          for (int64_t d = 0; d < s.width; ++d) {
            dq[row + d] += ds * k[at + d];
            dk[at + d] += ds * q[row + d];
            dv[at + d] += weight * g[row + d];
          }
        }
      }
  const auto place = query.place();
  return {Write(dq, query.shape(), query.dtype(), place), Write(dk, key.shape(), key.dtype(), place),
          Write(dv, value.shape(), value.dtype(), place)};
}

std::vector<Tensor> AttentionOld(const Tensor& q, const Tensor& k, const Tensor& v,
                                 const paddle::optional<Tensor>& seed, const paddle::optional<Tensor>& mask,
                                 float dropout, bool causal, bool, bool, bool triangle) {
  return Attention(q, k, v, seed, mask, dropout, causal, triangle);
}

std::vector<Tensor> AttentionNew(const Tensor& q, const Tensor& k, const Tensor& v,
                                 const paddle::optional<Tensor>& seed, const paddle::optional<Tensor>& mask,
                                 const std::vector<int64_t>& q_ends, const std::vector<int64_t>& k_ends, float dropout,
                                 bool causal, bool, bool, bool triangle, bool varlen) {
  PD_CHECK(!varlen && q_ends.empty() && k_ends.empty(), "flash_attention_npu: the stand-in has no varlen form");
  return Attention(q, k, v, seed, mask, dropout, causal, triangle);
}

std::vector<Tensor> AttentionUnknown(const Tensor&, const Tensor&, const Tensor&, const paddle::optional<Tensor>&,
                                     const paddle::optional<Tensor>&, float, bool) {
  Count("flash_attention_npu");
  PD_THROW("flash_attention_npu of an unknown form was called");
}

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

namespace {

// What PD_BUILD_OP and PD_BUILD_GRAD_OP do, but with the form chosen when the library is loaded.
bool RegisterAttention() {
  const char* wanted = std::getenv("NPU_STANDIN_ABI");
  const std::string abi = wanted ? wanted : "13";
  if (abi == "none") return false;
  paddle::OpMetaInfoBuilder forward("flash_attention_npu", 0);
  forward.Inputs({"query", "key", "value", paddle::Optional("fixed_seed_offset"), paddle::Optional("attn_mask")});
  forward.Outputs({"attention_score", "softmax_max", "softmax_sum", "softmax_out", "seed", "offset", "numel"});
  if (abi == "10") {
    forward
        .Attrs({"dropout: float", "causal: bool", "return_softmax: bool", "is_test: bool",
                "is_triangle_upper_mask: bool"})
        .SetKernelFn(PD_KERNEL(AttentionOld));
  } else if (abi == "13") {
    forward
        .Attrs({"actual_seq_q_len: std::vector<int64_t>", "actual_seq_kv_len: std::vector<int64_t>",
                "dropout: float", "causal: bool", "return_softmax: bool", "is_test: bool",
                "is_triangle_upper_mask: bool", "is_varlen: bool"})
        .SetKernelFn(PD_KERNEL(AttentionNew));
  } else {
    forward.Attrs({"dropout: float", "sparse_mode_of_tomorrow: bool"}).SetKernelFn(PD_KERNEL(AttentionUnknown));
    return true;
  }
  paddle::OpMetaInfoBuilder("flash_attention_npu", 1)
      .Inputs({"query", "key", "value", paddle::Grad("attention_score"), paddle::Optional("attn_mask"), "softmax_max",
               "softmax_sum", "softmax_out", "attention_score", "seed", "offset", "numel"})
      .Outputs({paddle::Grad("query"), paddle::Grad("key"), paddle::Grad("value")})
      .Attrs({"dropout: float", "causal: bool", "is_triangle_upper_mask: bool"})
      .SetKernelFn(PD_KERNEL(AttentionGrad));
  return true;
}
const bool registered = RegisterAttention();

}  // namespace

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
