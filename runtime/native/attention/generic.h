// Attention over a vector V of 16 floats, see packed_linear/generic.h for what V offers.
#pragma once

#include <algorithm>
#include <cstring>

#include "attention/attention.h"
#include "elementwise/generic.h"
#include "packed_linear/generic.h"

namespace edgeslim {

static inline void rotate_pairs(const Rotation& turn, const float* x, float* out) {
  for (int64_t i = 0; 2 * i < turn.rotary; ++i) {
    const float even = x[2 * i], odd = x[2 * i + 1];
    out[2 * i] = even * turn.cosine[i] - odd * turn.sine[i];
    out[2 * i + 1] = odd * turn.cosine[i] + even * turn.sine[i];
  }
}

template <class V>
static inline void rotate_halves(const Rotation& turn, const float* x, float* out) {
  const int64_t half = turn.rotary / 2;
  by_sixteen(half, [&](int64_t i, auto count) {
    const V low = V::load_some(x + i, count), high = V::load_some(x + half + i, count);
    const V cosine = V::load_some(turn.cosine + i, count), sine = V::load_some(turn.sine + i, count);
    V::sub(V::mul(low, cosine), V::mul(high, sine)).store_some(out + i, count);
    V::add(V::mul(high, cosine), V::mul(low, sine)).store_some(out + half + i, count);
  });
}

// out [count, head_size] = `count` heads x turned by the angles of their position; out may be x.
template <class V>
static void rotate(const Rotation& turn, const float* x, int64_t count, float* out) {
  for (int64_t head = 0; head < count; ++head, x += turn.head_size, out += turn.head_size) {
    if (turn.interleaved)
      rotate_pairs(turn, x, out);
    else
      rotate_halves<V>(turn, x, out);
    if (out != x)
      std::memcpy(out + turn.rotary, x + turn.rotary, sizeof(float) * std::size_t(turn.head_size - turn.rotary));
  }
}

// How a product is cut so that its sums stay in registers: rows x blocks of 16 keys, rows x parts of 16 columns.
template <class V>
struct Cut {
  static constexpr bool kRoomy = V::kRegisters >= 32;
  static constexpr int kScoreRows = kRoomy ? 8 : 4, kScoreBlocks = kRoomy ? 2 : 1;
  static constexpr int kMixRows = 4, kMixParts = kRoomy ? 4 : 1;
};

// scores[row][key] for ROWS rows and the keys of BLOCKS blocks of 16.
template <class V, int ROWS, int BLOCKS>
static inline void score_blocks(const Attention& a, int64_t row, int64_t block, float* scores, int64_t width) {
  const float* keys = a.transposed + block * a.head_size * 16;
  const float* q = a.q + row * a.q_stride;
  const int64_t size = a.head_size, stride = a.q_stride;
  V sum[ROWS][BLOCKS];
  for (auto& of_row : sum)
    for (V& one : of_row) one = V::set(0);
  for (int64_t d = 0; d < size; ++d) {
    V column[BLOCKS];
    for (int b = 0; b < BLOCKS; ++b) column[b] = V::load(keys + 16 * (b * size + d));
    for (int r = 0; r < ROWS; ++r) {
      const V one = V::set(q[r * stride + d]);
      for (int b = 0; b < BLOCKS; ++b) sum[r][b] = V::fma(one, column[b], sum[r][b]);
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int b = 0; b < BLOCKS; ++b) V::mul(sum[r][b], V::set(a.scale)).store(scores + r * width + 16 * (block + b));
}

// scores[row][key] for ROWS rows, keys [first, last) rounded out to blocks of 16.
template <class V, int ROWS>
static inline void score_rows(const Attention& a, int64_t row, float* scores, int64_t first, int64_t last,
                              int64_t width) {
  constexpr int kBlocks = Cut<V>::kScoreBlocks;
  const int64_t end = ceil_div(last, 16);
  int64_t block = first / 16;
  for (; block + kBlocks <= end; block += kBlocks) score_blocks<V, ROWS, kBlocks>(a, row, block, scores, width);
  for (; block < end; ++block) score_blocks<V, ROWS, 1>(a, row, block, scores, width);
}

// The same for one row, from keys as they lie.
template <class V>
static inline void score_row(const Attention& a, int64_t row, int64_t first, int64_t last) {
  const float* q = a.q + row * a.q_stride;
  for (int64_t key = first; key < last; ++key) {
    const float* k = a.keys + key * a.head_size;
    V sum = V::set(0);
    int64_t d = 0;
    for (; d + 16 <= a.head_size; d += 16) sum = V::fma(V::load(q + d), V::load(k + d), sum);
    if (d < a.head_size) sum = V::fma(V::load_some(q + d, a.head_size - d), V::load_some(k + d, a.head_size - d), sum);
    a.scores[key] = sum_of_lanes(sum) * a.scale;
  }
}

// Softmax of scores [first, last) in place.
template <class V>
static inline void normalize(float* scores, int64_t first, int64_t last) {
  float* const seen = scores + first;
  V most = V::set(-INFINITY);
  by_sixteen(last - first, [&](int64_t i, auto count) {
    if (count == 16)
      most = V::max(most, V::load(seen + i));
    else
      for (int64_t j = 0; j < count; ++j) most = V::max(most, V::set(seen[i + j]));
  });
  float lanes[16], largest = -INFINITY;
  most.store(lanes);
  for (float lane : lanes) largest = lane > largest ? lane : largest;
  V total = V::set(0);
  by_sixteen(last - first, [&](int64_t i, auto count) {
    const V e = exponential(V::sub(V::load_some(seen + i, count), V::set(largest)));
    e.store_some(seen + i, count);
    total = V::add(total, count == 16 ? e : V::load_some(seen + i, count));
  });
  const V share = V::set(1.0f / sum_of_lanes(total));
  by_sixteen(last - first, [&](int64_t i, auto count) {
    V::mul(V::load_some(seen + i, count), share).store_some(seen + i, count);
  });
}

// out [ROWS rows, 16 * PARTS columns from `column`, of the last part `tail`] = scores times values.
template <class V, int ROWS, int PARTS, class Count>
static inline void mix(const Attention& a, int64_t row, const float* scores, int64_t width, int64_t first, int64_t last,
                       int64_t column, Count tail) {
  V sum[ROWS * PARTS];
  unrolled<ROWS * PARTS>([&](auto i) { sum[i] = V::set(0); });
  const int64_t size = a.head_size;
  const float* values = a.values + first * size + column;
  for (int64_t key = first; key < last; ++key, values += size) {
    V v[PARTS];
    unrolled<PARTS>([&](auto p) { v[p] = V::load_some(values + 16 * p, p + 1 < PARTS ? 16 : int64_t(tail)); });
    unrolled<ROWS>([&](auto r) {
      const V weight = V::set(scores[r * width + key]);
      unrolled<PARTS>([&](auto p) { sum[r * PARTS + p] = V::fma(weight, v[p], sum[r * PARTS + p]); });
    });
  }
  unrolled<ROWS * PARTS>([&](auto i) {
    constexpr int kPart = i % PARTS;
    float* out = a.out + (row + i / PARTS) * a.out_stride + column + 16 * kPart;
    sum[i].store_some(out, kPart + 1 < PARTS ? 16 : int64_t(tail));
  });
}

template <class V, int ROWS>
static inline void mix_rows(const Attention& a, int64_t row, const float* scores, int64_t width, int64_t first,
                            int64_t last) {
  int64_t column = 0;
  constexpr int kParts = Cut<V>::kMixParts;
  constexpr std::integral_constant<int64_t, 16> kWhole;
  for (; column + 16 * kParts <= a.head_size; column += 16 * kParts)
    mix<V, ROWS, kParts>(a, row, scores, width, first, last, column, kWhole);
  for (; column + 16 <= a.head_size; column += 16)
    mix<V, ROWS, 1>(a, row, scores, width, first, last, column, kWhole);
  if (column < a.head_size) mix<V, ROWS, 1>(a, row, scores, width, first, last, column, a.head_size - column);
}

template <class V>
static inline void bound(float* scores, int64_t first, int64_t last, float cap) {
  by_sixteen(last - first, [&](int64_t i, auto count) {
    float* at = scores + first + i;
    V::mul(V::set(cap), hyperbolic_tangent(V::div(V::load_some(at, count), V::set(cap)))).store_some(at, count);
  });
}

// Sets scores outside what `row` sees, within [first, last), to zero after normalizing what it sees.
template <class V>
static inline void finish_row(const Attention& a, float* scores, int64_t row, int64_t first, int64_t last) {
  const int64_t end = a.past + row + 1, begin = a.window && end > a.window ? end - a.window : 0;
  if (a.softcap != 0) bound<V>(scores, begin, end, a.softcap);
  normalize<V>(scores, begin, end);
  for (int64_t key = first; key < begin; ++key) scores[key] = 0;
  for (int64_t key = end; key < last; ++key) scores[key] = 0;
}

template <class V>
static void attend(const Attention& a, int64_t first_row, int64_t last_row) {
  int64_t row = first_row;
  while (row < last_row) {
    const int64_t rows = a.transposed && row + kQueryRows <= last_row ? kQueryRows : 1;
    const int64_t begin_of_first = a.past + row + 1;
    const int64_t first = a.window && begin_of_first > a.window ? begin_of_first - a.window : 0;
    const int64_t last = a.past + row + rows, width = ceil_div(a.past + last_row, 16) * 16;
    if (rows == kQueryRows)
      for (int64_t r = 0; r < rows; r += Cut<V>::kScoreRows)
        score_rows<V, Cut<V>::kScoreRows>(a, row + r, a.scores + r * width, first, last, width);
    else if (a.transposed)
      score_rows<V, 1>(a, row, a.scores, first, last, width);
    else
      score_row<V>(a, row, first, last);
    for (int64_t r = 0; r < rows; ++r) finish_row<V>(a, a.scores + r * width, row + r, first, last);
    if (rows == kQueryRows)
      for (int64_t r = 0; r < rows; r += Cut<V>::kMixRows)
        mix_rows<V, Cut<V>::kMixRows>(a, row + r, a.scores + r * width, width, first, last);
    else
      mix_rows<V, 1>(a, row, a.scores, width, first, last);
    row += rows;
  }
}

}  // namespace edgeslim
