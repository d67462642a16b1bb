#include "attention/run.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "core/buffer.h"

namespace edgeslim {
namespace {

// Moves what one head's cache held before to where the longer cache has it.
void keep_past(const AttentionCall& c, int64_t b, int64_t head) {
  const int64_t d = c.head_size, at = b * c.kv_heads + head, old = at * c.past_room * d, now = at * c.room * d;
  const auto bytes = sizeof(float) * std::size_t(c.past[b] * d);
  if (!bytes || c.past_key + old == c.present_key + now) return;
  std::memmove(c.present_key + now, c.past_key + old, bytes);
  std::memmove(c.present_value + now, c.past_value + old, bytes);
}

// Rotates queries and keys of one head's new tokens [first, last) and appends its keys and values to the cache.
void append(const AttentionCall& c, const Kernels& kernels, int64_t b, int64_t head, int64_t first, int64_t last,
            float* queries) {
  const int64_t d = c.head_size, row = (c.heads + 2 * c.kv_heads) * d, group = c.heads / c.kv_heads;
  Rotation turn;
  turn.head_size = d;
  turn.rotary = c.cosine ? c.rotary : 0;
  turn.interleaved = c.interleaved;
  for (int64_t t = first; t < last; ++t) {
    const float* qkv = c.qkv + (b * c.tokens + t) * row;
    const int64_t position = c.past[b] + t, cached = ((b * c.kv_heads + head) * c.room + position) * d;
    const int64_t angle = c.positions ? c.positions[b * c.tokens + t] : position;
    turn.cosine = c.cosine + angle * c.rotary / 2;
    turn.sine = c.sine + angle * c.rotary / 2;
    kernels.rotate(turn, qkv + (c.heads + head) * d, 1, c.present_key + cached);
    kernels.rotate(turn, qkv + head * group * d, group, queries + ((b * c.tokens + t) * c.heads + head * group) * d);
    std::memcpy(c.present_value + cached, qkv + (c.heads + c.kv_heads + head) * d, sizeof(float) * std::size_t(d));
  }
}

// 16 keys [16, D], of which `count` exist, as [D, 16], zero beyond them.
void transpose(const float* keys, int64_t count, int64_t d, float* out) {
  if (count < 16) std::fill(out, out + 16 * d, 0.0f);
  for (int64_t key = 0; key < count; ++key)
    for (int64_t i = 0; i < d; ++i) out[16 * i + key] = keys[key * d + i];
}

}  // namespace

bool run_attention(const AttentionCall& c, const Kernels& kernels, const Pool& pool) {
  thread_local Buffer key_memory, query_memory;
  const int64_t d = c.head_size, group = c.heads / c.kv_heads;
  const int64_t longest = *std::max_element(c.past, c.past + c.batch) + c.tokens, rounded = ceil_div(longest, 16) * 16;
  const bool many = c.tokens >= kQueryRows;
  float* transposed = many ? key_memory.of<float>(c.batch * c.kv_heads * rounded * d) : nullptr;
  float* queries = query_memory.of<float>(c.batch * c.tokens * c.heads * d);
  if ((many && !transposed) || !queries) return false;
  for (int64_t index = 0; index < c.batch * c.kv_heads; ++index) keep_past(c, index / c.kv_heads, index % c.kv_heads);
  const auto prepare = [&](int64_t index, int64_t begin, int64_t end) {  // positions [begin, end) of a head's cache
    const int64_t b = index / c.kv_heads, past = c.past[b], count = std::min(end, past + c.tokens) - begin;
    if (count <= 0) return;
    append(c, kernels, b, index % c.kv_heads, std::max(begin - past, int64_t{0}), begin + count - past, queries);
    if (many)
      transpose(c.present_key + (index * c.room + begin) * d, count, d, transposed + (index * rounded + begin) * d);
  };
  const int64_t blocks = rounded / 16;
  if (many)
    pool.each(c.batch * c.kv_heads * blocks, [&](int64_t task) {
      prepare(task / blocks, task % blocks * 16, task % blocks * 16 + 16);
    });
  else
    for (int64_t index = 0; index < c.batch * c.kv_heads; ++index) prepare(index, c.past[index / c.kv_heads], longest);
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
