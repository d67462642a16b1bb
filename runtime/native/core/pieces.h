// How the bytes that one token reads of a matrix are cut into pieces for threads.
//
// Where the threads' number is known, and that they take pieces from both ends, the caller from the front, the others from
// the back (builtin/thread_pool.h), the first pieces of a thread are long, since taking one has its price and ends a stream
// of memory, and its last are short, since all wait for the last one.
#pragma once

#include <cstdint>

namespace edgeslim {

class Pieces {
 public:
  // `count` even pieces, for threads that take them in any order.
  static Pieces even(int64_t count) { return {count, 0}; }

  // `levels` pieces for each of `threads` threads, each level shorter than the one before.
  static Pieces tapering(int64_t levels, int64_t threads) { return {levels, threads}; }

  int64_t count() const { return threads_ ? levels_ * threads_ : levels_; }

  // Where piece `index` of `total` units begins; that of count() is their end.
  int64_t start(int64_t index, int64_t total) const {
    if (!threads_) return total * index / levels_;
    return int64_t(double(total) * share_before(index) + 0.5);
  }

 private:
  Pieces(int64_t levels, int64_t threads) : levels_(levels), threads_(threads) {}

  double share_before(int64_t index) const {
    const auto threads = double(threads_);
    if (index <= levels_) return taken(index) / threads;
    const int64_t behind = count() - index, others = threads_ - 1, level = behind / others;
    const double begun = double(behind % others);  // pieces of this level
    return 1 - (double(others) * taken(level) + begun * (taken(level + 1) - taken(level))) / threads;
  }

  // The share of its own part that a thread has after so many levels: the last is a fifth of the even ones.
  double taken(int64_t level) const {
    const double left = 1 - double(level < levels_ ? level : levels_) / double(levels_);
    return 1 - left * (0.2 + 0.8 * left * left);
  }

  int64_t levels_, threads_;
};

constexpr int64_t kLevels = 6;  // where a matrix is large enough

}  // namespace edgeslim
