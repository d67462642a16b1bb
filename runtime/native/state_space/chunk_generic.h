// The scan of state_space.h by chunks of kChunkTokens tokens: what tokens of a chunk take from the state before it, what
// they take from each other, and the state after it are three products of matrices, which registers hold in blocks.
// Source: Dao and Gu, Transformers are SSMs, 2024, section 6. Over a vector V of 16 floats, see packed_linear/generic.h;
// sums are in the same order for every V.
#pragma once

#include "packed_linear/generic.h"
#include "state_space/state_space.h"

namespace edgeslim {

static_assert(kChunkTokens == 16, "the tokens of a chunk are the lanes of a vector");

// Rows x parts of 16 columns that registers hold as sums.
template <class V>
struct ChunkCut {
  static constexpr bool kRoomy = V::kRegisters >= 32;
  static constexpr int kRows = kRoomy ? 4 : 2, kParts = kRoomy ? 4 : 2;
};

// The rows of TOKENS tokens from `token` on: even and odd entries of the state apart, so that no sum waits for itself.
template <class V, int TOKENS>
static inline void relate_tokens(const Scan& s, const float* turned, int64_t token, float* pairs) {
  V even[TOKENS], odd[TOKENS];
  unrolled<TOKENS>([&](auto i) { even[i] = odd[i] = V::set(0); });
  const float* c = s.c + token * s.stride;
  const int64_t stride = s.stride, size = s.state_size;
  int64_t n = 0;
  for (; n + 2 <= size; n += 2) {
    const V first = V::load(turned + 16 * n), second = V::load(turned + 16 * (n + 1));
    unrolled<TOKENS>([&](auto i) {
      even[i] = V::fma(V::set(c[i * stride + n]), first, even[i]);
      odd[i] = V::fma(V::set(c[i * stride + n + 1]), second, odd[i]);
    });
  }
  if (n < size) {
    const V last = V::load(turned + 16 * n);
    unrolled<TOKENS>([&](auto i) { even[i] = V::fma(V::set(c[i * stride + n]), last, even[i]); });
  }
  unrolled<TOKENS>([&](auto i) { V::add(even[i], odd[i]).store(pairs + 16 * i); });
}

// pairs [tokens, 16], where row t of a chunk has c[t] · b[s] of its tokens s; `turned` holds [N up to 16, 16].
template <class V>
static void relate(const Scan& s, float* pairs, float* turned) {
  constexpr int kRows = ChunkCut<V>::kRows;
  const int64_t rounded = ceil_div(s.state_size, 16) * 16;
  for (int64_t first = 0; first < s.tokens; first += kChunkTokens, pairs += 16 * kChunkTokens) {
    const int64_t tokens = s.tokens - first < kChunkTokens ? s.tokens - first : kChunkTokens;
    for (int64_t n = 0; n < rounded; n += 16) {
      V rows[16];
      for (int64_t t = 0; t < 16; ++t) {
        const int64_t count = s.state_size - n < 16 ? s.state_size - n : 16;
        rows[t] = t < tokens ? V::load_some(s.b + (first + t) * s.stride + n, count) : V::set(0);
      }
      V::turn(rows);
      for (int64_t i = 0; i < 16; ++i) rows[i].store(turned + 16 * (n + i));
    }
    int64_t t = 0;
    for (; t + kRows <= tokens; t += kRows) relate_tokens<V, kRows>(s, turned, first + t, pairs + 16 * t);
    for (; t < tokens; ++t) relate_tokens<V, 1>(s, turned, first + t, pairs + 16 * t);
  }
}

// Tokens [first, first + tokens) of one head and the decays between them.
struct Chunk {
  int64_t first = 0, tokens = 0;
  alignas(64) float reach[kChunkTokens];               // of the state before the chunk, how much is left in token t
  alignas(64) float mixed[kChunkTokens][kChunkTokens]; // of token s, how much token t takes; 0 where s > t
  alignas(64) float kept[kChunkTokens];                // of token s, how much the state after the chunk takes
};

template <class V>
static inline void find_decays(const Scan& s, const float* d, const float* decay, Chunk* chunk) {
  alignas(64) float left[kChunkTokens] = {0};  // of what each token put in, how much is left
  const V steps = V::load(d);
  float reach = 1;
  for (int64_t t = 0; t < chunk->tokens; ++t) {
    reach *= decay[t];
    chunk->reach[t] = reach;
    V::mul(V::load(left), V::set(decay[t])).store(left);
    left[t] = 1;
    const V mixed = V::mul(V::load(left), steps);
    mixed.store(chunk->kept);
    V::mul(mixed, V::load(s.pairs + 16 * (chunk->first + t))).store(chunk->mixed[t]);
  }
}

// y of ROWS tokens of the chunk from `row` on, 16 * PARTS columns, the last 16 of them `tail`.
template <class V, int ROWS, int PARTS, class Tail>
static inline void chunk_outputs(const Scan& s, const Chunk& chunk, const float* past, int64_t row, int64_t column,
                                 Tail tail) {
  V y[ROWS * PARTS];
  unrolled<ROWS * PARTS>([&](auto i) { y[i] = V::set(0); });
  const auto count = [&](auto p) { return p + 1 < PARTS ? int64_t{16} : int64_t(tail); };
  const auto add = [&](const float* from, const float* shares, int64_t apart) {
    V v[PARTS];
    unrolled<PARTS>([&](auto p) { v[p] = V::load_some(from + 16 * p, count(p)); });
    unrolled<ROWS>([&](auto r) {
      const V share = V::set(shares[r * apart]);
      unrolled<PARTS>([&](auto p) { y[r * PARTS + p] = V::fma(share, v[p], y[r * PARTS + p]); });
    });
  };
  const float* c = s.c + (chunk.first + row) * s.stride;
  for (int64_t n = 0; n < s.state_size; ++n) add(past + n * s.head_size + column, c + n, s.stride);
  unrolled<ROWS * PARTS>([&](auto i) { y[i] = V::mul(y[i], V::set(chunk.reach[row + i / PARTS])); });
  const float* x = s.x + chunk.first * s.stride + column;
  const int64_t seen = ceil_div(row + ROWS, 4) * 4, end = seen < chunk.tokens ? seen : chunk.tokens;
  for (int64_t t = 0; t < end; ++t) add(x + t * s.stride, &chunk.mixed[row][t], kChunkTokens);
  unrolled<ROWS * PARTS>([&](auto i) {
    constexpr int kRow = i / PARTS, kPart = i % PARTS;
    const int64_t at = chunk.first + row + kRow, columns = kPart + 1 < PARTS ? int64_t{16} : int64_t(tail);
    const V input = V::load_some(s.x + at * s.stride + column + 16 * kPart, columns);
    V::fma(V::set(s.skip), input, y[i]).store_some(s.y + at * s.y_stride + column + 16 * kPart, columns);
  });
}

// Rows [n, n + ROWS) of the state after the chunk; `kept` [tokens, 16 * PARTS] has what each token puts in.
template <class V, int ROWS, int PARTS, class Tail>
static inline void chunk_state(const Scan& s, const Chunk& chunk, const float* past, const float* kept, int64_t n,
                               int64_t column, Tail tail) {
  V state[ROWS * PARTS];
  const V reach = V::set(chunk.reach[chunk.tokens - 1]);
  unrolled<ROWS * PARTS>([&](auto i) {
    constexpr int kRow = i / PARTS, kPart = i % PARTS;
    const int64_t columns = kPart + 1 < PARTS ? int64_t{16} : int64_t(tail);
    state[i] = V::mul(V::load_some(past + (n + kRow) * s.head_size + column + 16 * kPart, columns), reach);
  });
  const float* b = s.b + chunk.first * s.stride + n;
  for (int64_t t = 0; t < chunk.tokens; ++t, b += s.stride, kept += 16 * PARTS) {
    V v[PARTS];
    unrolled<PARTS>([&](auto p) { v[p] = V::load(kept + 16 * p); });
    unrolled<ROWS>([&](auto r) {
      const V share = V::set(b[r]);
      unrolled<PARTS>([&](auto p) { state[r * PARTS + p] = V::fma(share, v[p], state[r * PARTS + p]); });
    });
  }
  unrolled<ROWS * PARTS>([&](auto i) {
    constexpr int kRow = i / PARTS, kPart = i % PARTS;
    const int64_t columns = kPart + 1 < PARTS ? int64_t{16} : int64_t(tail);
    state[i].store_some(s.present + (n + kRow) * s.head_size + column + 16 * kPart, columns);
  });
}

template <class V, int PARTS, class Tail>
static inline void chunk_columns(const Scan& s, const Chunk& chunk, const float* past, int64_t column, Tail tail) {
  constexpr int kRows = ChunkCut<V>::kRows;
  alignas(64) float kept[kChunkTokens * 16 * PARTS];
  for (int64_t t = 0; t < chunk.tokens; ++t)
    unrolled<PARTS>([&](auto p) {
      const float* x = s.x + (chunk.first + t) * s.stride + column + 16 * p;
      const V input = V::load_some(x, p + 1 < PARTS ? int64_t{16} : int64_t(tail));
      V::mul(V::set(chunk.kept[t]), input).store(kept + 16 * (t * PARTS + p));
    });
  int64_t row = 0, n = 0;
  for (; row + kRows <= chunk.tokens; row += kRows) chunk_outputs<V, kRows, PARTS>(s, chunk, past, row, column, tail);
  for (; row < chunk.tokens; ++row) chunk_outputs<V, 1, PARTS>(s, chunk, past, row, column, tail);
  for (; n + kRows <= s.state_size; n += kRows) chunk_state<V, kRows, PARTS>(s, chunk, past, kept, n, column, tail);
  for (; n < s.state_size; ++n) chunk_state<V, 1, PARTS>(s, chunk, past, kept, n, column, tail);
}

// All tokens of `s`, whose steps and decays are d and decay.
template <class V>
static inline void scan_chunks(const Scan& s, const float* d, const float* decay) {
  constexpr int kParts = ChunkCut<V>::kParts;
  Chunk chunk;
  const float* past = s.past;
  for (; chunk.first < s.tokens; chunk.first += kChunkTokens, past = s.present) {
    chunk.tokens = s.tokens - chunk.first < kChunkTokens ? s.tokens - chunk.first : kChunkTokens;
    find_decays<V>(s, d + chunk.first, decay + chunk.first, &chunk);
    int64_t column = 0;
    for (; column + 16 * kParts <= s.head_size; column += 16 * kParts)
      chunk_columns<V, kParts>(s, chunk, past, column, std::integral_constant<int64_t, 16>{});
    by_sixteen(s.head_size - column,
               [&](int64_t i, auto count) { chunk_columns<V, 1>(s, chunk, past, column + i, count); });
  }
}

}  // namespace edgeslim
