/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels of few_rows.c as operators of paddle, for graphs: all layers of a step, the product with a weight, and what
 * lies between the products of a prompt or of a tower.
 *
 * Compiled on the machine that runs it against the headers of the installed paddle (step_operator.py), and not for one
 * kind of processor: what computes is few_rows.c, whose functions are handed over by paddlemix_use.
 *
 * Exported graphs name these operators with their inputs and attributes, so a change of any takes a new name: a graph
 * with a name that is not there gives way to the one of paddle's operators beside it. */
#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "paddle/phi/api/all.h"

using paddle::Tensor;
using Tensors = std::vector<Tensor>;
using Shape = std::vector<int64_t>;
using Type = paddle::DataType;

/* As few_rows.c has them; a table of 64-bit numbers holds its structures. */
typedef int (*Step)(const void *layers, long count, float *x, const float *cosine, const float *sine, float *own_keys,
                    float *own_values, const int64_t *offsets, const int64_t *starts, const int64_t *lengths,
                    long offset, long rows, long width, long heads, long kv_heads, long places, long head_width,
                    long inner, float epsilon, float scale, void *few_bits, void *fork, int threads);
typedef void (*Product)(const float *x, const float *w, float *y, long rows, long in, long out, void *fork, int threads);

typedef void (*Norm)(const float *x, const float *weight, float *y, long rows, long width, float epsilon, void *fork,
                     int threads);
typedef void (*Gate)(const float *x, float *y, long rows, long width, void *fork, int threads);
typedef void (*Bias)(float *y, const float *bias, long rows, long width, void *fork, int threads);
typedef void (*Turn)(const float *x, const float *cosine, const float *sine, float *q, float *k, float *v, long rows,
                     long heads, long kv_heads, long width, void *fork, int threads);
typedef int (*Attend)(const float *q, const float *k, const float *v, const float *own_k, const float *own_v, float *y,
                      const int64_t *offsets, const int64_t *starts, const int64_t *lengths, long offset, long causal,
                      long rows, long queries, long heads, long kv_heads, long places, long width, long place, long head,
                      long row, float scale, void *multiply, void *fork, int threads);

/* In the order of step_operator.py. */
static struct {
    Step step;
    Product product;
    Norm rms_norm;
    Gate swiglu, quick_gelu;
    Bias add_bias;
    Turn turn;
    Attend attend_many;
    void *multiply, *fork;
    int (*threads)();
} kernels;

extern "C" int paddlemix_use(void *const *given, int count) {
    if (count * sizeof *given != sizeof kernels) return 1;
    std::memcpy(&kernels, given, sizeof kernels);
    return 0;
}

static int threads() { return kernels.threads ? kernels.threads() : 1; }

static void require(bool holds, const char *what) {
    if (!holds) throw std::invalid_argument(std::string("an operator of paddlemix was given ") + what);
}

static int64_t address(const Tensor &tensor) { return reinterpret_cast<int64_t>(tensor.data()); }

/* x [B, 1, W], cosine and sine [B, 1, 1, D], offset and starts int64 [B], keys and values of each layer [B, Hk, M, D].
 * `weights` of each layer: norm, joined, its bias if joined_bias, out, its bias if out_bias, second norm, gate_up, down.
 * Gives [B, 1, W] and the keys and values of the step, [layers, B, 1, Hk, D] each. */
static Tensors run(const Tensor &x, const Tensor &cosine, const Tensor &sine, const Tensor &offset,
                   const Tensor &starts, const Tensors &weights, const Tensors &keys, const Tensors &values,
                   int64_t heads, int64_t inner, int64_t joined_bias, int64_t out_bias, float epsilon, float scale) {
    const long count = static_cast<long>(keys.size()), rows = x.shape()[0], width = x.shape()[2];
    const Shape held = keys[0].shape();
    const long kv_heads = held[1], places = held[2], head = held[3], joined = (heads + 2 * kv_heads) * head;
    require(static_cast<long>(weights.size()) == count * (6 + joined_bias + out_bias) && values.size() == keys.size(),
            "a cache of other layers than the weights");
    require(rows <= 8 && places > 0 && offset.numel() == rows && starts.numel() == rows, "other rows than the cache");
    require(cosine.numel() == rows * head && sine.numel() == rows * head, "tables of other rows or another width");
    require(inner % 16 == 0, "a gate of another width");
    for (const Tensors *side : {&keys, &values})
        for (const Tensor &one : *side) require(one.shape() == held && held[0] == rows, "a cache of several shapes");
    std::vector<int64_t> table;
    const Tensor *next = weights.data();
    auto norm = [&] {
        require(next->numel() == width, "a norm of another width");
        return address(*next++);
    };
    auto weight = [&](int64_t in, int64_t out, bool has_bias) {
        require(next->shape() == Shape{in, out} && out % 16 == 0, "a weight of another shape");
        require(!has_bias || next[1].numel() == out, "a bias of another length");
        table.insert(table.end(), {32, address(*next++), 0, out, 0, 0, 0, 0, 0, 0, 0, 0});
        table.insert(table.end(), {has_bias ? address(*next++) : 0, 1});
    };
    for (long layer = 0; layer < count; layer++) {
        const size_t begin = table.size();
        table.insert(table.end(), {norm(), 0});
        weight(width, joined, joined_bias);
        weight(heads * head, width, out_bias);
        table[begin + 1] = norm();
        weight(width, 2 * inner, false);
        weight(inner, width, false);
        table.insert(table.end(), {address(keys[layer]), address(values[layer])});
    }
    Tensor y = paddle::empty(x.shape(), x.dtype(), x.place());
    const Shape own{count, rows, 1, kv_heads, head};
    Tensor new_keys = paddle::empty(own, x.dtype(), x.place()), new_values = paddle::empty(own, x.dtype(), x.place());
    std::copy_n(x.data<float>(), rows * width, y.data<float>());
    if (kernels.step(table.data(), count, y.data<float>(), cosine.data<float>(), sine.data<float>(),
                     new_keys.data<float>(), new_values.data<float>(), offset.data<int64_t>(), starts.data<int64_t>(),
                     nullptr, 0, rows, width, heads, kv_heads, places, head, inner, epsilon, scale, nullptr,
                     kernels.fork, threads()))
        throw std::bad_alloc();
    return {y, new_keys, new_values};
}

static std::vector<Shape> shapes(const Shape &x, const Shape &, const Shape &, const Shape &, const Shape &,
                                 const std::vector<Shape> &, const std::vector<Shape> &keys,
                                 const std::vector<Shape> &, int64_t, int64_t, int64_t, int64_t, float, float) {
    const Shape own{static_cast<int64_t>(keys.size()), x[0], 1, keys[0][1], keys[0][3]};
    return {x, own, own};
}

static std::vector<Type> types(const Type &x, const Type &, const Type &, const Type &, const Type &,
                               const std::vector<Type> &, const std::vector<Type> &, const std::vector<Type> &) {
    return {x, x, x};
}

PD_BUILD_OP(paddlemix_step)
    .Inputs({"x", "cosine", "sine", "offset", "starts", paddle::Vec("weights"), paddle::Vec("keys"), paddle::Vec("values")})
    .Outputs({"y", "new_keys", "new_values"})
    .Attrs({"heads: int64_t", "inner: int64_t", "joined_bias: int64_t", "out_bias: int64_t", "epsilon: float",
            "scale: float"})
    .SetKernelFn(PD_KERNEL(run))
    .SetInferShapeFn(PD_INFER_SHAPE(shapes))
    .SetInferDtypeFn(PD_INFER_DTYPE(types));

/* x [B, in] times weight [in, out], B at most 8 and `out` a multiple of 16. */
static Tensors multiply(const Tensor &x, const Tensor &weight) {
    const long rows = x.shape()[0], in = x.shape()[1], out = weight.shape()[1];
    require(rows <= 8 && weight.shape()[0] == in && out % 16 == 0, "a product of many rows or another shape");
    Tensor y = paddle::empty({rows, out}, x.dtype(), x.place());
    kernels.product(x.data<float>(), weight.data<float>(), y.data<float>(), rows, in, out, kernels.fork, threads());
    return {y};
}

static std::vector<Shape> shape_of_product(const Shape &x, const Shape &weight) { return {{x[0], weight[1]}}; }

static std::vector<Type> type_of_product(const Type &x, const Type &) { return {x}; }

PD_BUILD_OP(paddlemix_product)
    .Inputs({"x", "weight"})
    .Outputs({"y"})
    .SetKernelFn(PD_KERNEL(multiply))
    .SetInferShapeFn(PD_INFER_SHAPE(shape_of_product))
    .SetInferDtypeFn(PD_INFER_DTYPE(type_of_product));

/* x [..., D], weight [D]. */
static Tensors norm(const Tensor &x, const Tensor &weight, float epsilon) {
    const long width = x.shape().back();
    require(weight.numel() == width, "a norm of another width");
    Tensor y = paddle::empty(x.shape(), x.dtype(), x.place());
    kernels.rms_norm(x.data<float>(), weight.data<float>(), y.data<float>(), x.numel() / width, width, epsilon,
                     kernels.fork, threads());
    return {y};
}

static std::vector<Shape> shape_of_norm(const Shape &x, const Shape &, float) { return {x}; }

PD_BUILD_OP(paddlemix_rms_norm)
    .Inputs({"x", "weight"})
    .Outputs({"y"})
    .Attrs({"epsilon: float"})
    .SetKernelFn(PD_KERNEL(norm))
    .SetInferShapeFn(PD_INFER_SHAPE(shape_of_norm))
    .SetInferDtypeFn(PD_INFER_DTYPE(type_of_product));

/* x [..., 2 I], gate first; I is a multiple of 16. */
static Tensors gate(const Tensor &x) {
    Shape shape = x.shape();
    const long inner = shape.back() / 2;
    require(inner % 16 == 0 && 2 * inner == shape.back(), "a gate of another width");
    shape.back() = inner;
    Tensor y = paddle::empty(shape, x.dtype(), x.place());
    kernels.swiglu(x.data<float>(), y.data<float>(), x.numel() / (2 * inner), inner, kernels.fork, threads());
    return {y};
}

static std::vector<Shape> shape_of_gate(const Shape &x) {
    Shape shape = x;
    shape.back() /= 2;
    return {shape};
}

/* Of one input the output has its dtype, and its shape, unless something else is said. */
PD_BUILD_OP(paddlemix_swiglu)
    .Inputs({"x"})
    .Outputs({"y"})
    .SetKernelFn(PD_KERNEL(gate))
    .SetInferShapeFn(PD_INFER_SHAPE(shape_of_gate));

/* x [..., D] to quick_gelu of it, in the same memory; D is a multiple of 16. */
static void quick_gelu(Tensor &x) {
    const long width = x.shape().back();
    require(width % 16 == 0, "an activation of another width");
    kernels.quick_gelu(x.data<float>(), x.data<float>(), x.numel() / width, width, kernels.fork, threads());
}

PD_BUILD_OP(paddlemix_quick_gelu)
    .Inputs({"x"})
    .Outputs({"y"})
    .SetInplaceMap({{"x", "y"}})
    .SetKernelFn(PD_KERNEL(quick_gelu));

/* y [..., D] += bias [D], D a multiple of 16. */
static void add_bias(Tensor &y, const Tensor &bias) {
    const long width = bias.numel();
    require(width % 16 == 0 && y.shape().back() == width, "a bias of another length");
    kernels.add_bias(y.data<float>(), bias.data<float>(), y.numel() / width, width, kernels.fork, threads());
}

PD_BUILD_OP(paddlemix_add_bias)
    .Inputs({"y", "bias"})
    .Outputs({"sum"})
    .SetInplaceMap({{"y", "sum"}})
    .SetKernelFn(PD_KERNEL(add_bias));

/* x [B, L, (H + 2 Hk) D], cosine and sine [B, L, 1, D]; gives q [B, L, H, D] and k, v [B, L, Hk, D]. */
static Tensors turn(const Tensor &x, const Tensor &cosine, const Tensor &sine, int64_t heads, int64_t kv_heads) {
    const Shape shape = x.shape();
    const long width = cosine.shape().back(), rows = shape[0] * shape[1];
    require(shape[2] == (heads + 2 * kv_heads) * width, "heads of another width");
    require(cosine.numel() == rows * width && sine.numel() == rows * width, "tables of other rows");
    Tensor q = paddle::empty({shape[0], shape[1], heads, width}, x.dtype(), x.place());
    Tensor k = paddle::empty({shape[0], shape[1], kv_heads, width}, x.dtype(), x.place());
    Tensor v = paddle::empty({shape[0], shape[1], kv_heads, width}, x.dtype(), x.place());
    kernels.turn(x.data<float>(), cosine.data<float>(), sine.data<float>(), q.data<float>(), k.data<float>(),
                 v.data<float>(), rows, heads, kv_heads, width, kernels.fork, threads());
    return {q, k, v};
}

static std::vector<Shape> shapes_of_turn(const Shape &x, const Shape &cosine, const Shape &, int64_t heads,
                                         int64_t kv_heads) {
    const Shape own{x[0], x[1], kv_heads, cosine.back()};
    return {{x[0], x[1], heads, cosine.back()}, own, own};
}

static std::vector<Type> types_of_turn(const Type &x, const Type &, const Type &) { return {x, x, x}; }

PD_BUILD_OP(paddlemix_turn)
    .Inputs({"x", "cosine", "sine"})
    .Outputs({"q", "k", "v"})
    .Attrs({"heads: int64_t", "kv_heads: int64_t"})
    .SetKernelFn(PD_KERNEL(turn))
    .SetInferShapeFn(PD_INFER_SHAPE(shapes_of_turn))
    .SetInferDtypeFn(PD_INFER_DTYPE(types_of_turn));

/* q [B, L, H, D] over the first offset[b] places of keys and values [B, Hk, M, D], from starts[b] on, and over those of
 * the queries, own_k and own_v [B, L, Hk, D], up to each query's own. */
static Tensors attend(const Tensor &q, const Tensor &k, const Tensor &v, const Tensor &own_k, const Tensor &own_v,
                      const Tensor &offset, const Tensor &starts, float scale) {
    const Shape shape = q.shape(), held = k.shape(), own = own_k.shape();
    const long rows = shape[0], queries = shape[1], heads = shape[2], width = shape[3], kv_heads = held[1];
    require(v.shape() == held && own_v.shape() == own && own == Shape({rows, queries, kv_heads, width}) &&
                held == Shape({rows, kv_heads, held[2], width}) && heads % kv_heads == 0,
            "keys and values of several shapes");
    require(offset.numel() == rows && starts.numel() == rows, "other rows than the cache");
    for (long row = 0; row < rows; row++)
        require(offset.data<int64_t>()[row] >= 0 && offset.data<int64_t>()[row] <= held[2], "more places than are held");
    Tensor y = paddle::empty(shape, q.dtype(), q.place());
    if (q.numel() && kernels.attend_many(q.data<float>(), k.data<float>(), v.data<float>(), own_k.data<float>(),
                                         own_v.data<float>(), y.data<float>(), offset.data<int64_t>(),
                                         starts.data<int64_t>(), nullptr, 0, 1, rows, queries, heads, kv_heads,
                                         held[2] + queries, width, width, held[2] * width, kv_heads * held[2] * width,
                                         scale, kernels.multiply, kernels.fork, threads()))
        throw std::bad_alloc();
    return {y};
}

static std::vector<Shape> shape_of_attend(const Shape &q, const Shape &, const Shape &, const Shape &, const Shape &,
                                          const Shape &, const Shape &, float) {
    return {q};
}

static std::vector<Type> type_of_attend(const Type &q, const Type &, const Type &, const Type &, const Type &,
                                        const Type &, const Type &) {
    return {q};
}

PD_BUILD_OP(paddlemix_attend)
    .Inputs({"q", "k", "v", "own_k", "own_v", "offset", "starts"})
    .Outputs({"y"})
    .Attrs({"scale: float"})
    .SetKernelFn(PD_KERNEL(attend))
    .SetInferShapeFn(PD_INFER_SHAPE(shape_of_attend))
    .SetInferDtypeFn(PD_INFER_DTYPE(type_of_attend));

/* q [B, L, H, D] over all keys and values [B, Lk, Hk, D]. */
static Tensors attend_all(const Tensor &q, const Tensor &k, const Tensor &v, float scale) {
    const Shape shape = q.shape(), held = k.shape();
    const long heads = shape[2], width = shape[3], places = held[1], kv_heads = held[2];
    require(v.shape() == held && held == Shape({shape[0], places, kv_heads, width}) && heads % kv_heads == 0,
            "keys and values of several shapes");
    Tensor y = paddle::empty(shape, q.dtype(), q.place());
    if (q.numel() && kernels.attend_many(q.data<float>(), k.data<float>(), v.data<float>(), nullptr, nullptr,
                                         y.data<float>(), nullptr, nullptr, nullptr, 0, 0, shape[0], shape[1], heads,
                                         kv_heads, places, width, kv_heads * width, width, places * kv_heads * width,
                                         scale, kernels.multiply, kernels.fork, threads()))
        throw std::bad_alloc();
    return {y};
}

static std::vector<Type> type_of_first(const Type &q, const Type &, const Type &) { return {q}; }

static std::vector<Shape> shape_of_attend_all(const Shape &q, const Shape &, const Shape &, float) { return {q}; }

PD_BUILD_OP(paddlemix_attend_all)
    .Inputs({"q", "k", "v"})
    .Outputs({"y"})
    .Attrs({"scale: float"})
    .SetKernelFn(PD_KERNEL(attend_all))
    .SetInferShapeFn(PD_INFER_SHAPE(shape_of_attend_all))
    .SetInferDtypeFn(PD_INFER_DTYPE(type_of_first));
