#include "builtin/standard_ops.h"

#include <algorithm>
#include <cstring>

namespace edgeslim::builtin {
namespace {

using Inputs = std::vector<const Tensor*>;
using Shape = std::vector<int64_t>;

const Tensor* input(const Inputs& inputs, std::size_t index) { return index < inputs.size() ? inputs[index] : nullptr; }

Fault lacking() { return fault("an input is missing or has another type than is known here"); }

bool is_index(const Tensor* t) { return t && (t->element == ort::kInt64 || t->element == ort::kInt32); }

int64_t index_at(const Tensor& t, std::size_t i) {
  return t.element == ort::kInt64 ? t.as<const int64_t>()[i] : t.as<const int32_t>()[i];
}

std::size_t product(const Shape& shape, std::size_t first, std::size_t last) {
  std::size_t result = 1;
  for (std::size_t i = first; i < last; ++i) result *= std::size_t(shape[i]);
  return result;
}

// `axis` as one of `rank`, or -1.
int64_t settled_axis(int64_t axis, std::size_t rank) {
  if (axis < 0) axis += int64_t(rank);
  return axis >= 0 && axis < int64_t(rank) ? axis : -1;
}

Fault gather(const Node& node, const Inputs& inputs, const OutputMaker& output) {
  const Tensor *x = input(inputs, 0), *indices = input(inputs, 1);
  if (!x || !is_index(indices)) return lacking();
  const int64_t axis = settled_axis(node.integer("axis", 0), x->shape.size());
  if (axis < 0) return fault("axis is out of range");
  Shape shape(x->shape.begin(), x->shape.begin() + axis);
  shape.insert(shape.end(), indices->shape.begin(), indices->shape.end());
  shape.insert(shape.end(), x->shape.begin() + axis + 1, x->shape.end());
  Fault wrong;
  Tensor* y = output(x->element, shape, &wrong);
  if (!y) return wrong;
  const std::size_t before = product(x->shape, 0, std::size_t(axis)), count = product(indices->shape, 0, indices->shape.size());
  const std::size_t piece = product(x->shape, std::size_t(axis) + 1, x->shape.size()) * element_bytes(x->element);
  const int64_t length = x->shape[std::size_t(axis)];
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

template <class From, class To>
void convert(const Tensor& x, std::size_t count, Tensor* y) {
  for (std::size_t i = 0; i < count; ++i) y->as<To>()[i] = To(x.as<const From>()[i]);
}

Fault cast(const Node& node, const Inputs& inputs, const OutputMaker& output) {
  const Tensor* x = input(inputs, 0);
  const int to = int(node.integer("to", 0));
  const bool known = to == ort::kInt64 || to == ort::kInt32;
  if (!is_index(x) || !known) return lacking();
  Fault wrong;
  Tensor* y = output(to, x->shape, &wrong);
  if (!y) return wrong;
  const std::size_t count = product(x->shape, 0, x->shape.size());
  if (x->element == ort::kInt64)
    to == ort::kInt64 ? convert<int64_t, int64_t>(*x, count, y) : convert<int64_t, int32_t>(*x, count, y);
  else
    to == ort::kInt64 ? convert<int32_t, int64_t>(*x, count, y) : convert<int32_t, int32_t>(*x, count, y);
  return {};
}

Fault shape_of(const Node& node, const Inputs& inputs, const OutputMaker& output) {
  const Tensor* x = input(inputs, 0);
  if (!x) return lacking();
  const int64_t rank = int64_t(x->shape.size());
  const auto settled = [&](int64_t at) { return std::clamp<int64_t>(at < 0 ? at + rank : at, 0, rank); };
  const int64_t start = settled(node.integer("start", 0)), end = std::max(start, settled(node.integer("end", rank)));
  Fault wrong;
  Tensor* y = output(ort::kInt64, {end - start}, &wrong);
  if (!y) return wrong;
  for (int64_t i = start; i < end; ++i) y->as<int64_t>()[i - start] = x->shape[std::size_t(i)];
  return {};
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

// Over one axis, as sums of masks are.
Fault reduce_sum(const Node& node, const Inputs& inputs, const OutputMaker& output) {
  const Tensor *x = input(inputs, 0), *axes = input(inputs, 1);
  if (!is_index(x) || !axes || axes->element != ort::kInt64 || product(axes->shape, 0, axes->shape.size()) != 1) return lacking();
  const int64_t axis = settled_axis(axes->as<const int64_t>()[0], x->shape.size());
  if (axis < 0) return fault("axis is out of range");
  Shape shape = x->shape;
  if (node.integer("keepdims", 1)) shape[std::size_t(axis)] = 1;
  else shape.erase(shape.begin() + axis);
  Fault wrong;
  Tensor* y = output(x->element, shape, &wrong);
  if (!y) return wrong;
  const std::size_t before = product(x->shape, 0, std::size_t(axis)), length = std::size_t(x->shape[std::size_t(axis)]);
  const std::size_t after = product(x->shape, std::size_t(axis) + 1, x->shape.size());
  x->element == ort::kInt64 ? sum_axis<int64_t>(*x, before, length, after, y) : sum_axis<int32_t>(*x, before, length, after, y);
  return {};
}

// Of integers, where one shape is the other's or one side has one element. Sums wrap around.
template <class F>
Fault arithmetic(const Inputs& inputs, const OutputMaker& output, F f) {
  const Tensor *a = input(inputs, 0), *b = input(inputs, 1);
  if (!is_index(a) || !is_index(b) || a->element != b->element) return lacking();
  const std::size_t a_count = product(a->shape, 0, a->shape.size()), b_count = product(b->shape, 0, b->shape.size());
  const bool b_spreads = b_count == 1 && b->shape.size() <= a->shape.size();
  const bool a_spreads = a_count == 1 && a->shape.size() <= b->shape.size();
  if (a->shape != b->shape && !a_spreads && !b_spreads) return fault("shapes that spread over each other are not known here");
  const Tensor& wide = b_spreads || a->shape == b->shape ? *a : *b;
  Fault wrong;
  Tensor* y = output(a->element, wide.shape, &wrong);
  if (!y) return wrong;
  const std::size_t count = product(wide.shape, 0, wide.shape.size()), a_step = a_count == 1 ? 0 : 1, b_step = b_count == 1 ? 0 : 1;
  for (std::size_t i = 0; i < count; ++i) {
    const uint64_t found = f(uint64_t(index_at(*a, i * a_step)), uint64_t(index_at(*b, i * b_step)));
    if (a->element == ort::kInt64) y->as<int64_t>()[i] = int64_t(found);
    else y->as<int32_t>()[i] = int32_t(uint32_t(found));
  }
  return {};
}

Fault subtract(const Node&, const Inputs& inputs, const OutputMaker& output) {
  return arithmetic(inputs, output, [](uint64_t a, uint64_t b) { return a - b; });
}

Fault add(const Node&, const Inputs& inputs, const OutputMaker& output) {
  return arithmetic(inputs, output, [](uint64_t a, uint64_t b) { return a + b; });
}

// Of one integer.
Fault expand(const Node&, const Inputs& inputs, const OutputMaker& output) {
  const Tensor *x = input(inputs, 0), *shape = input(inputs, 1);
  if (!is_index(x) || product(x->shape, 0, x->shape.size()) != 1 || !shape || shape->element != ort::kInt64 || shape->shape.size() != 1)
    return lacking();
  Shape wide(shape->as<const int64_t>(), shape->as<const int64_t>() + shape->shape[0]);
  if (wide.size() < x->shape.size()) wide.insert(wide.begin(), x->shape.size() - wide.size(), 1);
  Fault wrong;
  Tensor* y = output(x->element, wide, &wrong);
  if (!y) return wrong;
  const std::size_t count = product(wide, 0, wide.size());
  if (x->element == ort::kInt64) std::fill_n(y->as<int64_t>(), count, *x->as<const int64_t>());
  else std::fill_n(y->as<int32_t>(), count, *x->as<const int32_t>());
  return {};
}

// Without one axis, which is named.
Fault squeeze(const Node&, const Inputs& inputs, const OutputMaker& output) {
  const Tensor *x = input(inputs, 0), *axes = input(inputs, 1);
  if (!x || !axes || axes->element != ort::kInt64 || product(axes->shape, 0, axes->shape.size()) != 1) return lacking();
  const int64_t axis = settled_axis(axes->as<const int64_t>()[0], x->shape.size());
  if (axis < 0 || x->shape[std::size_t(axis)] != 1) return fault("axis is out of range or longer than 1");
  Shape shape = x->shape;
  shape.erase(shape.begin() + axis);
  Fault wrong;
  Tensor* y = output(x->element, shape, &wrong);
  if (!y) return wrong;
  if (const std::size_t bytes = product(shape, 0, shape.size()) * element_bytes(x->element)) std::memcpy(y->data, x->data, bytes);
  return {};
}

}  // namespace

StandardOp standard_op(const std::string& name) {
  if (name == "Gather") return gather;
  if (name == "Cast") return cast;
  if (name == "Shape") return shape_of;
  if (name == "ReduceSum") return reduce_sum;
  if (name == "Sub") return subtract;
  if (name == "Add") return add;
  if (name == "Expand") return expand;
  if (name == "Squeeze") return squeeze;
  return nullptr;
}

}  // namespace edgeslim::builtin
