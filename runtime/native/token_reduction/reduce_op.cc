// edgeslim::ReduceTokens, version 1: the sum of a block's branch and residual, of the tokens that a step of a token
// reduction leaves. See step.h for the letters.
//
// Inputs      branch [B, N, H]; residual? [B, N, H]; removed int64 [steps]; positions int64 [B, N];
//             y? [B, N, D], what a mixer gives; query? [B, N, Q d] and key? [B, N, G d] before rotation, or query alone
//             [B, N, (Q + 2 G) d]; present_key? [B, G, N, d]; cos?, sin? [L, d / 2]. Method and metric say which.
// Outputs     total [B, K, H], positions of the tokens left int64 [B, K]; K = N - removed[step]
// Attributes  method, metric, hidden, residual, merge, q_millionths, protect_first, protect_last, seed, layer: as the
//             plan in config.json has them; step; num_heads, kv_num_heads, head_size, scale, local_window_size
#include <algorithm>
#include <initializer_list>

#include "ort/op.h"
#include "token_reduction/step.h"

namespace edgeslim::ort {
namespace {

enum Input { kBranch, kResidual, kRemoved, kPositions, kY, kQuery, kKey, kPresentKey, kCosine, kSine, kInputs };

constexpr int64_t kMillion = 1000000, kMost = int64_t{1} << 31;

struct ReduceTokens {
  static constexpr const char* kName = "ReduceTokens";
  static constexpr std::size_t kInputCount = kInputs, kOutputCount = 2;
  static ElementType input_type(std::size_t index) { return index == kRemoved || index == kPositions ? kInt64 : kFloat; }
  static bool optional(std::size_t index) { return index == kResidual || index > kPositions; }
  static ElementType output_type(std::size_t index) { return index ? kInt64 : kFloat; }

  ReduceTokens(const Api* api, const KernelInfo* info, Fault* wrong) : runtime(api) {
    const auto index_of = [&](const char* name, std::initializer_list<const char*> choices) {
      int index = 0;
      for (const char* choice : choices) {
        if (runtime.says(info, name, choice)) return index;
        ++index;
      }
      *wrong = fault("attribute %s is not known here", name);
      return 0;
    };
    r.method = Method(index_of("method", {"utrc", "evit", "pumer", "ltmp", "random", "truncate", "official-code"}));
    r.metric = Metric(index_of("metric", {"clip", "l1", "l2", "none", "attention", "key-norm"}));
    r.hidden = Rule(index_of("hidden", {"hybrid", "merge", "prune"}));
    r.residual = Rule(index_of("residual", {"hybrid", "merge", "prune"}));
    r.pairwise = index_of("merge", {"pairwise", "mean"}) == 0;
    r.q_millionths = runtime.integer(info, "q_millionths", 0);
    r.protect_first = runtime.integer(info, "protect_first", 0);
    r.protect_last = runtime.integer(info, "protect_last", 0);
    r.seed = runtime.integer(info, "seed", 0);
    r.layer = runtime.integer(info, "layer", 0);
    r.heads = runtime.integer(info, "num_heads", 0);
    r.kv_heads = runtime.integer(info, "kv_num_heads", 0);
    r.head_size = runtime.integer(info, "head_size", 0);
    r.window = runtime.integer(info, "local_window_size", -1);
    r.scale = runtime.number(info, "scale", 0);
    step = runtime.integer(info, "step", 0);
    const bool heads = r.heads >= 0 && r.heads <= 65536 && r.kv_heads >= 0 && r.kv_heads <= 65536 && r.head_size >= 0 && r.head_size <= 65536;
    if (!*wrong && (!heads || (r.kv_heads ? r.heads % r.kv_heads : r.heads)))
      *wrong = fault("num_heads must be a multiple of kv_num_heads");
    if (r.q_millionths < 0 || r.q_millionths > kMillion || r.protect_first < 0 || r.protect_first > 1 ||
        r.protect_last < 0 || r.protect_last > kMost || step < 0)
      *wrong = fault("q_millionths, protect_first, protect_last or step is out of range");
  }

  Fault compute(KernelContext* context) const {
    Fault wrong;
    Given g;
    for (std::size_t i = 0; i < kInputs; ++i) g.inputs[i] = runtime.input(context, i, &wrong);
    if (wrong || (wrong = read_shapes(&g))) return wrong;
    if (g.count && (wrong = read_seen(&g))) return wrong;
    const Tensor total = runtime.output(context, 0, {g.batch, g.tokens - g.count, g.channels}, &wrong);
    const Tensor left = runtime.output(context, 1, {g.batch, g.tokens - g.count}, &wrong);
    if (wrong) return wrong;
    Runtime::Threads threads{&runtime, context};
    const Pool pool = Runtime::pool(&threads);
    if (!g.count) return keep_all(g, total, left);
    for (int64_t b = 0; b < g.batch; ++b)
      if (!reduce(g, b, total, left, pool)) return fault("out of memory");
    return {};
  }

  struct Given {
    Tensor inputs[kInputs];
    int64_t batch = 0, tokens = 0, channels = 0, count = 0;
    bool packed = false;  // query holds keys and values too

    const float* floats(Input index) const { return inputs[index].as<const float>(); }
    const int64_t* positions() const { return inputs[kPositions].as<const int64_t>(); }
  };

  Fault read_shapes(Given* g) const {
    const Tensor &branch = g->inputs[kBranch], &residual = g->inputs[kResidual], &removed = g->inputs[kRemoved];
    if (branch.shape.size() != 3 || (residual && residual.shape != branch.shape))
      return fault("branch and residual must have 3 equal dimensions");
    g->batch = branch.shape[0];
    g->tokens = branch.shape[1];
    g->channels = branch.shape[2];
    if (g->inputs[kPositions].shape != std::vector<int64_t>{g->batch, g->tokens})
      return fault("positions must have one entry a token");
    if (removed.shape.size() != 1 || step >= removed.shape[0]) return fault("removed has no entry for this step");
    g->count = removed.as<const int64_t>()[step];
    if (g->count < 0 || g->count > r.unprotected(g->tokens) / 2)
      return fault("%lld of %lld tokens cannot be removed", (long long)g->count, (long long)g->tokens);
    const bool mixes = r.method != Method::truncate && r.method != Method::evit && r.method != Method::random;
    return mixes && !residual ? fault("this method needs a residual") : Fault{};
  }

  // That what the method looks at is there, with the shapes that follow from the attributes.
  Fault read_seen(Given* g) const {
    const auto is = [&](Input index, const std::vector<int64_t>& shape) { return g->inputs[index] && g->inputs[index].shape == shape; };
    const int64_t heads = r.heads * r.head_size, keys = r.kv_heads * r.head_size;
    const bool ranks_keys = r.ranks() && (r.metric == Metric::attention || r.metric == Metric::key_norm);
    const bool attends = r.kv_heads > 0, needs_keys = ranks_keys || (r.compares() && attends);
    const Tensor& y = g->inputs[kY];
    if ((r.ranks() && !ranks_keys) || (r.compares() && !attends))
      if (!y || y.shape.size() != 3 || y.shape[0] != g->batch || y.shape[1] != g->tokens || y.shape[2] < 1)
        return fault("y must have one row a token");
    if (!needs_keys) return {};
    g->packed = !g->inputs[kKey];
    if (heads < 1 || keys < 1 || !is(kQuery, {g->batch, g->tokens, g->packed ? heads + 2 * keys : heads}) ||
        (!g->packed && !is(kKey, {g->batch, g->tokens, keys})))
      return fault("query and key must have the widths that the heads say");
    return ranks_keys && r.metric == Metric::attention ? read_attention(*g) : Fault{};
  }

  Fault read_attention(const Given& g) const {
    const Tensor &present = g.inputs[kPresentKey], &cosine = g.inputs[kCosine], &sine = g.inputs[kSine];
    if (!present || present.shape != std::vector<int64_t>{g.batch, r.kv_heads, g.tokens, r.head_size})
      return fault("present_key must hold the keys of these tokens");
    if (!cosine || cosine.shape.size() != 2 || !sine || sine.shape != cosine.shape || 2 * cosine.shape[1] != r.head_size)
      return fault("cos and sin must have 2 dimensions, half a head wide");
    const int64_t* positions = g.positions();
    for (int64_t i = 0; i < g.batch * g.tokens; ++i)
      if (positions[i] < 0 || positions[i] >= cosine.shape[0]) return fault("a position is beyond cos and sin");
    return {};
  }

  static Fault keep_all(const Given& g, const Tensor& total, const Tensor& left) {
    const float *branch = g.floats(kBranch), *residual = g.floats(kResidual);
    float* out = total.as<float>();
    const int64_t count = g.batch * g.tokens * g.channels;
    if (residual)
      for (int64_t i = 0; i < count; ++i) out[i] = branch[i] + residual[i];
    else
      std::copy_n(branch, count, out);
    std::copy_n(g.positions(), g.batch * g.tokens, left.as<int64_t>());
    return {};
  }

  bool reduce(const Given& g, int64_t b, const Tensor& total, const Tensor& left, const Pool& pool) const {
    const auto rows = [&](Input index, int64_t first, int64_t width) {
      const Tensor& x = g.inputs[index];
      const int64_t stride = x ? x.last() : 0;
      return x ? Rows{x.as<const float>() + b * g.tokens * stride + first, stride, width} : Rows{};
    };
    const int64_t heads = r.heads * r.head_size, keys = r.kv_heads * r.head_size;
    Seen seen;
    seen.tokens = g.tokens;
    seen.y = rows(kY, 0, g.inputs[kY].last());
    seen.queries = rows(kQuery, 0, heads);
    seen.keys = g.packed ? rows(kQuery, heads, keys) : rows(kKey, 0, keys);
    seen.present_key = g.inputs[kPresentKey] ? g.floats(kPresentKey) + b * keys * g.tokens : nullptr;
    seen.cosine = g.floats(kCosine);
    seen.sine = g.floats(kSine);
    seen.positions = g.positions() + b * g.tokens;
    Chosen chosen;
    if (!choose_tokens(r, seen, g.count, &chosen, pool)) return false;
    const int64_t row = g.tokens * g.channels, kept = g.tokens - g.count;
    const float* residual = g.floats(kResidual);
    mix_rows(chosen, g.tokens, g.channels, g.floats(kBranch) + b * row, residual ? residual + b * row : nullptr,
             total.as<float>() + b * kept * g.channels, pool);
    for (int64_t k = 0; k < kept; ++k) left.as<int64_t>()[b * kept + k] = seen.positions[chosen.kept[std::size_t(k)]];
    return true;
  }

  Runtime runtime;
  Reduction r;
  int64_t step = 0;
};

}  // namespace

const CustomOp* reduce_tokens() { return op<ReduceTokens>(); }

}  // namespace edgeslim::ort
