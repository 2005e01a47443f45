// SPDX-License-Identifier: Apache-2.0
// Kernels that a device needs in every data type, because paddle's fallback to the CPU does not serve them: it copies
// its inputs through `contiguous` itself, `multiply_grad` reads a buffer that eager mode may have dropped, and `assign` into a
// given tensor leaves that tensor's memory as it was.

#include "delegate.h"
#include "paddle/phi/kernels/elementwise_multiply_grad_kernel.h"
#include "paddle/phi/kernels/fill_kernel.h"

STANDIN_ALL("fill", FillKernel)
STANDIN_ALL("multiply_grad", MultiplyGradKernel)

namespace {

using phi::DenseTensor;

// Copies element by element from one strided layout to another over the same shape.
void CopyStrided(const std::vector<int64_t>& dims, const char* from, const std::vector<int64_t>& from_strides, char* to,
                 const std::vector<int64_t>& to_strides, size_t width) {
  int64_t count = 1;
  for (int64_t dim : dims) count *= dim;
  std::vector<int64_t> place(dims.size(), 0);
  for (int64_t i = 0; i < count; ++i) {
    int64_t source = 0, target = 0;
    for (size_t axis = 0; axis < dims.size(); ++axis) {
      source += place[axis] * from_strides[axis];
      target += place[axis] * to_strides[axis];
    }
    std::memcpy(to + target * width, from + source * width, width);
    for (int axis = int(dims.size()) - 1; axis >= 0 && ++place[axis] == dims[axis]; --axis) place[axis] = 0;
  }
}

std::vector<int64_t> Dense(const std::vector<int64_t>& dims) {
  std::vector<int64_t> strides(dims.size(), 1);
  for (int axis = int(dims.size()) - 2; axis >= 0; --axis) strides[axis] = strides[axis + 1] * dims[axis + 1];
  return strides;
}

void Contiguous(const phi::DeviceContext& context, const DenseTensor& input, DenseTensor* out) {
  auto meta = input.meta();
  const auto dims = phi::vectorize<int64_t>(input.dims());
  meta.strides = meta.calc_strides(out->dims());
  meta.offset = 0;
  out->set_meta(meta);
  auto* to = static_cast<char*>(context.Alloc(out, input.dtype()));
  CopyStrided(dims, static_cast<const char*>(input.data()), phi::vectorize<int64_t>(input.strides()), to, Dense(dims),
              phi::SizeOf(input.dtype()));
}

// Writes `input` into the view of `out` that dims, strides and offset (in bytes) describe.
void StridedCopy(const phi::DeviceContext&, const DenseTensor& input, const std::vector<int64_t>& dims,
                 const std::vector<int64_t>& strides, int64_t offset, DenseTensor* out) {
  auto meta = input.meta();
  meta.dims = phi::make_ddim(dims);
  meta.strides = phi::make_ddim(strides);
  meta.offset = offset;
  out->set_meta(meta);
  CopyStrided(dims, static_cast<const char*>(input.data()), phi::vectorize<int64_t>(input.strides()),
              static_cast<char*>(out->data()), strides, phi::SizeOf(input.dtype()));
}

void Assign(const phi::DeviceContext& context, const DenseTensor& input, DenseTensor* out) {
  out->Resize(input.dims());
  void* to = context.Alloc(out, input.dtype());
  std::memmove(to, input.data(), input.numel() * phi::SizeOf(input.dtype()));
}

void NotInGraphs(phi::KernelContext*) { throw std::runtime_error("stand-in npu: dygraph only"); }

struct Strided {
  template <typename... Args>
  static void Register(const char* name, void (*run)(const phi::DeviceContext&, Args...)) {
    for (auto type : {phi::DataType::BOOL, phi::DataType::INT8, phi::DataType::UINT8, phi::DataType::INT16,
                      phi::DataType::INT32, phi::DataType::INT64, phi::DataType::FLOAT16, phi::DataType::BFLOAT16,
                      phi::DataType::FLOAT32, phi::DataType::FLOAT64}) {
      const phi::KernelKey key(paddle::experimental::StringToBackend("npu"), phi::DataLayout::ALL_LAYOUT, type);
      phi::Kernel kernel(&NotInGraphs, reinterpret_cast<void*>(run));
      phi::SetKernelArgsDef({std::type_index(typeid(Args))...}, key, kernel.mutable_args_def());
      phi::CustomKernelMap::Instance().RegisterCustomKernel(name, key, kernel);
    }
  }

  Strided() {
    Register("contiguous", &Contiguous);
    Register("strided_copy", &StridedCopy);
    Register("assign", &Assign);
  }
} strided;

}  // namespace
