// e^x and activations over a vector V of 16 floats, see packed_linear/generic.h for what V offers. NaN stays.
#pragma once

namespace edgeslim {

// e^x with a relative error below 2e-7; x is clamped to [-87, 88].
template <class V>
static inline V exponential(V x) {
  x = V::min(V::set(88.0f), V::max(V::set(-87.0f), x));
  const V n = V::round(V::mul(x, V::set(1.44269504f)));
  V r = V::fma(n, V::set(-0.693145752f), x);  // ln 2 in two parts
  r = V::fma(n, V::set(-1.42860677e-6f), r);
  V p = V::set(1.0f / 720);
  p = V::fma(p, r, V::set(1.0f / 120));
  p = V::fma(p, r, V::set(1.0f / 24));
  p = V::fma(p, r, V::set(1.0f / 6));
  p = V::fma(p, r, V::set(0.5f));
  p = V::fma(p, r, V::set(1.0f));
  p = V::fma(p, r, V::set(1.0f));
  return V::mul(p, V::power_of_two(n));
}

template <class V>
static inline V silu(V x) {
  return V::div(x, V::add(V::set(1.0f), exponential(V::sub(V::set(0), x))));
}

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

template <class V>
static inline V relu(V x) {
  return V::max(V::set(0), x);
}

}  // namespace edgeslim
