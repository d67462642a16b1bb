// Attention, convolution and scan of every variant against the scalar one, bit for bit; what they compute is tested from
// Python. A program of its own, so that it also runs where there is no Python: `sequences_test [--need ISA]`.
#include <cstdio>
#include <string>

#include "attention/run.h"
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
  c.past = &past;
  c.rotary = random.below(2) ? d / 2 * 2 : 0;
  c.interleaved = random.below(2);
  const auto qkv = random_floats(tokens * 8 * d, random), keys = random_floats(2 * past * d, random);
  const auto values = random_floats(2 * past * d, random);
  const auto cosine = random_floats(c.room * c.rotary / 2, random), sine = random_floats(c.room * c.rotary / 2, random);
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

Count compare_all() {
  Count count;
  Random random(1);
  for (int64_t d : {1, 2, 15, 16, 17, 64, 80})
    for (int64_t past : {0, 1, 15, 40})
      for (int64_t tokens : {1, 2, 7, 8, 9, 17, 40})
        for (int64_t window : {0, 5}) attention_case(d, past, tokens, window, random, &count);
  for (int64_t channels : {1, 15, 16, 17, 100})
    for (int64_t tokens : {1, 2, 3, 4, 13})
      for (int64_t width : {1, 2, 4, 5, 16}) convolution_case(channels, tokens, width, random, &count);
  for (int64_t state : {1, 16, 33})
    for (int64_t head_size : {1, 15, 16, 17, 64, 100, 128})
      for (int64_t tokens : {1, 2, 3, 63, 64, 65}) scan_case(state, head_size, tokens, random, &count);
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
