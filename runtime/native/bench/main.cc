// edgeslim-bench: profiles a bundle and prints the profile object. Needs nothing else for packed bundles, ONNX Runtime's
// library for others.
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "bench/sampler.h"
#include "bench/sha256.h"
#include "include/edgeslim.h"

namespace {

constexpr char kUsage[] =
    "usage: edgeslim-bench BUNDLE [--prompt-tokens 128] [--new-tokens 64] [--threads N] [--repeats 5] [--warmup 1]\n"
    "                      [--ort PATH] [--with-ort] [--graph FILE] [--bodies]\n"
    "                      [--sample PATH]...\n"
    "       edgeslim-bench --sha256 FILE...\n"
    "Prints one JSON object. PATH is ONNX Runtime's library or the folder it lies in; without it the environment\n"
    "variable EDGESLIM_ONNXRUNTIME and then the system are asked. It is loaded for graphs that have other operators than\n"
    "this library's, with --with-ort for all. --bodies runs operators by their function bodies.\n"
    "--sample reads a sensor's file ten times a second meanwhile; the object then has `phases` and `samples` too.\n"
    "--sha256 prints the hash of each file, as sha256sum does.\n";

bool read_count(const char* text, int32_t* value) {
  char* end = nullptr;
  errno = 0;
  const long number = std::strtol(text, &end, 10);
  if (errno || *end || end == text || number < 0 || number > (1 << 24)) return false;
  *value = int32_t(number);
  return true;
}

int usage(const char* wrong) {
  std::fprintf(stderr, "edgeslim-bench: %s\n%s", wrong, kUsage);
  return 2;
}

void show_progress(int32_t done, int32_t total, void*) {
  std::fprintf(stderr, "\rrun %d of %d%s", int(done), int(total), done == total ? "\n" : "");
}

void note_phase(int32_t phase, int32_t run, double begin, double end, void* sampler) {
  static_cast<edgeslim::SensorSampler*>(sampler)->add({phase, run, begin, end});
}

int print_hashes(int count, char** files) {
  int failed = 0;
  for (int i = 0; i < count; ++i) {
    const std::string hash = edgeslim::sha256_of(files[i]);
    if (hash.empty()) {
      std::fprintf(stderr, "error: %s: %s\n", files[i], std::strerror(errno));
      failed = 1;
    } else {
      std::printf("%s  %s\n", hash.c_str(), files[i]);
    }
  }
  return failed;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && !std::strcmp(argv[1], "--sha256")) return print_hashes(argc - 2, argv + 2);
  edgeslim_model_options model = {};
  edgeslim_profile_options options = {};
  model.size = sizeof model;
  options.size = sizeof options;
  options.on_run = show_progress;
  const char* bundle = nullptr;
  std::vector<std::string> sensors;
  const struct {
    const char* name;
    int32_t* to;
  } counts[] = {{"--prompt-tokens", &options.prompt_tokens}, {"--new-tokens", &options.new_tokens},
                {"--threads", &model.threads},               {"--repeats", &options.repeats},
                {"--warmup", &options.warmup}};
  for (int i = 1; i < argc; ++i) {
    const char* const next = i + 1 < argc ? argv[i + 1] : "";
    bool known = true;
    if (!std::strcmp(argv[i], "--help")) return std::fputs(kUsage, stdout), 0;
    if (!std::strcmp(argv[i], "--bodies")) {
      model.flags |= EDGESLIM_FUNCTION_BODIES;
    } else if (!std::strcmp(argv[i], "--with-ort")) {
      model.flags |= EDGESLIM_WITH_ONNXRUNTIME;
    } else if (!std::strcmp(argv[i], "--ort")) {
      model.onnxruntime = next, ++i;
    } else if (!std::strcmp(argv[i], "--graph")) {
      model.graph = next, ++i;
    } else if (!std::strcmp(argv[i], "--sample")) {
      sensors.emplace_back(next), ++i;
    } else if (argv[i][0] == '-') {
      known = false;
      for (const auto& count : counts)
        if (!std::strcmp(argv[i], count.name)) known = read_count(next, count.to);
      if (known && !std::strcmp(argv[i], "--warmup") && options.warmup == 0) options.warmup = -1;  // none
      ++i;
    } else {
      known = !bundle;
      bundle = argv[i];
    }
    if (!known) return usage("an option that is not known, or a value that is no count");
  }
  if (!bundle) return usage("a bundle's folder is missing");
  std::vector<char> json(1 << 16);
  size_t needed = 0;
  edgeslim_error error;
  edgeslim::SensorSampler sampler(sensors);
  options.user = &sampler;
  options.on_phase = note_phase;
  if (edgeslim_profile(bundle, &model, &options, json.data(), json.size(), &needed, &error)) {
    std::fprintf(stderr, "error: %s\n", error.message);
    return 1;
  }
  sampler.stop();
  std::string object(json.data(), needed);
  if (!sensors.empty()) {
    object.back() = ',';
    object += " " + sampler.json() + "}";
  }
  std::printf("%s\n", object.c_str());
  return 0;
}
