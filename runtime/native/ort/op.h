// From a C++ struct to an operator of the runtime.
//
// The struct has kName, kInputCount, kOutputCount, input_type(i), optional(i), output_type(i), a constructor
// (api, info, fault*) and compute(context) that returns a fault. An undefined type means any.
#pragma once

#include <new>

#include "ort/kernel.h"

namespace edgeslim::ort {

template <class T>
struct Described {
  static const char* name(const CustomOp*) { return T::kName; }
  static const char* provider(const CustomOp*) { return nullptr; }
  static ElementType input_type(const CustomOp*, std::size_t index) { return T::input_type(index); }
  static std::size_t input_count(const CustomOp*) { return T::kInputCount; }
  static ElementType output_type(const CustomOp*, std::size_t index) { return T::output_type(index); }
  static std::size_t output_count(const CustomOp*) { return T::kOutputCount; }
  static Characteristic input_characteristic(const CustomOp*, std::size_t index) {
    return T::optional(index) ? kOptional : kRequired;
  }
  static Characteristic output_characteristic(const CustomOp*, std::size_t) { return kRequired; }
  static int memory_type(const CustomOp*, std::size_t) { return 0; }
  static int one(const CustomOp*) { return 1; }
  static int any_version(const CustomOp*) { return 0x7fffffff; }
  static void destroy(void* kernel) { delete static_cast<T*>(kernel); }

  static Status* create(const CustomOp*, const Api* api, const KernelInfo* info, void** kernel) {
    Fault wrong;
    T* made = new (std::nothrow) T(api, info, &wrong);
    if (!made) wrong = fault("out of memory");
    if (wrong) {
      delete made;
      Fault named = fault("edgeslim::%s: %s", T::kName, wrong.text);
      return Runtime(api).status(named);
    }
    *kernel = made;
    return nullptr;
  }

  static Status* compute(void* kernel, KernelContext* context) {
    const T* self = static_cast<T*>(kernel);
    if (Fault wrong = self->compute(context))
      return self->runtime.status(fault("edgeslim::%s: %s", T::kName, wrong.text));
    return nullptr;
  }
};

template <class T>
const CustomOp* op() {
  using D = Described<T>;
  static const CustomOp described = {
      kApiVersion,    nullptr,           D::name,          D::provider, D::input_type, D::input_count,
      D::output_type, D::output_count,   nullptr,          D::destroy,  D::input_characteristic,
      D::output_characteristic,          D::memory_type,   D::one,      D::one,        D::one,
      D::one,         D::create,         D::compute,       nullptr,     D::one,        D::any_version};
  return &described;
}

}  // namespace edgeslim::ort
