#include "engine/ort_library.h"

#include "builtin/program.h"
#include "engine/opened_once.h"

namespace edgeslim {
namespace {

using GetBase = const ort::ApiBase* (*)();

constexpr LibraryKind kRuntime = {"ONNX Runtime", "onnxruntime", "OrtGetApiBase", "EDGESLIM_ONNXRUNTIME"};

Status use(const ort::Api* api, OrtLibrary* library) {
  library->f = ort::SessionFunctions(api);
  constexpr int32_t kCode = EDGESLIM_RUNTIME_UNAVAILABLE;
  Status s = library->check(library->f.create_env(ort::kErrors, "edgeslim", &library->env), kCode, "its environment");
  if (!s.failed()) s = library->check(library->f.disable_telemetry(library->env), kCode, "telemetry");
  if (!s.failed())
    s = library->check(library->f.cpu_memory(ort::kDeviceAllocator, ort::kDefaultMemory, &library->cpu), kCode, "memory");
  if (!s.failed()) s = library->check(library->f.default_allocator(&library->allocator), kCode, "its allocator");
  return s;
}

Status open_runtime(const std::string& path, OrtLibrary* library) {
  SharedLibrary found;
  if (Status s = SharedLibrary::find(kRuntime, path, &found); s.failed()) return s;
  library->base = reinterpret_cast<GetBase>(found.function(kRuntime.entry))();
  library->version = library->base->version_string();
  int minor = 0;
  const bool known = std::sscanf(library->version.c_str(), "1.%d", &minor) == 1;
  const ort::Api* api = known && minor >= int(ort::kApiVersion) ? library->base->get_api(ort::kApiVersion) : nullptr;
  if (!api)
    return failure(EDGESLIM_RUNTIME_UNAVAILABLE, "ONNX Runtime %.32s is loaded; 1.%u or newer is needed",
                   library->version.c_str(), unsigned(ort::kApiVersion));
  return use(api, library);
}

}  // namespace

Status OrtLibrary::load(const char* path, const OrtLibrary** library) {
  static auto* const opened = new OpenedOnce<OrtLibrary>(kRuntime, open_runtime);  // outlives everything that uses it
  return opened->at(path, library);
}

Status OrtLibrary::built_in(const OrtLibrary** library) {
  static const auto* const made = [] {
    auto* one = new OrtLibrary;
    one->base = builtin::api_base();
    use(one->base->get_api(ort::kApiVersion), one);
    return one;
  }();
  *library = made;
  return {};
}

Status OrtLibrary::check(ort::Status* said, int32_t code, const char* what) const {
  if (!said) return {};
  std::string text = f.error_message(said);
  f.release_status(said);
  for (char& c : text)
    if (c == '\n' || c == '\r') c = ' ';
  return failure(code, "%s: %s", what, text.c_str());
}

}  // namespace edgeslim
