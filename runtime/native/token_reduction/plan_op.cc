// edgeslim::PlanReduction, version 1: how many tokens each step of a token reduction removes from what is fed, and the
// positions of the tokens fed.
//
// Inputs      input_ids [B, N]; past float [...], a state from before, empty or zero where a sequence begins; ratios
//             int64 [S], the shares that steps keep, in millionths; attention_mask? [B, P + N]
// Outputs     removed int64 [S], zeros unless a sequence begins with enough tokens; positions int64 [B, N]: P, P + 1, …
// Attributes  protected, tokens that take no part; min_tokens
#include <algorithm>

#include "ort/op.h"

namespace edgeslim::ort {
namespace {

enum Input { kIds, kPast, kRatios, kMask, kInputs };

constexpr int64_t kMillion = 1000000, kMostTokens = int64_t{1} << 40;

struct PlanReduction {
  static constexpr const char* kName = "PlanReduction";
  static constexpr std::size_t kInputCount = kInputs, kOutputCount = 2;
  static ElementType input_type(std::size_t index) {
    static constexpr ElementType types[] = {kUndefined, kFloat, kInt64, kUndefined};
    return types[index];
  }
  static bool optional(std::size_t index) { return index == kMask; }
  static ElementType output_type(std::size_t) { return kInt64; }

  PlanReduction(const Api* api, const KernelInfo* info, Fault* wrong) : runtime(api) {
    protected_tokens = runtime.integer(info, "protected", 0);
    min_tokens = runtime.integer(info, "min_tokens", 1);
    if (protected_tokens < 0 || protected_tokens > kMostTokens) *wrong = fault("protected must not be negative");
  }

  Fault compute(KernelContext* context) const {
    Fault wrong;
    const Tensor ids = runtime.input(context, kIds, &wrong), past = runtime.input(context, kPast, &wrong);
    const Tensor ratios = runtime.input(context, kRatios, &wrong), mask = runtime.input(context, kMask, &wrong);
    if (wrong) return wrong;
    if (ids.shape.size() != 2 || ratios.shape.size() != 1 || ids.shape[1] > kMostTokens)
      return fault("input_ids must have 2 dimensions, ratios one");
    const int64_t tokens = ids.shape[1], before = mask && mask.shape.size() == 2 ? mask.shape[1] - tokens : 0;
    if (before < 0) return fault("attention_mask must count the tokens before these, and these");
    const Tensor removed = runtime.output(context, 0, ratios.shape, &wrong);
    const Tensor positions = runtime.output(context, 1, ids.shape, &wrong);
    if (wrong) return wrong;
    for (int64_t i = 0; i < ids.count(); ++i) positions.as<int64_t>()[i] = before + i % tokens;
    const bool reduces = tokens > std::max<int64_t>(1, min_tokens - 1) && begins(past);
    int64_t left = tokens;
    for (int64_t step = 0; step < ratios.count(); ++step) {
      const int64_t ratio = ratios.as<const int64_t>()[step];
      if (ratio < 0 || ratio > kMillion) return fault("ratios must be in [0, 1000000], got %lld", (long long)ratio);
      const int64_t gone = reduces ? removed_of(left, ratio) : 0;
      removed.as<int64_t>()[step] = gone;
      left -= gone;
    }
    return {};
  }

  // N - ceil(N ratio), at most half of what may go.
  int64_t removed_of(int64_t tokens, int64_t ratio) const {
    const int64_t keep = tokens / kMillion * ratio + (tokens % kMillion * ratio + kMillion - 1) / kMillion;
    return std::min(tokens - keep, std::max<int64_t>(0, tokens - protected_tokens) / 2);
  }

  static bool begins(const Tensor& past) {
    const float* x = past.as<const float>();
    return std::all_of(x, x + past.count(), [](float value) { return value == 0; });
  }

  Runtime runtime;
  int64_t protected_tokens = 0, min_tokens = 1;
};

}  // namespace

const CustomOp* plan_reduction() { return op<PlanReduction>(); }

}  // namespace edgeslim::ort
