// From logits to a token. Every rule is that of transformers' processors of the same name, in the same order.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/status.h"

namespace edgeslim {

// Which tokens have been seen: a bit each.
class SeenTokens {
 public:
  explicit SeenTokens(std::size_t vocabulary = 0) : words_((vocabulary + 63) / 64) {}

  void add(int32_t token) { words_[std::size_t(token) / 64] |= uint64_t{1} << (token % 64); }
  bool has(std::size_t token) const { return (words_[token / 64] >> (token % 64)) & 1; }
  void clear() { words_.assign(words_.size(), 0); }
  std::vector<uint64_t>& words() { return words_; }
  const std::vector<uint64_t>& words() const { return words_; }

 private:
  std::vector<uint64_t> words_;
};

// What is wrong with `sampling`, if anything.
Status check_sampling(const edgeslim_sampling& sampling);

// SplitMix64's output number `position` after `seed`, as a fraction. Source: Steele, Lea and Flood, OOPSLA 2014.
double uniform(uint64_t seed, int64_t position);

// The first of the largest of `logits` [count], 0 where there is no number among them.
int32_t largest(const float* logits, std::size_t count);

// Draws tokens; its memory is kept for the next draw.
class Sampler {
 public:
  // The token for `logits` [count], count > 0. NaN counts as the smallest.
  int32_t draw(const float* logits, std::size_t count, const SeenTokens& seen, const edgeslim_sampling& sampling,
               int64_t position);

 private:
  struct Candidate {
    double logit;  // after penalty and temperature
    int32_t id;
  };

  void score(const float* logits, std::size_t count, const SeenTokens& seen, const edgeslim_sampling& sampling);
  void keep_top_k(std::size_t k);
  void keep_top_p(double p);
  void keep_min_p(double p);
  double probabilities();
  int32_t take(double share) const;

  std::vector<Candidate> kept_;
  std::vector<double> weights_;
};

}  // namespace edgeslim
