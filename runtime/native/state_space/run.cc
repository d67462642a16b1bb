#include "state_space/run.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace edgeslim {
namespace {

constexpr int64_t kTaskOutputs = 512;  // outputs of a convolution that are worth waking a thread for

// States of a layer from which on those of all layers do not stay in the caches between two tokens: two buffers of some
// twenty layers, beside the weights.
constexpr int64_t kStreamBytes = 512 << 10;

float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

void scan_head(const ScanCall& c, int64_t sequence, int64_t head, const Kernels& kernels) {
  const int64_t state = c.state_size * c.head_size, at = (sequence * c.heads + head) * state;
  const int64_t inner = c.heads * c.head_size, group = head / (c.heads / c.groups);
  Scan s;
  s.stride = inner + 2 * c.groups * c.state_size;
  s.y_stride = inner;
  s.skip = c.skip[head];
  s.state_size = c.state_size;
  s.head_size = c.head_size;
  s.past = c.past + at;
  s.present = c.present + at;
  s.streams = c.past != c.present && c.batch * c.heads * state * int64_t(sizeof(float)) >= kStreamBytes;
  const float a = -std::exp(c.a_log[head]);
  float dt[kScanTokens], decay[kScanTokens];
  s.dt = dt;
  s.decay = decay;
  for (int64_t first = 0; first < c.tokens; first += kScanTokens, s.past = s.present) {
    const int64_t row = sequence * c.tokens + first;
    s.tokens = std::min(kScanTokens, c.tokens - first);
    for (int64_t t = 0; t < s.tokens; ++t) {
      dt[t] = softplus(c.dt[(row + t) * c.dt_stride + head] + c.dt_bias[head]);
      decay[t] = std::exp(a * dt[t]);
    }
    const float* xbc = c.xbc + row * s.stride;
    s.x = xbc + head * c.head_size;
    s.b = xbc + inner + group * c.state_size;
    s.c = s.b + c.groups * c.state_size;
    s.y = c.y + row * inner + head * c.head_size;
    kernels.scan(s);
  }
  if (!c.tokens && s.past != s.present) std::memmove(s.present, s.past, sizeof(float) * std::size_t(state));
}

}  // namespace

void run_convolution(const Convolution& of_first, int64_t batch, const Kernels& kernels, const Pool& pool) {
  const int64_t channels = of_first.channels, states = channels * (of_first.width - 1);
  const int64_t piece = std::max<int64_t>(16, kTaskOutputs / std::max<int64_t>(1, of_first.tokens) / 16 * 16);
  const int64_t pieces = ceil_div(channels, piece);
  pool.each(batch * pieces, [&](int64_t index) {
    const int64_t sequence = index / pieces, first = index % pieces * piece;
    Convolution c = of_first;
    c.x += sequence * c.tokens * c.x_stride;
    c.past += sequence * states;
    c.present += sequence * states;
    c.y += sequence * c.tokens * channels;
    kernels.convolve(c, first, std::min(channels, first + piece));
  });
}

void run_scan(const ScanCall& call, const Kernels& kernels, const Pool& pool) {
  pool.each(call.batch * call.heads,
            [&](int64_t index) { scan_head(call, index / call.heads, index % call.heads, kernels); });
}

}  // namespace edgeslim
