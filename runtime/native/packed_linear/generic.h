// Everything but integer products, once for all instruction sets, over a vector V of 16 floats.
//
// V has kRegisters (how many of it the registers hold), load, load_some(p, count: the rest zero), store, store_some, set,
// add, sub, mul, div, fma(a, b, c) = a b + c, min, max, abs, round (to even), power_of_two (of an integral value),
// to_codes (16 int8 from integral values), from_int32, from_half, from_codes (byte `input` of each of 16 groups of four),
// expand_single, expand_half (stored floats to the lanes that a mask names), add_exponent(p, n): the bits of p plus those
// of n moved up by 23, and turn(V[16]): rows to columns. Each is one IEEE operation or moves bits, so that every V gives
// the same.
// An instruction set is a struct with its Vector and expand_step, which writes the 64 codes of a step of integer values
// and returns where the next step's values begin.
#pragma once

#include <cmath>
#include <type_traits>
#include <utility>

#include "elementwise/generic.h"
#include "packed_linear/kernels.h"

namespace edgeslim {

template <class V>
static inline float sum_of_lanes(V v) {
  float lane[16];
  v.store(lane);
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}

template <class V>
static inline float max_of_lanes(V v) {
  float lane[16], most = 0;
  v.store(lane);
  for (float one : lane) most = one > most ? one : most;
  return most;
}

// Calls f(i, count) for every 16 entries of [0, k): count is a constant but for the last.
template <class F>
static inline void by_sixteen(int64_t k, F f) {
  int64_t i = 0;
  for (; i + 16 <= k; i += 16) f(i, std::integral_constant<int64_t, 16>{});
  if (i < k) f(i, k - i);
}

template <class V>
static void prologue(const Prologue& in, int64_t token, int64_t k, int64_t padded, float* t) {
  const float* x = in.x + token * in.x_stride;
  const float* gate = in.gate ? in.gate + token * in.gate_stride : nullptr;
  const bool silu_gate = gate && in.function == Function::silu;  // the usual one: in one pass
  if (in.function != Function::none && !silu_gate) {
    const float*& argument = gate ? gate : x;
    map<V>({in.function, argument, nullptr, false, false, t, k});
    argument = t;
  }
  V squares = V::set(0);
  by_sixteen(k, [&](int64_t i, auto count) {
    V v = V::load_some(x + i, count);
    if (gate) {
      const V g = V::load_some(gate + i, count);
      v = V::mul(v, silu_gate ? silu(g) : g);
    }
    squares = V::fma(v, v, squares);
    v.store_some(t + i, count);
  });
  for (int64_t i = k; i < padded; ++i) t[i] = 0;
  if (!in.norm) return;
  const V inverse = V::set(1.0f / std::sqrt(sum_of_lanes(squares) / float(k) + in.epsilon));
  by_sixteen(k, [&](int64_t i, auto count) {
    V::mul(V::mul(V::load_some(t + i, count), inverse), V::load_some(in.norm + i, count)).store_some(t + i, count);
  });
}

template <class V>
static void quantize(const float* t, int64_t k, int64_t padded, int8_t* codes, float* scale) {
  V most = V::set(0), strange = V::set(0);
  by_sixteen(k, [&](int64_t i, auto count) {
    const V v = V::load_some(t + i, count);
    most = V::max(V::abs(v), most);  // in this order what is not a number leaves the maximum as it was
    strange = V::add(strange, V::sub(v, v));
  });
  const float largest = max_of_lanes(most);
  const V inverse = V::set(largest > 0 ? 127.0f / largest : 0.0f);
  *scale = largest / 127.0f + sum_of_lanes(strange);  // the outputs of a token with NaN are NaN, as in floats
  by_sixteen(padded, [&](int64_t i, auto count) {
    const V rounded = V::round(V::mul(V::load_some(t + i, count), inverse));
    if (count == 16) return rounded.to_codes(codes + i);
    int8_t sixteen[16];
    rounded.to_codes(sixteen);
    std::memcpy(codes + i, sixteen, std::size_t(count));
  });
}

template <class F, int... I>
static inline void unrolled(F f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>{}), ...);
}

// Calls f(0) … f(N - 1) with constants: arrays that these index stay in registers.
template <int N, class F>
static inline void unrolled(F f) {
  unrolled(f, std::make_integer_sequence<int, N>{});
}

// Scales of one group of a tile.
template <class V>
static inline V load_scales(const Packed& w, int64_t tile, int64_t group) {
  const int64_t at = (tile * w.groups + group) * kTileRows;
  if (w.scale_type == ScaleType::half) return V::from_half(static_cast<const uint16_t*>(w.scales) + at);
  return V::load(static_cast<const float*>(w.scales) + at);
}

template <class V, class Count>
static inline void emit_some(const Output& out, int64_t first, int64_t token, V total, Count count) {
  if (out.bias) total = V::add(total, V::load_some(out.bias + first, count));
  if (out.residual) total = V::add(total, V::load_some(out.residual + token * out.residual_stride + first, count));
  total.store_some(out.y + token * out.y_stride + first, count);
}

// Adds bias and residual to 16 outputs of one token and writes those that exist.
template <class V>
static inline void emit(const Output& out, int64_t n, int64_t tile, int64_t token, V total) {
  const int64_t first = tile * kTileRows;
  if (n - first >= kTileRows)
    emit_some(out, first, token, total, std::integral_constant<int64_t, kTileRows>{});
  else
    emit_some(out, first, token, total, n - first);
}

// ---- float32 activations -------------------------------------------------------------------------------------------

static inline uint64_t step_mask(const Packed& w, int64_t tile, int64_t step) {
  return w.layout == Layout::dense ? ~uint64_t{0} : load_mask(tile_masks(w, tile), step);
}

// One integer step as 4 inputs of 16 weights each, scaled.
template <class Isa, class V = typename Isa::Vector>
static inline const uint8_t* integer_step(const Packed& w, const uint8_t* values, uint64_t mask, V scale, float* out) {
  uint8_t codes[kStepPositions];
  values = Isa::expand_step(w, values, mask, codes);
  const V zero = V::set(float(w.zero_code()));
  for (int j = 0; j < 4; ++j) V::mul(V::sub(V::from_codes(codes, j), zero), scale).store(out + 16 * j);
  return values;
}

template <class V>
static inline const uint8_t* float_step(const Packed& w, const uint8_t* values, uint64_t mask, float* out) {
  for (int j = 0; j < 4; ++j) {
    const uint32_t sixteen = uint32_t(mask >> (16 * j)) & 0xffff;
    const V v = w.bits == 32 ? V::expand_single(values, sixteen) : V::expand_half(values, sixteen);
    v.store(out + 16 * j);
    values += count_ones(sixteen) * (w.bits / 8);
  }
  return values;
}

// Expands steps [first, last) of a tile into out [inputs, 16]; `values` moves on.
template <class Isa, class V = typename Isa::Vector>
static inline const uint8_t* expand_floats(const Packed& w, int64_t tile, int64_t first, int64_t last,
                                           const uint8_t* values, float* out) {
  for (int64_t step = first; step < last; ++step, out += kStepPositions) {
    const uint64_t mask = step_mask(w, tile, step);
    values = w.is_integer() ? integer_step<Isa>(w, values, mask, load_scales<V>(w, tile, step / w.group_steps()), out)
                            : float_step<V>(w, values, mask, out);
  }
  return values;
}

// sums [TOKENS, 16] += x [TOKENS, inputs] times weights [inputs, 16].
template <class V, int TOKENS>
static inline void float_block(const float* weights, int64_t inputs, const float* x, int64_t stride, float* sums) {
  V total[TOKENS];
  for (int t = 0; t < TOKENS; ++t) total[t] = V::load(sums + 16 * t);
  for (int64_t i = 0; i < inputs; ++i) {
    const V column = V::load(weights + 16 * i);
    for (int t = 0; t < TOKENS; ++t) total[t] = V::fma(V::set(x[t * stride + i]), column, total[t]);
  }
  for (int t = 0; t < TOKENS; ++t) total[t].store(sums + 16 * t);
}

template <class Isa, class V = typename Isa::Vector>
static void floats(const Packed& w, const Floats& in, const Output& out, const Tiles& tiles, float* scratch) {
  float* const sums = scratch + 16 * kFloatChunk;
  constexpr int64_t kChunkSteps = kFloatChunk / kStepInputs;
  for (int64_t tile = tiles.first; tile < tiles.last; ++tile) {
    const uint8_t* values = w.values + tile_start(w, tile);
    std::memset(sums, 0, sizeof(float) * 16 * in.tokens);
    for (int64_t step = 0; step < w.steps; step += kChunkSteps) {
      const int64_t end = step + kChunkSteps < w.steps ? step + kChunkSteps : w.steps;
      values = expand_floats<Isa>(w, tile, step, end, values, scratch);
      const float* x = in.x + step * kStepInputs;
      const int64_t inputs = (end - step) * kStepInputs;
      int64_t token = 0;
      for (; token + 8 <= in.tokens; token += 8)
        float_block<V, 8>(scratch, inputs, x + token * in.stride, in.stride, sums + 16 * token);
      for (; token < in.tokens; ++token)
        float_block<V, 1>(scratch, inputs, x + token * in.stride, in.stride, sums + 16 * token);
    }
    for (int64_t token = 0; token < in.tokens; ++token) emit(out, w.n, tile, token, V::load(sums + 16 * token));
  }
}

}  // namespace edgeslim
