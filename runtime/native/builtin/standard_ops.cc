#include "builtin/standard_ops.h"

namespace edgeslim::builtin {
namespace {

constexpr char kMicrosoft[] = "com.microsoft";
constexpr std::size_t kMany = 1000;

constexpr StandardOp kOps[] = {
    {"", "Gather", gather, 2, 1},
    {"", "Cast", cast, 1, 1},
    {"", "Shape", shape_of, 1, 1},
    {"", "ReduceSum", reduce_sum, 2, 1},
    {"", "Expand", expand, 2, 1},
    {"", "Range", range, 3, 1},
    {"", "Identity", identity, 1, 1},
    {"", "Reshape", reshape, 2, 1},
    {"", "Squeeze", squeeze, 2, 1},
    {"", "Split", split, 2, kMany},
    {"", "Concat", concat, kMany, 1},
    {"", "Add", add, 2, 1},
    {"", "Sub", subtract, 2, 1},
    {"", "Mul", multiply, 2, 1},
    {"", "Div", divide, 2, 1},
    {"", "Max", largest, 2, 1},
    {"", "Relu", relu, 1, 1},
    {"", "Sigmoid", sigmoid_of, 1, 1},
    {"", "Tanh", tanh_of, 1, 1},
    {"", "Gelu", gelu_of, 1, 1},
    {"", "RMSNormalization", rms_norm, 2, 1},
    {"", "LayerNormalization", layer_norm, 3, 1},
    {kMicrosoft, "SkipSimplifiedLayerNormalization", skip_rms_norm, 4, 4},
    {kMicrosoft, "SkipLayerNormalization", skip_layer_norm, 5, 4},
};

}  // namespace

const StandardOp* standard_op(const std::string& domain, const std::string& name) {
  for (const StandardOp& op : kOps)
    if (name == op.name && domain == op.domain) return &op;
  return nullptr;
}

}  // namespace edgeslim::builtin
