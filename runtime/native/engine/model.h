// A bundle's graph in ONNX Runtime, and what its inputs and outputs are by their names.
#pragma once

#include <string>
#include <vector>

#include "engine/bundle.h"
#include "engine/ort_library.h"

namespace edgeslim {

// The state of one layer that goes in as `past` and comes out as `present`.
struct StateSpec {
  std::string past, present;
  int element = ort::kFloat;
  std::size_t element_bytes = 4;
  std::vector<int64_t> shape;  // batch 1; a dimension that counts tokens is -1
  std::size_t grows = 0;       // which dimension that is; 0: none, the state is of fixed size
  std::string counted;         // the name of that dimension
};

struct Model {
  Bundle bundle;
  const OrtLibrary* library = nullptr;
  OrtSessionPtr session;
  std::vector<StateSpec> states;
  int ids_element = ort::kInt64;
  bool wants_mask = false, wants_positions = false;
  bool last_logits = false;     // logits of the last position alone come out
  bool shares_buffer = false;   // caches of `room` tokens, in the same memory before and after a run
  int logits_element = ort::kFloat;
  int64_t vocab_size = 0;
  int64_t context_length = 0;  // 0: nothing bounds it
  int64_t default_room = 0;    // likewise
  int32_t threads = 0;
  bool operators = false;      // operators of ours run by this library's kernels

  bool grows() const;

  static Status load(const char* folder, const edgeslim_model_options& options, Model* model);
};

}  // namespace edgeslim
