/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernels of few_rows.c as operators of paddle, for graphs: all layers of a step, and the product with a weight.
 *
 * Compiled on the machine that runs it against the headers of the installed paddle (step_operator.py), and not for one
 * kind of processor: what computes is few_rows.c, whose functions are handed over by paddlemix_use.
 *
 * Exported graphs name these operators with their inputs and attributes, so a change of any takes a new name: a graph
 * with a name that is not there gives way to the one of paddle's operators beside it. */
#include <algorithm>
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

static Step step;
static Product product;
static void *fork_of;
static int (*threads_of)();

extern "C" void paddlemix_use(void *given_step, void *given_product, void *given_fork, void *given_threads) {
    step = reinterpret_cast<Step>(given_step);
    product = reinterpret_cast<Product>(given_product);
    fork_of = given_fork;
    threads_of = reinterpret_cast<int (*)()>(given_threads);
}

static int threads() { return threads_of ? threads_of() : 1; }

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
    if (step(table.data(), count, y.data<float>(), cosine.data<float>(), sine.data<float>(), new_keys.data<float>(),
             new_values.data<float>(), offset.data<int64_t>(), starts.data<int64_t>(), nullptr, 0, rows, width, heads,
             kv_heads, places, head, inner, epsilon, scale, nullptr, fork_of, threads()))
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
    product(x.data<float>(), weight.data<float>(), y.data<float>(), rows, in, out, fork_of, threads());
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
