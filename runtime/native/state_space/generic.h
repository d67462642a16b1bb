// The recurrences of state_space.h over a vector V of 16 floats, see packed_linear/generic.h for what V offers.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "packed_linear/generic.h"
#include "state_space/chunk_generic.h"
#include "state_space/functions.h"
#include "state_space/state_space.h"

namespace edgeslim {

// The states [16, K - 1] of 16 channels turned to [K - 1, 16], and back. Known numbers of taps and channels let the
// compiler make shuffles of these loops.
template <int WIDTH, class Count>
static inline void state_to_rows(const Convolution& c, int64_t channel, Count count, float* rows) {
  const int64_t before = (WIDTH ? WIDTH : c.width) - 1;
  const float* from = c.past + channel * before;
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j < before; ++j) rows[16 * j + i] = from[i * before + j];
}

template <int WIDTH, class Count>
static inline void rows_to_state(const Convolution& c, int64_t channel, Count count, const float* rows) {
  const int64_t before = (WIDTH ? WIDTH : c.width) - 1;
  float* to = c.present + channel * before;
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j < before; ++j) to[i * before + j] = rows[16 * j + i];
}

// `count` channels from `channel` on, all tokens. WIDTH 0: any number of taps.
template <class V, int WIDTH, class Count>
static inline void convolve_block(const Convolution& c, int64_t channel, Count count) {
  const int64_t width = WIDTH ? WIDTH : c.width, before = width - 1;
  float rows[16 * (WIDTH ? WIDTH : kMostTaps)] = {0};  // inputs before the first token
  if (!c.continues) state_to_rows<WIDTH>(c, channel, count, rows);
  const float* x = c.x + channel;
  const auto input = [&](int64_t t) {
    return t < 0 && !c.continues ? V::load(rows + 16 * (t + before)) : V::load_some(x + t * c.x_stride, count);
  };
  for (int64_t t = 0; t < c.tokens; ++t) {
    V sum = c.bias ? V::load_some(c.bias + channel, count) : V::set(0);
    for (int64_t j = 0; j < width; ++j)
      sum = V::fma(V::load_some(c.taps + j * c.channels + channel, count), input(t + j - before), sum);
    (c.silu ? silu(sum) : sum).store_some(c.y + t * c.channels + channel, count);
  }
  if (!c.present) return;
  for (int64_t j = 0; j < before; ++j) input(c.tokens + j - before).store(rows + 16 * j);
  rows_to_state<WIDTH>(c, channel, count, rows);
}

constexpr int64_t kChannelsTogether = 512;  // whose taps and rows stay in the first cache

// Where the convolution continues: row after row, as they lie in memory.
template <class V>
static inline void convolve_rows(const Convolution& c, int64_t first, int64_t last) {
  for (int64_t t = 0; t < c.tokens; ++t) {
    const float* x = c.x + (t + 1 - c.width) * c.x_stride;
    float* y = c.y + t * c.channels;
    by_sixteen(last - first, [&](int64_t i, auto count) {
      const int64_t channel = first + i;
      V sum = c.bias ? V::load_some(c.bias + channel, count) : V::set(0);
      for (int64_t j = 0; j < c.width; ++j)
        sum = V::fma(V::load_some(c.taps + j * c.channels + channel, count),
                     V::load_some(x + j * c.x_stride + channel, count), sum);
      (c.silu ? silu(sum) : sum).store_some(y + channel, count);
    });
  }
}

// Channels [first, last).
template <class V>
static void convolve(const Convolution& c, int64_t first, int64_t last) {
  if (c.continues && !c.present) {
    for (; first < last; first += kChannelsTogether)
      convolve_rows<V>(c, first, last - first < kChannelsTogether ? last : first + kChannelsTogether);
    return;
  }
  by_sixteen(last - first, [&](int64_t i, auto count) {
    if (c.width == 4)
      convolve_block<V, 4>(c, first + i, count);
    else
      convolve_block<V, 0>(c, first + i, count);
  });
}

// Stores past the caches, to p aligned to 64: a plain store would first read the line that it overwrites whole.
template <class V>
static inline void stream(V v, float* p) {
#if defined(__AVX512F__)
  __m512 all;
  std::memcpy(&all, &v, sizeof all);
  _mm512_stream_ps(p, all);
#elif defined(__AVX__)
  __m256 halves[2];
  std::memcpy(halves, &v, sizeof halves);
  for (int i = 0; i < 2; ++i) _mm256_stream_ps(p + 8 * i, halves[i]);
#else
  v.store(p);
#endif
}

// Orders what was streamed before what other threads are told.
static inline void end_stream() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// Steps d and decays exp(d A) of the tokens of a scan.
struct Steps {
  alignas(64) float d[kScanTokens], decay[kScanTokens];
};

template <class V>
static inline void find_steps(const Scan& s, Steps* steps) {
  alignas(64) float raw[kScanTokens] = {0};
  for (int64_t t = 0; t < s.tokens; ++t) raw[t] = s.step[t * s.step_stride];
  for (int64_t t = 0; t < s.tokens; t += 16) {
    const V d = softplus(V::add(V::load(raw + t), V::set(s.step_bias)));
    d.store(steps->d + t);
    power_below_one(V::mul(d, V::set(s.rate))).store(steps->decay + t);
  }
}

// TOKENS tokens of 16 * PARTS columns, the last 16 of them `tail`: each entry of the state is read and written once.
template <class V, int TOKENS, int PARTS, bool STREAM = false, class Tail>
static inline void scan_columns(const Scan& s, const Steps& steps, const float* past, int64_t token, int64_t column,
                                Tail tail) {
  const auto count = [&](int p) { return p + 1 < PARTS ? int64_t{16} : int64_t(tail); };
  const float* b = s.b + token * s.stride;
  const float* c = s.c + token * s.stride;
  V x[TOKENS][PARTS], y[TOKENS][PARTS], decay[TOKENS];
  for (int t = 0; t < TOKENS; ++t) {
    decay[t] = V::set(steps.decay[token + t]);
    for (int p = 0; p < PARTS; ++p) {
      const float* from = s.x + (token + t) * s.stride + column + 16 * p;
      x[t][p] = V::mul(V::set(steps.d[token + t]), V::load_some(from, count(p)));
      y[t][p] = V::set(0);
    }
  }
  for (int64_t n = 0; n < s.state_size; ++n) {
    const int64_t at = n * s.head_size + column;
    for (int p = 0; p < PARTS; ++p) {
      V state = V::load_some(past + at + 16 * p, count(p));
      for (int t = 0; t < TOKENS; ++t) {
        state = V::fma(V::set(b[t * s.stride + n]), x[t][p], V::mul(state, decay[t]));
        y[t][p] = V::fma(V::set(c[t * s.stride + n]), state, y[t][p]);
      }
      if (STREAM)
        stream(state, s.present + at + 16 * p);
      else
        state.store_some(s.present + at + 16 * p, count(p));
    }
  }
  for (int t = 0; t < TOKENS; ++t)
    for (int p = 0; p < PARTS; ++p) {
      const V input = V::load_some(s.x + (token + t) * s.stride + column + 16 * p, count(p));
      V::fma(V::set(s.skip), input, y[t][p])
          .store_some(s.y + (token + t) * s.y_stride + column + 16 * p, count(p));
    }
}

template <class V, int PARTS, class Tail>
static inline void scan_tokens(const Scan& s, const Steps& steps, int64_t column, Tail tail) {
  const float* past = s.past;
  int64_t token = 0;
  for (; token + 2 <= s.tokens; token += 2, past = s.present)
    scan_columns<V, 2, PARTS>(s, steps, past, token, column, tail);
  if (token < s.tokens) scan_columns<V, 1, PARTS>(s, steps, past, token, column, tail);
}

template <class V>
static void scan(const Scan& s) {
  Steps steps;
  find_steps<V>(s, &steps);
  if (s.pairs) return scan_chunks<V>(s, steps.d, steps.decay);
  int64_t column = 0;
  if (s.streams && s.tokens == 1 && s.head_size % 64 == 0 && reinterpret_cast<uintptr_t>(s.present) % 64 == 0) {
    for (; column < s.head_size; column += 64)
      scan_columns<V, 1, 4, true>(s, steps, s.past, 0, column, std::integral_constant<int64_t, 16>{});
    return end_stream();
  }
  for (; column + 64 <= s.head_size; column += 64)
    scan_tokens<V, 4>(s, steps, column, std::integral_constant<int64_t, 16>{});
  by_sixteen(s.head_size - column, [&](int64_t i, auto count) { scan_tokens<V, 1>(s, steps, column + i, count); });
}

}  // namespace edgeslim
