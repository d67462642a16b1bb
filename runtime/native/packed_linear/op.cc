// edgeslim::PackedLinear, version 1.
//
// y [..., n] = prologue(x) Wᵀ + bias + residual
//   t = x[..., x_start : x_start + k];  with gate: t *= function(gate[..., gate_start : gate_start + k])
//   without gate, with function: t = function(t);  with norm: t = t / sqrt(mean(t²) + epsilon) * norm
// Inputs      x, values, scales?, masks?, offsets?, bias? [n], gate? [..., G], norm? [k], residual? [..., n]
// Attributes  layout "dense" | "bitmap" | "nm"; n, k, bits, group, pattern_n, pattern_m: see layout.h;
//             activations "int8" (one symmetric scale a token) | "float"; x_start, gate_start; epsilon;
//             function? "silu" (of a gate also where it is absent) | "gelu" | "gelu_tanh" | "relu" | "relu_squared"; ONNX
//             calls gelu's approximate "none" and "tanh"
#include "ort/op.h"
#include "ort/packed_input.h"
#include "packed_linear/linear.h"

namespace edgeslim::ort {
namespace {

enum Input { kX, kValues, kScales, kMasks, kOffsets, kBias, kGate, kNorm, kResidual, kInputs };

struct PackedLinear {
  static constexpr const char* kName = "PackedLinear";
  static constexpr std::size_t kInputCount = kInputs, kOutputCount = 1;
  static ElementType input_type(std::size_t index) {
    static constexpr ElementType types[] = {kFloat, kUndefined, kUndefined, kUint8, kInt64, kFloat, kFloat, kFloat, kFloat};
    return types[index];
  }
  static bool optional(std::size_t index) { return index > kValues; }
  static ElementType output_type(std::size_t) { return kFloat; }

  PackedLinear(const Api* api, const KernelInfo* info, Fault* wrong) : runtime(api) {
    if ((*wrong = read_packed(runtime, info, kValues, &w))) return;
    x_start = runtime.integer(info, "x_start", 0);
    gate_start = runtime.integer(info, "gate_start", 0);
    epsilon = runtime.number(info, "epsilon", 0);
    activations = runtime.says(info, "activations", "float") ? Activations::single : Activations::int8;
    own_threads = runtime.own_threads(info);
    if (runtime.has_text(info, "function")) {
      function = find_function([&](const char* name) { return runtime.says(info, "function", name); });
      if (!function) *wrong = unknown_function();
    }
    if (x_start < 0 || gate_start < 0) *wrong = fault("x_start and gate_start must not be negative");
  }

  Fault compute(KernelContext* context) const {
    Fault wrong;
    const Tensor x = runtime.input(context, kX, &wrong), bias = runtime.input(context, kBias, &wrong);
    const Tensor gate = runtime.input(context, kGate, &wrong), norm = runtime.input(context, kNorm, &wrong);
    const Tensor residual = runtime.input(context, kResidual, &wrong);
    if (wrong) return wrong;
    if (x.shape.empty() || x_start > x.last() - w.k)
      return fault("x must have %lld columns from %lld on, it has %lld", (long long)w.k, (long long)x_start, (long long)x.last());
    const int64_t tokens = x.last() ? x.count() / x.last() : 0;
    if (gate && (gate.shape.empty() || gate_start > gate.last() - w.k || gate.count() != tokens * gate.last()))
      return fault("gate must have %lld rows and %lld columns from %lld on", (long long)tokens, (long long)w.k,
                   (long long)gate_start);
    if (bias && bias.count() != w.n) return fault("bias must have %lld entries", (long long)w.n);
    if (norm && norm.count() != w.k) return fault("norm must have %lld entries", (long long)w.k);
    if (residual && residual.count() != tokens * w.n) return fault("residual must have the shape of the output");
    std::vector<int64_t> shape = x.shape;
    shape.back() = w.n;
    const Tensor y = runtime.output(context, 0, shape, &wrong);
    if (wrong) return wrong;
    const Prologue in{x.as<const float>() + x_start,
                      x.last(),
                      gate ? gate.as<const float>() + gate_start : nullptr,
                      gate ? gate.last() : 0,
                      norm ? norm.as<const float>() : nullptr,
                      epsilon,
                      applied(function, bool(gate))};
    const Output out{y.as<float>(), w.n, bias ? bias.as<const float>() : nullptr,
                     residual ? residual.as<const float>() : nullptr, w.n};
    Runtime::Threads threads{&runtime, context};
    if (!run_linear(w, chosen(), activations, in, tokens, out, Runtime::pool(&threads, own_threads)))
      return fault("out of memory");
    return {};
  }

  Runtime runtime;
  Packed w;
  Activations activations = Activations::int8;
  const Function* function = nullptr;
  int64_t x_start = 0, gate_start = 0, own_threads = 0;
  float epsilon = 0;
};

}  // namespace

const CustomOp* packed_linear() { return op<PackedLinear>(); }

}  // namespace edgeslim::ort
