// The few operators of ONNX's own domain that stay in a packed graph: what picks the last position, and what counts
// tokens. A graph with another one is ONNX Runtime's to run.
#pragma once

#include "builtin/onnx_file.h"

namespace edgeslim::builtin {

// Gives memory for output 0 of the node at hand; null, with a fault, where there is none.
struct OutputMaker {
  void* owner;
  Tensor* (*make)(void* owner, int element, const std::vector<int64_t>& shape, Fault* wrong);

  Tensor* operator()(int element, const std::vector<int64_t>& shape, Fault* wrong) const {
    return make(owner, element, shape, wrong);
  }
};

// Inputs that are left out are null.
using StandardOp = Fault (*)(const Node&, const std::vector<const Tensor*>& inputs, const OutputMaker& output);

// The operator by its name, null where it is not among them. Their meaning is that of opset 13 and later.
StandardOp standard_op(const std::string& name);

}  // namespace edgeslim::builtin
