// Causal attention of grouped queries over a cache of keys and values, with rotary positions.
//
// Letters: T new tokens, P tokens in the cache before, S = P + T, D size of a head.
// Queries of `group` heads share one head of keys and values. Keys and values lie as [S, D] for each head.
#pragma once

#include <cstdint>

namespace edgeslim {

// Query rows [first, last) of one head: q [T, q_stride], out [T, out_stride]; row t sees keys of positions
// [max(0, P + t + 1 - window), P + t + 1). `transposed` holds the keys as [S / 16, D, 16], `scores` 8 rows of S floats
// (both rounded up to 16).
struct Attention {
  const float* q = nullptr;
  int64_t q_stride = 0;
  const float* keys = nullptr;
  const float* transposed = nullptr;  // null for one token: keys are read as they lie
  const float* values = nullptr;
  float* out = nullptr;
  int64_t out_stride = 0;
  int64_t past = 0, head_size = 0, window = 0;  // window 0: all
  float scale = 0, softcap = 0;  // softcap c: scores s become c tanh(s / c); 0: they stay
  float* scores = nullptr;
};

// The angles of one position, cosine and sine [rotary / 2], for the first `rotary` entries of a head; the rest stays.
struct Rotation {
  const float* cosine = nullptr;
  const float* sine = nullptr;
  int64_t head_size = 0, rotary = 0;
  bool interleaved = false;
};

constexpr int64_t kQueryRows = 8;

}  // namespace edgeslim
