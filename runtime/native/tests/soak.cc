// `soak ORT TOKENS SESSIONS BUNDLE...`: writes TOKENS tokens over SESSIONS sessions of bundles in turn, and takes the paths
// that an app takes on bad days: cancelled from another thread and resumed, saved and restored, fed what does not fit,
// stopped by the listener, bundles that do not load. Ends with 1 where a call says what it should not, or where memory has
// grown: resident bytes, or what is allocated where a sanitizer counts it, which also reports leaks at the end.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "engine/machine.h"
#include "include/edgeslim.h"
#include "tests/packer.h"

#if defined(__SANITIZE_ADDRESS__)
extern "C" std::size_t __sanitizer_get_current_allocated_bytes();  // its header comes with some compilers only
#endif

namespace {

using edgeslim::tests::Random;

constexpr int64_t kSessionsPerModel = 25;
constexpr int64_t kWarmSessions = 200;  // arenas, thread stacks and the allocator's own pools have their size by then
constexpr int64_t kMostGrowth = 4 << 20;

int64_t used_bytes() {
#if defined(__SANITIZE_ADDRESS__)
  return int64_t(__sanitizer_get_current_allocated_bytes());
#else
  return edgeslim::resident_bytes();
#endif
}

void expect(bool holds, const char* what, const edgeslim_error& error = {}) {
  if (holds) return;
  std::printf("failed: %s: %s\n", what, error.message);
  std::exit(1);
}

struct Counts {
  int64_t tokens = 0, sessions = 0, models = 0, cancelled = 0, refused = 0, restored = 0, stopped = 0;
};

struct Text {
  std::vector<int32_t> tokens;
  int64_t stop_at = -1;  // the listener ends the text there
  std::vector<int32_t> prompt;
};

int32_t keep(int32_t token, void* user) {
  auto* text = static_cast<Text*>(user);
  text->tokens.push_back(token);
  return int64_t(text->tokens.size()) == text->stop_at;
}

class Soak {
 public:
  Soak(const char* runtime, std::vector<std::string> bundles) : runtime_(runtime), bundles_(std::move(bundles)) {}

  Counts run(int64_t tokens, int64_t sessions) {
    int64_t warm = 0, most = 0;
    for (int64_t i = 0; i < sessions; ++i) {
      if (i % kSessionsPerModel == 0) load(bundles_[std::size_t(i / kSessionsPerModel) % bundles_.size()]);
      const int64_t left = sessions - i;
      session((tokens - counts_.tokens + left - 1) / left);
      if ((i + 1) % (kSessionsPerModel * int64_t(bundles_.size())) != 0) continue;
      free_model();  // memory is compared where no model is loaded
      const int64_t used = used_bytes();
      std::printf("%5lld sessions %7lld tokens %8.1f MB\n", (long long)(i + 1), (long long)counts_.tokens, double(used) / 1e6);
      std::fflush(stdout);
      if (i + 1 <= kWarmSessions) warm = std::max(warm, used);
      most = std::max(most, used);
    }
    free_model();
    expect(!warm || most - warm <= kMostGrowth, "memory has grown");
    std::printf("grew by %.2f MB after the first %lld sessions\n", double(most - warm) / 1e6, (long long)kWarmSessions);
    return counts_;
  }

 private:
  void free_model() {
    edgeslim_model_free(model_);
    model_ = nullptr;
  }

  void load(const std::string& bundle) {
    free_model();
    edgeslim_model_options options = {};
    options.size = sizeof options;
    options.threads = 1 + int32_t(counts_.models % 2);
    options.flags = counts_.models / int64_t(bundles_.size()) % 2 ? uint32_t(EDGESLIM_WITH_ONNXRUNTIME) : 0;
    options.onnxruntime = runtime_;
    options.graph = "edgeslim.json";
    edgeslim_error error;
    expect(edgeslim_model_load(bundle.c_str(), &options, &model_, &error) == EDGESLIM_BAD_BUNDLE, "a graph that is none", error);
    options.graph = nullptr;
    expect(edgeslim_model_load("/nowhere", &options, &model_, &error) == EDGESLIM_BAD_BUNDLE, "no bundle", error);
    expect(!edgeslim_model_load(bundle.c_str(), &options, &model_, &error), "a bundle loads", error);
    edgeslim_model_info info = {};
    info.size = sizeof info;
    edgeslim_model_get_info(model_, &info, &error);
    vocabulary_ = info.vocab_size;
    counts_.refused += 2;
    ++counts_.models;
  }

  void session(int64_t tokens) {
    edgeslim_session_options options = {sizeof options, 0, 64 + random_.below(150), 1 + random_.below(20)};
    edgeslim_error error;
    expect(!edgeslim_session_open(model_, &options, &session_, &error), "a session opens", error);
    const int64_t kind = counts_.sessions++ % 8, from = counts_.tokens;
    if (kind == 1) cancelled_text();
    if (kind == 3) restored_text();
    if (kind == 5) refusals();
    if (kind == 7) stopped_text();
    edgeslim_session_reset(session_);
    while (counts_.tokens - from < tokens) {  // what is left of this session's share
      edgeslim_session_reset(session_);
      Text text = prompted();
      const int64_t most = std::min<int64_t>(tokens - (counts_.tokens - from), options.room - int64_t(text.prompt.size()));
      expect(generate(&text, most, &error) == EDGESLIM_OK, "a text", error);
      expect(int64_t(text.tokens.size()) == most, "as many tokens as asked for");
    }
    edgeslim_session_free(session_);
  }

  Text prompted() {
    Text text;
    text.prompt.resize(std::size_t(1 + random_.below(16)));
    for (int32_t& token : text.prompt) token = int32_t(random_.below(vocabulary_));
    return text;
  }

  int32_t generate(Text* text, int64_t most, edgeslim_error* error) {
    edgeslim_generation g = {};
    g.size = sizeof g;
    g.end_token_count = -1;
    g.max_new_tokens = most;
    if (random_.below(2)) g.sampling = {sizeof g.sampling, 1.1f, 0.8f, 40, 0.95f, 0.01f, random_.bits()};
    g.on_token = keep;
    g.user = text;
    const int32_t code = edgeslim_session_generate(session_, text->prompt.data(), int64_t(text->prompt.size()), &g, error);
    counts_.tokens += g.produced;
    return code;
  }

  void cancelled_text() {
    Text text = prompted();
    edgeslim_session* const session = session_;
    const int64_t after = random_.below(4000);
    std::thread canceller([session, after] {
      std::this_thread::sleep_for(std::chrono::microseconds(after));
      edgeslim_session_cancel(session);
    });
    edgeslim_error error;
    const int32_t code = generate(&text, 40, &error);
    canceller.join();
    expect(code == EDGESLIM_OK || code == EDGESLIM_CANCELLED, "cancelling ends a text", error);
    counts_.cancelled += code == EDGESLIM_CANCELLED;
    const int32_t token = 1;
    expect(edgeslim_session_feed(session_, &token, 1, &error) == EDGESLIM_CANCELLED, "every later call is cancelled", error);
    edgeslim_session_resume(session_);
    expect(!edgeslim_session_feed(session_, &token, 1, &error), "it goes on when resumed", error);
  }

  void restored_text() {
    Text first = prompted();
    edgeslim_error error;
    expect(!generate(&first, 8, &error), "a text", error);
    size_t size = 0;
    edgeslim_session_save(session_, nullptr, 0, &size, &error);
    std::vector<char> state(size);
    expect(!edgeslim_session_save(session_, state.data(), size, &size, &error), "a state is saved", error);
    const int64_t position = edgeslim_session_position(session_);
    edgeslim_session_reset(session_);
    expect(!edgeslim_session_restore(session_, state.data(), size, &error), "and restored", error);
    expect(edgeslim_session_position(session_) == position, "to where it was");
    state[std::size_t(random_.below(int64_t(size)))] ^= 1;
    expect(edgeslim_session_restore(session_, state.data(), size, &error) == EDGESLIM_BAD_STATE, "a damaged one is refused", error);
    ++counts_.restored;
    ++counts_.refused;
  }

  void refusals() {
    edgeslim_error error;
    int32_t token = vocabulary_;
    const std::vector<int32_t> many(400, 1);
    expect(edgeslim_session_sample(session_, nullptr, &token, &error) == EDGESLIM_WRONG_ORDER, "nothing to sample from", error);
    token = vocabulary_;
    expect(edgeslim_session_feed(session_, &token, 1, &error) == EDGESLIM_INVALID_ARGUMENT, "a token out of range", error);
    expect(edgeslim_session_feed(session_, many.data(), 0, &error) == EDGESLIM_INVALID_ARGUMENT, "no tokens", error);
    if (edgeslim_session_room(session_))
      expect(edgeslim_session_feed(session_, many.data(), 400, &error) == EDGESLIM_CONTEXT_FULL, "too many tokens", error);
    edgeslim_session* other = nullptr;
    const edgeslim_session_options negative = {sizeof negative, 0, -1, 0};
    expect(edgeslim_session_open(model_, &negative, &other, &error) == EDGESLIM_INVALID_ARGUMENT, "negative room", error);
    counts_.refused += 5;
  }

  void stopped_text() {
    Text text = prompted();
    text.stop_at = 1 + random_.below(10);
    edgeslim_error error;
    expect(!generate(&text, 40, &error) && int64_t(text.tokens.size()) == text.stop_at, "the listener ends a text", error);
    ++counts_.stopped;
  }

  const char* runtime_;
  std::vector<std::string> bundles_;
  edgeslim_model* model_ = nullptr;
  edgeslim_session* session_ = nullptr;
  int32_t vocabulary_ = 1;
  Random random_{17};
  Counts counts_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) return std::fprintf(stderr, "usage: soak ORT TOKENS SESSIONS BUNDLE...\n"), 2;
  const auto begin = std::chrono::steady_clock::now();
  const Counts c = Soak(argv[1], {argv + 4, argv + argc}).run(std::atoll(argv[2]), std::atoll(argv[3]));
  std::printf(
      "%lld tokens, %lld sessions, %lld models in %.0f s: %lld cancelled, %lld restored, %lld stopped, %lld faults said\n",
      (long long)c.tokens, (long long)c.sessions, (long long)c.models,
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(), (long long)c.cancelled,
      (long long)c.restored, (long long)c.stopped, (long long)c.refused);
  return 0;
}
