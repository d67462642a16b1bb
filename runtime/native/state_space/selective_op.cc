// edgeslim::SelectiveScan, version 1: the recurrence of Mamba-1 from the convolution's output to the gate.
//
//   d = softplus(dt + dt_bias);  S = exp(-d exp(A_log)) S + d x b;  y = c·S + D x;  with gate: y *= silu(gate)
// Inputs      x [B, T, X], dt [B, T, Y], dt_bias [C], A_log [C, N], D [C], b [B, T, V], c [B, T, W],
//             past_state [B, C, N, 1], gate? [B, T, Z]
// Outputs     y [B, T, C], present_state [B, C, N, 1]
// Attributes  x_start, dt_start, b_start, c_start, gate_start: of C, C, N, N and C columns the first that is read
#include "core/buffer.h"
#include "ort/op.h"
#include "state_space/run.h"

namespace edgeslim::ort {
namespace {

enum Input { kX, kStep, kStepBias, kALog, kSkip, kB, kC, kPast, kGate, kInputs };

struct SelectiveScanOp {
  static constexpr const char* kName = "SelectiveScan";
  static constexpr std::size_t kInputCount = kInputs, kOutputCount = 2;
  static ElementType input_type(std::size_t) { return kFloat; }
  static bool optional(std::size_t index) { return index == kGate; }
  static ElementType output_type(std::size_t) { return kFloat; }

  SelectiveScanOp(const Api* api, const KernelInfo* info, Fault* wrong) : runtime(api) {
    for (const Part& part : kParts) {
      starts[part.input] = runtime.integer(info, part.attribute, 0);
      if (starts[part.input] < 0) *wrong = fault("%s must not be negative", part.attribute);
    }
    const Tensor a_log = runtime.constant(info, kALog, wrong);
    if (*wrong || !a_log) return;
    if ((*wrong = check_rates(a_log))) return;
    if (!(rate = rates(a_log, &own))) *wrong = fault("out of memory");
  }

  static Fault check_rates(const Tensor& a_log) {
    if (a_log.shape.size() != 2 || a_log.shape[0] < 1 || a_log.shape[1] < 1 || a_log.shape[1] > kMostState)
      return fault("A_log must have shape [channels, 1 to %lld]", (long long)kMostState);
    return {};
  }

  static const float* rates(const Tensor& a_log, Buffer* memory) {
    const int64_t channels = a_log.shape[0], size = a_log.shape[1];
    float* to = memory->of<float>(ceil_div(channels, 16) * 16 * size);
    if (to) find_rates(a_log.as<const float>(), channels, size, to);
    return to;
  }

  Fault compute(KernelContext* context) const {
    thread_local Buffer memory;
    Fault wrong;
    Tensor in[kInputs];
    for (std::size_t i = 0; i < kInputs; ++i) in[i] = runtime.input(context, i, &wrong);
    if (wrong || (wrong = check_rates(in[kALog])) || (wrong = check_shapes(in))) return wrong;
    edgeslim::SelectiveScan s;
    s.channels = in[kALog].shape[0];
    s.state_size = in[kALog].shape[1];
    s.tokens = in[kX].shape[1];
    const Tensor y = runtime.output(context, 0, {in[kX].shape[0], s.tokens, s.channels}, &wrong);
    const Tensor present = runtime.output(context, 1, in[kPast].shape, &wrong);
    if (wrong) return wrong;
    s.rate = rate ? rate : rates(in[kALog], &memory);
    if (!s.rate) return fault("out of memory");
    read(in[kX], kX, &s.x, &s.x_stride);
    read(in[kStep], kStep, &s.step, &s.step_stride);
    read(in[kB], kB, &s.b, &s.b_stride);
    read(in[kC], kC, &s.c, &s.c_stride);
    if (in[kGate]) read(in[kGate], kGate, &s.gate, &s.gate_stride);
    s.step_bias = in[kStepBias].as<const float>();
    s.skip = in[kSkip].as<const float>();
    s.past = in[kPast].as<const float>();
    s.present = present.as<float>();
    s.y = y.as<float>();
    Runtime::Threads threads{&runtime, context};
    run_selective_scan(s, in[kX].shape[0], chosen(), Runtime::pool(&threads));
    return {};
  }

  void read(const Tensor& tensor, Input input, const float** columns, int64_t* stride) const {
    *columns = tensor.as<const float>() + starts[input];
    *stride = tensor.shape[2];
  }

  Fault check_shapes(const Tensor* in) const {
    const int64_t channels = in[kALog].shape[0], size = in[kALog].shape[1];
    const std::vector<int64_t>& rows = in[kX].shape;
    for (const Part& part : kParts) {
      const std::vector<int64_t>& shape = in[part.input].shape;
      if (part.input == kGate && !in[kGate]) continue;
      const int64_t columns = part.is_state ? size : channels;
      if (shape.size() != 3 || shape[0] != rows[0] || shape[1] != rows[1] || shape[2] < columns ||
          starts[part.input] > shape[2] - columns)
        return fault("%s must have 3 dimensions, the rows of x, and %lld columns from %lld on", part.name,
                     (long long)columns, (long long)starts[part.input]);
    }
    for (const Tensor* one : {&in[kStepBias], &in[kSkip]})
      if (one->shape.size() != 1 || one->shape[0] != channels)
        return fault("dt_bias and D must have %lld entries", (long long)channels);
    if (in[kPast].shape != std::vector<int64_t>{rows[0], channels, size, 1})
      return fault("past_state must have shape [%lld, %lld, %lld, 1]", (long long)rows[0], (long long)channels,
                   (long long)size);
    return {};
  }

  struct Part {
    Input input;
    const char* name;
    const char* attribute;
    bool is_state;  // whether it has a column for each entry of a state, not for each channel
  };
  static constexpr Part kParts[] = {{kX, "x", "x_start", false},
                                    {kStep, "dt", "dt_start", false},
                                    {kB, "b", "b_start", true},
                                    {kC, "c", "c_start", true},
                                    {kGate, "gate", "gate_start", false}};

  Runtime runtime;
  Buffer own;
  const float* rate = nullptr;  // of a constant A_log
  int64_t starts[kInputs] = {0};
};

}  // namespace

const CustomOp* selective_scan() { return op<SelectiveScanOp>(); }

}  // namespace edgeslim::ort
