#include <vector>

#include "builtin/spread.h"
#include "packed_linear/kernels.h"

namespace edgeslim::builtin {
namespace {

constexpr float kEpsilon = 1e-5f, kSkipEpsilon = 1e-12f;  // where a node names none

// Rows of `width` entries and what they are brought to.
struct Rows {
  std::size_t count = 0, width = 0;
  const float* weight = nullptr;
  const float* bias = nullptr;  // null: none
  float epsilon = 0;
  bool centered = false;        // their mean is taken off
};

float epsilon_of(const Node& node, float otherwise) {
  const auto at = node.attributes.find("epsilon");
  return at != node.attributes.end() && at->second.has_number ? at->second.number : otherwise;
}

float mean_of(const float* x, std::size_t width) {
  float lanes[16] = {0}, sum = 0;
  std::size_t i = 0;
  for (; i + 16 <= width; i += 16)
    for (std::size_t lane = 0; lane < 16; ++lane) lanes[lane] += x[i + lane];
  for (; i < width; ++i) lanes[i % 16] += x[i];
  for (const float lane : lanes) sum += lane;
  return sum / float(width);
}

void map_row(Function function, const float* a, const float* b, bool single_b, std::size_t width, float* y) {
  chosen().map({function, a, b, false, single_b, y, int64_t(width)});
}

void norm_rows(const Pool& pool, const Rows& rows, const float* x, float* y) {
  const auto width = int64_t(rows.width);
  in_pieces(pool, rows.count, rows.width * sizeof(float), [&](std::size_t first, std::size_t last) {
    for (std::size_t row = first; row < last; ++row) {
      const float* from = x + row * rows.width;
      float* to = y + row * rows.width;
      if (rows.centered) {
        const float mean = mean_of(from, rows.width);
        map_row(Function::sub, from, &mean, true, rows.width, to);
        from = to;
      }
      Prologue in;
      in.x = from;
      in.x_stride = width;
      in.norm = rows.weight;
      in.epsilon = rows.epsilon;
      chosen().prologue(in, 0, width, width, to);
      if (rows.bias) map_row(Function::add, to, rows.bias, false, rows.width, to);
    }
  });
}

// Fills in what the last axis of `shape`, the weight and the bias say.
Fault find_rows(const Shape& shape, const Tensor* weight, const Tensor* bias, Rows* rows) {
  if (shape.empty() || !is_number(weight) || (bias && !is_number(bias))) return lacking();
  rows->width = std::size_t(shape.back());
  rows->count = product(shape, 0, shape.size() - 1);
  for (const Tensor* of_row : {weight, bias})
    if (of_row && entries_of(*of_row) != rows->width) return fault("its weight or bias is of another width");
  rows->weight = weight->as<const float>();
  rows->bias = bias ? bias->as<const float>() : nullptr;
  return {};
}

Fault norm(const Call& call, bool centered) {
  const Tensor* x = call.input(0);
  if (!is_number(x)) return lacking();
  if (settled_axis(call.node.integer("axis", -1), x->shape.size()) != int64_t(x->shape.size()) - 1)
    return fault("only norms of the last axis are known here");
  Rows rows;
  rows.centered = centered;
  rows.epsilon = epsilon_of(call.node, kEpsilon);
  if (Fault wrong = find_rows(x->shape, call.input(1), call.input(2), &rows)) return wrong;
  Fault wrong;
  Tensor* y = call.output(0, ort::kFloat, x->shape, &wrong);
  if (y) norm_rows(call.pool, rows, x->as<const float>(), y->as<float>());
  return wrong;
}

// The norm of x + skip + bias, which is output 3; the outputs between are for training.
Fault skip_norm(const Call& call, const Tensor* norm_bias, const Tensor* bias, bool centered) {
  const Tensor *x = call.input(0), *skip = call.input(1);
  if (!is_number(x) || !is_number(skip) || (bias && !is_number(bias))) return lacking();
  Spread spread, of_bias;
  if (!spread.set(x->shape, skip->shape) || spread.shape != x->shape) return fault("its shapes do not fit");
  if (bias && (!of_bias.set(x->shape, bias->shape) || of_bias.shape != x->shape)) return fault("its bias does not fit");
  Rows rows;
  rows.centered = centered;
  rows.epsilon = epsilon_of(call.node, kSkipEpsilon);
  if (Fault wrong = find_rows(x->shape, call.input(2), norm_bias, &rows)) return wrong;
  Fault wrong;
  Tensor* y = call.output(0, ort::kFloat, x->shape, &wrong);
  if (wrong) return wrong;
  Tensor* kept = call.output(3, ort::kFloat, x->shape, &wrong);
  if (wrong) return wrong;
  std::vector<float> own(kept ? 0 : entries_of(*x));
  float* sum = kept ? kept->as<float>() : own.data();
  map_pairs(call.pool, Function::add, spread, x->as<const float>(), skip->as<const float>(), sum);
  if (bias) map_pairs(call.pool, Function::add, of_bias, sum, bias->as<const float>(), sum);
  if (y) norm_rows(call.pool, rows, sum, y->as<float>());
  return {};
}

}  // namespace

Fault rms_norm(const Call& call) { return norm(call, false); }
Fault layer_norm(const Call& call) { return norm(call, true); }
Fault skip_rms_norm(const Call& call) { return skip_norm(call, nullptr, call.input(3), false); }
Fault skip_layer_norm(const Call& call) { return skip_norm(call, call.input(3), call.input(4), true); }

}  // namespace edgeslim::builtin
