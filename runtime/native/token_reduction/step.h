// One step of a token reduction: what it sees of a prompt, which tokens it takes out, what becomes of their rows.
// Sources and formulas are those of the Python package's edgeslim/tokens.
//
// Letters: N tokens, K tokens left, r = N - K removed, H channels, C channels that are compared, D of a mixer's output,
// Q query heads, G key heads, d channels of a head, S slots of a cache, L positions of rotary tables.
#pragma once

#include <cstring>
#include <vector>

#include "core/pool.h"
#include "core/text.h"

namespace edgeslim {

// A number whose order is that of the floats; zeros of both signs are one, and what is no number has its place too.
static inline int64_t order_of(float x) {
  x += 0.0f;
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits < 0 ? -int64_t(bits & 0x7fffffff) : int64_t(bits);
}

// Rows [N, width] of a wider tensor.
struct Rows {
  const float* data = nullptr;
  int64_t stride = 0, width = 0;

  const float* row(int64_t n) const { return data + n * stride; }
};

enum class Method { utrc, evit, pumer, ltmp, random, truncate, official_code };
enum class Metric { clip, l1, l2, none, attention, key_norm };
enum class Rule { hybrid, merge, prune };

struct Reduction {
  Method method = Method::utrc;
  Metric metric = Metric::clip;
  Rule hidden = Rule::hybrid, residual = Rule::merge;
  bool pairwise = true;  // tokens that share a destination are merged one after the other; else all at once
  int64_t q_millionths = 0, protect_first = 0, protect_last = 0, seed = 0, layer = 0;
  int64_t heads = 0, kv_heads = 0, head_size = 0, window = -1;
  float scale = 0;

  bool compares() const { return method == Method::utrc || method == Method::pumer || method == Method::ltmp; }
  bool ranks() const { return method == Method::utrc || method == Method::evit || method == Method::ltmp; }
  // How many of N tokens take part.
  int64_t unprotected(int64_t tokens) const;
};

// What a step may look at in one sequence; what its method does not ask for is empty.
struct Seen {
  int64_t tokens = 0;
  Rows y, queries, keys;               // [N, D], [N, Q d], [N, G d]
  const float* present_key = nullptr;  // [G, N, d], rotated
  const float* cosine = nullptr;       // [L, d / 2]
  const float* sine = nullptr;
  const int64_t* positions = nullptr;  // [N], below L
};

// Of each removed row so much goes to its destination, whose own share is what is left of 1.
struct Mixing {
  std::vector<float> weights;  // [r]; empty: nothing is mixed
  int64_t largest = -1;        // where given, only so many of the removed rows count in each channel
};

struct Chosen {
  std::vector<int64_t> kept, removed, destinations;  // [K] ascending, [r], [r] or empty
  Mixing hidden, residual;
};

// importance [N] of the tokens. False where memory is out.
bool find_importance(const Reduction& r, const Seen& seen, float* importance, const Pool& pool);

// For each of positions `a` the most similar of `b`, by cosine: the first of equal ones. False where memory is out.
bool find_matches(const Rows& features, const std::vector<int64_t>& a, const std::vector<int64_t>& b,
                  std::vector<float>* similarity, std::vector<int64_t>* matches, const Pool& pool);

// What to remove: `count` tokens, at least 1 and at most half of those that take part. False where memory is out.
bool choose_tokens(const Reduction& r, const Seen& seen, int64_t count, Chosen* chosen, const Pool& pool);

// out [K, H]: the sum of branch and residual [N, H] after the step; residual may be null.
void mix_rows(const Chosen& chosen, int64_t tokens, int64_t channels, const float* branch, const float* residual,
              float* out, const Pool& pool);

}  // namespace edgeslim
