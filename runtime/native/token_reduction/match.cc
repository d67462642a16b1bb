#include <algorithm>
#include <cmath>

#include "core/buffer.h"
#include "packed_linear/linear.h"
#include "token_reduction/step.h"

namespace edgeslim {
namespace {

constexpr int64_t kRowsAtOnce = 128;  // of products, so that they stay in the cache
constexpr float kLeastLength = 1e-12f;

float length_of(const float* x, int64_t width) {
  double sum = 0;
  for (int64_t i = 0; i < width; ++i) sum += double(x[i]) * double(x[i]);
  return std::max(float(std::sqrt(sum)), kLeastLength);
}

// The rows `b` of the features as a matrix whose outputs they are; see packed_linear/layout.h. `lengths` [b, up to 16].
bool pack(const Rows& features, const std::vector<int64_t>& b, Buffer* values, Buffer* lengths, Packed* w, const Pool& pool) {
  w->layout = Layout::dense;
  w->bits = 32;
  w->n = int64_t(b.size());
  w->k = features.width;
  const int64_t tiles = ceil_div(w->n, kTileRows), steps = ceil_div(w->k, kStepInputs);
  const int64_t count = tiles * steps * kStepPositions + kSlack / int64_t(sizeof(float));
  float *to = values->of<float>(count), *length = lengths->of<float>(tiles * kTileRows);
  if (!to || !length) return false;
  std::fill(to + tiles * steps * kStepPositions, to + count, 0.0f);
  pool.each(tiles, [&](int64_t tile) {
    float* out = to + tile * steps * kStepPositions;
    std::fill(out, out + steps * kStepPositions, 0.0f);
    for (int64_t r = 0; r < kTileRows && tile * kTileRows + r < w->n; ++r) {
      const int64_t index = tile * kTileRows + r;
      const float* x = features.row(b[std::size_t(index)]);
      for (int64_t i = 0; i < w->k; ++i) out[i * kTileRows + r] = x[i];
      length[index] = length_of(x, w->k);
    }
  });
  w->values = reinterpret_cast<const uint8_t*>(to);
  PackedSizes sizes;
  sizes.values = count * int64_t(sizeof(float));
  return !check(*w, sizes);
}

}  // namespace

bool find_matches(const Rows& features, const std::vector<int64_t>& a, const std::vector<int64_t>& b,
                  std::vector<float>* similarity, std::vector<int64_t>* matches, const Pool& pool) {
  Buffer values, lengths, rows, products;
  Packed w;
  if (!pack(features, b, &values, &lengths, &w, pool)) return false;
  const auto count = int64_t(a.size());
  float *x = rows.of<float>(kRowsAtOnce * w.k), *y = products.of<float>(kRowsAtOnce * w.n);
  const float* length = lengths.of<float>(w.n);
  if (!x || !y) return false;
  similarity->resize(a.size());
  matches->resize(a.size());
  for (int64_t first = 0; first < count; first += kRowsAtOnce) {
    const int64_t now = std::min(kRowsAtOnce, count - first);
    for (int64_t i = 0; i < now; ++i) std::copy_n(features.row(a[std::size_t(first + i)]), w.k, x + i * w.k);
    Prologue in;
    in.x = x;
    in.x_stride = w.k;
    Output out;
    out.y = y;
    out.y_stride = w.n;
    if (!run_linear(w, chosen(), Activations::single, in, now, out, pool)) return false;
    pool.each(now, [&](int64_t i) {
      const float* row = y + i * w.n;
      int64_t best = 0;
      float largest = row[0] / length[0];
      for (int64_t j = 1; j < w.n; ++j) {
        const float cosine = row[j] / length[j];
        if (cosine > largest) largest = cosine, best = j;
      }
      (*similarity)[std::size_t(first + i)] = largest / length_of(x + i * w.k, w.k);
      (*matches)[std::size_t(first + i)] = b[std::size_t(best)];
    });
  }
  return true;
}

}  // namespace edgeslim
