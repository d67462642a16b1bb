// Functions of each entry over a vector V of 16 floats, see packed_linear/generic.h for what V offers.
#pragma once

#include <cstring>

#include "elementwise/elementwise.h"
#include "elementwise/functions.h"

namespace edgeslim {

template <class V, class F>
static inline void map_sixteens(const Mapping& m, const F& f) {
  const bool two = takes_two(m.function);
  const V a = V::set(m.single_a ? *m.a : 0), b = V::set(two && m.single_b ? *m.b : 0);
  for (int64_t i = 0; i < m.count; i += 16)
    f(m.single_a ? a : V::load(m.a + i), !two || m.single_b ? b : V::load(m.b + i)).store(m.y + i);
}

// Of a multiple of 16 entries.
template <class V>
static void map_whole(const Mapping& m) {
  switch (m.function) {
    case Function::add: return map_sixteens<V>(m, [](V a, V b) { return V::add(a, b); });
    case Function::sub: return map_sixteens<V>(m, [](V a, V b) { return V::sub(a, b); });
    case Function::mul: return map_sixteens<V>(m, [](V a, V b) { return V::mul(a, b); });
    case Function::div: return map_sixteens<V>(m, [](V a, V b) { return V::div(a, b); });
    case Function::max: return map_sixteens<V>(m, [](V a, V b) { return V::max(a, b); });
    case Function::none: return map_sixteens<V>(m, [](V a, V) { return a; });
    case Function::relu: return map_sixteens<V>(m, [](V a, V) { return relu(a); });
    case Function::relu_squared: return map_sixteens<V>(m, [](V a, V) { return V::mul(relu(a), relu(a)); });
    case Function::sigmoid: return map_sixteens<V>(m, [](V a, V) { return sigmoid(a); });
    case Function::silu: return map_sixteens<V>(m, [](V a, V) { return silu(a); });
    case Function::tanh: return map_sixteens<V>(m, [](V a, V) { return hyperbolic_tangent(a); });
    case Function::gelu: return map_sixteens<V>(m, [](V a, V) { return gelu(a); });
    case Function::gelu_tanh: return map_sixteens<V>(m, [](V a, V) { return gelu_tanh(a); });
  }
}

template <class V>
static void map(const Mapping& m) {
  Mapping part = m;
  part.count = m.count / 16 * 16;
  map_whole<V>(part);
  const int64_t left = m.count - part.count;
  if (!left) return;
  float a[16] = {0}, b[16] = {0}, y[16];
  const auto copy = [&](const float* from, bool single, float* to) {
    if (from) std::memcpy(to, single ? from : from + part.count, sizeof(float) * std::size_t(single ? 1 : left));
  };
  copy(m.a, m.single_a, a);
  copy(m.b, m.single_b, b);
  part.a = a;
  part.b = b;
  part.y = y;
  part.count = 16;
  map_whole<V>(part);
  std::memcpy(m.y + m.count - left, y, sizeof(float) * std::size_t(left));
}

}  // namespace edgeslim
