// The two recurrences of a Mamba-2 layer: a short causal convolution and the scan over its state.
//
// Letters: B batch, T tokens, C channels, K taps, H heads, G groups of heads that share b and c, N size of the state,
// P size of a head. Source: Dao and Gu, Transformers are SSMs, 2024, section 6 (there b, c and x come of one product).
#pragma once

#include <cstdint>

namespace edgeslim {

// Channels of one sequence, each by itself:
//   y[t, c] = silu(bias[c] + sum_j taps[j, c] * x[t + j - (K - 1), c]), where x before the first token is `past`.
// `present` may be the same memory as `past`, or null where nobody wants it. Where it `continues`, K - 1 rows of x lie
// before the first token, and `past` is not read.
struct Convolution {
  const float* x = nullptr;  // [T, x_stride]
  int64_t x_stride = 0;
  const float* taps = nullptr;  // [K, C]
  const float* bias = nullptr;  // [C] or null
  const float* past = nullptr;  // [C, K - 1]
  float* present = nullptr;
  float* y = nullptr;  // [T, C]
  int64_t tokens = 0, channels = 0, width = 0;  // width: K
  bool silu = false, continues = false;
};

// Up to kScanTokens tokens of one head:
//   d[t] = softplus(step[t] + step_bias);  S = exp(d[t] A) S + b[t] (d[t] x[t])^T;  y[t] = c[t]^T S + skip x[t]
// `present` may be the same memory as `past`.
struct Scan {
  const float* x = nullptr;  // [T, stride], P columns
  const float* b = nullptr;  // [T, stride], N columns
  const float* c = nullptr;
  int64_t stride = 0;
  const float* step = nullptr;  // [T, step_stride], one column
  int64_t step_stride = 0;
  float step_bias = 0;
  float rate = 0;  // log2(e) A, negative
  float skip = 0;
  const float* past = nullptr;  // S [N, P]
  float* present = nullptr;
  float* y = nullptr;  // [T, y_stride]
  int64_t y_stride = 0;
  int64_t tokens = 0, state_size = 0, head_size = 0;
  const float* pairs = nullptr;  // what `relate` finds of b and c; null: one token after another
  bool streams = false;  // the state of one token may be stored past the caches
};

constexpr int64_t kMostTaps = 16;
constexpr int64_t kScanTokens = 64;
constexpr int64_t kChunkTokens = 16;

}  // namespace edgeslim
