// IEEE half precision to single, by its bits.
#pragma once

#include <cstdint>
#include <cstring>

namespace edgeslim {

static inline float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, exponent = (half >> 10) & 31, fraction = half & 1023;
  uint32_t bits;
  if (exponent == 31) {
    bits = sign | 0x7f800000u | (fraction << 13);
  } else if (exponent) {
    bits = sign | ((exponent + 112) << 23) | (fraction << 13);
  } else {  // subnormal: fraction * 2^-24
    const float small = float(fraction) * 5.9604644775390625e-8f;
    std::memcpy(&bits, &small, 4);
    bits |= sign;
  }
  float single;
  std::memcpy(&single, &bits, 4);
  return single;
}

}  // namespace edgeslim
