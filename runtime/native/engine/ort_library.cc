#include "engine/ort_library.h"

#include <cstdlib>
#include <list>
#include <mutex>

#include "builtin/program.h"
#include "engine/files.h"

#if defined(_WIN32)
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace edgeslim {
namespace {

constexpr const char* kEntry = "OrtGetApiBase";
using GetBase = const ort::ApiBase* (*)();

#if defined(_WIN32)
constexpr const char* kNames[] = {"onnxruntime.dll"};
void* open_library(const char* path) { return reinterpret_cast<void*>(LoadLibraryA(path)); }
void* entry_of(void* handle) { return reinterpret_cast<void*>(GetProcAddress(static_cast<HMODULE>(handle), kEntry)); }
void* entry_in_process() {
  const HMODULE loaded = GetModuleHandleA(kNames[0]);
  return loaded ? entry_of(loaded) : nullptr;
}
std::string loading_fault() { return "error " + std::to_string(GetLastError()); }
#else
#if defined(__APPLE__)
constexpr const char* kNames[] = {"libonnxruntime.dylib", "libonnxruntime.1.dylib"};
#else
constexpr const char* kNames[] = {"libonnxruntime.so", "libonnxruntime.so.1"};
#endif
void* open_library(const char* path) { return dlopen(path, RTLD_NOW | RTLD_LOCAL); }
void* entry_of(void* handle) { return dlsym(handle, kEntry); }
void* entry_in_process() { return dlsym(RTLD_DEFAULT, kEntry); }
std::string loading_fault() {
  const char* text = dlerror();
  return text ? text : "unknown";
}
#endif

// The library in `folder`: one of the usual names, or such a name with a version behind it.
std::string library_in(const std::string& folder) {
  for (const std::string& name : names_in(folder))
    for (const char* known : kNames)
      if (name.rfind(known, 0) == 0) return folder + "/" + name;
  return folder;
}

Status find_entry(const std::string& path, void** entry) {
  if (path.empty()) {
    if ((*entry = entry_in_process())) return {};
    for (const char* name : kNames)
      if (void* handle = open_library(name))
        if ((*entry = entry_of(handle))) return {};
    return failure(EDGESLIM_RUNTIME_UNAVAILABLE,
                   "ONNX Runtime is not found; give its path, or set EDGESLIM_ONNXRUNTIME to it");
  }
  const std::string file = is_folder(path) ? library_in(path) : path;
  void* handle = open_library(file.c_str());
  if (!handle)
    return failure(EDGESLIM_RUNTIME_UNAVAILABLE, "ONNX Runtime does not load: %s", loading_fault().c_str());
  if (!(*entry = entry_of(handle)))
    return failure(EDGESLIM_RUNTIME_UNAVAILABLE, "%s: not ONNX Runtime: it has no %s", file.c_str(), kEntry);
  return {};
}

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
  void* entry = nullptr;
  if (Status s = find_entry(path, &entry); s.failed()) return s;
  library->base = reinterpret_cast<GetBase>(entry)();
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
  static std::mutex mutex;
  static auto* opened = new std::list<std::pair<std::string, OrtLibrary>>;  // outlives everything that uses it
  const std::lock_guard<std::mutex> lock(mutex);
  const char* variable = path && *path ? path : std::getenv("EDGESLIM_ONNXRUNTIME");
  const std::string wanted = variable ? variable : "";
  for (const auto& [known, one] : *opened)
    if (known == wanted) {
      *library = &one;
      return {};
    }
  OrtLibrary made;
  if (Status s = open_runtime(wanted, &made); s.failed()) return s;
  opened->emplace_back(wanted, std::move(made));
  *library = &opened->back().second;
  return {};
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
