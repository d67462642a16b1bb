// Functions of each entry over a vector V of 16 floats, see packed_linear/generic.h for what V offers.
#pragma once

#include <cstring>

#include "elementwise/elementwise.h"
#include "packed_linear/generic.h"

namespace edgeslim {

template <class V>
static inline V sigmoid(V x) {
  return V::div(V::set(1.0f), V::add(V::set(1.0f), exponential(V::sub(V::set(0), x))));
}

// Within 2e-7.
template <class V>
static inline V hyperbolic_tangent(V x) {
  const V one = V::set(1.0f);
  return V::sub(one, V::div(V::set(2.0f), V::add(one, exponential(V::add(x, x)))));
}

// erf(x) for x >= 0, within 3e-7. Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 1964, 7.1.26.
template <class V>
static inline V error_function(V x) {
  const V t = V::div(V::set(1.0f), V::fma(V::set(0.3275911f), x, V::set(1.0f)));
  V p = V::set(1.061405429f);
  p = V::fma(p, t, V::set(-1.453152027f));
  p = V::fma(p, t, V::set(1.421413741f));
  p = V::fma(p, t, V::set(-0.284496736f));
  p = V::fma(p, t, V::set(0.254829592f));
  return V::sub(V::set(1.0f), V::mul(V::mul(p, t), exponential(V::sub(V::set(0), V::mul(x, x)))));
}

// x times the share of a normal distribution below x.
template <class V>
static inline V gelu(V x) {
  const V half = V::mul(V::set(0.5f), x);
  return V::fma(V::abs(half), error_function(V::mul(V::abs(x), V::set(0.707106781f))), half);
}

template <class V>
static inline V gelu_tanh(V x) {
  const V cube = V::mul(V::mul(x, x), x);
  const V inner = V::mul(V::set(0.797884561f), V::fma(V::set(0.044715f), cube, x));
  return V::mul(V::mul(V::set(0.5f), x), V::add(V::set(1.0f), hyperbolic_tangent(inner)));
}

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
    case Function::relu: return map_sixteens<V>(m, [](V a, V) { return V::max(a, V::set(0)); });
    case Function::sigmoid: return map_sixteens<V>(m, [](V a, V) { return sigmoid(a); });
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
