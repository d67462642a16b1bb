#include "builtin/spread.h"
#include "packed_linear/kernels.h"

namespace edgeslim::builtin {
namespace {

template <class T, class F>
void each_pair(const Spread& spread, const Tensor& a, const Tensor& b, Tensor* y, const F& f) {
  const std::size_t run = spread.run(), a_step = spread.single_a() ? 0 : 1, b_step = spread.single_b() ? 0 : 1;
  for (std::size_t row = 0; row < spread.rows(); ++row) {
    const auto [from_a, from_b] = spread.starts(row);
    for (std::size_t i = 0; i < run; ++i)
      y->as<T>()[row * run + i] =
          T(f(uint64_t(a.as<const T>()[from_a + i * a_step]), uint64_t(b.as<const T>()[from_b + i * b_step])));
  }
}

Fault of_two(const Call& call, Function function) {
  const Tensor *a = call.input(0), *b = call.input(1);
  if (!is_number(a) || !is_number(b)) return lacking();
  Spread spread;
  if (!spread.set(a->shape, b->shape)) return fault("its shapes do not fit");
  Fault wrong;
  Tensor* y = call.output(0, ort::kFloat, spread.shape, &wrong);
  if (y) map_pairs(call.pool, function, spread, a->as<const float>(), b->as<const float>(), y->as<float>());
  return wrong;
}

// Integers wrap around.
template <class F>
Fault of_two_integers(const Call& call, const F& f) {
  const Tensor *a = call.input(0), *b = call.input(1);
  if (!is_index(a) || !is_index(b) || a->element != b->element) return lacking();
  Spread spread;
  if (!spread.set(a->shape, b->shape)) return fault("its shapes do not fit");
  Fault wrong;
  Tensor* y = call.output(0, a->element, spread.shape, &wrong);
  if (!y) return wrong;
  if (a->element == ort::kInt64) each_pair<int64_t>(spread, *a, *b, y, f);
  else each_pair<int32_t>(spread, *a, *b, y, f);
  return {};
}

Fault of_one(const Call& call, Function function) {
  const Tensor* x = call.input(0);
  if (!is_number(x)) return lacking();
  Fault wrong;
  Tensor* y = call.output(0, ort::kFloat, x->shape, &wrong);
  if (!y) return wrong;
  in_pieces(call.pool, entries_of(*x), sizeof(float), [&](std::size_t first, std::size_t last) {
    chosen().map({function, x->as<const float>() + first, nullptr, false, false, y->as<float>() + first, int64_t(last - first)});
  });
  return {};
}

}  // namespace

void map_pairs(const Pool& pool, Function function, const Spread& spread, const float* a, const float* b, float* y) {
  const std::size_t run = spread.run(), rows = spread.rows();
  const bool single_a = spread.single_a(), single_b = spread.single_b();
  const auto part = [&](std::size_t row, std::size_t first, std::size_t last) {
    const auto [from_a, from_b] = spread.starts(row);
    chosen().map({function, a + from_a + (single_a ? 0 : first), b + from_b + (single_b ? 0 : first), single_a, single_b,
                  y + row * run + first, int64_t(last - first)});
  };
  if (rows == 1) return in_pieces(pool, run, sizeof(float), [&](std::size_t first, std::size_t last) { part(0, first, last); });
  in_pieces(pool, rows, run * sizeof(float), [&](std::size_t first, std::size_t last) {
    for (std::size_t row = first; row < last; ++row) part(row, 0, run);
  });
}

Fault add(const Call& call) {
  if (is_number(call.input(0))) return of_two(call, Function::add);
  return of_two_integers(call, [](uint64_t a, uint64_t b) { return a + b; });
}

Fault subtract(const Call& call) {
  if (is_number(call.input(0))) return of_two(call, Function::sub);
  return of_two_integers(call, [](uint64_t a, uint64_t b) { return a - b; });
}

Fault multiply(const Call& call) { return of_two(call, Function::mul); }
Fault divide(const Call& call) { return of_two(call, Function::div); }
Fault largest(const Call& call) { return of_two(call, Function::max); }
Fault relu(const Call& call) { return of_one(call, Function::relu); }
Fault sigmoid_of(const Call& call) { return of_one(call, Function::sigmoid); }
Fault tanh_of(const Call& call) { return of_one(call, Function::tanh); }

Fault gelu_of(const Call& call) {
  const auto how = call.node.attributes.find("approximate");
  const bool by_tanh = how != call.node.attributes.end() && how->second.text == "tanh";
  return of_one(call, by_tanh ? Function::gelu_tanh : Function::gelu);
}

}  // namespace edgeslim::builtin
