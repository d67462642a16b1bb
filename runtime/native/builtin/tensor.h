// Tensors and their types: what the opaque values of ort/abi.h are here.
#pragma once

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "core/text.h"
#include "ort/abi.h"

namespace edgeslim::builtin {

struct TensorType {
  int element = ort::kUndefined;
  std::vector<int64_t> shape;        // -1: known by its symbol, or not at all
  std::vector<std::string> symbols;  // empty where all dimensions are known
};

struct FreeMemory {
  void operator()(char* memory) const { std::free(memory); }
};

struct Tensor : TensorType {
  void* data = nullptr;
  std::unique_ptr<char, FreeMemory> own;  // where the memory is the tensor's

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

constexpr std::size_t kMostTensorBytes = std::size_t{1} << (sizeof(std::size_t) * 8 - 8);

// Bytes of one element; 0 for types that are not known here.
constexpr std::size_t element_bytes(int element) {
  switch (element) {
    case ort::kUint8: return 1;
    case ort::kFloat16: return 2;
    case ort::kFloat: case ort::kInt32: return 4;
    case ort::kInt64: return 8;
    default: return 0;
  }
}

// Elements of `shape`; false where a dimension is negative or the tensor would not fit into memory.
inline bool count_elements(const std::vector<int64_t>& shape, std::size_t* count) {
  *count = 1;
  bool empty = false;
  for (const int64_t d : shape) {
    if (d < 0) return false;
    empty = empty || d == 0;
    if (d && *count > kMostTensorBytes / 8 / std::size_t(d)) return false;
    *count *= d ? std::size_t(d) : 1;
  }
  if (empty) *count = 0;
  return true;
}

inline bool count_bytes(int element, const std::vector<int64_t>& shape, std::size_t* bytes) {
  if (!element_bytes(element) || !count_elements(shape, bytes)) return false;
  *bytes *= element_bytes(element);
  return true;
}

}  // namespace edgeslim::builtin
