// Attention over a vector V of 16 floats, see packed_linear/generic.h for what V offers.
#pragma once

#include <algorithm>
#include <cstring>

#include "attention/attention.h"
#include "packed_linear/generic.h"

namespace edgeslim {

static inline void rotate_pairs(const Rotation& turn, const float* x, float* out) {
  for (int64_t i = 0; 2 * i < turn.rotary; ++i) {
    out[2 * i] = x[2 * i] * turn.cosine[i] - x[2 * i + 1] * turn.sine[i];
    out[2 * i + 1] = x[2 * i + 1] * turn.cosine[i] + x[2 * i] * turn.sine[i];
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

// out [count, head_size] = `count` heads x turned by the angles of their position.
template <class V>
static void rotate(const Rotation& turn, const float* x, int64_t count, float* out) {
  for (int64_t head = 0; head < count; ++head, x += turn.head_size, out += turn.head_size) {
    if (turn.interleaved)
      rotate_pairs(turn, x, out);
    else
      rotate_halves<V>(turn, x, out);
    std::memcpy(out + turn.rotary, x + turn.rotary, sizeof(float) * std::size_t(turn.head_size - turn.rotary));
  }
}

// scores[row][key] for up to kQueryRows rows, keys [first, last) rounded out to blocks of 16.
template <class V, int ROWS>
static inline void score_rows(const Attention& a, int64_t row, int64_t first, int64_t last, int64_t width) {
  for (int64_t block = first / 16; block * 16 < last; ++block) {
    const float* keys = a.transposed + block * a.head_size * 16;
    V sum[ROWS];
    for (int r = 0; r < ROWS; ++r) sum[r] = V::set(0);
    for (int64_t d = 0; d < a.head_size; ++d) {
      const V column = V::load(keys + 16 * d);
      for (int r = 0; r < ROWS; ++r) sum[r] = V::fma(V::set(a.q[(row + r) * a.q_stride + d]), column, sum[r]);
    }
    for (int r = 0; r < ROWS; ++r) V::mul(sum[r], V::set(a.scale)).store(a.scores + r * width + 16 * block);
  }
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
  V most = V::set(-INFINITY);
  for (int64_t i = first; i < last; i += 16) {
    const int64_t count = std::min<int64_t>(16, last - i);
    const V v = V::load_some(scores + i, count);
    if (count == 16)
      most = V::max(most, v);
    else
      for (int64_t j = 0; j < count; ++j) most = V::max(most, V::set(scores[i + j]));
  }
  float lanes[16], largest = -INFINITY;
  most.store(lanes);
  for (float lane : lanes) largest = lane > largest ? lane : largest;
  V total = V::set(0);
  for (int64_t i = first; i < last; i += 16) {
    const int64_t count = std::min<int64_t>(16, last - i);
    const V e = exponential(V::sub(V::load_some(scores + i, count), V::set(largest)));
    e.store_some(scores + i, count);
    total = V::add(total, count == 16 ? e : V::load_some(scores + i, count));
  }
  const V share = V::set(1.0f / sum_of_lanes(total));
  for (int64_t i = first; i < last; i += 16) {
    const int64_t count = std::min<int64_t>(16, last - i);
    V::mul(V::load_some(scores + i, count), share).store_some(scores + i, count);
  }
}

// out [ROWS rows, 16 * PARTS columns from `column`] = scores times values.
template <class V, int ROWS, int PARTS>
static inline void mix(const Attention& a, int64_t row, const float* scores, int64_t width, int64_t first, int64_t last,
                       int64_t column, int64_t tail) {
  V sum[ROWS][PARTS];
  for (auto& of_row : sum)
    for (V& one : of_row) one = V::set(0);
  for (int64_t key = first; key < last; ++key) {
    const float* values = a.values + key * a.head_size + column;
    V v[PARTS];
    for (int p = 0; p < PARTS; ++p) v[p] = V::load_some(values + 16 * p, p + 1 < PARTS ? 16 : tail);
    for (int r = 0; r < ROWS; ++r) {
      const V weight = V::set(scores[r * width + key]);
      for (int p = 0; p < PARTS; ++p) sum[r][p] = V::fma(weight, v[p], sum[r][p]);
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int p = 0; p < PARTS; ++p)
      sum[r][p].store_some(a.out + (row + r) * a.out_stride + column + 16 * p, p + 1 < PARTS ? 16 : tail);
}

template <class V, int ROWS>
static inline void mix_rows(const Attention& a, int64_t row, const float* scores, int64_t width, int64_t first,
                            int64_t last) {
  int64_t column = 0;
  for (; column + 64 <= a.head_size; column += 64) mix<V, ROWS, 4>(a, row, scores, width, first, last, column, 16);
  for (; column < a.head_size; column += 16)
    mix<V, ROWS, 1>(a, row, scores, width, first, last, column, std::min<int64_t>(16, a.head_size - column));
}

// Sets scores outside what `row` sees, within [first, last), to zero after normalizing what it sees.
template <class V>
static inline void finish_row(const Attention& a, float* scores, int64_t row, int64_t first, int64_t last) {
  const int64_t end = a.past + row + 1, begin = a.window && end > a.window ? end - a.window : 0;
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
      score_rows<V, kQueryRows>(a, row, first, last, width);
    else if (a.transposed)
      score_rows<V, 1>(a, row, first, last, width);
    else
      score_row<V>(a, row, first, last);
    for (int64_t r = 0; r < rows; ++r) finish_row<V>(a, a.scores + r * width, row + r, first, last);
    if (rows == kQueryRows) {
      mix_rows<V, 4>(a, row, a.scores, width, first, last);
      mix_rows<V, 4>(a, row + 4, a.scores + 4 * width, width, first, last);
    } else {
      mix_rows<V, 1>(a, row, a.scores, width, first, last);
    }
    row += rows;
  }
}

}  // namespace edgeslim
