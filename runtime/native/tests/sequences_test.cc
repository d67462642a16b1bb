// Attention, convolution and scans of every variant against the scalar one, bit for bit; what they compute is tested from
// Python. How exact e^x and softplus are. A program of its own, so that it also runs where there is no Python: `sequences_test [--need ISA]`.
#include <cmath>
#include <cstdio>
#include <string>

#include "attention/run.h"
#include "state_space/functions.h"
#include "state_space/run.h"
#include "tests/packer.h"

namespace {

using namespace edgeslim;
using tests::Random;

using Outputs = std::vector<std::vector<float>>;

std::vector<float> random_floats(int64_t count, Random& random) {
  std::vector<float> made(std::size_t(count), 0.0f);
  for (float& one : made) one = random.value();
  return made;
}

bool same_bits(const Outputs& a, const Outputs& b) {
  for (std::size_t i = 0; i < a.size(); ++i)
    if (!a[i].empty() && std::memcmp(a[i].data(), b[i].data(), sizeof(float) * a[i].size())) return false;
  return true;
}

struct Count {
  int64_t passed = 0, failed = 0;
};

// Calls outputs(kernels) for every variant that runs here.
template <class F>
void compare(const char* what, const F& outputs, Count* count) {
  const Outputs expected = outputs(kScalar);
  for (const Kernels* const* one = variants(); *one; ++one) {
    if (!(*one)->available()) continue;
    const bool good = same_bits(outputs(**one), expected);
    ++(good ? count->passed : count->failed);
    if (!good && count->failed < 20) std::printf("%s: %s\n", (*one)->isa, what);
  }
}

// No norm, one of each head, one of all `heads`.
HeadNorm random_norm(const std::vector<float>& weight, int64_t heads, Random& random) {
  const int64_t kind = random.below(3), d = int64_t(weight.size()) / heads;
  return {kind ? weight.data() : nullptr, kind == 1 ? d : heads * d};
}

void attention_case(int64_t d, int64_t past, int64_t tokens, int64_t window, Random& random, Count* count) {
  AttentionCall c;
  c.batch = 1;
  c.tokens = tokens;
  c.heads = 4;
  c.kv_heads = 2;
  c.head_size = d;
  c.past_room = past;
  c.room = past + tokens;
  c.window = window;
  c.scale = 0.3f;
  c.softcap = random.below(2) ? 0.7f : 0;
  c.past = &past;
  c.rotary = random.below(2) ? d / 2 * 2 : 0;
  c.interleaved = random.below(2);
  const auto qkv = random_floats(tokens * 8 * d, random), keys = random_floats(2 * past * d, random);
  const auto values = random_floats(2 * past * d, random);
  const auto cosine = random_floats(c.room * c.rotary / 2, random), sine = random_floats(c.room * c.rotary / 2, random);
  const auto query_norm = random_floats(4 * d, random), key_norm = random_floats(2 * d, random);
  c.query_norm = random_norm(query_norm, 4, random);
  c.key_norm = random_norm(key_norm, 2, random);
  c.epsilon = 1e-5f;
  c.qkv = qkv.data();
  c.past_key = keys.data();
  c.past_value = values.data();
  c.cosine = c.rotary ? cosine.data() : nullptr;
  c.sine = sine.data();
  compare("attention", [&](const Kernels& kernels) {
    const auto cache = std::size_t(2 * c.room * d);
    Outputs out{std::vector<float>(std::size_t(tokens * 4 * d)), std::vector<float>(cache), std::vector<float>(cache)};
    AttentionCall call = c;
    call.out = out[0].data();
    call.present_key = out[1].data();
    call.present_value = out[2].data();
    if (!run_attention(call, kernels, Pool{})) out[0].assign(1, NAN);
    return out;
  }, count);
}

void convolution_case(int64_t channels, int64_t tokens, int64_t width, Random& random, Count* count) {
  Convolution c;
  c.tokens = tokens;
  c.channels = channels;
  c.width = width;
  c.silu = random.below(2);
  c.x_stride = channels + random.below(3);
  const auto x = random_floats(tokens * c.x_stride, random), taps = random_floats(width * channels, random);
  const auto bias = random_floats(channels, random), past = random_floats(channels * (width - 1), random);
  c.x = x.data();
  c.taps = taps.data();
  c.bias = random.below(2) ? bias.data() : nullptr;
  c.past = past.data();
  compare("convolution", [&](const Kernels& kernels) {
    Outputs out{std::vector<float>(std::size_t(tokens * channels)), std::vector<float>(past.size())};
    Convolution call = c;
    call.y = out[0].data();
    call.present = out[1].data();
    run_convolution(call, 1, kernels, Pool{});
    return out;
  }, count);
}

void scan_case(int64_t state, int64_t head_size, int64_t tokens, Random& random, Count* count) {
  ScanCall c;
  c.batch = 1;
  c.tokens = tokens;
  c.heads = 4;
  c.groups = 2;
  c.state_size = state;
  c.head_size = head_size;
  c.dt_stride = 4 + random.below(3);
  const auto xbc = random_floats(tokens * (4 * head_size + 4 * state), random);
  const auto dt = random_floats(tokens * c.dt_stride, random), bias = random_floats(4, random);
  const auto a_log = random_floats(4, random), skip = random_floats(4, random);
  const auto past = random_floats(4 * state * head_size, random);
  c.xbc = xbc.data();
  c.dt = dt.data();
  c.dt_bias = bias.data();
  c.a_log = a_log.data();
  c.skip = skip.data();
  c.past = past.data();
  compare("scan", [&](const Kernels& kernels) {
    std::vector<float> y(std::size_t(tokens * 4 * head_size)), room(past.size() + 16);
    ScanCall call = c;
    call.y = y.data();
    call.present = room.data() + (-(reinterpret_cast<uintptr_t>(room.data()) / 4) & 15);  // only then it is streamed
    run_scan(call, kernels, Pool{});
    return Outputs{y, std::vector<float>(call.present, call.present + past.size())};
  }, count);
}

void selective_case(int64_t size, int64_t channels, int64_t tokens, Random& random, Count* count) {
  SelectiveScan s;
  s.channels = channels;
  s.state_size = size;
  s.tokens = tokens;
  s.x_stride = channels + random.below(3);
  s.step_stride = channels + random.below(3);
  s.b_stride = s.c_stride = 2 * size + 3;
  const auto x = random_floats(tokens * s.x_stride, random), step = random_floats(tokens * s.step_stride, random);
  const auto bc = random_floats(tokens * s.b_stride, random), past = random_floats(channels * size, random);
  const auto a_log = random_floats(channels * size, random), bias = random_floats(channels, random);
  const auto skip = random_floats(channels, random);
  std::vector<float> rate(std::size_t(ceil_div(channels, 16) * 16 * size));
  find_rates(a_log.data(), channels, size, rate.data());
  s.x = x.data();
  s.step = step.data();
  s.step_bias = random.below(2) ? bias.data() : nullptr;
  s.b = bc.data() + 3;
  s.c = bc.data() + 3 + size;
  s.rate = rate.data();
  s.skip = skip.data();
  s.gate = random.below(2) ? x.data() : nullptr;
  s.gate_stride = s.x_stride;
  s.past = past.data();
  compare("selective scan", [&](const Kernels& kernels) {
    Outputs out{std::vector<float>(std::size_t(tokens * channels)), std::vector<float>(past.size())};
    SelectiveScan call = s;
    call.y = out[0].data();
    call.present = out[1].data();
    run_selective_scan(call, 1, kernels, Pool{});
    return out;
  }, count);
}

// One lane with what functions.h asks of a vector.
struct Lane {
  float x;
  static Lane set(float x) { return {x}; }
  static Lane add(Lane a, Lane b) { return {a.x + b.x}; }
  static Lane sub(Lane a, Lane b) { return {a.x - b.x}; }
  static Lane mul(Lane a, Lane b) { return {a.x * b.x}; }
  static Lane div(Lane a, Lane b) { return {a.x / b.x}; }
  static Lane fma(Lane a, Lane b, Lane c) { return {std::fma(a.x, b.x, c.x)}; }
  static Lane min(Lane a, Lane b) { return {a.x < b.x ? a.x : b.x}; }
  static Lane max(Lane a, Lane b) { return {a.x > b.x ? a.x : b.x}; }
  static Lane abs(Lane a) { return {std::fabs(a.x)}; }
  static Lane round(Lane a) { return {std::nearbyintf(a.x)}; }
  static Lane power_of_two(Lane a) { return {std::ldexp(1.0f, int(a.x))}; }
  static Lane add_exponent(Lane p, Lane n) {
    uint32_t a, b;
    std::memcpy(&a, &p.x, 4);
    std::memcpy(&b, &n.x, 4);
    a += b << 23;
    std::memcpy(&p.x, &a, 4);
    return p;
  }
};

// The largest distance of f from `exact`, in units of the last place of what is exact, over every 211th float of both
// signs up to `most`, or of the negative ones alone.
template <class F, class E>
double farthest(const F& f, const E& exact, float most, bool negative_only) {
  uint32_t last;
  std::memcpy(&last, &most, 4);
  double worst = 0;
  for (uint32_t bits = 0; bits <= last; bits += 211)
    for (int sign = negative_only; sign < 2; ++sign) {
      float x;
      std::memcpy(&x, &bits, 4);
      x = sign ? -x : x;
      const double right = exact(double(x));
      int exponent;
      std::frexp(right, &exponent);
      worst = std::fmax(worst, std::fabs(double(f(Lane{x}).x) - right) / std::ldexp(1.0, exponent - 24));
    }
  return worst;
}

void expect_within(const char* what, double found, double bound, Count* count) {
  std::printf("%s: within %.2f ulp\n", what, found);
  ++(found <= bound ? count->passed : count->failed);
}

void check_functions(Count* count) {
  const auto softplus_of = [](double x) { return std::fmax(x, 0.0) + std::log1p(std::exp(-std::fabs(x))); };
  expect_within("2^x", farthest([](Lane x) { return power_below_one(x); }, [](double x) { return std::exp2(x); }, 126, true),
                2.25, count);
  expect_within("softplus", farthest([](Lane x) { return softplus(x); }, softplus_of, 80, false), 4.5, count);
}

Count compare_all() {
  Count count;
  Random random(1);
  for (int64_t d : {1, 2, 15, 16, 17, 64, 80})
    for (int64_t past : {0, 1, 15, 40})
      for (int64_t tokens : {1, 2, 7, 8, 9, 17, 40})
        for (int64_t window : {0, 5}) attention_case(d, past, tokens, window, random, &count);
  for (int64_t channels : {1, 15, 16, 17, 100})
    for (int64_t tokens : {1, 2, 3, 4, 13, 65, 131})
      for (int64_t width : {1, 2, 4, 5, 16}) convolution_case(channels, tokens, width, random, &count);
  for (int64_t state : {1, 16, 33})
    for (int64_t head_size : {1, 15, 16, 17, 64, 100, 128})
      for (int64_t tokens : {1, 2, 3, 63, 64, 65}) scan_case(state, head_size, tokens, random, &count);
  for (int64_t size : {1, 8, 16, 17, 32, 64})
    for (int64_t channels : {1, 15, 16, 17, 64, 100, 400})
      for (int64_t tokens : {0, 1, 2, 63, 64, 65}) selective_case(size, channels, tokens, random, &count);
  check_functions(&count);
  for (int64_t tokens : {1, 2}) scan_case(256, 128, tokens, random, &count);  // large enough to be streamed
  return count;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string needed = argc == 3 && !std::strcmp(argv[1], "--need") ? argv[2] : "scalar";
  bool has_needed = false;
  for (const Kernels* const* one = variants(); *one; ++one)
    has_needed = has_needed || ((*one)->available() && needed == (*one)->isa);
  if (!has_needed) std::printf("this processor or library does not run kernels for %s\n", needed.c_str());
  const Count count = compare_all();
  std::printf("%lld passed, %lld failed\n", (long long)count.passed, (long long)count.failed);
  return count.failed || !has_needed;
}
