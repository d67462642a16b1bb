// What the standard operators ask of their operands.
#pragma once

#include "builtin/standard_ops.h"

namespace edgeslim::builtin {

using Shape = std::vector<int64_t>;

inline Fault lacking() { return fault("an input is missing or has another type than is known here"); }

inline bool is_index(const Tensor* t) { return t && (t->element == ort::kInt64 || t->element == ort::kInt32); }
inline bool is_number(const Tensor* t) { return t && t->element == ort::kFloat; }

inline int64_t index_at(const Tensor& t, std::size_t i) {
  return t.element == ort::kInt64 ? t.as<const int64_t>()[i] : t.as<const int32_t>()[i];
}

inline std::size_t product(const Shape& shape, std::size_t first, std::size_t last) {
  std::size_t result = 1;
  for (std::size_t i = first; i < last; ++i) result *= std::size_t(shape[i]);
  return result;
}

inline std::size_t entries_of(const Tensor& t) { return product(t.shape, 0, t.shape.size()); }

// `axis` as one of `rank`, or -1.
inline int64_t settled_axis(int64_t axis, std::size_t rank) {
  if (axis < 0) axis += int64_t(rank);
  return axis >= 0 && axis < int64_t(rank) ? axis : -1;
}

// The attribute axis of the node, 0 where it names none, as one of x's.
inline Fault find_axis(const Call& call, const Tensor& x, std::size_t* axis) {
  const int64_t settled = settled_axis(call.node.integer("axis", 0), x.shape.size());
  *axis = std::size_t(settled);
  return settled < 0 ? fault("axis is out of range") : Fault{};
}

constexpr std::size_t kPieceBytes = 64 << 10;  // of what a thread is given: less is done sooner than shared out

// Calls f(first, last) for pieces of [0, count), an entry of which has `bytes` bytes, on the pool's threads.
template <class F>
void in_pieces(const Pool& pool, std::size_t count, std::size_t bytes, const F& f) {
  const std::size_t most = pool.run ? std::size_t(4 * pool.threads) : 1, wanted = count * bytes / kPieceBytes;
  const auto pieces = int64_t(wanted < 1 ? 1 : wanted < most ? wanted : most);
  pool.each(pieces, [&](int64_t i) {
    f(count * std::size_t(i) / std::size_t(pieces), count * std::size_t(i + 1) / std::size_t(pieces));
  });
}

}  // namespace edgeslim::builtin
