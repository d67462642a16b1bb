// Memory that is kept between calls and only grows.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace edgeslim {

class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  // At least `bytes` bytes, aligned to 64, of any content; null where memory is out.
  void* bytes(int64_t bytes) {
    if (bytes > size_) {
      std::free(data_);
      const std::size_t rounded = (std::size_t(bytes) + 63) / 64 * 64;
      data_ = std::aligned_alloc(64, rounded);
      size_ = data_ ? int64_t(rounded) : 0;
    }
    return data_;
  }

  template <class T>
  T* of(int64_t count) {
    return static_cast<T*>(bytes(count * int64_t(sizeof(T)) + 64));
  }

 private:
  void* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace edgeslim
