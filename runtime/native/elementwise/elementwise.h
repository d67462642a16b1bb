// Functions of each entry of one or two tensors.
#pragma once

#include <cstdint>

namespace edgeslim {

enum class Function { add, sub, mul, div, max, none, relu, relu_squared, sigmoid, silu, tanh, gelu, gelu_tanh };

constexpr bool takes_two(Function f) { return f <= Function::max; }

// y[i] = function(a[i], b[i]) for i in [0, count); b is read by functions of two. A single entry stands for all.
struct Mapping {
  Function function = Function::add;
  const float* a = nullptr;
  const float* b = nullptr;
  bool single_a = false, single_b = false;
  float* y = nullptr;
  int64_t count = 0;
};

}  // namespace edgeslim
