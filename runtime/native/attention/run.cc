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

// out [width] = x [width] normed piece by piece.
void norm_pieces(const HeadNorm& norm, float epsilon, const Kernels& kernels, const float* x, int64_t width, float* out) {
  Prologue in;
  in.x = x;
  in.x_stride = norm.size;
  in.norm = norm.weight;
  in.epsilon = epsilon;
  for (int64_t i = 0; i < width / norm.size; ++i) kernels.prologue(in, i, norm.size, norm.size, out + i * norm.size);
}

// queries [B T, H D] and keys [B T, N D] = those of tokens [first, last) normed, where there are norms.
void norm_tokens(const AttentionCall& c, const Kernels& kernels, int64_t first, int64_t last, float* queries, float* keys) {
  const int64_t of_queries = c.heads * c.head_size, of_keys = c.kv_heads * c.head_size;
  for (int64_t t = first; t < last; ++t) {
    const float* qkv = c.qkv + t * (of_queries + 2 * of_keys);
    if (c.query_norm.weight) norm_pieces(c.query_norm, c.epsilon, kernels, qkv, of_queries, queries + t * of_queries);
    if (c.key_norm.weight) norm_pieces(c.key_norm, c.epsilon, kernels, qkv + of_queries, of_keys, keys + t * of_keys);
  }
}

// Rotates queries and keys of one head's new tokens [first, last) and appends its keys and values to the cache. Normed
// queries lie in `queries` already, normed keys in `keys`.
void append(const AttentionCall& c, const Kernels& kernels, int64_t b, int64_t head, int64_t first, int64_t last,
            float* queries, const float* keys) {
  const int64_t d = c.head_size, row = (c.heads + 2 * c.kv_heads) * d, group = c.heads / c.kv_heads;
  Rotation turn;
  turn.head_size = d;
  turn.rotary = c.cosine ? c.rotary : 0;
  turn.interleaved = c.interleaved;
  for (int64_t t = first; t < last; ++t) {
    const int64_t token = b * c.tokens + t;
    const float* qkv = c.qkv + token * row;
    float* const turned = queries + (token * c.heads + head * group) * d;
    const float* const query = c.query_norm.weight ? turned : qkv + head * group * d;
    const float* const key = c.key_norm.weight ? keys + (token * c.kv_heads + head) * d : qkv + (c.heads + head) * d;
    const int64_t position = c.past[b] + t, cached = ((b * c.kv_heads + head) * c.room + position) * d;
    const int64_t angle = c.positions ? c.positions[token] : position;
    turn.cosine = c.cosine + angle * c.rotary / 2;
    turn.sine = c.sine + angle * c.rotary / 2;
    kernels.rotate(turn, key, 1, c.present_key + cached);
    kernels.rotate(turn, query, group, turned);
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
  thread_local Buffer key_memory, query_memory, normed_memory;
  const int64_t d = c.head_size, group = c.heads / c.kv_heads;
  const int64_t longest = *std::max_element(c.past, c.past + c.batch) + c.tokens, rounded = ceil_div(longest, 16) * 16;
  const bool many = c.tokens >= kQueryRows;
  float* transposed = many ? key_memory.of<float>(c.batch * c.kv_heads * rounded * d) : nullptr;
  const int64_t all = c.batch * c.tokens;
  float* queries = query_memory.of<float>(all * c.heads * d);
  float* normed = c.key_norm.weight ? normed_memory.of<float>(all * c.kv_heads * d) : nullptr;
  if ((many && !transposed) || !queries || (c.key_norm.weight && !normed)) return false;
  if (c.query_norm.weight || c.key_norm.weight) {
    if (many)
      pool.each(ceil_div(all, 16), [&](int64_t task) {
        norm_tokens(c, kernels, 16 * task, std::min(all, 16 * task + 16), queries, normed);
      });
    else
      norm_tokens(c, kernels, 0, all, queries, normed);
  }
  for (int64_t index = 0; index < c.batch * c.kv_heads; ++index) keep_past(c, index / c.kv_heads, index % c.kv_heads);
  const auto prepare = [&](int64_t index, int64_t begin, int64_t end) {  // positions [begin, end) of a head's cache
    const int64_t b = index / c.kv_heads, past = c.past[b], count = std::min(end, past + c.tokens) - begin;
    if (count <= 0) return;
    append(c, kernels, b, index % c.kv_heads, std::max(begin - past, int64_t{0}), begin + count - past, queries, normed);
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
    a.softcap = c.softcap;
    a.scores = memory.of<float>(kQueryRows * rounded);
    if (!a.scores) return enough.store(false);
    kernels.attend(a, c.tokens * piece / pieces, c.tokens * (piece + 1) / pieces);
  });
  return enough;
}

}  // namespace edgeslim
