// e^x and softplus over a vector V of 16 floats, see packed_linear/generic.h for what V offers. How far they are from
// exact, over every float of the range: tests/sequences_test.cc.
#pragma once

#include "packed_linear/generic.h"

namespace edgeslim {

constexpr float kLog2E = 1.44269504f;

// 2^x for x <= 0, within 2.25 ulp; below 2^-126: 2^-126. NaN stays.
template <class V>
static inline V power_below_one(V x) {
  const V rounding = V::set(12582912.0f);  // 1.5 * 2^23: what is added to it is rounded to an integer
  x = V::max(V::set(-126.0f), x);
  const V shifted = V::add(x, rounding);
  const V r = V::sub(x, V::sub(shifted, rounding));  // in [-0.5, 0.5]
  V p = V::set(0.00132647273f);  // minimax of (2^r - 1) / r, relative to 2^r: 9.2e-8
  p = V::fma(p, r, V::set(0.00967151299f));
  p = V::fma(p, r, V::set(0.0555073359f));
  p = V::fma(p, r, V::set(0.240222424f));
  p = V::fma(p, r, V::set(0.693147004f));
  p = V::fma(p, r, V::set(1.0f));
  return V::add_exponent(p, shifted);
}

// log(1 + e^x), within 4.5 ulp for x above -80. NaN stays.
template <class V>
static inline V softplus(V x) {
  const V zero = V::set(0);
  const V u = exponential(V::sub(zero, V::abs(x)));     // log(1 + u) = 2 artanh(u / (2 + u))
  const V s = V::div(u, V::add(V::set(2.0f), u));
  const V z = V::mul(s, s);
  V p = V::set(0.140064195f);  // minimax of (artanh(s) / s - 1) / z for s in [0, 1/3]: 4.5e-9
  p = V::fma(p, z, V::set(0.140008137f));
  p = V::fma(p, z, V::set(0.200107694f));
  p = V::fma(p, z, V::set(0.333332092f));
  p = V::fma(p, z, V::set(1.0f));
  return V::fma(V::add(s, s), p, V::max(zero, x));
}

}  // namespace edgeslim
