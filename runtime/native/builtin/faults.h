// What went wrong at a node, and in a kernel.
#pragma once

#include "builtin/program.h"
#include "ort/session_abi.h"

namespace edgeslim::builtin {

// What `status` says, if anything; releases it.
inline Fault take_fault(ort::Status* status) {
  if (!status) return {};
  const ort::SessionFunctions f(api_base()->get_api(ort::kApiVersion));
  const Fault wrong = fault("%s", f.error_message(status));
  f.release_status(status);
  return wrong;
}

inline Fault at_node(const Node& node, const Fault& wrong) {
  return fault("%.100s (%.60s): %s", node.name.c_str(), node.op.c_str(), wrong.text);
}

}  // namespace edgeslim::builtin
