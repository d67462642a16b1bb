// A file as memory, read where it is looked at.
#pragma once

#include <cstdint>
#include <string>

#include "builtin/protobuf.h"
#include "core/text.h"

namespace edgeslim::builtin {

class MappedFile {
 public:
  MappedFile() = default;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  // Maps the file at `path` (UTF-8). Where the system cannot map files they are read.
  Fault open(const std::string& path);
  Bytes bytes() const { return {static_cast<const uint8_t*>(data_), size_}; }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace edgeslim::builtin
