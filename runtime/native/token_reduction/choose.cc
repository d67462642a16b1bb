#include <algorithm>
#include <cmath>
#include <numeric>

#include "token_reduction/step.h"

namespace edgeslim {
namespace {

using Indices = std::vector<int64_t>;

// The indices of the `count` smallest of `keys`, ascending, ties by index.
Indices smallest_first(const Indices& keys, int64_t count) {
  Indices order(keys.size());
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + count, order.end(), [&](int64_t a, int64_t b) {
    const int64_t x = keys[std::size_t(a)], y = keys[std::size_t(b)];
    return x != y ? x < y : a < b;
  });
  order.resize(std::size_t(count));
  return order;
}

Indices keys_of(const float* x, int64_t count, int sign) {
  Indices keys(static_cast<std::size_t>(count));
  for (int64_t i = 0; i < count; ++i) keys[std::size_t(i)] = sign * order_of(x[i]);
  return keys;
}

Indices pick(const Indices& values, const Indices& at) {
  Indices found;
  for (const int64_t i : at) found.push_back(values[std::size_t(i)]);
  return found;
}

// Those of [first, last) that are not among `some`, ascending.
Indices others(const Indices& some, int64_t first, int64_t last) {
  std::vector<bool> gone(std::size_t(last - first), false);
  for (const int64_t n : some) gone[std::size_t(n - first)] = true;
  Indices left;
  for (int64_t n = first; n < last; ++n)
    if (!gone[std::size_t(n - first)]) left.push_back(n);
  return left;
}

// Scores of positions that look at nothing: the counter-based random number of edgeslim/tokens/hashing.py.
Indices random_scores(const Reduction& r, int64_t tokens) {
  constexpr uint64_t kPrime = (uint64_t{1} << 31) - 1;
  uint64_t keys[4], state = uint64_t(r.seed) * 0xD1342543DE82EF95u + uint64_t(r.layer) + 1;
  for (uint64_t& key : keys) {
    uint64_t mixed = state += 0x9E3779B97F4A7C15u;
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9u;
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBu;
    key = (mixed ^ (mixed >> 31)) % kPrime;
  }
  Indices scores;
  for (int64_t n = 0; n < tokens; ++n) {
    uint64_t x = uint64_t(n);
    for (const uint64_t key : keys) {
      x = (x + key) % kPrime;
      const uint64_t square = x * x % kPrime;
      x = square * square % kPrime * x % kPrime;
    }
    scores.push_back(int64_t(x));
  }
  return scores;
}

struct Pairs {
  Indices sources, destinations;
};

// The `count` of `a` that are most like one of `b`, in descending similarity.
bool most_similar(const Rows& features, const Indices& a, const Indices& b, int64_t count, Pairs* pairs, const Pool& pool) {
  if (count < 1) return true;
  std::vector<float> similarity;
  Indices matches;
  if (!find_matches(features, a, b, &similarity, &matches, pool)) return false;
  const Indices best = smallest_first(keys_of(similarity.data(), int64_t(similarity.size()), -1), count);
  *pairs = {pick(a, best), pick(matches, best)};
  return true;
}

void alternate(const Indices& positions, Indices* a, Indices* b) {
  for (std::size_t i = 0; i < positions.size(); ++i) (i % 2 ? a : b)->push_back(positions[i]);
}

// f <- (a + f) / 2 in the order of the list; merged: 0 for removed tokens that are pruned.
Mixing merge_pairwise(const Indices& destinations, const std::vector<float>& merged, int64_t tokens) {
  Mixing made;
  made.weights.resize(merged.size());
  Indices after(std::size_t(tokens), 0);
  for (std::size_t i = merged.size(); i-- > 0;) {
    if (merged[i] == 0) continue;
    const int64_t halvings = ++after[std::size_t(destinations[i])];
    made.weights[i] = halvings < 150 ? float(std::ldexp(1.0, -int(halvings))) : 0;  // 2^-150 is none in float
  }
  return made;
}

// A destination becomes the mean of itself and all that goes into it.
Mixing merge_at_once(const Indices& destinations, const std::vector<float>& merged, int64_t tokens) {
  std::vector<float> counts(std::size_t(tokens), 1.0f);
  for (std::size_t i = 0; i < merged.size(); ++i) counts[std::size_t(destinations[i])] += merged[i];
  Mixing made;
  for (std::size_t i = 0; i < merged.size(); ++i) made.weights.push_back(merged[i] / counts[std::size_t(destinations[i])]);
  return made;
}

class Chooser {
 public:
  Chooser(const Reduction& reduction, const Seen& seen, int64_t count, Chosen* chosen, const Pool& pool)
      : r_(reduction), s_(seen), count_(count), c_(*chosen), pool_(pool),
        first_(std::min(reduction.protect_first, seen.tokens)), last_(first_ + reduction.unprotected(seen.tokens)) {}

  bool choose() {
    if (r_.ranks()) {
      importance_.resize(std::size_t(s_.tokens));
      if (!find_importance(r_, s_, importance_.data(), pool_)) return false;
    }
    bool enough = true;
    switch (r_.method) {
      case Method::utrc: enough = utrc(); break;
      case Method::pumer: enough = pumer(); break;
      case Method::ltmp: enough = ltmp(); break;
      case Method::evit: c_.removed = least_important(count_); break;
      case Method::random: random(); break;
      case Method::official_code: official_code(); break;
      case Method::truncate:
        for (int64_t i = 0; i < count_; ++i) c_.removed.push_back(first_ + i);
        break;
    }
    if (enough) c_.kept = others(c_.removed, 0, s_.tokens);
    return enough;
  }

 private:
  const Rows& features() const { return s_.keys.data ? s_.keys : s_.y; }

  Indices least_important(int64_t count) const {
    Indices found = smallest_first(keys_of(importance_.data() + first_, last_ - first_, 1), count);
    for (int64_t& n : found) n += first_;
    return found;
  }

  int64_t pruned() const { return count_ / 1000000 * r_.q_millionths + count_ % 1000000 * r_.q_millionths / 1000000; }

  bool utrc() {
    Indices a = least_important((last_ - first_) / 2);
    std::sort(a.begin(), a.end());
    Pairs pairs;
    if (!most_similar(features(), a, others(a, first_, last_), count_, &pairs, pool_)) return false;
    std::vector<float> importance, merged(pairs.sources.size(), 1.0f);
    for (const int64_t n : pairs.sources) importance.push_back(importance_[std::size_t(n)]);
    for (const int64_t i : smallest_first(keys_of(importance.data(), count_, 1), pruned())) merged[std::size_t(i)] = 0;
    const auto mixing = [&](Rule rule) {
      if (rule == Rule::prune) return Mixing{};
      const std::vector<float> what = rule == Rule::hybrid ? merged : std::vector<float>(merged.size(), 1.0f);
      return r_.pairwise ? merge_pairwise(pairs.destinations, what, s_.tokens) : merge_at_once(pairs.destinations, what, s_.tokens);
    };
    c_.hidden = mixing(r_.hidden);
    c_.residual = mixing(r_.residual);
    take(std::move(pairs));
    return true;
  }

  bool pumer() {
    Pairs pairs;
    Indices a, b;
    alternate(others({}, first_, last_), &a, &b);
    if (!most_similar(features(), a, b, count_, &pairs, pool_)) return false;
    c_.hidden = c_.residual = merge_at_once(pairs.destinations, std::vector<float>(pairs.sources.size(), 1.0f), s_.tokens);
    take(std::move(pairs));
    return true;
  }

  bool ltmp() {
    const Indices dropped = least_important(pruned());
    Pairs pairs;
    Indices a, b;
    alternate(others(dropped, first_, last_), &a, &b);
    if (!most_similar(features(), a, b, count_ - pruned(), &pairs, pool_)) return false;
    std::vector<float> merged(pairs.sources.size(), 1.0f);
    merged.resize(std::size_t(count_), 0.0f);
    for (Indices* list : {&pairs.sources, &pairs.destinations}) list->insert(list->end(), dropped.begin(), dropped.end());
    c_.hidden = c_.residual = merge_at_once(pairs.destinations, merged, s_.tokens);
    take(std::move(pairs));
    return true;
  }

  void random() {
    const Indices scores = random_scores(r_, s_.tokens);
    c_.removed = smallest_first(Indices(scores.begin() + first_, scores.begin() + last_), count_);
    for (int64_t& n : c_.removed) n += first_;
  }

  void official_code() {
    Pairs pairs;
    for (int64_t i = 0; i < count_; ++i) pairs.sources.push_back(2 * i);
    pairs.destinations.assign(std::size_t(count_), 1);
    c_.hidden = c_.residual = merge_at_once(pairs.destinations, std::vector<float>(std::size_t(count_), 1.0f), s_.tokens);
    c_.hidden.largest = count_ / 2;
    take(std::move(pairs));
  }

  void take(Pairs pairs) {
    c_.removed = std::move(pairs.sources);
    c_.destinations = std::move(pairs.destinations);
  }

  const Reduction& r_;
  const Seen& s_;
  const int64_t count_;
  Chosen& c_;
  const Pool& pool_;
  const int64_t first_, last_;
  std::vector<float> importance_;
};

}  // namespace

int64_t Reduction::unprotected(int64_t tokens) const {
  if (method == Method::official_code) return tokens;
  const int64_t first = std::min(protect_first, tokens);
  return std::max(first, tokens - protect_last) - first;
}

bool choose_tokens(const Reduction& r, const Seen& seen, int64_t count, Chosen* chosen, const Pool& pool) {
  return Chooser(r, seen, count, chosen, pool).choose();
}

}  // namespace edgeslim
