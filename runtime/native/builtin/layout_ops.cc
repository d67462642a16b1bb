#include <algorithm>
#include <cstring>

#include "builtin/operands.h"

namespace edgeslim::builtin {
namespace {

// Output 0: x in another shape of as many entries.
Fault copy_as(const Call& call, const Tensor& x, const Shape& shape) {
  Fault wrong;
  Tensor* y = call.output(0, x.element, shape, &wrong);
  if (!y) return wrong;
  in_pieces(call.pool, entries_of(x) * element_bytes(x.element), 1, [&](std::size_t first, std::size_t last) {
    std::memcpy(y->as<char>() + first, x.as<const char>() + first, last - first);
  });
  return {};
}

const Tensor* integers(const Tensor* t) { return t && t->element == ort::kInt64 && t->shape.size() == 1 ? t : nullptr; }

// Copies `rows` rows of `bytes` bytes between places so far `apart`.
void copy_rows(const Pool& pool, char* to, std::size_t to_apart, const char* from, std::size_t from_apart, std::size_t rows,
               std::size_t bytes) {
  in_pieces(pool, rows, bytes, [&](std::size_t first, std::size_t last) {
    for (std::size_t r = first; r < last && bytes; ++r) std::memcpy(to + r * to_apart, from + r * from_apart, bytes);
  });
}

// How long `count` parts of `length` are: as the tensor says, else alike but for a shorter last one.
Fault part_lengths(const Tensor* sizes, int64_t length, std::size_t count, Shape* parts) {
  if (sizes) {
    if (!integers(sizes) || sizes->shape[0] != int64_t(count)) return fault("its sizes must be one integer for each output");
    parts->assign(sizes->as<const int64_t>(), sizes->as<const int64_t>() + count);
  } else {
    const int64_t each = (length + int64_t(count) - 1) / int64_t(count);
    for (int64_t left = length; parts->size() < count; left -= parts->back()) parts->push_back(std::min(each, left));
  }
  int64_t left = length;
  for (const int64_t part : *parts) {
    if (part < 0 || part > left) return fault("its sizes do not add up to the axis");
    left -= part;
  }
  return left ? fault("its sizes do not add up to the axis") : Fault{};
}

}  // namespace

Fault identity(const Call& call) {
  const Tensor* x = call.input(0);
  return x ? copy_as(call, *x, x->shape) : lacking();
}

Fault reshape(const Call& call) {
  const Tensor *x = call.input(0), *wanted = integers(call.input(1));
  if (!x || !wanted) return lacking();
  Shape shape(wanted->as<const int64_t>(), wanted->as<const int64_t>() + wanted->shape[0]);
  const bool keeps_zero = call.node.integer("allowzero", 0) != 0;
  std::size_t open = shape.size(), known = 1;
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] == 0 && !keeps_zero) {
      if (i >= x->shape.size()) return fault("its shape keeps a dimension that is not there");
      shape[i] = x->shape[i];
    }
    if (shape[i] < 0 && (shape[i] != -1 || open < shape.size())) return fault("its shape has a negative dimension");
    if (shape[i] < 0) open = i;
  }
  const std::size_t entries = entries_of(*x);
  if (open < shape.size()) shape[open] = 1;
  if (!count_elements(shape, &known)) return fault("its shape is too large");
  if (open < shape.size() && known) shape[open] = int64_t(entries / known), known *= entries / known;
  return known == entries ? copy_as(call, *x, shape) : fault("its shape has another number of entries");
}

// Without one axis, which is named.
Fault squeeze(const Call& call) {
  const Tensor *x = call.input(0), *axes = call.input(1);
  if (!x || !axes || axes->element != ort::kInt64 || entries_of(*axes) != 1) return lacking();
  const int64_t axis = settled_axis(axes->as<const int64_t>()[0], x->shape.size());
  if (axis < 0 || x->shape[std::size_t(axis)] != 1) return fault("axis is out of range or longer than 1");
  Shape shape = x->shape;
  shape.erase(shape.begin() + axis);
  return copy_as(call, *x, shape);
}

Fault split(const Call& call) {
  const Tensor* x = call.input(0);
  if (!x) return lacking();
  std::size_t axis = 0;
  if (Fault wrong = find_axis(call, *x, &axis)) return wrong;
  Shape parts, shape = x->shape;
  if (Fault wrong = part_lengths(call.input(1), shape[axis], call.node.outputs.size(), &parts)) return wrong;
  const std::size_t rows = product(x->shape, 0, axis);
  const std::size_t entry = product(x->shape, axis + 1, x->shape.size()) * element_bytes(x->element);
  const std::size_t apart = std::size_t(x->shape[axis]) * entry;
  const char* from = x->as<const char>();
  for (std::size_t i = 0; i < parts.size(); ++i) {
    shape[axis] = parts[i];
    const std::size_t bytes = std::size_t(parts[i]) * entry;
    Fault wrong;
    Tensor* y = call.output(i, x->element, shape, &wrong);
    if (wrong) return wrong;
    if (y) copy_rows(call.pool, y->as<char>(), bytes, from, apart, rows, bytes);
    from += bytes;
  }
  return {};
}

Fault concat(const Call& call) {
  const Tensor* x = call.input(0);
  if (!x) return lacking();
  std::size_t axis = 0;
  if (Fault wrong = find_axis(call, *x, &axis)) return wrong;
  Shape shape = x->shape;
  shape[axis] = 0;
  for (const Tensor* part : call.inputs) {
    if (!part || part->element != x->element || part->shape.size() != shape.size()) return lacking();
    for (std::size_t i = 0; i < shape.size(); ++i)
      if (i != axis && part->shape[i] != shape[i]) return fault("its parts differ in more than the axis");
    if (part->shape[axis] > (int64_t{1} << 60) - shape[axis]) return fault("its parts are too long");
    shape[axis] += part->shape[axis];
  }
  Fault wrong;
  Tensor* y = call.output(0, x->element, shape, &wrong);
  if (!y) return wrong;
  const std::size_t rows = product(shape, 0, axis), entry = product(shape, axis + 1, shape.size()) * element_bytes(x->element);
  char* to = y->as<char>();
  for (const Tensor* part : call.inputs) {
    const std::size_t bytes = std::size_t(part->shape[axis]) * entry;
    copy_rows(call.pool, to, std::size_t(shape[axis]) * entry, part->as<const char>(), bytes, rows, bytes);
    to += bytes;
  }
  return {};
}

}  // namespace edgeslim::builtin
