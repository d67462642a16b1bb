// The recurrence of a Mamba-1 layer: a state of its own, and a decay of its own for each entry, in every channel.
//
// Letters: B batch, T tokens, C channels, N size of the state. Source: Gu and Dao, Mamba, arXiv 2312.00752, algorithm 2.
#pragma once

#include <cstdint>

namespace edgeslim {

// Channels of one sequence, each by itself:
//   d[t] = softplus(step[t] + step_bias);  S = exp(d[t] A) S + d[t] x[t] b[t];  y[t] = c[t]·S + skip x[t]
// and with a gate z: y[t] *= silu(z[t]). `present` may be the same memory as `past`.
struct SelectiveScan {
  const float* x = nullptr;  // [T, x_stride], C columns; so are step and gate
  int64_t x_stride = 0;
  const float* step = nullptr;
  int64_t step_stride = 0;
  const float* step_bias = nullptr;  // [C] or null
  const float* b = nullptr;          // [T, b_stride], N columns; so is c
  int64_t b_stride = 0;
  const float* c = nullptr;
  int64_t c_stride = 0;
  const float* rate = nullptr;  // log2(e) A as [ceil(C / 16), N, 16]: A is negative, zero beyond the last channel
  const float* skip = nullptr;  // [C]
  const float* gate = nullptr;  // null: none
  int64_t gate_stride = 0;
  const float* past = nullptr;  // [C, N]
  float* present = nullptr;
  float* y = nullptr;  // [T, C]
  int64_t tokens = 0, channels = 0, state_size = 0;
};

constexpr int64_t kMostState = 256;

}  // namespace edgeslim
