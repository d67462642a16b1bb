// `tokens BUNDLE ORT COUNT [GRAPH [FLAGS]]`: reads prompts, a line of token ids each, and prints the COUNT likeliest tokens
// that follow, a line each. FLAGS are those of edgeslim_model_options. For comparing machines and engines with one another.
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "include/edgeslim.h"

namespace {

int32_t print(int32_t token, void*) {
  std::printf("%d ", int(token));
  return 0;
}

int complain(const edgeslim_error& error) {
  std::fprintf(stderr, "error: %s\n", error.message);
  return 1;
}

int write(edgeslim_session* session, const std::vector<int32_t>& prompt, int64_t count) {
  edgeslim_generation generation = {};
  generation.size = sizeof generation;
  generation.end_token_count = -1;
  generation.max_new_tokens = count;
  generation.on_token = print;
  edgeslim_error error;
  edgeslim_session_reset(session);
  if (edgeslim_session_generate(session, prompt.data(), int64_t(prompt.size()), &generation, &error)) return complain(error);
  std::printf("\n");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) return std::fprintf(stderr, "usage: tokens BUNDLE ORT COUNT [GRAPH [FLAGS]] < PROMPTS\n"), 2;
  edgeslim_model_options options = {};
  options.size = sizeof options;
  options.threads = 1;
  options.onnxruntime = argv[2];
  options.graph = argc > 4 ? argv[4] : nullptr;
  options.flags = argc > 5 ? uint32_t(std::atoi(argv[5])) : 0;
  edgeslim_model* model = nullptr;
  edgeslim_session* session = nullptr;
  edgeslim_error error;
  if (edgeslim_model_load(argv[1], &options, &model, &error)) return complain(error);
  int failed = edgeslim_session_open(model, nullptr, &session, &error) ? complain(error) : 0;
  std::string line;
  while (!failed && std::getline(std::cin, line)) {
    std::istringstream words(line);
    std::vector<int32_t> prompt;
    for (int32_t id; words >> id;) prompt.push_back(id);
    failed = write(session, prompt, std::atoll(argv[3]));
  }
  edgeslim_session_free(session);
  edgeslim_model_free(model);
  return failed;
}
