#include "packed_linear/linear.h"

#include <algorithm>
#include <atomic>

#include "core/buffer.h"
#include "core/pieces.h"

namespace edgeslim {
namespace {

// What is worth handing to another thread: of weights that are read, of products, of tokens that are quantized.
constexpr int64_t kTaskBytes = 32 << 10, kTaskProducts = 1 << 20, kTaskTokens = 8;
constexpr int64_t kMostTasks = 16;    // of one token, in any order: a few for each thread, so that a slow core takes fewer
constexpr int64_t kTokensInline = 4;  // so few tokens are quantized by the calling thread

int64_t bytes_of_tile(const Packed& w) {
  const int64_t masks = w.layout == Layout::dense ? 0 : w.steps * 8;
  if (w.layout == Layout::bitmap) return masks + tile_start(w, w.tiles) / w.tiles;
  return masks + w.steps * w.step_bytes;
}

// Calls f(tiles) for each piece of an even number of tiles. Where a thread is likely to go on is told by the piece that it
// had before, since pools hand out pieces in order from one end or from both.
template <class F>
void each_piece(const Packed& w, const Pieces& pieces, const Pool& pool, F f) {
  struct Taken {
    const void* matrix;
    int64_t piece;
  };
  const int64_t pairs = ceil_div(w.tiles, 2), count = pieces.count();
  const auto start = [&](int64_t piece) { return std::min(2 * pieces.start(piece, pairs), w.tiles); };
  pool.each(count, [&](int64_t piece) {
    thread_local Taken taken{};
    const int64_t toward_middle = 2 * piece < count ? 1 : -1;
    const int64_t next = piece + (taken.matrix == w.values ? piece - taken.piece : toward_middle);
    taken = {w.values, piece};
    const Tiles tiles{start(piece), start(piece + 1), next < 0 ? w.tiles : start(std::min(next, count))};
    if (tiles.first < tiles.last) f(tiles);
  });
}

Pieces cut(const Packed& w, int64_t tokens, const Pool& pool) {
  const int64_t pairs = ceil_div(w.tiles, 2), bytes = w.tiles * bytes_of_tile(w) / kTaskBytes;
  const auto at_most = [](int64_t count, int64_t most) { return std::clamp<int64_t>(count, 1, most); };
  const int64_t of_products = std::max<int64_t>(kTaskProducts / tokens, 1);
  if (tokens > kFew) return Pieces::even(at_most(std::max(bytes, w.n * w.k / of_products), pairs));
  if (pool.threads) return Pieces::tapering(at_most(bytes / pool.threads, kLevels), pool.threads);
  return Pieces::even(at_most(bytes, std::min(pairs, kMostTasks)));
}

// Calls f for each token before a product.
template <class F>
void each_token(int64_t tokens, const Pool& pool, F f) {
  const auto some = [&](int64_t first, int64_t last) {
    for (int64_t token = first; token < last; ++token) f(token);
  };
  if (tokens <= kTokensInline) return some(0, tokens);
  pool.each(ceil_div(tokens, kTaskTokens), [&](int64_t piece) {
    some(piece * kTaskTokens, std::min((piece + 1) * kTaskTokens, tokens));
  });
}

void sum_groups(const Packed& w, const int8_t* codes, int32_t* sums) {
  const int64_t length = w.group ? w.group : w.k;
  for (int64_t group = 0; group < w.groups; ++group) {
    const int64_t end = std::min(w.k, (group + 1) * length);
    int32_t sum = 0;
    for (int64_t i = group * length; i < end; ++i) sum += codes[i];
    sums[group] = sum;
  }
}

// Codes as unsigned bytes that are larger by 128.
void add_128(int8_t* codes, int64_t count) {
  for (int64_t i = 0; i < count; ++i) codes[i] = int8_t(codes[i] ^ -128);
}

bool run_int8(const Packed& w, const Kernels& kernels, const Prologue& in, int64_t tokens, const Output& out,
              const Pool& pool) {
  thread_local Buffer code_memory, sum_memory, scale_memory;
  const int64_t stride = w.steps * kStepInputs;
  int8_t* codes = code_memory.of<int8_t>(tokens * stride);
  int32_t* sums = sum_memory.of<int32_t>(tokens * w.groups);
  float* scale = scale_memory.of<float>(tokens);
  if (!codes || !sums || !scale) return false;
  std::atomic<bool> enough{true};
  const bool is_unsigned = tokens > kFew && kernels.many_unsigned(w);
  const auto quantize = [&](int64_t token) {
    thread_local Buffer memory;
    float* t = memory.of<float>(stride);
    if (!t) return enough.store(false);
    kernels.prologue(in, token, w.k, stride, t);
    kernels.quantize(t, w.k, stride, codes + token * stride, scale + token);
    sum_groups(w, codes + token * stride, sums + token * w.groups);
    if (is_unsigned) add_128(codes + token * stride, stride);
  };
  each_token(tokens, pool, quantize);
  if (!enough) return false;
  const Quantized x{codes, sums, scale, tokens, stride};
  if (tokens <= kFew) {
    each_piece(w, cut(w, tokens, pool), pool, [&](const Tiles& tiles) { kernels.few(w, x, out, tiles); });
    return true;
  }
  each_piece(w, cut(w, tokens, pool), pool, [&](const Tiles& tiles) {
    thread_local Buffer memory;
    uint8_t* scratch = memory.of<uint8_t>(many_scratch(w));
    if (!scratch) return enough.store(false);
    kernels.many(w, x, out, tiles, scratch);
  });
  return enough;
}

bool run_single(const Packed& w, const Kernels& kernels, const Prologue& in, int64_t tokens, const Output& out,
                const Pool& pool) {
  thread_local Buffer float_memory;
  const int64_t stride = w.steps * kStepInputs;
  float* t = float_memory.of<float>(tokens * stride);
  if (!t) return false;
  each_token(tokens, pool, [&](int64_t token) { kernels.prologue(in, token, w.k, stride, t + token * stride); });
  std::atomic<bool> enough{true};
  each_piece(w, cut(w, tokens, pool), pool, [&](const Tiles& tiles) {
    thread_local Buffer memory;
    float* scratch = memory.of<float>(kTileRows * (kFloatChunk + tokens));
    if (!scratch) return enough.store(false);
    kernels.floats(w, {t, tokens, stride}, out, tiles, scratch);
  });
  return enough;
}

}  // namespace

bool run_linear(const Packed& w, const Kernels& kernels, Activations activations, const Prologue& in, int64_t tokens,
                const Output& out, const Pool& pool) {
  if (tokens == 0) return true;
  return activations == Activations::int8 && w.is_integer() ? run_int8(w, kernels, in, tokens, out, pool)
                                                            : run_single(w, kernels, in, tokens, out, pool);
}

}  // namespace edgeslim
