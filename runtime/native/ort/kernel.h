// What every operator needs of the runtime: tensors, attributes, faults as statuses, the session's thread pool.
#pragma once

#include <cstring>
#include <vector>

#include "core/pool.h"
#include "core/text.h"
#include "ort/abi.h"

namespace edgeslim::ort {

// A tensor of the runtime, by its parts. `data` is null for an input left out.
struct Tensor {
  void* data = nullptr;
  ElementType type = kUndefined;
  std::vector<int64_t> shape;

  explicit operator bool() const { return data != nullptr || type != kUndefined; }
  int64_t count() const {
    int64_t product = 1;
    for (int64_t d : shape) product *= d;
    return product;
  }
  int64_t last() const { return shape.empty() ? 1 : shape.back(); }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

// The runtime's function table behind calls that return plain values. A call that fails leaves a fault.
class Runtime {
 public:
  explicit Runtime(const Api* api) : f_(api) {}

  Tensor constant(const KernelInfo* info, std::size_t index, Fault* wrong) const {
    std::size_t count = 0;
    if (failed(f_.info_input_count(info, &count)) || index >= count) return {};
    int is_constant = 0;
    const Value* value = nullptr;
    if (failed(f_.constant_input(info, index, &is_constant, &value)) || !is_constant) return {};
    return tensor(value, wrong);
  }

  Tensor input(const KernelContext* context, std::size_t index, Fault* wrong) const {
    std::size_t count = 0;
    const Value* value = nullptr;
    if (failed(f_.input_count(context, &count)) || index >= count) return {};
    if (failed(f_.input(context, index, &value)) || !value) return {};
    return tensor(value, wrong);
  }

  Tensor output(KernelContext* context, std::size_t index, const std::vector<int64_t>& shape, Fault* wrong) const {
    Value* value = nullptr;
    if (failed(f_.output(context, index, shape.data(), shape.size(), &value)) || !value) {
      *wrong = fault("output %d cannot be allocated", int(index));
      return {};
    }
    return tensor(value, wrong);
  }

  int64_t integer(const KernelInfo* info, const char* name, int64_t otherwise) const {
    int64_t value = otherwise;
    return failed(f_.attribute_int(info, name, &value)) ? otherwise : value;
  }

  float number(const KernelInfo* info, const char* name, float otherwise) const {
    float value = otherwise;
    return failed(f_.attribute_float(info, name, &value)) ? otherwise : value;
  }

  bool has_text(const KernelInfo* info, const char* name) const {
    std::size_t size = 0;
    return !failed(f_.attribute_string(info, name, nullptr, &size));
  }

  // Whether the string attribute `name` is `wanted`.
  bool says(const KernelInfo* info, const char* name, const char* wanted) const {
    char text[32] = {0};
    std::size_t size = sizeof text;
    return !failed(f_.attribute_string(info, name, text, &size)) && !std::strcmp(text, wanted);
  }

  Status* status(const Fault& wrong) const {
    return wrong ? f_.create_status(kInvalidArgument, wrong.text) : nullptr;
  }

  // How many threads this library's own executor has; 0 where another runs the graph.
  int64_t own_threads(const KernelInfo* info) const { return integer(info, kOwnThreads, 0); }

  // The session's threads, `own` of this library's executor. `threads` must outlive the pool.
  struct Threads {
    const Runtime* runtime;
    const KernelContext* context;
  };
  static Pool pool(Threads* threads, int64_t own = 0) {
    return {threads, [](void* owner, Pool::Task task, std::size_t count, void* data) {
              const auto* t = static_cast<Threads*>(owner);
              if (t->runtime->failed(t->runtime->f_.parallel_for(t->context, task, count, 0, data)))
                for (std::size_t i = 0; i < count; ++i) task(data, i);
            }, own};
  }

 private:
  bool failed(Status* status) const {
    if (status) f_.release_status(status);
    return status != nullptr;
  }

  Tensor tensor(const Value* value, Fault* wrong) const {
    Tensor result;
    TypeShape* info = nullptr;
    std::size_t rank = 0;
    int type = kUndefined;
    bool bad = failed(f_.type_shape(value, &info));
    if (!bad) {
      bad = failed(f_.element_type(info, &type)) || failed(f_.dimension_count(info, &rank));
      result.shape.resize(bad ? 0 : rank);
      bad = bad || failed(f_.dimensions(info, result.shape.data(), rank)) ||
            failed(f_.tensor_data(const_cast<Value*>(value), &result.data));
      f_.release_type_shape(info);
    }
    result.type = ElementType(type);
    if (bad) *wrong = fault("an input is no tensor");
    return result;
  }

  Functions f_;
};

}  // namespace edgeslim::ort
