// One call of grouped-query attention: queries and keys are normed and rotated, the cache is extended, heads are shared
// out.
#pragma once

#include "core/pool.h"
#include "packed_linear/kernels.h"

namespace edgeslim {

// t / rms(t) * weight over pieces of `size` entries: D, a head, or all heads of a token.
struct HeadNorm {
  const float* weight = nullptr;  // [size]; null: no norm
  int64_t size = 0;
};

// Letters as in attention.h; B batch, H heads of queries, N heads of keys and values.
struct AttentionCall {
  const float* qkv = nullptr;  // [B, T, (H + 2 N) D]
  const float* past_key = nullptr;    // [B, N, past_room, D]; may be the same memory as present_key
  const float* past_value = nullptr;
  float* present_key = nullptr;  // [B, N, room, D]
  float* present_value = nullptr;
  float* out = nullptr;            // [B, T, H D]
  const float* cosine = nullptr;   // [positions, rotary / 2]; null: no rotary positions
  const float* sine = nullptr;
  int64_t batch = 0, tokens = 0, heads = 0, kv_heads = 0, head_size = 0;
  int64_t past_room = 0, room = 0, rotary = 0, window = 0;
  const int64_t* past = nullptr;       // [B], P of each sequence
  const int64_t* positions = nullptr;  // [B, T], which angles are taken; null: those of the places in the cache
  HeadNorm query_norm, key_norm;
  float epsilon = 0;  // of the norms
  bool interleaved = false;
  float scale = 0, softcap = 0;
};

// False where memory is out.
bool run_attention(const AttentionCall& call, const Kernels& kernels, const Pool& pool);

}  // namespace edgeslim
