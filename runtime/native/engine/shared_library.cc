#include "engine/shared_library.h"

#include <cstdlib>
#include <vector>

#include "engine/files.h"

#if defined(_WIN32)
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace edgeslim {
namespace {

#if defined(_WIN32)
void* open_library(const char* path) { return reinterpret_cast<void*>(LoadLibraryA(path)); }
void* function_of(void* handle, const char* name) {
  return handle ? reinterpret_cast<void*>(GetProcAddress(static_cast<HMODULE>(handle), name)) : nullptr;
}
void* this_process(const char* file) { return reinterpret_cast<void*>(GetModuleHandleA(file)); }
std::string loading_fault() { return "error " + std::to_string(GetLastError()); }
#else
void* open_library(const char* path) { return dlopen(path, RTLD_NOW | RTLD_LOCAL); }
void* function_of(void* handle, const char* name) { return dlsym(handle, name); }
void* this_process(const char*) { return RTLD_DEFAULT; }
std::string loading_fault() {
  const char* text = dlerror();
  return text ? text : "unknown";
}
#endif

std::vector<std::string> file_names(const LibraryKind& kind) {
  const std::string stem = kind.stem;
#if defined(_WIN32)
  return {stem + ".dll"};
#elif defined(__APPLE__)
  return {"lib" + stem + ".dylib", "lib" + stem + ".1.dylib"};
#else
  return {"lib" + stem + ".so", "lib" + stem + ".so.1"};
#endif
}

// The library in `folder`: one of the usual names, or such a name with a version behind it.
std::string library_in(const LibraryKind& kind, const std::string& folder) {
  for (const std::string& name : names_in(folder))
    for (const std::string& known : file_names(kind))
      if (name.rfind(known, 0) == 0) return folder + "/" + name;
  return folder;
}

}  // namespace

std::string SharedLibrary::asked(const LibraryKind& kind, const char* path) {
  const char* said = path && *path ? path : std::getenv(kind.variable);
  return said ? said : "";
}

Status SharedLibrary::find(const LibraryKind& kind, const std::string& path, SharedLibrary* library) {
  if (path.empty()) {
    const std::vector<std::string> names = file_names(kind);
    library->handle_ = this_process(names[0].c_str());
    if (library->function(kind.entry)) return {};
    for (const std::string& name : names)
      if ((library->handle_ = open_library(name.c_str())) && library->function(kind.entry)) return {};
    return failure(EDGESLIM_RUNTIME_UNAVAILABLE, "%s is not found; give its path, or set %s to it", kind.title, kind.variable);
  }
  const std::string file = is_folder(path) ? library_in(kind, path) : path;
  library->handle_ = open_library(file.c_str());
  if (!library->handle_)
    return failure(EDGESLIM_RUNTIME_UNAVAILABLE, "%s does not load: %s", kind.title, loading_fault().c_str());
  if (!library->function(kind.entry))
    return failure(EDGESLIM_RUNTIME_UNAVAILABLE, "%s: not %s: it has no %s", file.c_str(), kind.title, kind.entry);
  return {};
}

void* SharedLibrary::function(const char* name) const { return function_of(handle_, name); }

}  // namespace edgeslim
