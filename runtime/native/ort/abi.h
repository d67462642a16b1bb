// The small part of ONNX Runtime's C interface that custom operators need, declared by its binary layout.
//
// The table of functions is append-only: an entry's index never changes, and a runtime of version 1.17 or newer has all
// of these. Where the official header is installed, tests/abi_check.cc compares every index and field with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace edgeslim::ort {

constexpr uint32_t kApiVersion = 17;

struct Status;
struct Value;
struct TypeShape;
struct KernelInfo;
struct KernelContext;
struct SessionOptions;
struct OpDomain;

enum ElementType : int { kUndefined = 0, kFloat = 1, kUint8 = 2, kInt32 = 6, kInt64 = 7, kFloat16 = 10 };
enum Characteristic : int { kRequired = 0, kOptional = 1 };
enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };

struct Api;
struct ApiBase {
  const Api* (*get_api)(uint32_t version);
  const char* (*version_string)();
};

// One operator. Fields stand in the order of OrtCustomOp; `version` says up to which of them the runtime reads.
struct CustomOp {
  uint32_t version;
  void* (*create_kernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*name)(const CustomOp*);
  const char* (*execution_provider)(const CustomOp*);
  ElementType (*input_type)(const CustomOp*, std::size_t);
  std::size_t (*input_count)(const CustomOp*);
  ElementType (*output_type)(const CustomOp*, std::size_t);
  std::size_t (*output_count)(const CustomOp*);
  void (*compute)(void*, KernelContext*);
  void (*destroy)(void*);
  Characteristic (*input_characteristic)(const CustomOp*, std::size_t);
  Characteristic (*output_characteristic)(const CustomOp*, std::size_t);
  int (*input_memory_type)(const CustomOp*, std::size_t);
  int (*variadic_input_min_arity)(const CustomOp*);
  int (*variadic_input_homogeneity)(const CustomOp*);
  int (*variadic_output_min_arity)(const CustomOp*);
  int (*variadic_output_homogeneity)(const CustomOp*);
  Status* (*create_kernel_v2)(const CustomOp*, const Api*, const KernelInfo*, void**);
  Status* (*compute_v2)(void*, KernelContext*);
  Status* (*infer_output_shapes)(const CustomOp*, void*);
  int (*start_version)(const CustomOp*);
  int (*end_version)(const CustomOp*);
};

// Index and type of each function used.
#define EDGESLIM_ORT_FUNCTIONS(X)                                                              \
  X(create_status, CreateStatus, 0, Status* (*)(int, const char*))                             \
  X(create_domain, CreateCustomOpDomain, 26, Status* (*)(const char*, OpDomain**))             \
  X(domain_add, CustomOpDomain_Add, 27, Status* (*)(OpDomain*, const CustomOp*))               \
  X(add_domain, AddCustomOpDomain, 28, Status* (*)(SessionOptions*, OpDomain*))                \
  X(tensor_data, GetTensorMutableData, 51, Status* (*)(Value*, void**))                        \
  X(element_type, GetTensorElementType, 60, Status* (*)(const TypeShape*, int*))               \
  X(dimension_count, GetDimensionsCount, 61, Status* (*)(const TypeShape*, std::size_t*))      \
  X(dimensions, GetDimensions, 62, Status* (*)(const TypeShape*, int64_t*, std::size_t))       \
  X(type_shape, GetTensorTypeAndShape, 65, Status* (*)(const Value*, TypeShape**))             \
  X(attribute_float, KernelInfoGetAttribute_float, 85, Status* (*)(const KernelInfo*, const char*, float*)) \
  X(attribute_int, KernelInfoGetAttribute_int64, 86, Status* (*)(const KernelInfo*, const char*, int64_t*)) \
  X(attribute_string, KernelInfoGetAttribute_string, 87,                                       \
    Status* (*)(const KernelInfo*, const char*, char*, std::size_t*))                          \
  X(input_count, KernelContext_GetInputCount, 88, Status* (*)(const KernelContext*, std::size_t*)) \
  X(input, KernelContext_GetInput, 90, Status* (*)(const KernelContext*, std::size_t, const Value**)) \
  X(output, KernelContext_GetOutput, 91,                                                       \
    Status* (*)(KernelContext*, std::size_t, const int64_t*, std::size_t, Value**))            \
  X(release_status, ReleaseStatus, 93, void (*)(Status*))                                      \
  X(release_type_shape, ReleaseTensorTypeAndShapeInfo, 99, void (*)(TypeShape*))               \
  X(info_input_count, KernelInfo_GetInputCount, 230, Status* (*)(const KernelInfo*, std::size_t*)) \
  X(constant_input, KernelInfoGetConstantInput_tensor, 249,                                    \
    Status* (*)(const KernelInfo*, std::size_t, int*, const Value**))                          \
  X(parallel_for, KernelContext_ParallelFor, 274,                                              \
    Status* (*)(const KernelContext*, void (*)(void*, std::size_t), std::size_t, std::size_t, void*))

struct Functions {
  explicit Functions(const Api* table) {
    const auto* entries = reinterpret_cast<void* const*>(table);
#define EDGESLIM_LOAD(name, official, index, ...) name = reinterpret_cast<__VA_ARGS__>(entries[index]);
    EDGESLIM_ORT_FUNCTIONS(EDGESLIM_LOAD)
#undef EDGESLIM_LOAD
  }
#define EDGESLIM_DECLARE(name, official, index, ...) std::add_pointer_t<std::remove_pointer_t<__VA_ARGS__>> name;
  EDGESLIM_ORT_FUNCTIONS(EDGESLIM_DECLARE)
#undef EDGESLIM_DECLARE
};

// Integer attribute of every node by which this library's own executor tells kernels how many threads it has.
constexpr char kOwnThreads[] = "edgeslim.threads";

}  // namespace edgeslim::ort
