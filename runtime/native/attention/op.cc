// edgeslim::GroupQueryAttention, version 1: what com.microsoft::GroupQueryAttention computes of packed queries, keys and
// values with a cache in float32, in less time for one token.
//
// Inputs      qkv [B, T, (H + 2 N) D], key (absent), value (absent), past_key [B, N, P, D], past_value,
//             seqlens_k int32 [B] (S - 1), total_sequence_length int32, cos_cache?, sin_cache? [positions, rotary / 2],
//             position_ids? int64 [B, T]: what queries and keys are rotated by; absent: their places in the cache,
//             query_norm? [D] or [H D], key_norm? [D] or [N D]: t / rms(t) * norm over each head or over all of a token's,
//             before the rotation
// Outputs     out [B, T, H D], present_key, present_value [B, N, max(P, S), D]
// Attributes  num_heads, kv_num_heads, scale, do_rotary, rotary_interleaved, local_window_size, softcap: as in
//             com.microsoft; norm_epsilon: added to the mean square, 1e-5 where it is not there
#include <algorithm>
#include <cmath>

#include "attention/run.h"
#include "ort/op.h"

namespace edgeslim::ort {
namespace {

enum Input {
  kQkv, kKey, kValue, kPastKey, kPastValue, kSequenceLengths, kTotalLength, kCosine, kSine, kPositions, kQueryNorm, kKeyNorm, kInputs
};

struct GroupQueryAttention {
  static constexpr const char* kName = "GroupQueryAttention";
  static constexpr std::size_t kInputCount = kInputs, kOutputCount = 3;
  static ElementType input_type(std::size_t index) {
    if (index == kPositions) return kInt64;
    return index == kSequenceLengths || index == kTotalLength ? kInt32 : kFloat;
  }
  static bool optional(std::size_t index) { return index == kKey || index == kValue || index >= kCosine; }
  static ElementType output_type(std::size_t) { return kFloat; }

  GroupQueryAttention(const Api* api, const KernelInfo* info, Fault* wrong) : runtime(api) {
    heads = runtime.integer(info, "num_heads", 0);
    kv_heads = runtime.integer(info, "kv_num_heads", 0);
    window = std::max<int64_t>(0, runtime.integer(info, "local_window_size", -1));
    rotary = runtime.integer(info, "do_rotary", 0) != 0;
    interleaved = runtime.integer(info, "rotary_interleaved", 0) != 0;
    scale = runtime.number(info, "scale", 0);
    softcap = runtime.number(info, "softcap", 0);
    epsilon = runtime.number(info, "norm_epsilon", 1e-5f);
    if (heads < 1 || kv_heads < 1 || heads % kv_heads || heads > 65536)
      *wrong = fault("num_heads must be a multiple of kv_num_heads, got %lld and %lld", (long long)heads,
                     (long long)kv_heads);
  }

  Fault compute(KernelContext* context) const {
    Fault wrong;
    const Tensor qkv = runtime.input(context, kQkv, &wrong);
    const Tensor past_key = runtime.input(context, kPastKey, &wrong);
    const Tensor past_value = runtime.input(context, kPastValue, &wrong);
    const Tensor lengths = runtime.input(context, kSequenceLengths, &wrong);
    const Tensor total = runtime.input(context, kTotalLength, &wrong);
    const Tensor cosine = runtime.input(context, kCosine, &wrong), sine = runtime.input(context, kSine, &wrong);
    const Tensor positions = runtime.input(context, kPositions, &wrong);
    const Tensor query_norm = runtime.input(context, kQueryNorm, &wrong), key_norm = runtime.input(context, kKeyNorm, &wrong);
    if (wrong) return wrong;
    AttentionCall c;
    if ((wrong = read_shapes(qkv, past_key, past_value, &c))) return wrong;
    if (total.count() != 1 || lengths.count() != c.batch) return fault("one total length and B lengths are expected");
    const int64_t longest = *total.as<int32_t>();
    std::vector<int64_t> past;
    if ((wrong = read_past(c, lengths, longest, &past))) return wrong;
    if ((wrong = read_norm("query_norm", query_norm, c.head_size, heads, &c.query_norm))) return wrong;
    if ((wrong = read_norm("key_norm", key_norm, c.head_size, kv_heads, &c.key_norm))) return wrong;
    if (rotary && (wrong = read_rotary(cosine, sine, positions, longest, &c))) return wrong;
    c.past = past.data();
    c.room = std::max(c.past_room, longest);
    const Tensor out = runtime.output(context, 0, {c.batch, c.tokens, c.heads * c.head_size}, &wrong);
    const std::vector<int64_t> cache{c.batch, c.kv_heads, c.room, c.head_size};
    const Tensor key = runtime.output(context, 1, cache, &wrong), value = runtime.output(context, 2, cache, &wrong);
    if (wrong) return wrong;
    c.qkv = qkv.as<const float>();
    c.past_key = past_key.as<const float>();
    c.past_value = past_value.as<const float>();
    c.out = out.as<float>();
    c.present_key = key.as<float>();
    c.present_value = value.as<float>();
    Runtime::Threads threads{&runtime, context};
    if (c.batch && c.tokens && !run_attention(c, chosen(), Runtime::pool(&threads))) return fault("out of memory");
    return {};
  }

  Fault read_shapes(const Tensor& qkv, const Tensor& key, const Tensor& value, AttentionCall* c) const {
    if (qkv.shape.size() != 3 || key.shape.size() != 4 || value.shape != key.shape || key.shape[1] != kv_heads)
      return fault("qkv must have 3 dimensions, past_key and past_value 4 equal ones");
    c->batch = qkv.shape[0];
    c->tokens = qkv.shape[1];
    c->heads = heads;
    c->kv_heads = kv_heads;
    c->head_size = key.shape[3];
    c->past_room = key.shape[2];
    c->window = window;
    c->interleaved = interleaved;
    c->epsilon = epsilon;
    c->softcap = softcap;
    c->scale = scale != 0 ? scale : 1.0f / std::sqrt(float(std::max<int64_t>(1, c->head_size)));
    if (key.shape[0] != c->batch || qkv.shape[2] != (heads + 2 * kv_heads) * c->head_size || c->head_size < 1)
      return fault("qkv must have (num_heads + 2 kv_num_heads) head sizes, past_key the same batch");
    return {};
  }

  static Fault read_norm(const char* name, const Tensor& given, int64_t head_size, int64_t count, HeadNorm* norm) {
    if (!given) return {};
    norm->size = given.last();
    if (given.shape.size() != 1 || (norm->size != head_size && norm->size != count * head_size))
      return fault("%s must have one dimension of %lld or %lld entries, a head's or all heads'", name, (long long)head_size,
                   (long long)(count * head_size));
    norm->weight = given.as<const float>();
    return {};
  }

  // Where each sequence's new tokens begin: at 0 in a first prompt, else before the end that its length says.
  Fault read_past(const AttentionCall& c, const Tensor& lengths, int64_t longest, std::vector<int64_t>* past) const {
    const bool first = c.tokens == longest;
    for (int64_t b = 0; b < c.batch; ++b) {
      const int64_t before = first ? 0 : int64_t(lengths.as<int32_t>()[b]) + 1 - c.tokens;
      if (before < 0 || before > c.past_room || before + c.tokens > longest)
        return fault("sequence %lld has %lld tokens before these %lld, of %lld in all", (long long)b,
                     (long long)before, (long long)c.tokens, (long long)longest);
      past->push_back(before);
    }
    return {};
  }

  Fault read_rotary(const Tensor& cosine, const Tensor& sine, const Tensor& positions, int64_t longest,
                    AttentionCall* c) const {
    if (positions) {
      if (positions.count() != c->batch * c->tokens) return fault("position_ids must have one entry a token");
      c->positions = positions.as<int64_t>();
      longest = 0;
      for (int64_t i = 0; i < positions.count(); ++i) {
        if (c->positions[i] < 0) return fault("position_ids must not be negative");
        longest = std::max(longest, c->positions[i] + 1);
      }
    }
    if (cosine.shape.size() != 2 || sine.shape != cosine.shape || cosine.shape[0] < longest)
      return fault("cos_cache and sin_cache must have 2 dimensions and at least %lld positions", (long long)longest);
    c->rotary = 2 * cosine.shape[1];
    if (c->rotary < 2 || c->rotary > c->head_size) return fault("cos_cache must not be wider than half a head");
    c->cosine = cosine.as<const float>();
    c->sine = sine.as<const float>();
    return {};
  }

  Runtime runtime;
  int64_t heads = 0, kv_heads = 0, window = 0;
  bool rotary = false, interleaved = false;
  float scale = 0, softcap = 0, epsilon = 0;
};

}  // namespace

const CustomOp* group_query_attention() { return op<GroupQueryAttention>(); }

}  // namespace edgeslim::ort
