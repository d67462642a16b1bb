// Bytes one after another, in and out; the reader knows where they end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace edgeslim {

// Writes as long as there is room, and counts all the same.
class ByteWriter {
 public:
  ByteWriter(void* data, std::size_t capacity) : data_(static_cast<char*>(data)), capacity_(capacity) {}

  void put(const void* from, std::size_t bytes) {
    if (fits() && bytes && bytes <= capacity_ - size_) std::memcpy(data_ + size_, from, bytes);
    size_ += bytes;
  }
  template <class T>
  void put(const T& value) {
    put(&value, sizeof value);
  }
  bool fits() const { return data_ && size_ <= capacity_; }
  std::size_t size() const { return size_; }

 private:
  char* data_;
  std::size_t capacity_, size_ = 0;
};

class ByteReader {
 public:
  ByteReader(const void* data, std::size_t size) : data_(static_cast<const char*>(data)), left_(size) {}

  // The next `bytes` bytes, null where there are not as many.
  const char* take(std::size_t bytes) {
    if (bytes > left_) return nullptr;
    const char* at = data_;
    data_ += bytes;
    left_ -= bytes;
    return at;
  }
  template <class T>
  bool get(T* value) {
    const char* at = take(sizeof *value);
    if (at) std::memcpy(value, at, sizeof *value);
    return at != nullptr;
  }
  std::size_t left() const { return left_; }

 private:
  const char* data_;
  std::size_t left_;
};

}  // namespace edgeslim
