#include "builtin/mapped_file.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>

#if !defined(_WIN32)
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace edgeslim::builtin {

#if defined(_WIN32)

MappedFile::~MappedFile() { std::free(data_); }

Fault MappedFile::open(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (!file) return fault("%.160s cannot be read: %s", path.c_str(), std::strerror(errno));
  long size = -1;
  if (!std::fseek(file, 0, SEEK_END)) size = std::ftell(file);
  if (size >= 0 && !std::fseek(file, 0, SEEK_SET) && (data_ = std::malloc(std::size_t(size) + 1)))
    size_ = std::fread(data_, 1, std::size_t(size), file);
  std::fclose(file);
  return size >= 0 && size_ == std::size_t(size) ? Fault{} : fault("%.160s cannot be read to its end", path.c_str());
}

#else

MappedFile::~MappedFile() {
  if (data_) munmap(data_, size_);
}

Fault MappedFile::open(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat found;
  Fault wrong;
  if (file < 0 || fstat(file, &found) != 0) {
    wrong = fault("%.160s cannot be read: %s", path.c_str(), std::strerror(errno));
  } else if (!S_ISREG(found.st_mode)) {
    wrong = fault("%.160s is no file", path.c_str());
  } else if (found.st_size > 0) {
    void* mapped = mmap(nullptr, std::size_t(found.st_size), PROT_READ, MAP_PRIVATE, file, 0);
    if (mapped == MAP_FAILED) {
      wrong = fault("%.160s cannot be mapped: %s", path.c_str(), std::strerror(errno));
    } else {
      data_ = mapped;
      size_ = std::size_t(found.st_size);
    }
  }
  if (file >= 0) close(file);
  return wrong;
}

#endif

}  // namespace edgeslim::builtin
