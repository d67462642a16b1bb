// ONNX Runtime, loaded while this library runs, or what is built in for it: its functions, its environment, and its
// objects by owners.
#pragma once

#include <memory>
#include <string>

#include "engine/status.h"
#include "ort/session_abi.h"

namespace edgeslim {

// One loaded copy of ONNX Runtime. It stays until the process ends, as its threads and logger want it.
struct OrtLibrary {
  const ort::ApiBase* base = nullptr;
  ort::SessionFunctions f;
  ort::Env* env = nullptr;
  ort::MemoryInfo* cpu = nullptr;
  ort::Allocator* allocator = nullptr;
  std::string version;

  // Returns the copy at `path` (a file, or a folder that holds it), once for every path. Null or empty: the environment
  // variable EDGESLIM_ONNXRUNTIME, else the copy that this process has, else the system's.
  static Status load(const char* path, const OrtLibrary** library);

  // What stands for ONNX Runtime where a graph has only operators that this library runs itself; `version` is empty.
  static Status built_in(const OrtLibrary** library);
  bool is_built_in() const { return version.empty(); }

  // What `said` says, as a status of ours; releases it.
  Status check(ort::Status* said, int32_t code, const char* what) const;
};

// Objects of ONNX Runtime that are released with their owner.
template <class T, void (*ort::SessionFunctions::*Release)(T*)>
struct OrtDelete {
  const OrtLibrary* library = nullptr;
  void operator()(T* object) const { (library->f.*Release)(object); }
};
using OrtSessionPtr = std::unique_ptr<ort::Session, OrtDelete<ort::Session, &ort::SessionFunctions::release_session>>;
using OrtOptionsPtr = std::unique_ptr<ort::SessionOptions, OrtDelete<ort::SessionOptions, &ort::SessionFunctions::release_options>>;
using OrtRunOptionsPtr = std::unique_ptr<ort::RunOptions, OrtDelete<ort::RunOptions, &ort::SessionFunctions::release_run_options>>;
using OrtValuePtr = std::unique_ptr<ort::Value, OrtDelete<ort::Value, &ort::SessionFunctions::release_value>>;

}  // namespace edgeslim
