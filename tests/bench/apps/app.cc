// The smallest app on each engine: `app genai|native LIBRARY BUNDLE PROMPT NEW` loads a bundle, feeds PROMPT tokens, draws
// NEW greedy ones, and prints the seconds since its own start at the first token, the milliseconds of each later one, and
// its peak memory. Both engines by their C interfaces, their libraries loaded while it runs.
#include <dlfcn.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "include/edgeslim.h"

namespace {

const auto started = std::chrono::steady_clock::now();
double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count(); }

void* library = nullptr;

template <class Function>
Function* entry(const char* name) {
  void* found = dlsym(library, name);
  if (!found) std::fprintf(stderr, "error: the library has no %s\n", name), std::exit(1);
  return reinterpret_cast<Function*>(found);
}

void check(bool failed, const char* what) {
  if (failed) std::fprintf(stderr, "error: %s\n", what), std::exit(1);
}

// genai's functions return an object where they fail.
struct Genai {
  void *model = nullptr, *params = nullptr, *generator = nullptr;
  void* (*generate)(void*) = nullptr;
  void* (*next)(const void*, const int32_t**, size_t*) = nullptr;

  void open(const char* bundle, const std::vector<int32_t>& prompt, int32_t most) {
    check(entry<void*(const char*, void**)>("OgaCreateModel")(bundle, &model), "the model does not load");
    check(entry<void*(const void*, void**)>("OgaCreateGeneratorParams")(model, &params), "parameters");
    check(entry<void*(void*, const char*, double)>("OgaGeneratorParamsSetSearchNumber")(params, "max_length", most), "max_length");
    check(entry<void*(const void*, const void*, void**)>("OgaCreateGenerator")(model, params, &generator), "the generator");
    generate = entry<void*(void*)>("OgaGenerator_GenerateNextToken");
    next = entry<void*(const void*, const int32_t**, size_t*)>("OgaGenerator_GetNextTokens");
    check(entry<void*(void*, const int32_t*, size_t)>("OgaGenerator_AppendTokens")(generator, prompt.data(), prompt.size()), "the prompt");
  }
  int32_t step() {
    const int32_t* tokens = nullptr;
    size_t count = 0;
    check(generate(generator) || next(generator, &tokens, &count) || count != 1, "a token");
    return tokens[0];
  }
};

struct Native {
  edgeslim_model* model = nullptr;
  edgeslim_session* session = nullptr;
  decltype(edgeslim_session_feed)* feed = nullptr;
  decltype(edgeslim_session_sample)* sample = nullptr;
  edgeslim_sampling greedy = {};
  bool begun = false;
  int32_t token = 0;

  void open(const char* bundle, const std::vector<int32_t>& prompt, int32_t most) {
    edgeslim_error error;
    edgeslim_model_options options = {};
    options.size = sizeof options;
    options.threads = 2;
    check(entry<decltype(edgeslim_model_load)>("edgeslim_model_load")(bundle, &options, &model, &error), error.message);
    edgeslim_session_options room = {};
    room.size = sizeof room;
    room.room = most;
    check(entry<decltype(edgeslim_session_open)>("edgeslim_session_open")(model, &room, &session, &error), error.message);
    feed = entry<decltype(edgeslim_session_feed)>("edgeslim_session_feed");
    sample = entry<decltype(edgeslim_session_sample)>("edgeslim_session_sample");
    greedy.size = sizeof greedy;
    greedy.top_p = greedy.repetition_penalty = 1;
    check(feed(session, prompt.data(), int64_t(prompt.size()), &error), error.message);
  }
  int32_t step() {
    edgeslim_error error;
    if (begun) check(feed(session, &token, 1, &error), error.message);
    begun = true;
    check(sample(session, &greedy, &token, &error), error.message);
    return token;
  }
};

template <class Engine>
void run(const char* bundle, const std::vector<int32_t>& prompt, int32_t count) {
  Engine engine;
  engine.open(bundle, prompt, int32_t(prompt.size()) + count);
  std::vector<int32_t> tokens = {engine.step()};
  const double first = seconds();
  std::vector<double> later;
  for (double begin = first; int32_t(tokens.size()) < count; begin = seconds()) {
    tokens.push_back(engine.step());
    later.push_back((seconds() - begin) * 1e3);
  }
  std::sort(later.begin(), later.end());
  rusage used;
  getrusage(RUSAGE_SELF, &used);
  std::printf("{\"first_token_s\": %.6f, \"decode_ms_p50\": %.4f, \"peak_rss_bytes\": %lld, \"last_token\": %d}\n", first,
              later.empty() ? 0 : later[later.size() / 2], (long long)used.ru_maxrss * 1024, int(tokens.back()));
  std::fflush(stdout);
  std::_Exit(0);  // what the engines free at their end is not the question
}

}  // namespace

int main(int argc, char** argv) {
  check(argc != 6, "usage: app genai|native LIBRARY BUNDLE PROMPT NEW");
  library = dlopen(argv[2], RTLD_NOW | RTLD_LOCAL);
  if (!library) std::fprintf(stderr, "error: %s\n", dlerror()), std::exit(1);
  std::vector<int32_t> prompt;
  for (int32_t i = 0; i < std::atoi(argv[4]); ++i) prompt.push_back(5 + i * 7 % 900);
  std::strcmp(argv[1], "genai") ? run<Native>(argv[3], prompt, std::atoi(argv[5])) : run<Genai>(argv[3], prompt, std::atoi(argv[5]));
}
