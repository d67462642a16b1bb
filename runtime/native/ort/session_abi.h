// The part of ONNX Runtime's C interface that running a session needs, by its binary layout; see ort/abi.h.
#pragma once

#include "ort/abi.h"

namespace edgeslim::ort {

struct Env;
struct Session;
struct RunOptions;
struct MemoryInfo;
struct Allocator;
struct TypeInfo;

#if defined(_WIN32)
using PathChar = wchar_t;
#else
using PathChar = char;
#endif

enum LoggingLevel : int { kWarnings = 2, kErrors = 3 };
enum AllocatorType : int { kDeviceAllocator = 0 };
enum MemoryType : int { kDefaultMemory = 0 };

#define EDGESLIM_ORT_SESSION_FUNCTIONS(X)                                                                         \
  X(error_message, GetErrorMessage, 2, const char* (*)(const Status*))                                            \
  X(create_env, CreateEnv, 3, Status* (*)(int, const char*, Env**))                                               \
  X(disable_telemetry, DisableTelemetryEvents, 6, Status* (*)(const Env*))                                        \
  X(create_session, CreateSession, 7, Status* (*)(const Env*, const PathChar*, const SessionOptions*, Session**)) \
  X(run, Run, 9,                                                                                                  \
    Status* (*)(Session*, const RunOptions*, const char* const*, const Value* const*, std::size_t,                \
                const char* const*, std::size_t, Value**))                                                        \
  X(create_options, CreateSessionOptions, 10, Status* (*)(SessionOptions**))                                      \
  X(disable_arena, DisableCpuMemArena, 19, Status* (*)(SessionOptions*))                                          \
  X(set_log_severity, SetSessionLogSeverityLevel, 22, Status* (*)(SessionOptions*, int))                          \
  X(set_threads, SetIntraOpNumThreads, 24, Status* (*)(SessionOptions*, int))                                     \
  X(session_input_count, SessionGetInputCount, 30, Status* (*)(const Session*, std::size_t*))                     \
  X(session_output_count, SessionGetOutputCount, 31, Status* (*)(const Session*, std::size_t*))                   \
  X(input_type_info, SessionGetInputTypeInfo, 33, Status* (*)(const Session*, std::size_t, TypeInfo**))           \
  X(output_type_info, SessionGetOutputTypeInfo, 34, Status* (*)(const Session*, std::size_t, TypeInfo**))         \
  X(input_name, SessionGetInputName, 36, Status* (*)(const Session*, std::size_t, Allocator*, char**))            \
  X(output_name, SessionGetOutputName, 37, Status* (*)(const Session*, std::size_t, Allocator*, char**))          \
  X(create_run_options, CreateRunOptions, 39, Status* (*)(RunOptions**))                                          \
  X(set_terminate, RunOptionsSetTerminate, 46, Status* (*)(RunOptions*))                                          \
  X(unset_terminate, RunOptionsUnsetTerminate, 47, Status* (*)(RunOptions*))                                      \
  X(create_owned_tensor, CreateTensorAsOrtValue, 48,                                                              \
    Status* (*)(Allocator*, const int64_t*, std::size_t, int, Value**))                                           \
  X(create_tensor, CreateTensorWithDataAsOrtValue, 49,                                                            \
    Status* (*)(const MemoryInfo*, void*, std::size_t, const int64_t*, std::size_t, int, Value**))                \
  X(tensor_data, GetTensorMutableData, 51, Status* (*)(Value*, void**))                                           \
  X(tensor_info, CastTypeInfoToTensorInfo, 55, Status* (*)(const TypeInfo*, const TypeShape**))                   \
  X(element_type, GetTensorElementType, 60, Status* (*)(const TypeShape*, int*))                                  \
  X(dimension_count, GetDimensionsCount, 61, Status* (*)(const TypeShape*, std::size_t*))                         \
  X(dimensions, GetDimensions, 62, Status* (*)(const TypeShape*, int64_t*, std::size_t))                          \
  X(symbolic_dimensions, GetSymbolicDimensions, 63, Status* (*)(const TypeShape*, const char**, std::size_t))     \
  X(type_shape, GetTensorTypeAndShape, 65, Status* (*)(const Value*, TypeShape**))                                \
  X(cpu_memory, CreateCpuMemoryInfo, 69, Status* (*)(int, int, MemoryInfo**))                                     \
  X(allocator_free, AllocatorFree, 76, Status* (*)(Allocator*, void*))                                            \
  X(default_allocator, GetAllocatorWithDefaultOptions, 78, Status* (*)(Allocator**))                              \
  X(release_status, ReleaseStatus, 93, void (*)(Status*))                                                         \
  X(release_session, ReleaseSession, 95, void (*)(Session*))                                                      \
  X(release_value, ReleaseValue, 96, void (*)(Value*))                                                            \
  X(release_run_options, ReleaseRunOptions, 97, void (*)(RunOptions*))                                            \
  X(release_type_info, ReleaseTypeInfo, 98, void (*)(TypeInfo*))                                                  \
  X(release_type_shape, ReleaseTensorTypeAndShapeInfo, 99, void (*)(TypeShape*))                                  \
  X(release_options, ReleaseSessionOptions, 100, void (*)(SessionOptions*))                                       \
  X(add_entry, AddSessionConfigEntry, 130, Status* (*)(SessionOptions*, const char*, const char*))                \
  X(register_library, RegisterCustomOpsLibrary_V2, 228, Status* (*)(SessionOptions*, const PathChar*))

struct SessionFunctions {
  SessionFunctions() = default;
  explicit SessionFunctions(const Api* table) {
    const auto* entries = reinterpret_cast<void* const*>(table);
#define EDGESLIM_LOAD(name, official, index, ...) name = reinterpret_cast<__VA_ARGS__>(entries[index]);
    EDGESLIM_ORT_SESSION_FUNCTIONS(EDGESLIM_LOAD)
#undef EDGESLIM_LOAD
  }
#define EDGESLIM_DECLARE(name, official, index, ...) std::add_pointer_t<std::remove_pointer_t<__VA_ARGS__>> name = nullptr;
  EDGESLIM_ORT_SESSION_FUNCTIONS(EDGESLIM_DECLARE)
#undef EDGESLIM_DECLARE
};

// The operators of this library, ended by null.
const CustomOp* const* operators();

// Adds the operators of this library to a session's options; null where that went well. ort/register.cc.
Status* register_operators(SessionOptions* options, const ApiBase* base);

}  // namespace edgeslim::ort
