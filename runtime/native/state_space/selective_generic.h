// The recurrence of selective.h over a vector V of 16 channels, see packed_linear/generic.h for what V offers.
#pragma once

#include <algorithm>

#include "state_space/functions.h"
#include "state_space/selective.h"

namespace edgeslim {

// The states [count, N] of `count` channels turned to [N, 16]; lanes beyond `count` stay as they are.
template <class V, class Count>
static inline void states_to_lanes(const float* from, int64_t size, Count count, float* lanes) {
  int64_t n = 0;
  for (; count == 16 && n + 16 <= size; n += 16) {
    V rows[16];
    for (int i = 0; i < 16; ++i) rows[i] = V::load(from + i * size + n);
    V::turn(rows);
    for (int i = 0; i < 16; ++i) rows[i].store(lanes + 16 * (n + i));
  }
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = n; j < size; ++j) lanes[16 * j + i] = from[i * size + j];
}

template <class V, class Count>
static inline void lanes_to_states(const float* lanes, int64_t size, Count count, float* to) {
  int64_t n = 0;
  for (; count == 16 && n + 16 <= size; n += 16) {
    V rows[16];
    for (int i = 0; i < 16; ++i) rows[i] = V::load(lanes + 16 * (n + i));
    V::turn(rows);
    for (int i = 0; i < 16; ++i) rows[i].store(to + i * size + n);
  }
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = n; j < size; ++j) to[i * size + j] = lanes[16 * j + i];
}

constexpr int64_t kStepsAhead = 64;  // tokens whose steps are computed at a time: by themselves, since they take long

// `tokens` tokens from `first` on of `count` channels; their steps d and the states [N, 16] lie in memory. With SIZE, the
// size of the state, it stays in registers from token to token.
template <class V, int SIZE, class Count>
static inline void scan_steps(const SelectiveScan& s, int64_t channel, Count count, int64_t first, int64_t tokens,
                              const float* steps, float* lanes) {
  constexpr int kKept = SIZE ? SIZE : 1;
  const float* rate = s.rate + channel * s.state_size;
  const V skip = V::load_some(s.skip + channel, count);
  V kept[kKept];
  if (SIZE)
    for (int n = 0; n < kKept; ++n) kept[n] = V::load(lanes + 16 * n);
  for (int64_t t = 0; t < tokens; ++t) {
    const float* b = s.b + (first + t) * s.b_stride;
    const float* c = s.c + (first + t) * s.c_stride;
    const V x = V::load_some(s.x + (first + t) * s.x_stride + channel, count);
    const V step = V::load(steps + 16 * t), input = V::mul(step, x);
    V sums[2] = {V::mul(skip, x), V::set(0)};
    const auto update = [&](int64_t n, V state, V& sum) {
      const V decay = power_below_one(V::mul(step, V::load(rate + 16 * n)));
      state = V::fma(input, V::set(b[n]), V::mul(state, decay));
      sum = V::fma(V::set(c[n]), state, sum);
      return state;
    };
    if constexpr (SIZE != 0) {
      unrolled<SIZE>([&](auto n) { kept[n] = update(n, kept[n], sums[n % 2]); });
    } else {
      for (int64_t n = 0; n < s.state_size; ++n) update(n, V::load(lanes + 16 * n), sums[n % 2]).store(lanes + 16 * n);
    }
    V y = V::add(sums[0], sums[1]);
    if (s.gate) y = V::mul(y, silu(V::load_some(s.gate + (first + t) * s.gate_stride + channel, count)));
    y.store_some(s.y + (first + t) * s.channels + channel, count);
  }
  if (SIZE)
    for (int n = 0; n < kKept; ++n) kept[n].store(lanes + 16 * n);
}

// `tokens` tokens from `first` on of `count` channels.
template <class V, int SIZE, class Count>
static inline void scan_block(const SelectiveScan& s, int64_t channel, Count count, int64_t first, int64_t tokens) {
  alignas(64) float lanes[16 * (SIZE ? SIZE : kMostState)], steps[16 * kStepsAhead];
  if (count != 16) std::fill_n(lanes, 16 * s.state_size, 0.0f);
  const float* past = first ? s.present : s.past;
  states_to_lanes<V>(past + channel * s.state_size, s.state_size, count, lanes);
  const V bias = s.step_bias ? V::load_some(s.step_bias + channel, count) : V::set(0);
  for (int64_t t = 0; t < tokens; ++t) {
    const V raw = V::load_some(s.step + (first + t) * s.step_stride + channel, count);
    softplus(V::add(raw, bias)).store(steps + 16 * t);
  }
  scan_steps<V, SIZE>(s, channel, count, first, tokens, steps, lanes);
  lanes_to_states<V>(lanes, s.state_size, count, s.present + channel * s.state_size);
}

template <class V>
static void scan_selectively(const SelectiveScan& s, int64_t first_channel, int64_t last_channel) {
  int64_t first = 0;
  do {  // at least once, which copies the states where there is no token
    const int64_t tokens = std::min(kStepsAhead, s.tokens - first);
    by_sixteen(last_channel - first_channel, [&](int64_t i, auto count) {
      if (s.state_size == 16)
        scan_block<V, 16>(s, first_channel + i, count, first, tokens);
      else
        scan_block<V, 0>(s, first_channel + i, count, first, tokens);
    });
    first += tokens;
  } while (first < s.tokens);
}

}  // namespace edgeslim
