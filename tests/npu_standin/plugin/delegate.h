// SPDX-License-Identifier: Apache-2.0
// Kernels of the stand-in device that let paddle's own float32 CPU kernel do the work.
//
// Device memory is host memory, so an input is passed on as a CPU tensor over the same bytes. Tensors of half
// precision are widened to float32 for the CPU kernel and its results are rounded back: the CPU has no half-precision
// kernels for most operators, and the stand-in should run a bfloat16 model as a card would.
#pragma once

#include <cstring>
#include <deque>
#include <string>
#include <tuple>
#include <typeindex>
#include <vector>

#include "paddle/phi/api/include/context_pool.h"
#include "paddle/phi/backends/cpu/cpu_context.h"
#include "paddle/phi/backends/custom/custom_context.h"
#include "paddle/phi/common/bfloat16.h"
#include "paddle/phi/common/float16.h"
#include "paddle/phi/core/dense_tensor.h"
#include "paddle/phi/core/kernel_registry.h"

extern "C" void npu_standin_count(const char* name);  // operators.cc

namespace standin {

using phi::DataType;
using phi::DenseTensor;

inline bool IsHalf(DataType type) { return type == DataType::BFLOAT16 || type == DataType::FLOAT16; }

inline const phi::CPUContext& Host() {
  static const auto* context =
      static_cast<const phi::CPUContext*>(paddle::experimental::DeviceContextPool::Instance().Get(phi::CPUPlace()));
  return *context;
}

template <typename From, typename To>
void Convert(const void* from, void* to, int64_t count) {
  const auto* source = static_cast<const From*>(from);
  auto* target = static_cast<To*>(to);
  for (int64_t i = 0; i < count; ++i) target[i] = static_cast<To>(source[i]);
}

inline void Widen(DataType type, const void* from, void* to, int64_t count) {
  if (type == DataType::BFLOAT16) Convert<phi::dtype::bfloat16, float>(from, to, count);
  else Convert<phi::dtype::float16, float>(from, to, count);
}

inline void Narrow(DataType type, const void* from, void* to, int64_t count) {
  if (type == DataType::BFLOAT16) Convert<float, phi::dtype::bfloat16>(from, to, count);
  else Convert<float, phi::dtype::float16>(from, to, count);
}

inline DenseTensor Empty(const DenseTensor& like, DataType type) {
  DenseTensor out;
  out.Resize(like.dims());
  Host().Alloc(&out, type);
  return out;
}

// What the CPU kernel reads: the same bytes as a CPU tensor, or a float32 copy of half-precision values.
inline DenseTensor HostInput(const DenseTensor& tensor) {
  DenseTensor out;
  if (!tensor.has_allocation() || tensor.capacity() == 0) {
    // Eager mode dropped a buffer that this gradient does not need, but the CPU kernel reads it: zeros will do.
    out = Empty(tensor, IsHalf(tensor.dtype()) ? DataType::FLOAT32 : tensor.dtype());
    std::memset(out.data(), 0, out.numel() * phi::SizeOf(out.dtype()));
    return out;
  }
  if (IsHalf(tensor.dtype())) {
    out = Empty(tensor, DataType::FLOAT32);
    Widen(tensor.dtype(), tensor.data(), out.data(), tensor.numel());
    return out;
  }
  auto* bytes = const_cast<void*>(tensor.data());
  auto meta = tensor.meta();
  meta.offset = 0;
  return DenseTensor(std::make_shared<phi::Allocation>(bytes, tensor.numel() * phi::SizeOf(tensor.dtype()), phi::CPUPlace()), meta);
}

// The tensors of one call that must live until it has returned, and the results to be brought to the device.
class Call {
 public:
  explicit Call(const phi::DeviceContext& context) : context_(context) {}

  const DenseTensor& Pass(const DenseTensor& tensor) { return Keep(HostInput(tensor)); }

  paddle::optional<DenseTensor> Pass(const paddle::optional<DenseTensor>& tensor) {
    if (!tensor) return paddle::none;
    return paddle::make_optional<DenseTensor>(Pass(tensor.get()));
  }

  std::vector<const DenseTensor*> Pass(const std::vector<const DenseTensor*>& tensors) {
    std::vector<const DenseTensor*> out;
    for (const auto* tensor : tensors) out.push_back(tensor ? &Pass(*tensor) : nullptr);
    return out;
  }

  paddle::optional<std::vector<const DenseTensor*>> Pass(
      const paddle::optional<std::vector<const DenseTensor*>>& tensors) {
    if (!tensors) return paddle::none;
    return paddle::make_optional<std::vector<const DenseTensor*>>(Pass(tensors.get()));
  }

  DenseTensor* Pass(DenseTensor* out) {
    if (!out) return nullptr;
    DenseTensor held;
    auto meta = out->meta();
    if (IsHalf(meta.dtype)) meta.dtype = DataType::FLOAT32;
    held.set_meta(meta);
    DenseTensor* kept = &Keep(std::move(held));
    results_.emplace_back(out, kept);
    return kept;
  }

  std::vector<DenseTensor*> Pass(const std::vector<DenseTensor*>& outs) {
    std::vector<DenseTensor*> all;
    for (auto* out : outs) all.push_back(Pass(out));
    return all;
  }

  template <typename T>
  const T& Pass(const T& attribute) { return attribute; }

  void Finish(DataType half) {
    for (auto& [out, from] : results_) {
      if (!from->has_allocation()) continue;
      const DataType wanted =
          IsHalf(out->dtype()) ? out->dtype() : (out->dtype() == DataType::UNDEFINED && IsHalf(half) ? half : from->dtype());
      out->Resize(from->dims());
      void* to = context_.Alloc(out, wanted);
      if (IsHalf(wanted) && from->dtype() == DataType::FLOAT32) Narrow(wanted, from->data(), to, from->numel());
      else std::memmove(to, from->data(), from->numel() * phi::SizeOf(from->dtype()));
    }
  }

 private:
  DenseTensor& Keep(DenseTensor&& tensor) {
    kept_.push_back(std::move(tensor));
    return kept_.back();
  }

  const phi::DeviceContext& context_;
  std::deque<DenseTensor> kept_;
  std::vector<std::pair<DenseTensor*, DenseTensor*>> results_;
};

// A stand-in kernel with the very signature that the dygraph API calls, made from the signature of paddle's kernel.
template <const char* const* kName, DataType kType, typename Signature>
struct Delegate;

template <const char* const* kName, DataType kType, typename... Args>
struct Delegate<kName, kType, void (*)(const phi::CPUContext&, Args...)> {
  using HostKernel = void (*)(const phi::CPUContext&, Args...);

  static void Run(const phi::DeviceContext& context, Args... args) {
    const DataType type = IsHalf(kType) ? DataType::FLOAT32 : kType;
    const auto& kernel = phi::KernelFactory::Instance().SelectKernel(
        *kName, phi::KernelKey(phi::Backend::CPU, phi::DataLayout::ALL_LAYOUT, type));
    if (!kernel.IsValid()) throw std::runtime_error(std::string("stand-in npu: the CPU has no kernel ") + *kName);
    npu_standin_count(*kName);
    Call call(context);
    std::tuple<decltype(call.Pass(args))...> passed{call.Pass(args)...};
    std::apply([&](auto&&... host) { kernel.GetVariadicKernelFn<HostKernel>()(Host(), host...); }, passed);
    call.Finish(kType);
  }

  // The form in which paddle's old tracer calls a kernel: `split` after a fused broadcast goes through it.
  static void Traced(const phi::CustomContext& context, Args... args) { Run(context, args...); }

  Delegate() { Register(reinterpret_cast<void*>(&Run)); }

  static void Register(void* run) {
    const phi::KernelKey key(paddle::experimental::StringToBackend("npu"), phi::DataLayout::ALL_LAYOUT, kType);
    phi::Kernel kernel(&phi::KernelImpl<void (*)(const phi::CustomContext&, Args...), &Traced>::Compute, run);
    phi::SetKernelArgsDef({std::type_index(typeid(Args))...}, key, kernel.mutable_args_def());
    for (size_t i = 0; i < kernel.args_def().input_defs().size(); ++i) {
      // Shapes and indices may be given from the host; nothing is transformed on the way in.
      kernel.InputAt(i).SetBackend(phi::Backend::ALL_BACKEND).SetDataType(DataType::ALL_DTYPE);
    }
    phi::CustomKernelMap::Instance().RegisterCustomKernel(*kName, key, kernel);
  }
};

}  // namespace standin

#define STANDIN_CAT_(a, b) a##b
#define STANDIN_CAT(a, b) STANDIN_CAT_(a, b)
#define STANDIN_NAME(line) STANDIN_CAT(name_, line)
#define STANDIN_KERNEL_AT(line, name, function, type)                                           \
  static standin::Delegate<&STANDIN_NAME(line), phi::DataType::type,                            \
                           decltype(&phi::function<float, phi::CPUContext>)>                    \
      STANDIN_CAT(STANDIN_CAT(kernel_, type), STANDIN_CAT(_, line));
// Kernel `name`, which paddle declares as phi::`function`: for the half-precision types; for float16; for both and
// float32; for float32; for every type of numbers that is not half; for every type.
#define STANDIN_HALF(name, function)                                \
  static const char* const STANDIN_NAME(__LINE__) = name;           \
  STANDIN_KERNEL_AT(__LINE__, name, function, BFLOAT16)             \
  STANDIN_KERNEL_AT(__LINE__, name, function, FLOAT16)
#define STANDIN_FLOAT16(name, function)                             \
  static const char* const STANDIN_NAME(__LINE__) = name;           \
  STANDIN_KERNEL_AT(__LINE__, name, function, FLOAT16)
#define STANDIN_FLOAT(name, function)                               \
  STANDIN_HALF(name, function)                                      \
  STANDIN_KERNEL_AT(__LINE__, name, function, FLOAT32)
#define STANDIN_FLOAT32(name, function)                             \
  static const char* const STANDIN_NAME(__LINE__) = name;           \
  STANDIN_KERNEL_AT(__LINE__, name, function, FLOAT32)
#define STANDIN_WIDE(name, function)                                \
  STANDIN_FLOAT32(name, function)                                   \
  STANDIN_KERNEL_AT(__LINE__, name, function, FLOAT64)              \
  STANDIN_KERNEL_AT(__LINE__, name, function, INT64)                \
  STANDIN_KERNEL_AT(__LINE__, name, function, INT32)
#define STANDIN_ALL(name, function)                                 \
  STANDIN_FLOAT(name, function)                                     \
  STANDIN_KERNEL_AT(__LINE__, name, function, FLOAT64)              \
  STANDIN_KERNEL_AT(__LINE__, name, function, INT64)                \
  STANDIN_KERNEL_AT(__LINE__, name, function, INT32)                \
  STANDIN_KERNEL_AT(__LINE__, name, function, BOOL)
