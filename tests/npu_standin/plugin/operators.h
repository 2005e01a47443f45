// SPDX-License-Identifier: Apache-2.0
// What the reference forms of the fused operators share: counted calls, values as float32, options of the environment.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "paddle/extension.h"

using paddle::Tensor;
using Shape = std::vector<int64_t>;

void Count(const std::string& name);  // operators.cc

inline bool Set(const char* name) {
  const char* value = std::getenv(name);
  return value && value[0] == '1';
}

inline std::vector<float> Read(const Tensor& tensor) {
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

inline Tensor Write(const std::vector<float>& values, const Shape& shape, paddle::DataType type,
                    const paddle::Place& place) {
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

inline bool Half(const Tensor& tensor) {
  return tensor.dtype() == paddle::DataType::FLOAT16 || tensor.dtype() == paddle::DataType::BFLOAT16;
}
