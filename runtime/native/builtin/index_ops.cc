#include <algorithm>
#include <cstring>

#include "builtin/operands.h"

namespace edgeslim::builtin {
namespace {

template <class From, class To>
void convert(const Tensor& x, std::size_t count, Tensor* y) {
  for (std::size_t i = 0; i < count; ++i) y->as<To>()[i] = To(x.as<const From>()[i]);
}

template <class T>
void sum_axis(const Tensor& x, std::size_t before, std::size_t length, std::size_t after, Tensor* y) {
  for (std::size_t b = 0; b < before; ++b)
    for (std::size_t a = 0; a < after; ++a) {
      uint64_t sum = 0;
      for (std::size_t i = 0; i < length; ++i) sum += uint64_t(x.as<const T>()[(b * length + i) * after + a]);
      y->as<T>()[b * after + a] = T(sum);
    }
}

constexpr int64_t kMostRange = int64_t{1} << 31;

}  // namespace

Fault gather(const Call& call) {
  const Tensor *x = call.input(0), *indices = call.input(1);
  if (!x || !is_index(indices)) return lacking();
  std::size_t axis = 0;
  if (Fault wrong = find_axis(call, *x, &axis)) return wrong;
  const auto at = x->shape.begin() + int64_t(axis);
  Shape shape(x->shape.begin(), at);
  shape.insert(shape.end(), indices->shape.begin(), indices->shape.end());
  shape.insert(shape.end(), at + 1, x->shape.end());
  Fault wrong;
  Tensor* y = call.output(0, x->element, shape, &wrong);
  if (!y) return wrong;
  const std::size_t before = product(x->shape, 0, axis), count = entries_of(*indices);
  const std::size_t piece = product(x->shape, axis + 1, x->shape.size()) * element_bytes(x->element);
  const int64_t length = x->shape[axis];
  char* to = y->as<char>();
  for (std::size_t b = 0; b < before; ++b)
    for (std::size_t i = 0; i < count; ++i, to += piece) {
      int64_t index = index_at(*indices, i);
      if (index < 0) index += length;
      if (index < 0 || index >= length) return fault("an index is out of range");
      std::memcpy(to, x->as<const char>() + (b * std::size_t(length) + std::size_t(index)) * piece, piece);
    }
  return {};
}

Fault cast(const Call& call) {
  const Tensor* x = call.input(0);
  const int to = int(call.node.integer("to", 0));
  const bool known = to == ort::kInt64 || to == ort::kInt32;
  if (!is_index(x) || !known) return lacking();
  Fault wrong;
  Tensor* y = call.output(0, to, x->shape, &wrong);
  if (!y) return wrong;
  const std::size_t count = entries_of(*x);
  if (x->element == ort::kInt64)
    to == ort::kInt64 ? convert<int64_t, int64_t>(*x, count, y) : convert<int64_t, int32_t>(*x, count, y);
  else
    to == ort::kInt64 ? convert<int32_t, int64_t>(*x, count, y) : convert<int32_t, int32_t>(*x, count, y);
  return {};
}

Fault shape_of(const Call& call) {
  const Tensor* x = call.input(0);
  if (!x) return lacking();
  const int64_t rank = int64_t(x->shape.size());
  const auto settled = [&](int64_t at) { return std::clamp<int64_t>(at < 0 ? at + rank : at, 0, rank); };
  const int64_t start = settled(call.node.integer("start", 0)), end = std::max(start, settled(call.node.integer("end", rank)));
  Fault wrong;
  Tensor* y = call.output(0, ort::kInt64, {end - start}, &wrong);
  if (!y) return wrong;
  for (int64_t i = start; i < end; ++i) y->as<int64_t>()[i - start] = x->shape[std::size_t(i)];
  return {};
}

// Over one axis, as sums of masks are.
Fault reduce_sum(const Call& call) {
  const Tensor *x = call.input(0), *axes = call.input(1);
  if (!is_index(x) || !axes || axes->element != ort::kInt64 || entries_of(*axes) != 1) return lacking();
  const int64_t axis = settled_axis(axes->as<const int64_t>()[0], x->shape.size());
  if (axis < 0) return fault("axis is out of range");
  Shape shape = x->shape;
  if (call.node.integer("keepdims", 1)) shape[std::size_t(axis)] = 1;
  else shape.erase(shape.begin() + axis);
  Fault wrong;
  Tensor* y = call.output(0, x->element, shape, &wrong);
  if (!y) return wrong;
  const std::size_t before = product(x->shape, 0, std::size_t(axis)), length = std::size_t(x->shape[std::size_t(axis)]);
  const std::size_t after = product(x->shape, std::size_t(axis) + 1, x->shape.size());
  x->element == ort::kInt64 ? sum_axis<int64_t>(*x, before, length, after, y) : sum_axis<int32_t>(*x, before, length, after, y);
  return {};
}

// Of one integer.
Fault expand(const Call& call) {
  const Tensor *x = call.input(0), *shape = call.input(1);
  if (!is_index(x) || entries_of(*x) != 1 || !shape || shape->element != ort::kInt64 || shape->shape.size() != 1)
    return lacking();
  Shape wide(shape->as<const int64_t>(), shape->as<const int64_t>() + shape->shape[0]);
  if (wide.size() < x->shape.size()) wide.insert(wide.begin(), x->shape.size() - wide.size(), 1);
  Fault wrong;
  Tensor* y = call.output(0, x->element, wide, &wrong);
  if (!y) return wrong;
  const std::size_t count = product(wide, 0, wide.size());
  if (x->element == ort::kInt64) std::fill_n(y->as<int64_t>(), count, *x->as<const int64_t>());
  else std::fill_n(y->as<int32_t>(), count, *x->as<const int32_t>());
  return {};
}

// From one integer on, in steps of another, before a third.
Fault range(const Call& call) {
  const Tensor *start = call.input(0), *limit = call.input(1), *step = call.input(2);
  for (const Tensor* t : {start, limit, step})
    if (!is_index(t) || entries_of(*t) != 1 || t->element != start->element) return lacking();
  const int64_t first = index_at(*start, 0), end = index_at(*limit, 0), by = index_at(*step, 0);
  const bool known = first >= -kMostRange && first <= kMostRange && end >= -kMostRange && end <= kMostRange;
  if (!known || by < 1 || by > kMostRange) return fault("only ranges that ascend are known here");
  Fault wrong;
  Tensor* y = call.output(0, start->element, {end > first ? (end - first + by - 1) / by : 0}, &wrong);
  if (!y) return wrong;
  for (int64_t i = 0; i < y->shape[0]; ++i) {
    if (y->element == ort::kInt64) y->as<int64_t>()[i] = first + by * i;
    else y->as<int32_t>()[i] = int32_t(first + by * i);
  }
  return {};
}

}  // namespace edgeslim::builtin
