// edgeslim::StateSpaceScan, version 1: the recurrence of Mamba-2 from the convolution's output to the gated norm.
//
//   step = softplus(dt + dt_bias);  S = exp(-step exp(A_log)) S + b (step x)^T;  y = c^T S + D x
// Inputs      xbc [B, T, H P + 2 G N]: x, b and c; dt [B, T, X]; dt_bias, A_log, D [H]; past_state [B, H, N, P]
// Outputs     y [B, T, H P], present_state [B, H, N, P]
// Attributes  num_heads H, head_size P, state_size N, groups G; dt_start: the H columns of dt that are read
#include "ort/op.h"
#include "state_space/run.h"

namespace edgeslim::ort {
namespace {

enum Input { kXbc, kDt, kDtBias, kALog, kSkip, kPast, kInputs };
constexpr int64_t kMost = int64_t{1} << 20;  // bounds each attribute, so that no product overflows

struct StateSpaceScan {
  static constexpr const char* kName = "StateSpaceScan";
  static constexpr std::size_t kInputCount = kInputs, kOutputCount = 2;
  static ElementType input_type(std::size_t) { return kFloat; }
  static bool optional(std::size_t) { return false; }
  static ElementType output_type(std::size_t) { return kFloat; }

  StateSpaceScan(const Api* api, const KernelInfo* info, Fault* wrong) : runtime(api) {
    heads = runtime.integer(info, "num_heads", 0);
    head_size = runtime.integer(info, "head_size", 0);
    state_size = runtime.integer(info, "state_size", 0);
    groups = runtime.integer(info, "groups", 1);
    dt_start = runtime.integer(info, "dt_start", 0);
    own_threads = runtime.own_threads(info);
    for (int64_t size : {heads, head_size, state_size, groups})
      if (size < 1 || size > kMost)
        *wrong = fault("num_heads, head_size, state_size and groups must be in [1, 2^20], got %lld", (long long)size);
    if (!*wrong && heads % groups)
      *wrong = fault("num_heads must be a multiple of groups, got %lld and %lld", (long long)heads, (long long)groups);
    if (dt_start < 0) *wrong = fault("dt_start must not be negative");
  }

  Fault compute(KernelContext* context) const {
    Fault wrong;
    const Tensor xbc = runtime.input(context, kXbc, &wrong), dt = runtime.input(context, kDt, &wrong);
    const Tensor dt_bias = runtime.input(context, kDtBias, &wrong), a_log = runtime.input(context, kALog, &wrong);
    const Tensor skip = runtime.input(context, kSkip, &wrong), past = runtime.input(context, kPast, &wrong);
    if (wrong || (wrong = check_rows(xbc, dt)) || (wrong = check_state(xbc, past))) return wrong;
    for (const Tensor* one : {&dt_bias, &a_log, &skip})
      if (one->shape.size() != 1 || one->shape[0] != heads)
        return fault("dt_bias, A_log and D must have %lld entries", (long long)heads);
    ScanCall c;
    c.batch = xbc.shape[0];
    c.tokens = xbc.shape[1];
    const Tensor y = runtime.output(context, 0, {c.batch, c.tokens, heads * head_size}, &wrong);
    const Tensor present = runtime.output(context, 1, past.shape, &wrong);
    if (wrong) return wrong;
    c.xbc = xbc.as<const float>();
    c.dt = dt.as<const float>() + dt_start;
    c.dt_stride = dt.shape[2];
    c.dt_bias = dt_bias.as<const float>();
    c.a_log = a_log.as<const float>();
    c.skip = skip.as<const float>();
    c.past = past.as<const float>();
    c.present = present.as<float>();
    c.y = y.as<float>();
    c.heads = heads;
    c.groups = groups;
    c.state_size = state_size;
    c.head_size = head_size;
    Runtime::Threads threads{&runtime, context};
    run_scan(c, chosen(), Runtime::pool(&threads, own_threads));
    return {};
  }

  Fault check_rows(const Tensor& xbc, const Tensor& dt) const {
    const int64_t columns = heads * head_size + 2 * groups * state_size;
    if (xbc.shape.size() != 3 || xbc.shape[2] != columns)
      return fault("xbc must have 3 dimensions and %lld columns", (long long)columns);
    if (dt.shape.size() != 3 || dt.shape[0] != xbc.shape[0] || dt.shape[1] != xbc.shape[1] || dt.shape[2] < heads ||
        dt_start > dt.shape[2] - heads)
      return fault("dt must have the rows of xbc and %lld columns from %lld on", (long long)heads,
                   (long long)dt_start);
    return {};
  }

  Fault check_state(const Tensor& xbc, const Tensor& past) const {
    if (past.shape != std::vector<int64_t>{xbc.shape[0], heads, state_size, head_size})
      return fault("past_state must have shape [%lld, %lld, %lld, %lld]", (long long)xbc.shape[0], (long long)heads,
                   (long long)state_size, (long long)head_size);
    return {};
  }

  Runtime runtime;
  int64_t heads = 0, head_size = 0, state_size = 0, groups = 0, dt_start = 0, own_threads = 0;
};

}  // namespace

const CustomOp* state_space_scan() { return op<StateSpaceScan>(); }

}  // namespace edgeslim::ort
