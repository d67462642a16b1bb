// What running needs to know of a bundle, read from its own JSON files. Nothing in them is trusted: a path that would
// leave the folder is refused, a number out of range too.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/json.h"
#include "engine/status.h"

namespace edgeslim {

// The JSON objects of a bundle, empty where there is no such file.
struct BundleFiles {
  Json manifest;    // edgeslim.json
  Json genai;       // genai_config.json
  Json config;      // config.json
  Json generation;  // generation_config.json
};

struct Bundle {
  std::string folder, graph = "model.onnx";
  int64_t vocab_size = 0;      // 0: not said
  int64_t context_length = 0;  // 0: not said
  int64_t max_length = 0;      // tokens to make room for by default; 0: not said
  int64_t chunk = 0;           // tokens of a prompt at once; 0: not said
  int64_t threads = 0;         // 0: not said
  int64_t weight_bytes = 0;    // 0: not said
  uint64_t identity = 0;       // of the graphs and weights, by the checksums that the manifest records
  int32_t bos = -1;
  std::vector<int32_t> end_tokens;
  bool packed = false;           // has operators of ours
  bool shares_buffer = false;    // attention takes its cache and gives it back in the same memory
  bool reduces_prompts = false;  // a prompt must be given whole
  bool arena = true;
  std::string foreign_library;  // another library of operators, as the bundle names it
  std::vector<std::pair<std::string, std::string>> entries;  // of the session's configuration
};

// Whether `path` names something inside a folder: relative, without `..`, drives or backslashes.
bool stays_inside(std::string_view path);

// Reads what `files` say into `bundle`, whose folder is set. Needs no file system.
Status read_bundle(const BundleFiles& files, Bundle* bundle);

// Reads the bundle in `folder`. A graph or weights shorter than the manifest says are refused: they are mapped, and a
// page that is not there would end the process.
Status open_bundle(const std::string& folder, Bundle* bundle);

}  // namespace edgeslim
