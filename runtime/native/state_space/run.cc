#include "state_space/run.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/buffer.h"

namespace edgeslim {
namespace {

constexpr int64_t kTaskSteps = 6144;   // entries of a state, times tokens, worth a thread in a selective scan
constexpr int64_t kLeastChannels = 64;  // of one task there: whole lines of memory in each of its tensors

constexpr int64_t kLeastChunk = 8;  // tokens from which on products of matrices are faster than one token after another

// Heads that read the same b and c, while these stay in a cache: half of a thread's share, whose states stay there, too.
constexpr int64_t kFewestHeads = 4, kMostHeads = 16;

int64_t heads_together(int64_t heads, int64_t threads) {
  return threads ? std::clamp(ceil_div(heads, 2 * threads), kFewestHeads, kMostHeads) : kFewestHeads;
}

constexpr int64_t kTokensTogether = 64;  // of a long prompt
static_assert(kTokensTogether >= kMostTaps, "a piece of a prompt reads rows of the one before it alone");

constexpr int64_t kTaskOutputs = 512;  // outputs of a convolution that are worth waking a thread for

// States of a layer from which on those of all layers do not stay in the caches between two tokens: two buffers of some
// twenty layers, beside the weights.
constexpr int64_t kStreamBytes = 512 << 10;

// log2(e) A, of which decays are powers of two.
float rate_of(float a_log) { return float(-1.4426950408889634 * std::exp(double(a_log))); }

// Tokens [first, first + kScanTokens) of one head.
Scan of_head(const ScanCall& c, int64_t sequence, int64_t head, int64_t first) {
  const int64_t state = c.state_size * c.head_size, at = (sequence * c.heads + head) * state;
  const int64_t inner = c.heads * c.head_size, group = head / (c.heads / c.groups);
  Scan s;
  s.stride = inner + 2 * c.groups * c.state_size;
  s.y_stride = inner;
  s.skip = c.skip[head];
  s.state_size = c.state_size;
  s.head_size = c.head_size;
  s.past = (first ? c.present : c.past) + at;
  s.present = c.present + at;
  s.streams = c.past != c.present && c.batch * c.heads * state * int64_t(sizeof(float)) >= kStreamBytes;
  s.rate = rate_of(c.a_log[head]);
  s.step_bias = c.dt_bias[head];
  s.step_stride = c.dt_stride;
  const int64_t row = sequence * c.tokens + first;
  s.tokens = std::min(kScanTokens, c.tokens - first);
  s.step = c.dt + row * c.dt_stride + head;
  const float* xbc = c.xbc + row * s.stride;
  s.x = xbc + head * c.head_size;
  s.b = xbc + inner + group * c.state_size;
  s.c = s.b + c.groups * c.state_size;
  s.y = c.y + row * inner + head * c.head_size;
  return s;
}

// Those tokens of heads [begin, end). `memory` holds the pairs of a group, and turned rows of b; null: tokens in a row.
void scan_heads(const ScanCall& c, int64_t sequence, int64_t begin, int64_t end, int64_t first, float* memory,
                const Kernels& kernels) {
  const int64_t of_group = c.heads / c.groups;
  for (int64_t head = begin; head < end; ++head) {
    Scan s = of_head(c, sequence, head, first);
    if (memory && s.tokens >= kLeastChunk) {
      s.pairs = memory;
      if (head == begin || head % of_group == 0) kernels.relate(s, memory, memory + kScanTokens * kChunkTokens);
    }
    kernels.scan(s);
  }
}

// Convolution number `sequence` of a batch.
Convolution of_sequence(Convolution c, int64_t sequence) {
  const int64_t states = c.channels * (c.width - 1);
  c.x += sequence * c.tokens * c.x_stride;
  c.past += sequence * states;
  c.present += sequence * states;
  c.y += sequence * c.tokens * c.channels;
  return c;
}

// Tokens [first, last) of a sequence, whose state nobody wants.
Convolution some_tokens(Convolution c, int64_t first, int64_t last) {
  c.x += first * c.x_stride;
  c.y += first * c.channels;
  c.tokens = last - first;
  c.continues = first > 0;
  c.present = nullptr;
  return c;
}

// By tokens, so that whole rows are read and written: channels apart would each touch a page a token. `past` may be the
// memory of `present`, which is therefore written last; it is the last rows of x.
void convolve_long(const Convolution& of_first, int64_t batch, const Kernels& kernels, const Pool& pool) {
  const int64_t tokens = of_first.tokens, pieces = ceil_div(tokens, kTokensTogether);
  pool.each(batch * pieces, [&](int64_t index) {
    const int64_t first = index % pieces * kTokensTogether, last = std::min(tokens, first + kTokensTogether);
    const Convolution all = of_sequence(of_first, index / pieces);
    const int64_t clear = first ? first : all.width - 1;  // tokens before it see `past`
    if (!first) kernels.convolve(some_tokens(all, 0, clear), 0, all.channels);
    kernels.convolve(some_tokens(all, clear, last), 0, all.channels);
  });
  for (int64_t sequence = 0; sequence < batch; ++sequence) {
    const Convolution c = of_sequence(of_first, sequence);
    const int64_t before = c.width - 1;
    for (int64_t i = 0; i < c.channels; ++i)
      for (int64_t j = 0; j < before; ++j) c.present[i * before + j] = c.x[(tokens - before + j) * c.x_stride + i];
  }
}

}  // namespace

void run_convolution(const Convolution& of_first, int64_t batch, const Kernels& kernels, const Pool& pool) {
  if (of_first.tokens > kTokensTogether) return convolve_long(of_first, batch, kernels, pool);
  const int64_t channels = of_first.channels;
  const int64_t piece = std::max<int64_t>(16, kTaskOutputs / std::max<int64_t>(1, of_first.tokens) / 16 * 16);
  const int64_t pieces = ceil_div(channels, piece);
  pool.each(batch * pieces, [&](int64_t index) {
    const int64_t first = index % pieces * piece;
    kernels.convolve(of_sequence(of_first, index / pieces), first, std::min(channels, first + piece));
  });
}

void run_scan(const ScanCall& c, const Kernels& kernels, const Pool& pool) {
  const int64_t together = c.tokens > kScanTokens ? heads_together(c.heads, pool.threads) : 1;
  const int64_t pieces = ceil_div(c.heads, together);
  if (!c.tokens && c.past != c.present)
    std::memmove(c.present, c.past, sizeof(float) * std::size_t(c.batch * c.heads * c.state_size * c.head_size));
  const int64_t floats = kChunkTokens * (kScanTokens + ceil_div(c.state_size, 16) * 16);
  pool.each(c.batch * pieces, [&](int64_t index) {
    thread_local Buffer buffer;
    float* memory = c.tokens >= kLeastChunk ? buffer.of<float>(floats) : nullptr;  // without, the scan is slower
    const int64_t begin = index % pieces * together, end = std::min(c.heads, begin + together);
    for (int64_t first = 0; first < c.tokens; first += kScanTokens)
      scan_heads(c, index / pieces, begin, end, first, memory, kernels);
  });
}

void find_rates(const float* a_log, int64_t channels, int64_t state_size, float* rate) {
  for (int64_t first = 0; first < channels; first += 16)
    for (int64_t n = 0; n < state_size; ++n)
      for (int64_t i = first; i < first + 16; ++i)
        *rate++ = i < channels ? rate_of(a_log[i * state_size + n]) : 0.0f;
}

void run_selective_scan(const SelectiveScan& of_first, int64_t batch, const Kernels& kernels, const Pool& pool) {
  const int64_t channels = of_first.channels, tokens = of_first.tokens;
  const int64_t worth = kTaskSteps / std::max<int64_t>(1, tokens * of_first.state_size) / 16 * 16;
  const int64_t piece = std::max<int64_t>(kLeastChannels, worth), pieces = ceil_div(channels, piece);
  pool.each(batch * pieces, [&](int64_t index) {
    const int64_t sequence = index / pieces, first = index % pieces * piece, row = sequence * tokens;
    SelectiveScan s = of_first;
    s.x += row * s.x_stride;
    s.step += row * s.step_stride;
    s.b += row * s.b_stride;
    s.c += row * s.c_stride;
    if (s.gate) s.gate += row * s.gate_stride;
    s.y += row * channels;
    s.past += sequence * channels * s.state_size;
    s.present += sequence * channels * s.state_size;
    kernels.scan_selectively(s, first, std::min(channels, first + piece));
  });
}

}  // namespace edgeslim
