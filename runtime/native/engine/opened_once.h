// Libraries of one kind that this process has opened, each once for every path. None is closed again.
#pragma once

#include <list>
#include <mutex>
#include <string>
#include <utility>

#include "engine/shared_library.h"

namespace edgeslim {

// `Library` holds what is used of one; `open` fills it from the library at a path.
template <class Library>
class OpenedOnce {
 public:
  OpenedOnce(const LibraryKind& kind, Status (*open)(const std::string& path, Library* library))
      : kind_(kind), open_(open) {}

  // The library at `path`, or where the kind's variable says if `path` is null or empty. It outlives everything.
  Status at(const char* path, const Library** library) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const std::string wanted = SharedLibrary::asked(kind_, path);
    for (const auto& [known, one] : opened_)
      if (known == wanted) {
        *library = &one;
        return {};
      }
    Library made;
    if (Status s = open_(wanted, &made); s.failed()) return s;
    opened_.emplace_back(wanted, std::move(made));
    *library = &opened_.back().second;
    return {};
  }

 private:
  const LibraryKind& kind_;
  Status (*const open_)(const std::string&, Library*);
  std::mutex mutex_;
  std::list<std::pair<std::string, Library>> opened_;
};

}  // namespace edgeslim
