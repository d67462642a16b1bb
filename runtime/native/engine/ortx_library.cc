#include "engine/ortx_library.h"

#include <string>

#include "engine/opened_once.h"

namespace edgeslim {
namespace {

constexpr LibraryKind kExtensions = {"onnxruntime-extensions", "ortextensions", "OrtxGetAPIVersion", "EDGESLIM_ORTEXTENSIONS"};

// Sets `*function` to the function `name`; notes the first one that is missing.
template <class F>
void bind(const SharedLibrary& found, const char* name, F* function, const char** missing) {
  *function = reinterpret_cast<F>(found.function(name));
  if (!*function && !*missing) *missing = name;
}

// GCC's unwinder inside this library fills its tables at the first throw; before that it would end the process when an
// exception of another library, whose unwinder is its own, passes through.
void make_ready_to_catch() {
  try {
    throw 0;
  } catch (int) {
  }
}

Status open_extensions(const std::string& path, OrtxLibrary* library) {
  make_ready_to_catch();
  SharedLibrary found;
  if (Status s = SharedLibrary::find(kExtensions, path, &found); s.failed()) return s;
  const char* missing = nullptr;
  bind(found, "OrtxGetAPIVersion", &library->version, &missing);
  bind(found, "OrtxGetLastErrorMessage", &library->last_error, &missing);
  bind(found, "OrtxCreate", &library->create, &missing);
  bind(found, "OrtxDispose", &library->dispose, &missing);
  bind(found, "OrtxCreateTokenizerFromBlob", &library->create_tokenizer, &missing);
  bind(found, "OrtxUpdateTokenizerOptions", &library->set_options, &missing);
  bind(found, "OrtxTokenize", &library->tokenize, &missing);
  bind(found, "OrtxTokenId2DArrayGetItem", &library->ids_of, &missing);
  bind(found, "OrtxDetokenizeCached", &library->detokenize, &missing);
  if (missing)
    return failure(EDGESLIM_RUNTIME_UNAVAILABLE, "onnxruntime-extensions is too old: it has no %s; 0.15 has it", missing);
  if (const int version = library->version(); version != ortx::kVersion)
    return failure(EDGESLIM_RUNTIME_UNAVAILABLE, "onnxruntime-extensions has interface %d, %d is needed", version, int(ortx::kVersion));
  return {};
}

}  // namespace

Status OrtxLibrary::load(const char* path, const OrtxLibrary** library) {
  static auto* const opened = new OpenedOnce<OrtxLibrary>(kExtensions, open_extensions);  // outlives what uses it
  return opened->at(path, library);
}

Status OrtxLibrary::fault(int32_t code, const char* what, int said, const char* text) {
  std::string line = text && *text ? text : "fault " + std::to_string(said);
  for (char& c : line)
    if (c == '\n' || c == '\r') c = ' ';
  return failure(code, "%s: onnxruntime-extensions says: %s", what, line.c_str());
}

}  // namespace edgeslim
