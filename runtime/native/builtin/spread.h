// Two shapes that spread over each other, as ONNX has it: where a dimension of one is 1, its entry stands for all of the
// other's.
#pragma once

#include <algorithm>

#include "builtin/operands.h"
#include "elementwise/elementwise.h"

namespace edgeslim::builtin {

class Spread {
 public:
  // False where the shapes do not fit.
  bool set(const Shape& a, const Shape& b) {
    const std::size_t rank = std::max(a.size(), b.size());
    shape.assign(rank, 1);
    std::size_t a_apart = 1, b_apart = 1;
    for (std::size_t i = rank; i-- > 0;) {
      const int64_t of_a = size_of(a, rank, i), of_b = size_of(b, rank, i);
      if (of_a != of_b && of_a != 1 && of_b != 1) return false;
      shape[i] = of_a == 1 ? of_b : of_a;
      add({std::size_t(shape[i]), of_a == 1 ? 0 : a_apart, of_b == 1 ? 0 : b_apart});
      a_apart *= std::size_t(of_a);
      b_apart *= std::size_t(of_b);
    }
    return true;
  }

  // Entries that lie in a row in each operand, or are one there; and how many such rows there are.
  std::size_t run() const { return levels_.empty() ? 1 : levels_[0].count; }
  std::size_t rows() const {
    std::size_t count = 1;
    for (std::size_t i = 1; i < levels_.size(); ++i) count *= levels_[i].count;
    return count;
  }
  bool single_a() const { return levels_.empty() || !levels_[0].a; }
  bool single_b() const { return levels_.empty() || !levels_[0].b; }

  // Where row `row` begins in the operands.
  std::pair<std::size_t, std::size_t> starts(std::size_t row) const {
    std::size_t a = 0, b = 0;
    for (std::size_t i = 1; i < levels_.size(); ++i) {
      a += row % levels_[i].count * levels_[i].a;
      b += row % levels_[i].count * levels_[i].b;
      row /= levels_[i].count;
    }
    return {a, b};
  }

  Shape shape;

 private:
  struct Level {
    std::size_t count, a, b;  // steps, and how far apart they are in each operand
  };

  static int64_t size_of(const Shape& of, std::size_t rank, std::size_t i) {
    const std::size_t before = rank - of.size();
    return i < before ? 1 : of[i - before];
  }

  // A dimension joins the one inside it where both operands simply go on.
  void add(const Level& level) {
    if (level.count == 1) return;
    if (levels_.empty() || level.a != goes_on(levels_.back().a) || level.b != goes_on(levels_.back().b)) {
      levels_.push_back(level);
    } else {
      levels_.back().count *= level.count;
    }
  }

  std::size_t goes_on(std::size_t apart) const { return apart * levels_.back().count; }

  std::vector<Level> levels_;  // the innermost first
};

// y = function(a, b), whose shapes spread over each other, on the pool's threads. y may be an operand of its own shape.
void map_pairs(const Pool& pool, Function function, const Spread& spread, const float* a, const float* b, float* y);

}  // namespace edgeslim::builtin
