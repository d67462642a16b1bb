// The entry point that ONNX Runtime calls when it loads this library.
#include "ort/op.h"

#if defined(_WIN32)
#define EDGESLIM_EXPORT __declspec(dllexport)
#else
#define EDGESLIM_EXPORT __attribute__((visibility("default")))
#endif

namespace edgeslim::ort {

const CustomOp* packed_linear();
const CustomOp* packed_gather();
const CustomOp* group_query_attention();
const CustomOp* causal_conv();
const CustomOp* state_space_scan();

namespace {

Status* register_all(SessionOptions* options, const ApiBase* base) {
  const Api* api = base->get_api(kApiVersion);
  if (!api) return nullptr;  // a runtime older than 1.17: its sessions run the function bodies
  const Functions f(api);
  OpDomain* domain = nullptr;
  if (Status* status = f.create_domain("edgeslim", &domain)) return status;
  for (const CustomOp* op : {packed_linear(), packed_gather(), group_query_attention(), causal_conv(),
                             state_space_scan()})
    if (Status* status = f.domain_add(domain, op)) return status;
  return f.add_domain(options, domain);
}

}  // namespace
}  // namespace edgeslim::ort

extern "C" EDGESLIM_EXPORT edgeslim::ort::Status* RegisterCustomOps(edgeslim::ort::SessionOptions* options,
                                                                    const edgeslim::ort::ApiBase* base) {
  return edgeslim::ort::register_all(options, base);
}
