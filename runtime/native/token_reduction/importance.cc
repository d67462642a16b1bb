#include <algorithm>
#include <cmath>

#include "core/buffer.h"
#include "token_reduction/step.h"

namespace edgeslim {
namespace {

constexpr int64_t kLookingBack = 16;  // queries at the end of a prompt whose attention counts
constexpr int64_t kTokensAtOnce = 16, kLanes = 16;

template <class F>
float sum_of(int64_t count, const F& f) {
  float lanes[kLanes] = {0}, sum = 0;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += f(i + j);
  for (; i < count; ++i) lanes[i % kLanes] += f(i);
  for (const float lane : lanes) sum += lane;
  return sum;
}

float of_mixer(Metric metric, const float* y, int64_t width) {
  float sum = 0;
  if (metric == Metric::clip) sum = sum_of(width, [=](int64_t i) { return y[i] > 0 ? y[i] : 0.0f; });
  if (metric == Metric::l1) sum = sum_of(width, [=](int64_t i) { return std::fabs(y[i]); });
  if (metric == Metric::l2) sum = sum_of(width, [=](int64_t i) { return y[i] * y[i]; });
  if (metric == Metric::none) sum = sum_of(width, [=](int64_t i) { return y[i]; });
  sum /= float(width);
  return metric == Metric::l2 ? std::sqrt(sum) : sum;
}

float of_keys(const Reduction& r, const float* keys) {
  float lengths = 0;
  for (int64_t head = 0; head < r.kv_heads; ++head) {
    const float* key = keys + head * r.head_size;
    lengths += std::sqrt(sum_of(r.head_size, [=](int64_t i) { return key[i] * key[i]; }));
  }
  return -(lengths / float(r.kv_heads));
}

// What one head's last queries give to each token, summed over the queries: received [N]; `weights` holds N floats.
void add_attention(const Reduction& r, const Seen& s, int64_t head, float* received, float* weights, float* query) {
  const int64_t d = r.head_size, half = d / 2, group = r.heads / r.kv_heads;
  const float* keys = s.present_key + head / group * s.tokens * d;
  std::fill(received, received + s.tokens, 0.0f);
  for (int64_t n = std::max<int64_t>(0, s.tokens - kLookingBack); n < s.tokens; ++n) {
    const float *x = s.queries.row(n) + head * d, *cosine = s.cosine + s.positions[n] * half, *sine = s.sine + s.positions[n] * half;
    for (int64_t i = 0; i < half; ++i) {
      query[i] = x[i] * cosine[i] - x[half + i] * sine[i];
      query[half + i] = x[half + i] * cosine[i] + x[i] * sine[i];
    }
    float largest = -INFINITY, sum = 0;
    for (int64_t m = 0; m < s.tokens; ++m) {
      const int64_t distance = s.positions[n] - s.positions[m];
      const bool seen = distance >= 0 && (r.window < 0 || distance < r.window);
      const float* key = keys + m * d;
      weights[m] = seen ? r.scale * sum_of(d, [=](int64_t i) { return query[i] * key[i]; }) : -INFINITY;
      largest = std::max(largest, weights[m]);
    }
    for (int64_t m = 0; m < s.tokens; ++m) sum += weights[m] = std::exp(weights[m] - largest);
    for (int64_t m = 0; m < s.tokens; ++m) received[m] += weights[m] / sum;
  }
}

bool find_received(const Reduction& r, const Seen& s, float* importance, const Pool& pool) {
  Buffer memory;
  const int64_t each = 2 * s.tokens + r.head_size;
  float* all = memory.of<float>(r.heads * each);
  if (!all) return false;
  pool.each(r.heads, [&](int64_t head) {
    float* received = all + head * each;
    add_attention(r, s, head, received, received + s.tokens, received + 2 * s.tokens);
  });
  for (int64_t n = 0; n < s.tokens; ++n) {
    float sum = 0;
    for (int64_t head = 0; head < r.heads; ++head) sum += all[head * each + n];
    importance[n] = sum / float(r.heads) / float(std::min({s.tokens - n, kLookingBack, s.tokens}));
  }
  return true;
}

}  // namespace

bool find_importance(const Reduction& r, const Seen& s, float* importance, const Pool& pool) {
  if (r.metric == Metric::attention) return find_received(r, s, importance, pool);
  pool.each((s.tokens + kTokensAtOnce - 1) / kTokensAtOnce, [&](int64_t piece) {
    for (int64_t n = piece * kTokensAtOnce; n < std::min(s.tokens, (piece + 1) * kTokensAtOnce); ++n)
      importance[n] = r.metric == Metric::key_norm ? of_keys(r, s.keys.row(n)) : of_mixer(r.metric, s.y.row(n), s.y.width);
  });
  return true;
}

}  // namespace edgeslim
