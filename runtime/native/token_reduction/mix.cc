#include <algorithm>
#include <numeric>
#include <utility>

#include "token_reduction/step.h"

namespace edgeslim {
namespace {

constexpr int64_t kChannelsAtOnce = 64;

// A block of channels of both branches and of the sum.
struct Block {
  const Chosen& chosen;
  const std::vector<int64_t>& slots;  // which of the kept rows the destinations are
  int64_t channels, first, last;
  float* out;

  void sum(const float* branch, const float* residual) const {
    for (std::size_t k = 0; k < chosen.kept.size(); ++k) {
      const int64_t from = chosen.kept[k] * channels, to = int64_t(k) * channels;
      for (int64_t i = first; i < last; ++i) out[to + i] = branch[from + i] + (residual ? residual[from + i] : 0.0f);
    }
  }

  // out += weight (removed row - destination's row), in the order of the list.
  void add(const float* x, const Mixing& mixing) const {
    for (std::size_t i = 0; i < mixing.weights.size(); ++i) {
      const float weight = mixing.weights[i];
      if (weight == 0) continue;
      const float *gone = x + chosen.removed[i] * channels, *destination = x + chosen.destinations[i] * channels;
      float* to = out + slots[i] * channels;
      for (int64_t c = first; c < last; ++c) to[c] += (gone[c] - destination[c]) * weight;
    }
  }

  // The same where removed rows count only in channels in which they are among the largest, and else as zero.
  void add_largest(const float* x, const Mixing& mixing) const {
    const std::size_t count = chosen.removed.size();
    std::vector<std::size_t> order(count);
    std::vector<bool> counts(count);
    for (int64_t c = first; c < last; ++c) {
      const auto value = [&](std::size_t i) { return x[chosen.removed[i] * channels + c]; };
      std::iota(order.begin(), order.end(), 0);
      std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
        const int64_t first_order = order_of(value(a)), second_order = order_of(value(b));
        return first_order != second_order ? first_order > second_order : a < b;
      });
      std::fill(counts.begin(), counts.end(), false);
      for (std::size_t i = 0; i < count && int64_t(i) < mixing.largest; ++i) counts[order[i]] = true;
      for (std::size_t i = 0; i < count; ++i)
        out[slots[i] * channels + c] += ((counts[i] ? value(i) : 0.0f) - x[chosen.destinations[i] * channels + c]) * mixing.weights[i];
    }
  }
};

// So many less than their position as went before.
std::vector<int64_t> slots_of(const Chosen& chosen, int64_t tokens) {
  std::vector<int64_t> slot(std::size_t(tokens), 0), found;
  for (std::size_t k = 0; k < chosen.kept.size(); ++k) slot[std::size_t(chosen.kept[k])] = int64_t(k);
  for (const int64_t n : chosen.destinations) found.push_back(slot[std::size_t(n)]);
  return found;
}

}  // namespace

void mix_rows(const Chosen& chosen, int64_t tokens, int64_t channels, const float* branch, const float* residual,
              float* out, const Pool& pool) {
  const std::vector<int64_t> slots = slots_of(chosen, tokens);
  pool.each((channels + kChannelsAtOnce - 1) / kChannelsAtOnce, [&](int64_t piece) {
    const int64_t first = piece * kChannelsAtOnce, last = std::min(channels, first + kChannelsAtOnce);
    const Block block = {chosen, slots, channels, first, last, out};
    block.sum(branch, residual);
    for (const auto& [x, mixing] : {std::pair{branch, &chosen.hidden}, std::pair{residual, &chosen.residual}}) {
      if (!x) continue;
      if (mixing->largest < 0) block.add(x, *mixing);
      else block.add_largest(x, *mixing);
    }
  });
}

}  // namespace edgeslim
