// onnxruntime-extensions, loaded while this library runs: the functions of its C interface (version 1) that tokenizers
// need, and its objects by owners. Source: ortx_tokenizer.h and ortx_utils.h of onnxruntime-extensions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>

#include "engine/status.h"

namespace edgeslim {

namespace ortx {

struct Object;

// Files as bytes; those that are not there are null and have length 0.
struct TokenizerBlob {
  const char *config, *vocabulary, *module, *model, *reserved;
  std::size_t config_length, vocabulary_length, module_length, model_length, reserved_length;
};

enum { kVersion = 1, kDetokenizerCache = 0x778b };

}  // namespace ortx

// One loaded copy. It stays until the process ends.
struct OrtxLibrary {
  int (*version)() = nullptr;
  const char* (*last_error)() = nullptr;
  int (*create)(int kind, ortx::Object** object, ...) = nullptr;
  int (*dispose)(ortx::Object** object) = nullptr;
  int (*create_tokenizer)(ortx::Object** tokenizer, const ortx::TokenizerBlob* files) = nullptr;
  int (*set_options)(ortx::Object* tokenizer, const char** names, const char** values, std::size_t count) = nullptr;
  int (*tokenize)(const ortx::Object* tokenizer, const char** texts, std::size_t count, ortx::Object** ids) = nullptr;
  int (*ids_of)(const ortx::Object* ids, std::size_t text, const uint32_t** data, std::size_t* count) = nullptr;
  int (*detokenize)(const ortx::Object* tokenizer, ortx::Object* cache, uint32_t id, const char** text) = nullptr;

  // Returns the copy at `path` (a file, or a folder that holds it). Null or empty: the environment variable
  // EDGESLIM_ORTEXTENSIONS, else the copy that this process has, else the system's.
  static Status load(const char* path, const OrtxLibrary** library);

  // Runs `f`, which calls the library and returns what it says; a fault, or what it throws, becomes a status of ours.
  template <class F>
  Status call(int32_t code, const char* what, const F& f) const {
    try {
      const int said = f(*this);
      return said == 0 ? Status{} : fault(code, what, said, last_error());
    } catch (const std::exception& thrown) {
      return fault(code, what, 0, thrown.what());
    }
  }

 private:
  static Status fault(int32_t code, const char* what, int said, const char* text);
};

struct OrtxDelete {
  const OrtxLibrary* library = nullptr;
  void operator()(ortx::Object* object) const { library->dispose(&object); }
};
using OrtxPtr = std::unique_ptr<ortx::Object, OrtxDelete>;

}  // namespace edgeslim
