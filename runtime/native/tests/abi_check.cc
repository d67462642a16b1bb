// ort/abi.h against the official header: compiles where both say the same. `c++ -std=c++17 -fsyntax-only -I
// runtime/native -I FOLDER-OF-onnxruntime_c_api.h abi_check.cc`; any version of the header from 1.17 on.
#include <onnxruntime_c_api.h>

#include "ort/session_abi.h"

namespace edgeslim::ort {

static_assert(ORT_API_VERSION >= kApiVersion, "the official header is older than what this library asks for");

#define EDGESLIM_CHECK(name, official, index, ...) \
  static_assert(offsetof(OrtApi, official) == index * sizeof(void*), #official " stands elsewhere");
EDGESLIM_ORT_FUNCTIONS(EDGESLIM_CHECK)
EDGESLIM_ORT_SESSION_FUNCTIONS(EDGESLIM_CHECK)
#undef EDGESLIM_CHECK

static_assert(offsetof(ApiBase, get_api) == offsetof(OrtApiBase, GetApi));
static_assert(offsetof(ApiBase, version_string) == offsetof(OrtApiBase, GetVersionString));

#define EDGESLIM_FIELD(name, official) \
  static_assert(offsetof(CustomOp, name) == offsetof(OrtCustomOp, official), #official " stands elsewhere");
EDGESLIM_FIELD(version, version)
EDGESLIM_FIELD(create_kernel, CreateKernel)
EDGESLIM_FIELD(name, GetName)
EDGESLIM_FIELD(execution_provider, GetExecutionProviderType)
EDGESLIM_FIELD(input_type, GetInputType)
EDGESLIM_FIELD(input_count, GetInputTypeCount)
EDGESLIM_FIELD(output_type, GetOutputType)
EDGESLIM_FIELD(output_count, GetOutputTypeCount)
EDGESLIM_FIELD(compute, KernelCompute)
EDGESLIM_FIELD(destroy, KernelDestroy)
EDGESLIM_FIELD(input_characteristic, GetInputCharacteristic)
EDGESLIM_FIELD(output_characteristic, GetOutputCharacteristic)
EDGESLIM_FIELD(input_memory_type, GetInputMemoryType)
EDGESLIM_FIELD(variadic_input_min_arity, GetVariadicInputMinArity)
EDGESLIM_FIELD(variadic_input_homogeneity, GetVariadicInputHomogeneity)
EDGESLIM_FIELD(variadic_output_min_arity, GetVariadicOutputMinArity)
EDGESLIM_FIELD(variadic_output_homogeneity, GetVariadicOutputHomogeneity)
EDGESLIM_FIELD(create_kernel_v2, CreateKernelV2)
EDGESLIM_FIELD(compute_v2, KernelComputeV2)
EDGESLIM_FIELD(infer_output_shapes, InferOutputShapeFn)
EDGESLIM_FIELD(start_version, GetStartVersion)
EDGESLIM_FIELD(end_version, GetEndVersion)
#undef EDGESLIM_FIELD

static_assert(int(kUndefined) == ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED && int(kFloat) == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
static_assert(int(kUint8) == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 && int(kInt32) == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32);
static_assert(int(kInt64) == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 && int(kFloat16) == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16);
static_assert(int(kRequired) == INPUT_OUTPUT_REQUIRED && int(kOptional) == INPUT_OUTPUT_OPTIONAL);
static_assert(int(kErrors) == ORT_LOGGING_LEVEL_ERROR && int(kDeviceAllocator) == OrtDeviceAllocator);
static_assert(int(kDefaultMemory) == OrtMemTypeDefault);
static_assert(int(kFail) == ORT_FAIL && int(kInvalidArgument) == ORT_INVALID_ARGUMENT);

}  // namespace edgeslim::ort
