// The entry point that ONNX Runtime calls when it loads this library.
#include <mutex>
#include <vector>

#include "ort/op.h"
#include "ort/session_abi.h"

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
const CustomOp* selective_scan();
const CustomOp* plan_reduction();
const CustomOp* reduce_tokens();

const CustomOp* const* operators() {
  static const CustomOp* const all[] = {packed_linear(), packed_gather(),    group_query_attention(), causal_conv(),
                                        state_space_scan(), selective_scan(), plan_reduction(), reduce_tokens(), nullptr};
  return all;
}

namespace {

// The operators' domain for one copy of the runtime. Sessions keep pointing to it, so it is made once and stays.
Status* domain_for(const Api* api, OpDomain** domain) {
  static std::mutex mutex;
  static auto* const made = new std::vector<std::pair<const Api*, OpDomain*>>;
  const std::lock_guard<std::mutex> lock(mutex);
  for (const auto& one : *made)
    if (one.first == api) return *domain = one.second, nullptr;
  const Functions f(api);
  if (Status* status = f.create_domain("edgeslim", domain)) return status;
  for (const CustomOp* const* op = operators(); *op; ++op)
    if (Status* status = f.domain_add(*domain, *op)) return status;
  made->emplace_back(api, *domain);
  return nullptr;
}

}  // namespace

Status* register_operators(SessionOptions* options, const ApiBase* base) {
  const Api* api = base->get_api(kApiVersion);
  if (!api) return nullptr;  // a runtime older than 1.17: its sessions run the function bodies
  OpDomain* domain = nullptr;
  if (Status* status = domain_for(api, &domain)) return status;
  return Functions(api).add_domain(options, domain);
}

}  // namespace edgeslim::ort

extern "C" EDGESLIM_EXPORT edgeslim::ort::Status* RegisterCustomOps(edgeslim::ort::SessionOptions* options,
                                                                    const edgeslim::ort::ApiBase* base) {
  return edgeslim::ort::register_operators(options, base);
}
