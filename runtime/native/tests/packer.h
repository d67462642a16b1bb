// Random packed matrices for the native tests, by the words of packed_linear/layout.h and nothing else: what this writes
// and what the kernels read are two implementations of one specification.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "api/kernels.h"

namespace edgeslim::tests {

// xorshift64*: the same numbers on every machine and library.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}

  uint32_t bits() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return uint32_t((state_ * 0x2545f4914f6cdd1du) >> 32);
  }
  int64_t below(int64_t bound) { return int64_t(bits() % uint64_t(bound)); }
  double unit() { return bits() * 0x1p-32; }
  float value() { return float((unit() + unit() + unit()) * 2 - 3); }  // roughly normal, in (-3, 3)

 private:
  uint64_t state_;
};

struct Form {
  int32_t layout;  // 0 dense, 1 bitmap, 2 nm
  int32_t bits;
  int32_t group = 0;
  int32_t pattern_n = 0, pattern_m = 0;
  bool half_scales = false;

  bool is_integer() const { return bits <= 8; }
};

inline uint16_t to_half(float x) {  // of numbers that half precision holds as normal ones; cut off, not rounded
  uint32_t word;
  std::memcpy(&word, &x, 4);
  const int exponent = int((word >> 23) & 255) - 112;
  return exponent <= 0 ? 0 : uint16_t(((word >> 16) & 0x8000) | (uint32_t(exponent) << 10) | ((word >> 13) & 1023));
}

inline float from_half(uint16_t half) {
  const int exponent = (half >> 10) & 31;
  const float size = exponent ? std::ldexp(float(1024 + (half & 1023)), exponent - 25) : float(half & 1023) * 0x1p-24f;
  return half & 0x8000 ? -size : size;
}

struct Matrix {
  Form form;
  int64_t n, k, tiles, steps, groups;
  std::vector<uint8_t> values, masks, offsets, scales;
  std::vector<double> weights;  // [n, k], what the bytes stand for

  // The matrix as the library takes it.
  edgeslim_packed view() const {
    edgeslim_packed w = {};
    w.layout = form.layout;
    w.scale_type = !form.is_integer() ? 0 : form.half_scales ? 2 : 1;
    w.n = n;
    w.k = k;
    w.bits = form.bits;
    w.group = form.group;
    w.pattern_n = form.pattern_n;
    w.pattern_m = form.pattern_m;
    w.values = values.data();
    w.masks = masks.data();
    w.offsets = reinterpret_cast<const int64_t*>(offsets.data());
    w.scales = scales.data();
    w.value_count = int64_t(values.size());
    w.mask_count = int64_t(masks.size());
    w.offset_count = int64_t(offsets.size() / 8);
    w.scale_count = int64_t(scales.size() / (form.half_scales ? 2 : 4));
    return w;
  }
};

// Which integers a matrix has. Sums of products overflow where all are extreme; of mixed ones half are.
enum class Codes { lowest, highest, mixed };

class Packer {
 public:
  Packer(const Form& form, int64_t n, int64_t k, double density, Random& random, Codes codes = Codes::mixed)
      : random_(random), density_(density), codes_(codes) {
    m_.form = form;
    m_.n = n;
    m_.k = k;
    m_.tiles = (n + 15) / 16;
    m_.steps = (k + 3) / 4;
    m_.groups = form.group ? (k + form.group - 1) / form.group : 1;
    m_.weights.assign(std::size_t(n * k), 0.0);
  }

  Matrix pack() {
    if (m_.form.is_integer())
      for (int64_t i = 0; i < m_.tiles * m_.groups * 16; ++i) append_scale();
    for (int64_t tile = 0; tile < m_.tiles; ++tile) {
      append(&m_.offsets, int64_t(m_.values.size()), 8);
      for (int64_t step = 0; step < m_.steps; ++step) append_step(tile, step);
    }
    append(&m_.offsets, int64_t(m_.values.size()), 8);
    if (m_.form.layout != 1) m_.offsets.clear();
    if (m_.form.layout == 0) m_.masks.clear();
    for (int i = 0; i < 64; ++i) m_.values.push_back(uint8_t(random_.bits()));
    return m_;
  }

 private:
  static void append(std::vector<uint8_t>* to, int64_t number, int bytes) {
    for (int i = 0; i < bytes; ++i) to->push_back(uint8_t(uint64_t(number) >> (8 * i)));
  }

  void append_scale() {
    float scale = random_.value() / 64;
    if (m_.form.half_scales) {
      const uint16_t half = to_half(scale);
      append(&m_.scales, half, 2);
      scale = from_half(half);
    } else {
      append_single(&m_.scales, scale);
    }
    scales_.push_back(scale);
  }

  static void append_single(std::vector<uint8_t>* to, float x) {
    uint32_t word;
    std::memcpy(&word, &x, 4);
    append(to, word, 4);
  }

  int position(int output, int input) const { return m_.form.is_integer() ? 4 * output + input : 16 * input + output; }

  uint64_t draw_mask() {
    if (m_.form.layout == 0) return ~uint64_t{0};
    uint64_t mask = 0;
    for (int output = 0; output < 16; ++output)
      for (int input = 0; input < 4; ++input)
        if (m_.form.layout == 2 ? in_pattern(input) : random_.unit() < density_)
          mask |= uint64_t{1} << position(output, input);
    return mask;
  }

  // Called for the inputs of a row in order: picks pattern_n of every pattern_m.
  bool in_pattern(int input) {
    const int m = m_.form.pattern_m, place = input % m;
    if (place == 0) lacking_ = m_.form.pattern_n;
    const bool taken = random_.below(m - place) < lacking_;
    lacking_ -= taken;
    return taken;
  }

  void append_step(int64_t tile, int64_t step) {
    const uint64_t mask = draw_mask();
    append(&m_.masks, int64_t(mask), 8);
    step_begin_ = m_.values.size();
    int stored = 0;
    for (int p = 0; p < 64; ++p) {
      if (!((mask >> p) & 1)) continue;
      const int output = m_.form.is_integer() ? p / 4 : p % 16, input = m_.form.is_integer() ? p % 4 : p / 16;
      const int64_t row = tile * 16 + output, column = step * 4 + input;
      const double weight = append_value(stored++, tile, column, output);
      if (row < m_.n && column < m_.k) m_.weights[std::size_t(row * m_.k + column)] = weight;
    }
  }

  // Appends the `stored`-th value of a step and returns the weight it stands for.
  double append_value(int stored, int64_t tile, int64_t column, int output) {
    if (m_.form.bits == 32) {
      const float x = random_.value();
      append_single(&m_.values, x);
      return x;
    }
    if (m_.form.bits == 16) {
      const uint16_t half = to_half(random_.value());
      append(&m_.values, half, 2);
      return from_half(half);
    }
    const int half_range = 1 << (m_.form.bits - 1), code = draw_code(2 * half_range);
    append_bits(stored * m_.form.bits, code);
    const int64_t group = m_.form.group ? std::min(column / m_.form.group, m_.groups - 1) : 0;
    return double(code - half_range) * scales_[std::size_t((tile * m_.groups + group) * 16 + output)];
  }

  // The bits of an integer value to their place among those of a step, counted from the lowest of its first byte.
  void append_bits(int first, int code) {
    for (int bit = first; bit < first + m_.form.bits; ++bit) {
      const std::size_t byte = step_begin_ + std::size_t(bit / 8);
      if (byte == m_.values.size()) m_.values.push_back(0);
      m_.values[byte] = uint8_t(m_.values[byte] | (((code >> (bit - first)) & 1) << (bit % 8)));
    }
  }

  int draw_code(int codes) {
    const int64_t kind = codes_ == Codes::mixed ? random_.below(4) : int64_t(codes_);
    return kind == 0 ? 0 : kind == 1 ? codes - 1 : int(random_.below(codes));
  }

  Random& random_;
  double density_;
  Codes codes_;
  int64_t lacking_ = 0;
  std::size_t step_begin_ = 0;
  std::vector<float> scales_;
  Matrix m_;
};

}  // namespace edgeslim::tests
