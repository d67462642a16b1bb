#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace edgeslim {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

double penalized(double logit, bool seen, double penalty) {
  if (!(logit == logit)) return kNever;
  if (!seen || penalty == 0) return logit;
  return logit < 0 ? logit * penalty : logit / penalty;
}

}  // namespace

Status check_sampling(const edgeslim_sampling& s) {
  const auto bad = [](const char* name, const char* rule, double got) {
    return failure(EDGESLIM_INVALID_ARGUMENT, "%s must be %s, got %g", name, rule, got);
  };
  const auto finite = [](float x) { return x >= 0 && x <= std::numeric_limits<float>::max(); };
  if (!finite(s.repetition_penalty)) return bad("repetition_penalty", "at least 0", s.repetition_penalty);
  if (!finite(s.temperature)) return bad("temperature", "at least 0", s.temperature);
  if (s.top_k < 0) return bad("top_k", "at least 0", s.top_k);
  if (!(s.top_p >= 0 && s.top_p <= 1)) return bad("top_p", "in [0, 1]", s.top_p);
  if (!(s.min_p >= 0 && s.min_p <= 1)) return bad("min_p", "in [0, 1]", s.min_p);
  return {};
}

double uniform(uint64_t seed, int64_t position) {
  uint64_t z = seed + (uint64_t(position) + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return double((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

int32_t largest(const float* logits, std::size_t count) {
  constexpr std::size_t kLanes = 8;  // so that no comparison waits for the one before it
  float most[kLanes];
  std::fill(most, most + kLanes, -std::numeric_limits<float>::infinity());
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (std::size_t lane = 0; lane < kLanes; ++lane) most[lane] = logits[i + lane] > most[lane] ? logits[i + lane] : most[lane];
  for (; i < count; ++i) most[0] = logits[i] > most[0] ? logits[i] : most[0];
  const float found = *std::max_element(most, most + kLanes);
  const std::size_t at = std::size_t(std::find(logits, logits + count, found) - logits);
  return at < count ? int32_t(at) : 0;
}

int32_t Sampler::draw(const float* logits, std::size_t count, const SeenTokens& seen,
                      const edgeslim_sampling& sampling, int64_t position) {
  const bool penalize = sampling.repetition_penalty > 0 && sampling.repetition_penalty != 1;
  if (sampling.temperature == 0 && !penalize) return largest(logits, count);
  if (sampling.temperature == 0) {
    std::size_t best = 0;
    double most = kNever;
    for (std::size_t i = 0; i < count; ++i) {
      const double logit = penalized(logits[i], seen.has(i), sampling.repetition_penalty);
      if (logit > most) most = logit, best = i;
    }
    return int32_t(best);
  }
  score(logits, count, seen, sampling);
  if (sampling.top_k > 0) keep_top_k(std::size_t(sampling.top_k));
  if (sampling.top_p > 0 && sampling.top_p < 1) keep_top_p(double(sampling.top_p));
  if (sampling.min_p > 0) keep_min_p(double(sampling.min_p));
  return take(uniform(sampling.seed, position) * probabilities());
}

void Sampler::score(const float* logits, std::size_t count, const SeenTokens& seen, const edgeslim_sampling& sampling) {
  kept_.resize(count);
  const bool penalize = sampling.repetition_penalty > 0;
  for (std::size_t i = 0; i < count; ++i) {
    const double logit = penalized(logits[i], penalize && seen.has(i), sampling.repetition_penalty);
    kept_[i] = {logit / double(sampling.temperature), int32_t(i)};
  }
}

void Sampler::keep_top_k(std::size_t k) {
  if (k >= kept_.size()) return;
  std::vector<double>& logits = weights_;
  logits.clear();
  for (const Candidate& c : kept_) logits.push_back(c.logit);
  std::nth_element(logits.begin(), logits.begin() + std::ptrdiff_t(k - 1), logits.end(), std::greater<double>());
  const double least = logits[k - 1];
  kept_.erase(std::remove_if(kept_.begin(), kept_.end(), [=](const Candidate& c) { return c.logit < least; }), kept_.end());
}

// Sorts only as many of the largest as hold the probability: a few of a vocabulary, mostly.
void Sampler::keep_top_p(double p) {
  const double total = probabilities();
  const auto before = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  };
  double most = kNever, sum = 0;
  for (const Candidate& c : kept_) most = std::max(most, c.logit);
  std::size_t sorted = 0, keep = 0;
  while (keep < kept_.size() && sum < p * total) {
    if (keep == sorted) {
      const std::size_t next = std::min(kept_.size(), std::max<std::size_t>(64, sorted * 4));
      std::partial_sort(kept_.begin() + std::ptrdiff_t(sorted), kept_.begin() + std::ptrdiff_t(next), kept_.end(), before);
      sorted = next;
    }
    sum += std::exp(kept_[keep++].logit - most);
  }
  kept_.resize(std::max<std::size_t>(1, keep));
  std::sort(kept_.begin(), kept_.end(), [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
}

void Sampler::keep_min_p(double p) {
  double most = kNever;
  for (const Candidate& c : kept_) most = std::max(most, c.logit);
  const double least = most + std::log(p);
  kept_.erase(std::remove_if(kept_.begin(), kept_.end(), [=](const Candidate& c) { return c.logit < least; }), kept_.end());
}

// Fills weights_ with exp(logit - largest) and returns their sum.
double Sampler::probabilities() {
  double most = kNever, sum = 0;
  for (const Candidate& c : kept_) most = std::max(most, c.logit);
  weights_.resize(kept_.size());
  for (std::size_t i = 0; i < kept_.size(); ++i) {
    const double logit = kept_[i].logit;
    sum += weights_[i] = logit == most ? 1 : std::exp(logit - most);  // infinities: the largest share it
  }
  return sum;
}

int32_t Sampler::take(double share) const {
  double sum = 0;
  for (std::size_t i = 0; i < kept_.size(); ++i) {
    sum += weights_[i];
    if (sum > share) return kept_[i].id;
  }
  std::size_t last = kept_.size() - 1;  // a sum that rounding left below the share
  while (last > 0 && weights_[last] == 0) --last;
  return kept_[last].id;
}

}  // namespace edgeslim
