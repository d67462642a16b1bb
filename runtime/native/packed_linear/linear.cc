#include "packed_linear/linear.h"

#include <algorithm>
#include <atomic>

#include "core/buffer.h"

namespace edgeslim {
namespace {

constexpr int64_t kTaskBytes = 32 << 10;  // of weights: less is not worth handing to another thread
constexpr int64_t kMostTasks = 16;        // a few for each thread, so that a slow core takes fewer
constexpr int64_t kTokensInline = 4;      // so few tokens are quantized by the calling thread

int64_t bytes_of_tile(const Packed& w) {
  const int64_t masks = w.layout == Layout::dense ? 0 : w.steps * 8;
  if (w.layout == Layout::bitmap) return masks + tile_start(w, w.tiles) / w.tiles;
  return masks + w.steps * w.step_bytes;
}

// Cuts [0, tiles) into pieces of an even number of tiles each.
template <class F>
void each_piece(const Packed& w, int64_t most, const Pool& pool, F f) {
  const int64_t pairs = ceil_div(w.tiles, 2);
  const int64_t worth = std::max<int64_t>(1, w.tiles * bytes_of_tile(w) / kTaskBytes);
  const int64_t pieces = std::min({pairs, worth, most});
  pool.each(pieces, [&](int64_t piece) {
    const int64_t first = pairs * piece / pieces * 2, last = pairs * (piece + 1) / pieces * 2;
    f(first, std::min(last, w.tiles));
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

bool run_int8(const Packed& w, const Kernels& kernels, const Prologue& in, int64_t tokens, const Output& out,
              const Pool& pool) {
  thread_local Buffer code_memory, sum_memory, scale_memory;
  const int64_t stride = w.steps * kStepInputs;
  int8_t* codes = code_memory.of<int8_t>(tokens * stride);
  int32_t* sums = sum_memory.of<int32_t>(tokens * w.groups);
  float* scale = scale_memory.of<float>(tokens);
  if (!codes || !sums || !scale) return false;
  std::atomic<bool> enough{true};
  const auto quantize = [&](int64_t token) {
    thread_local Buffer memory;
    float* t = memory.of<float>(stride);
    if (!t) return enough.store(false);
    kernels.prologue(in, token, w.k, stride, t);
    kernels.quantize(t, w.k, stride, codes + token * stride, scale + token);
    sum_groups(w, codes + token * stride, sums + token * w.groups);
  };
  if (tokens <= kTokensInline)
    for (int64_t token = 0; token < tokens; ++token) quantize(token);
  else
    pool.each(tokens, quantize);
  if (!enough) return false;
  const Quantized x{codes, sums, scale, tokens, stride};
  if (tokens <= kFew) {
    each_piece(w, kMostTasks, pool, [&](int64_t first, int64_t last) { kernels.few(w, x, out, first, last); });
    return true;
  }
  each_piece(w, w.tiles, pool, [&](int64_t first, int64_t last) {
    thread_local Buffer memory;
    uint8_t* scratch = memory.of<uint8_t>(2 * w.steps * kStepPositions);
    if (!scratch) return enough.store(false);
    kernels.many(w, x, out, first, last, scratch);
  });
  return enough;
}

bool run_single(const Packed& w, const Kernels& kernels, const Prologue& in, int64_t tokens, const Output& out,
                const Pool& pool) {
  thread_local Buffer float_memory;
  const int64_t stride = w.steps * kStepInputs;
  float* t = float_memory.of<float>(tokens * stride);
  if (!t) return false;
  const auto prepare = [&](int64_t token) { kernels.prologue(in, token, w.k, stride, t + token * stride); };
  if (tokens <= kTokensInline)
    for (int64_t token = 0; token < tokens; ++token) prepare(token);
  else
    pool.each(tokens, prepare);
  std::atomic<bool> enough{true};
  each_piece(w, tokens <= kFew ? kMostTasks : w.tiles, pool, [&](int64_t first, int64_t last) {
    thread_local Buffer memory;
    float* scratch = memory.of<float>(kTileRows * (kFloatChunk + tokens));
    if (!scratch) return enough.store(false);
    kernels.floats(w, {t, tokens, stride}, out, first, last, scratch);
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
