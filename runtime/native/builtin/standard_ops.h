// The operators of ONNX's own domain, and a few of com.microsoft, that stay in a packed graph. A graph with another one is
// ONNX Runtime's to run.
#pragma once

#include "builtin/onnx_file.h"
#include "core/pool.h"

namespace edgeslim::builtin {

// Gives memory for an output of the node at hand; null where there is none, with a fault, or where nobody asked for it.
struct OutputMaker {
  void* owner;
  Tensor* (*make)(void* owner, std::size_t index, int element, const std::vector<int64_t>& shape, Fault* wrong);

  Tensor* operator()(std::size_t index, int element, const std::vector<int64_t>& shape, Fault* wrong) const {
    return make(owner, index, element, shape, wrong);
  }
};

// A node that is to be run. Inputs that are left out are null.
struct Call {
  const Node& node;
  const std::vector<const Tensor*>& inputs;
  OutputMaker output;
  Pool pool;

  const Tensor* input(std::size_t index) const { return index < inputs.size() ? inputs[index] : nullptr; }
};

struct StandardOp {
  const char* domain;
  const char* name;
  Fault (*run)(const Call&);
  std::size_t most_inputs, most_outputs;
};

// The operator, null where it is not among them. Their meaning is that of opset 13 and later.
const StandardOp* standard_op(const std::string& domain, const std::string& name);

// Which integers and shapes: what picks the last position, and what counts tokens. index_ops.cc.
Fault gather(const Call&);
Fault cast(const Call&);
Fault shape_of(const Call&);
Fault reduce_sum(const Call&);
Fault expand(const Call&);
Fault range(const Call&);
// The same entries in another order or shape. layout_ops.cc.
Fault identity(const Call&);
Fault reshape(const Call&);
Fault squeeze(const Call&);
Fault split(const Call&);
Fault concat(const Call&);
// Functions of entries, of numbers and of integers. entry_ops.cc.
Fault add(const Call&);
Fault subtract(const Call&);
Fault multiply(const Call&);
Fault divide(const Call&);
Fault largest(const Call&);
Fault relu(const Call&);
Fault sigmoid_of(const Call&);
Fault tanh_of(const Call&);
Fault gelu_of(const Call&);
// Rows brought to one size. norm_ops.cc.
Fault rms_norm(const Call&);
Fault layer_norm(const Call&);
Fault skip_rms_norm(const Call&);
Fault skip_layer_norm(const Call&);

}  // namespace edgeslim::builtin
