// edgeslim::CausalConv, version 1: a convolution of each channel over time, read from columns of a wider tensor.
//
// Inputs      x [B, T, X], weight [C, 1, K], bias? [C], past_state [B, C, K - 1]
// Outputs     y [B, T, C] of columns x_start … x_start + C of x, present_state [B, C, K - 1]: the last K - 1 inputs
// Attributes  x_start; activation "silu" | "none"
#include "core/buffer.h"
#include "ort/op.h"
#include "state_space/run.h"

namespace edgeslim::ort {
namespace {

enum Input { kX, kWeight, kBias, kPast, kInputs };

struct CausalConv {
  static constexpr const char* kName = "CausalConv";
  static constexpr std::size_t kInputCount = kInputs, kOutputCount = 2;
  static ElementType input_type(std::size_t) { return kFloat; }
  static bool optional(std::size_t index) { return index == kBias; }
  static ElementType output_type(std::size_t) { return kFloat; }

  CausalConv(const Api* api, const KernelInfo* info, Fault* wrong) : runtime(api) {
    x_start = runtime.integer(info, "x_start", 0);
    silu = runtime.says(info, "activation", "silu");
    if (x_start < 0) *wrong = fault("x_start must not be negative");
    if (!silu && !runtime.says(info, "activation", "none")) *wrong = fault("activation must be silu or none");
    const Tensor weight = runtime.constant(info, kWeight, wrong);
    if (*wrong || !weight) return;
    if ((*wrong = check_weight(weight))) return;
    if (!(taps = transposed(weight, &own))) *wrong = fault("out of memory");
  }

  static Fault check_weight(const Tensor& weight) {
    if (weight.shape.size() != 3 || weight.shape[1] != 1 || weight.shape[0] < 1 || weight.shape[2] < 1 ||
        weight.shape[2] > kMostTaps)
      return fault("weight must have shape [channels, 1, 1 to %lld]", (long long)kMostTaps);
    return {};
  }

  // [C, 1, K] as [K, C].
  static const float* transposed(const Tensor& weight, Buffer* memory) {
    const int64_t channels = weight.shape[0], width = weight.shape[2];
    float* to = memory->of<float>(channels * width);
    for (int64_t i = 0; to && i < channels; ++i)
      for (int64_t j = 0; j < width; ++j) to[j * channels + i] = weight.as<const float>()[i * width + j];
    return to;
  }

  Fault compute(KernelContext* context) const {
    thread_local Buffer memory;
    Fault wrong;
    const Tensor x = runtime.input(context, kX, &wrong), weight = runtime.input(context, kWeight, &wrong);
    const Tensor bias = runtime.input(context, kBias, &wrong), past = runtime.input(context, kPast, &wrong);
    if (wrong || (wrong = check_weight(weight)) || (wrong = check_shapes(x, weight, bias, past))) return wrong;
    Convolution c;
    c.tokens = x.shape[1];
    c.channels = weight.shape[0];
    c.width = weight.shape[2];
    const Tensor y = runtime.output(context, 0, {x.shape[0], c.tokens, c.channels}, &wrong);
    const Tensor present = runtime.output(context, 1, past.shape, &wrong);
    if (wrong) return wrong;
    c.x = x.as<const float>() + x_start;
    c.x_stride = x.shape[2];
    c.taps = taps ? taps : transposed(weight, &memory);
    if (!c.taps) return fault("out of memory");
    c.bias = bias ? bias.as<const float>() : nullptr;
    c.past = past.as<const float>();
    c.present = present.as<float>();
    c.y = y.as<float>();
    c.silu = silu;
    Runtime::Threads threads{&runtime, context};
    run_convolution(c, x.shape[0], chosen(), Runtime::pool(&threads));
    return {};
  }

  Fault check_shapes(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& past) const {
    const int64_t channels = weight.shape[0];
    if (x.shape.size() != 3 || x.shape[2] < channels || x_start > x.shape[2] - channels)
      return fault("x must have 3 dimensions and %lld columns from %lld on", (long long)channels, (long long)x_start);
    if (bias && (bias.shape.size() != 1 || bias.shape[0] != channels))
      return fault("bias must have %lld entries", (long long)channels);
    if (past.shape != std::vector<int64_t>{x.shape[0], channels, weight.shape[2] - 1})
      return fault("past_state must have shape [%lld, %lld, %lld]", (long long)x.shape[0], (long long)channels,
                   (long long)(weight.shape[2] - 1));
    return {};
  }

  Runtime runtime;
  Buffer own;
  const float* taps = nullptr;  // of a constant weight
  int64_t x_start = 0;
  bool silu = false;
};

}  // namespace

const CustomOp* causal_conv() { return op<CausalConv>(); }

}  // namespace edgeslim::ort
