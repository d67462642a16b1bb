// Libraries that are looked for and loaded while this one runs.
#pragma once

#include <string>

#include "engine/status.h"

namespace edgeslim {

// What is looked for: what to call it, its name without what platforms put around it, the function by which it is told,
// and the environment variable that may hold its path.
struct LibraryKind {
  const char *title, *stem, *entry, *variable;
};

// A library that stays until the process ends, or all of those the process has.
class SharedLibrary {
 public:
  // The library at `path` (a file, or a folder that holds it); empty: one in this process, else the system's.
  static Status find(const LibraryKind& kind, const std::string& path, SharedLibrary* library);
  // `path`, or what the kind's variable says where `path` is null or empty.
  static std::string asked(const LibraryKind& kind, const char* path);

  // Its function `name`, null where it has none.
  void* function(const char* name) const;

 private:
  void* handle_ = nullptr;
};

}  // namespace edgeslim
