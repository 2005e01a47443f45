// SPDX-License-Identifier: Apache-2.0
// flash_attention_npu in the three forms that the plug-in has had, on host memory. It computes in float32 and refuses what
// a card (or the plug-in) refuses or gets wrong.
//
// Options, read from the environment when the library is loaded or called:
//   NPU_STANDIN_ABI       inputs + attributes of the operator: 5+5; 5+8 (two lists of lengths as attributes; on the
//                         plug-in's development branch for six days); 7+6 (default: two optional tensors of lengths, since
//                         2025-01-09); "unknown": a form that nobody knows; "none": the operator is not there
//   NPU_STANDIN_FLOAT32   1 lets the operator take float32, which a card does not

#include <cmath>
#include <limits>

#include "operators.h"

namespace {

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

using Optional = paddle::optional<Tensor>;
using Lengths = std::vector<int64_t>;

// 5 inputs, 5 attributes.
std::vector<Tensor> Attention55(const Tensor& q, const Tensor& k, const Tensor& v, const Optional& seed,
                                const Optional& mask, float dropout, bool causal, bool, bool, bool triangle) {
  return Attention(q, k, v, seed, mask, dropout, causal, triangle);
}

// 5 inputs, 8 attributes.
std::vector<Tensor> Attention58(const Tensor& q, const Tensor& k, const Tensor& v, const Optional& seed,
                                const Optional& mask, const Lengths& q_ends, const Lengths& k_ends, float dropout,
                                bool causal, bool, bool, bool triangle, bool varlen) {
  PD_CHECK(!varlen && q_ends.empty() && k_ends.empty(), "flash_attention_npu: the stand-in has no varlen form");
  return Attention(q, k, v, seed, mask, dropout, causal, triangle);
}

// 7 inputs, 6 attributes; its gradient is given the lengths too.
std::vector<Tensor> Attention76(const Tensor& q, const Tensor& k, const Tensor& v, const Optional& seed,
                                const Optional& mask, const Optional& q_ends, const Optional& k_ends, float dropout,
                                bool causal, bool, bool, bool triangle, bool varlen) {
  PD_CHECK(!varlen && !q_ends && !k_ends, "flash_attention_npu: the stand-in has no varlen form");
  return Attention(q, k, v, seed, mask, dropout, causal, triangle);
}

std::vector<Tensor> Attention76Grad(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& grad_out,
                                    const Optional& mask, const Optional& q_ends, const Optional& k_ends,
                                    const Tensor& maxima, const Tensor& sums, const Tensor& softmax, const Tensor& out,
                                    const Tensor& seed, const Tensor& offset, const Tensor& numel, float dropout,
                                    bool causal, bool triangle, bool varlen) {
  PD_CHECK(!varlen && !q_ends && !k_ends, "flash_attention_npu_grad: the stand-in has no varlen form");
  return AttentionGrad(q, k, v, grad_out, mask, maxima, sums, softmax, out, seed, offset, numel, dropout, causal,
                       triangle);
}

std::vector<Tensor> AttentionUnknown(const Tensor&, const Tensor&, const Tensor&, const paddle::optional<Tensor>&,
                                     const paddle::optional<Tensor>&, float, bool) {
  Count("flash_attention_npu");
  PD_THROW("flash_attention_npu of an unknown form was called");
}

// What PD_BUILD_OP and PD_BUILD_GRAD_OP do, but with the form chosen when the library is loaded.
bool RegisterAttention() {
  const char* wanted = std::getenv("NPU_STANDIN_ABI");
  const std::string abi = wanted ? wanted : "7+6";
  if (abi == "none") return false;
  const bool lists = abi == "5+8", tensors = abi == "7+6";
  std::vector<std::string> inputs{"query", "key", "value", paddle::Optional("fixed_seed_offset"),
                                  paddle::Optional("attn_mask")};
  std::vector<std::string> attributes{"dropout: float", "causal: bool", "return_softmax: bool", "is_test: bool",
                                      "is_triangle_upper_mask: bool"};
  std::vector<std::string> grad_inputs{"query", "key", "value", paddle::Grad("attention_score"),
                                       paddle::Optional("attn_mask")};
  std::vector<std::string> grad_attributes{"dropout: float", "causal: bool", "is_triangle_upper_mask: bool"};
  if (lists) {
    attributes.insert(attributes.begin(),
                      {"actual_seq_q_len: std::vector<int64_t>", "actual_seq_kv_len: std::vector<int64_t>"});
    attributes.push_back("is_varlen: bool");
  }
  if (tensors) {
    for (auto* names : {&inputs, &grad_inputs})
      names->insert(names->end(), {paddle::Optional("actual_seq_q_len"), paddle::Optional("actual_seq_kv_len")});
    for (auto* names : {&attributes, &grad_attributes}) names->push_back("is_varlen: bool");
  }
  grad_inputs.insert(grad_inputs.end(), {"softmax_max", "softmax_sum", "softmax_out", "attention_score", "seed",
                                         "offset", "numel"});
  paddle::OpMetaInfoBuilder forward("flash_attention_npu", 0);
  forward.Outputs({"attention_score", "softmax_max", "softmax_sum", "softmax_out", "seed", "offset", "numel"});
  if (abi == "unknown") {
    forward.Inputs(std::move(inputs))
        .Attrs({"dropout: float", "sparse_mode_of_tomorrow: bool"})
        .SetKernelFn(PD_KERNEL(AttentionUnknown));
    return true;
  }
  PD_CHECK(lists || tensors || abi == "5+5", "NPU_STANDIN_ABI=", abi, ": expected 5+5, 5+8, 7+6, unknown or none");
  forward.Inputs(std::move(inputs)).Attrs(std::move(attributes));
  if (tensors) forward.SetKernelFn(PD_KERNEL(Attention76));
  else if (lists) forward.SetKernelFn(PD_KERNEL(Attention58));
  else forward.SetKernelFn(PD_KERNEL(Attention55));
  paddle::OpMetaInfoBuilder backward("flash_attention_npu", 1);
  backward.Inputs(std::move(grad_inputs))
      .Outputs({paddle::Grad("query"), paddle::Grad("key"), paddle::Grad("value")})
      .Attrs(std::move(grad_attributes));
  if (tensors) backward.SetKernelFn(PD_KERNEL(Attention76Grad));
  else backward.SetKernelFn(PD_KERNEL(AttentionGrad));
  return true;
}
const bool registered = RegisterAttention();

}  // namespace
