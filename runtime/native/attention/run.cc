#include "attention/run.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "core/buffer.h"

namespace edgeslim {
namespace {

// x [D] at `position` with its first `rotary` entries turned by the position's angles.
void rotate(const AttentionCall& c, const float* x, int64_t position, float* out) {
  std::memcpy(out, x, sizeof(float) * std::size_t(c.head_size));
  if (!c.cosine) return;
  const int64_t half = c.rotary / 2;
  const float *cosine = c.cosine + position * half, *sine = c.sine + position * half;
  if (c.interleaved) {
    for (int64_t i = 0; i < half; ++i) {
      out[2 * i] = x[2 * i] * cosine[i] - x[2 * i + 1] * sine[i];
      out[2 * i + 1] = x[2 * i + 1] * cosine[i] + x[2 * i] * sine[i];
    }
    return;
  }
  for (int64_t i = 0; i < half; ++i) {
    out[i] = x[i] * cosine[i] - x[half + i] * sine[i];
    out[half + i] = x[half + i] * cosine[i] + x[i] * sine[i];
  }
}

// Appends the new keys and values of one head to its cache.
void extend(const AttentionCall& c, int64_t b, int64_t head) {
  const int64_t d = c.head_size, past = c.past[b], row = (c.heads + 2 * c.kv_heads) * d;
  const int64_t at = (b * c.kv_heads + head), old = at * c.past_room * d, now = at * c.room * d;
  if (c.past_key + old != c.present_key + now && past) {
    std::memmove(c.present_key + now, c.past_key + old, sizeof(float) * std::size_t(past * d));
    std::memmove(c.present_value + now, c.past_value + old, sizeof(float) * std::size_t(past * d));
  }
  for (int64_t t = 0; t < c.tokens; ++t) {
    const float* qkv = c.qkv + (b * c.tokens + t) * row;
    rotate(c, qkv + (c.heads + head) * d, past + t, c.present_key + now + (past + t) * d);
    std::memcpy(c.present_value + now + (past + t) * d, qkv + (c.heads + c.kv_heads + head) * d,
                sizeof(float) * std::size_t(d));
  }
}

// Keys [S, D] as [S / 16, D, 16], zero beyond S.
void transpose(const float* keys, int64_t count, int64_t d, float* out) {
  for (int64_t block = 0; block * 16 < count; ++block)
    for (int64_t lane = 0; lane < 16; ++lane) {
      const int64_t key = block * 16 + lane;
      float* to = out + block * d * 16 + lane;
      if (key < count)
        for (int64_t i = 0; i < d; ++i) to[16 * i] = keys[key * d + i];
      else
        for (int64_t i = 0; i < d; ++i) to[16 * i] = 0;
    }
}

}  // namespace

bool run_attention(const AttentionCall& c, const Kernels& kernels, const Pool& pool) {
  thread_local Buffer key_memory, query_memory;
  const int64_t d = c.head_size, group = c.heads / c.kv_heads, row = (c.heads + 2 * c.kv_heads) * d;
  const int64_t longest = *std::max_element(c.past, c.past + c.batch) + c.tokens, rounded = ceil_div(longest, 16) * 16;
  const bool many = c.tokens >= kQueryRows;
  float* transposed = many ? key_memory.of<float>(c.batch * c.kv_heads * rounded * d) : nullptr;
  float* queries = query_memory.of<float>(c.batch * c.tokens * c.heads * d);
  if ((many && !transposed) || !queries) return false;
  const auto prepare = [&](int64_t index) {
    const int64_t b = index / c.kv_heads, head = index % c.kv_heads, count = c.past[b] + c.tokens;
    extend(c, b, head);
    if (many) transpose(c.present_key + index * c.room * d, count, d, transposed + index * rounded * d);
    for (int64_t t = 0; t < c.tokens; ++t)
      for (int64_t h = head * group; h < (head + 1) * group; ++h)
        rotate(c, c.qkv + (b * c.tokens + t) * row + h * d, c.past[b] + t,
               queries + ((b * c.tokens + t) * c.heads + h) * d);
  };
  if (many)
    pool.each(c.batch * c.kv_heads, prepare);
  else
    for (int64_t index = 0; index < c.batch * c.kv_heads; ++index) prepare(index);
  const int64_t pieces = ceil_div(c.tokens, 4 * kQueryRows);
  std::atomic<bool> enough{true};
  pool.each(c.batch * c.heads * pieces, [&](int64_t index) {
    thread_local Buffer memory;
    const int64_t piece = index % pieces, h = index / pieces % c.heads, b = index / pieces / c.heads;
    const int64_t cache = b * c.kv_heads + h / group;
    Attention a;
    a.q = queries + (b * c.tokens * c.heads + h) * d;
    a.q_stride = c.heads * d;
    a.keys = c.present_key + cache * c.room * d;
    a.values = c.present_value + cache * c.room * d;
    a.transposed = many ? transposed + cache * rounded * d : nullptr;
    a.out = c.out + (b * c.tokens * c.heads + h) * d;
    a.out_stride = c.heads * d;
    a.past = c.past[b];
    a.head_size = d;
    a.window = c.window;
    a.scale = c.scale;
    a.scores = memory.of<float>(kQueryRows * rounded);
    if (!a.scores) return enough.store(false);
    kernels.attend(a, c.tokens * piece / pieces, c.tokens * (piece + 1) / pieces);
  });
  return enough;
}

}  // namespace edgeslim
