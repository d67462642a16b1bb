// Memory that a coming piece of work reads: threads that wait for work ask for it meanwhile, so that a processor's path to
// memory does not rest between one matrix and the next.
#pragma once

#include <cstddef>
#include <vector>

#include "core/pieces.h"

namespace edgeslim::builtin {

class Coming {
 public:
  void add(const void* data, std::size_t bytes) { ranges_.push_back({static_cast<const char*>(data), bytes}); }
  bool empty() const { return ranges_.empty(); }

  // Asks for a next part of one of the pieces that it is read in, `at` bytes of which are asked for already. Returns how
  // many are then; the same where there are no more.
  std::size_t ask(const Pieces& pieces, int64_t piece, std::size_t at) const {
    std::size_t before = 0;
    for (const Range& range : ranges_) {
      const auto first = std::size_t(pieces.start(piece, int64_t(range.bytes)));
      const std::size_t bytes = std::size_t(pieces.start(piece + 1, int64_t(range.bytes))) - first;
      if (at < before + bytes) {
        const std::size_t from = at - before, to = from + kPart < bytes ? from + kPart : bytes;
        for (std::size_t i = from; i < to; i += kLine) __builtin_prefetch(range.data + first + i, 0, 2);
        return before + to;
      }
      before += bytes;
    }
    return at;
  }

 private:
  struct Range {
    const char* data;
    std::size_t bytes;
  };
  static constexpr std::size_t kLine = 64, kPart = 1024;

  std::vector<Range> ranges_;
};

}  // namespace edgeslim::builtin
