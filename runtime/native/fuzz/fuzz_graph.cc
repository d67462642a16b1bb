// Damaged ONNX files, read, made and run in process without ONNX Runtime: `fuzz_graph SEED COUNT [FIRST] [--seconds S]`.
// Each execution takes a small valid graph and changes fields of it, bytes of it or bytes of its weights. Execution i
// depends on SEED and i alone.
#include <atomic>

#include "builtin/program.h"
#include "fuzz/campaign.h"
#include "tests/small_graph.h"

namespace {

using namespace edgeslim;
using namespace edgeslim::builtin;
using tests::attribute;
using tests::GraphSpec;
using tests::Random;
using tests::SmallGraph;

int64_t odd_number(Random& random) {
  const int64_t numbers[] = {0, 1, -1, 2, 3, 4, 8, 13, 16, 21, 24, 37, 63, 64, 255, 1 << 20, int64_t{1} << 31, int64_t{1} << 40, INT64_MAX, INT64_MIN};
  return random.below(4) ? numbers[random.below(int64_t(sizeof numbers / sizeof *numbers))] : random.below(200) - 20;
}

template <class T>
T& one_of(std::vector<T>& all, Random& random) {
  return all[std::size_t(random.below(int64_t(all.size())))];
}

void change_field(GraphSpec& g, Random& random) {
  const char* const names[] = {"", "ids", "mask", "x", "y", "one", "last", "logits", "head.values", "head.masks", "head.offsets", "weights", "removed", "positions", "ratios", "keys", "angles", "cache", "query_norm", "lengths", "pieces", "flat", "share", "sum", "apart", "width", "steps"};
  const std::string name = names[random.below(int64_t(sizeof names / sizeof *names))];
  tests::TensorSpec& tensor = one_of(g.initializers, random);
  tests::NodeSpec& node = one_of(g.nodes, random);
  switch (random.below(13)) {
    case 0: tensor.offset = odd_number(random); break;
    case 1: tensor.length = odd_number(random); break;
    case 2: tensor.element = int(random.below(20)); break;
    case 3: tensor.shape.assign(std::size_t(random.below(5)), odd_number(random)); break;
    case 4: tensor.location = name; break;
    case 5: tensor.name = name; break;
    case 6:
      if (!node.inputs.empty()) one_of(node.inputs, random) = name;
      break;
    case 7: one_of(node.outputs, random) = name; break;
    case 8: {
      const char* const attributes[] = {"layout", "n", "k", "bits", "group", "pattern_n", "axis", "allowzero", "to", "keepdims", "start", "end", "x_start", "gate_start", "protected", "min_tokens", "q_millionths", "protect_first", "protect_last", "step", "num_heads", "kv_num_heads", "head_size", "local_window_size"};
      node.attributes.push_back(attribute(attributes[random.below(int64_t(sizeof attributes / sizeof *attributes))], odd_number(random)));
      break;
    }
    case 9: {
      static const std::vector<std::pair<const char*, std::vector<const char*>>> ops = {
          {"", {"Gather", "Cast", "Shape", "ReduceSum", "Sub", "Add", "Expand", "Squeeze", "Range", "Identity", "Reshape", "Split", "Concat", "Mul", "Div", "Max", "Relu", "Sigmoid", "Tanh", "Gelu", "RMSNormalization", "LayerNormalization", "Constant"}},
          {"com.microsoft", {"SkipLayerNormalization", "SkipSimplifiedLayerNormalization"}},
          {"edgeslim", {"PackedLinear", "PackedGather", "CausalConv", "StateSpaceScan", "SelectiveScan", "GroupQueryAttention", "PlanReduction", "ReduceTokens"}},
      };
      const auto& [domain, of_domain] = ops[std::size_t(random.below(int64_t(ops.size())))];
      node.domain = domain;
      node.op = of_domain[std::size_t(random.below(int64_t(of_domain.size())))];
      break;
    }
    case 11: {
      const char* const metrics[] = {"clip", "l1", "l2", "none", "attention", "key-norm"};
      const char* const functions[] = {"silu", "gelu", "gelu_tanh", "relu", "relu_squared", "gelu_new"};
      const bool is_metric = random.below(2);
      const std::string one = (is_metric ? metrics : functions)[random.below(6)];
      node.attributes.push_back(attribute(is_metric ? "metric" : "function", one));
      break;
    }
    case 10: std::swap(node, one_of(g.nodes, random)); break;
    default: one_of(g.inputs, random).shape.assign(std::size_t(random.below(4)), odd_number(random));
  }
}

void change_bytes(std::string& text, Random& random) {
  for (int64_t changes = 1 + random.below(4); changes > 0 && !text.empty(); --changes) {
    const auto at = std::size_t(random.below(int64_t(text.size())));
    if (random.below(3)) text[at] = char(random.bits());
    else if (random.below(2)) text.erase(at, std::size_t(random.below(9)));
    else text.insert(at, std::string(std::size_t(random.below(9)), char(random.bits())));
  }
}

constexpr int kTokens = 9;

const char* execute(Random& random, bool* accepted) {
  SmallGraph small(random);
  const char* const methods[] = {"utrc", "evit", "pumer", "ltmp", "random", "truncate", "official-code"};
  small.add_reduction(kTokens, methods[random.below(7)]);
  small.add_attention();
  small.add_standard();
  const int64_t kind = random.below(4);
  if (kind != 1)
    for (int64_t changes = random.below(4); changes > 0; --changes) change_field(small.graph, random);
  if (kind == 2) change_bytes(small.data, random);
  std::string text = small.graph.text();
  if (kind == 1) change_bytes(text, random);
  const std::vector<char> model(text.begin(), text.end()), weights(small.data.begin(), small.data.end());  // end where their memory does
  Program program;
  Fault wrong = program.file().read({reinterpret_cast<const uint8_t*>(model.data()), model.size()},
                                    {{"weights", {reinterpret_cast<const uint8_t*>(weights.data()), weights.size()}}});
  if (!wrong) wrong = program.make(1, true);
  *accepted = !wrong;
  if (wrong) return nullptr;
  std::vector<int64_t> ids, mask(kTokens + 2, 1);
  const int64_t known = random.below(4) ? SmallGraph::kVocabulary : 30;  // mostly ids that are in the embedding
  for (int i = 0; i < kTokens; ++i) ids.push_back(random.below(known));
  Tensor id_tensor, mask_tensor;
  id_tensor.element = mask_tensor.element = ort::kInt64;
  id_tensor.shape = {1, kTokens};
  mask_tensor.shape = {1, kTokens + 2};
  id_tensor.data = ids.data();
  mask_tensor.data = mask.data();
  std::vector<Program::Named> inputs, outputs;
  for (const Port& port : program.inputs()) inputs.push_back({port.name.c_str(), port.name == "mask" ? &mask_tensor : &id_tensor});
  for (const Port& port : program.outputs()) outputs.push_back({port.name.c_str(), nullptr});
  const std::atomic<bool> terminate{false};
  wrong = program.run(inputs, &outputs, terminate);
  const char* finding = nullptr;
  for (const Program::Named& output : outputs) {
    if (!wrong && !output.tensor) finding = "an output is missing";
    delete output.tensor;
  }
  return finding;
}

}  // namespace

int main(int argc, char** argv) { return edgeslim::fuzz::run_campaign("fuzz_graph", argc, argv, execute); }
