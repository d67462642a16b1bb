#include "builtin/program.h"

#include <algorithm>

#include "builtin/faults.h"

namespace edgeslim::builtin {
namespace {

constexpr int64_t kOldestOpset = 13;  // since then the standard operators mean what they do here
constexpr char kDomain[] = "edgeslim";
constexpr char kReadsItsConstants[] = "PackedLinear";  // all of them, for each token
constexpr std::size_t kWorthAsking = 32 << 10;         // bytes of a constant

const ort::CustomOp* operator_named(const std::string& name) {
  for (const ort::CustomOp* const* op = ort::operators(); *op; ++op)
    if (name == (*op)->name(*op)) return *op;
  return nullptr;
}

}  // namespace

Program::~Program() {
  threads_.reset();  // it asks for what steps expect
  for (const Step& step : steps_)
    if (step.kernel) step.op->destroy(step.kernel);
}

int Program::number_of(const std::string& name) {
  if (name.empty()) return -1;
  const auto [at, is_new] = numbers_.try_emplace(name, int(numbers_.size()));
  if (is_new) {
    constants_.push_back(nullptr);
    known_.push_back(false);
  }
  return at->second;
}

Fault Program::make(int threads, bool operators) {
  threads_ = std::make_unique<ThreadPool>(threads);  // kernels ask how many
  if (Fault wrong = number_values()) return wrong;
  for (const Node& node : file_.graph().nodes) {
    Fault wrong = node.domain.empty() && node.op == "Constant" ? add_constant(node) : add_step(node, operators);
    if (wrong) return at_node(node, wrong);
  }
  if (outputs().empty()) return fault("it has no outputs");
  std::vector<bool> seen(numbers_.size(), false);
  for (const Port& port : outputs()) {
    const auto at = numbers_.find(port.name);
    const auto makes = [&](const Step& step) {
      return std::find(step.outputs.begin(), step.outputs.end(), at->second) != step.outputs.end();
    };
    if (at == numbers_.end() || !std::any_of(steps_.begin(), steps_.end(), makes))
      return fault("no operator makes its output %.120s", port.name.c_str());
    if (seen[std::size_t(at->second)]) return fault("its output %.120s is there twice", port.name.c_str());
    seen[std::size_t(at->second)] = true;
  }
  find_last_uses();
  find_matrices();
  return {};
}

Fault Program::number_values() {
  const OnnxGraph& graph = file_.graph();
  const auto version = graph.opsets.find("");
  if (version != graph.opsets.end() && version->second < kOldestOpset)
    return fault("its operator set %lld is older than %lld", (long long)version->second, (long long)kOldestOpset);
  const auto ours = graph.opsets.find(kDomain);
  if (ours != graph.opsets.end() && ours->second != 1) return fault("its operators of edgeslim are not of version 1");
  for (const auto& [name, tensor] : graph.initializers) {
    if (name.empty()) return fault("one of its tensors has no name");
    const auto number = std::size_t(number_of(name));
    constants_[number] = &tensor;
    known_[number] = true;
  }
  for (const Port& port : graph.inputs) {
    const int number = number_of(port.name);
    if (number < 0 || known_[std::size_t(number)]) return fault("its input %.120s has no name of its own", port.name.c_str());
    known_[std::size_t(number)] = true;
  }
  return {};
}

Fault Program::add_constant(const Node& node) {
  const auto value = node.attributes.find("value"), list = node.attributes.find("value_ints"), one = node.attributes.find("value_int");
  const auto end = node.attributes.end();
  const int number = node.outputs.size() == 1 ? number_of(node.outputs[0]) : -1;
  if (number < 0 || known_[std::size_t(number)]) return fault("its output has no name of its own");
  if (value != end && value->second.has_tensor) {
    constants_[std::size_t(number)] = &value->second.tensor;
  } else if (list != end || (one != end && one->second.has_integer)) {
    const std::vector<int64_t> integers = list != end ? list->second.integers : std::vector<int64_t>{one->second.integer};
    Tensor& made = own_constants_.emplace_back();
    made.element = ort::kInt64;
    if (list != end) made.shape = {int64_t(integers.size())};
    made.own.reset(static_cast<char*>(std::malloc(integers.size() * sizeof(int64_t) + 1)));
    if (!(made.data = made.own.get())) return fault("out of memory");
    std::copy(integers.begin(), integers.end(), made.as<int64_t>());
    constants_[std::size_t(number)] = &made;
  } else {
    return fault("its value is of a kind that is not known here");
  }
  known_[std::size_t(number)] = true;
  return {};
}

Fault Program::add_step(const Node& node, bool operators) {
  Step step;
  step.node = &node;
  step.standard = standard_op(node.domain, node.op);
  if (node.domain == kDomain && operators) step.op = operator_named(node.op);
  if (!step.standard && !step.op) return fault("only ONNX Runtime has this operator");
  for (const std::string& name : node.inputs) {
    step.inputs.push_back(number_of(name));
    if (step.inputs.back() >= 0 && !known_[std::size_t(step.inputs.back())])
      return fault("nothing makes its input %.60s before it", name.c_str());
  }
  for (const std::string& name : node.outputs) {
    step.outputs.push_back(number_of(name));
    if (step.outputs.back() < 0) continue;
    if (known_[std::size_t(step.outputs.back())]) return fault("its output %.60s is made twice", name.c_str());
    known_[std::size_t(step.outputs.back())] = true;
  }
  const std::size_t most_inputs = step.op ? step.op->input_count(step.op) : step.standard->most_inputs;
  const std::size_t most_outputs = step.op ? step.op->output_count(step.op) : step.standard->most_outputs;
  if (step.inputs.size() > most_inputs || step.outputs.size() > most_outputs || step.outputs.empty())
    return fault("it has another number of inputs or outputs than the operator");
  if (step.op) {
    const ort::Api* api = api_base()->get_api(ort::kApiVersion);
    const KernelView view = {this, &step, nullptr};
    const auto* info = reinterpret_cast<const ort::KernelInfo*>(&view);
    if (Fault wrong = take_fault(step.op->create_kernel_v2(step.op, api, info, &step.kernel))) return wrong;
  }
  steps_.push_back(std::move(step));
  return {};
}

void Program::find_last_uses() {
  std::vector<int> last(numbers_.size(), -1);
  for (std::size_t i = 0; i < steps_.size(); ++i)
    for (const std::vector<int>* numbers : {&steps_[i].inputs, &steps_[i].outputs})
      for (const int number : *numbers)
        if (number >= 0) last[std::size_t(number)] = int(i);
  for (std::size_t number = 0; number < last.size(); ++number)
    if (last[number] >= 0) steps_[std::size_t(last[number])].spent.push_back(int(number));
}

void Program::find_matrices() {
  std::vector<const Coming*> own(steps_.size(), nullptr);
  for (std::size_t i = 0; i < steps_.size(); ++i) {
    if (!steps_[i].op || steps_[i].node->op != kReadsItsConstants) continue;
    Coming matrix;
    for (const int number : steps_[i].inputs) {
      const Tensor* tensor = number < 0 ? nullptr : constants_[std::size_t(number)];
      std::size_t bytes = 0;
      if (tensor && count_bytes(tensor->element, tensor->shape, &bytes) && bytes >= kWorthAsking)
        matrix.add(tensor->data, bytes);
    }
    if (!matrix.empty()) own[i] = &matrices_.emplace_back(std::move(matrix));
  }
  if (matrices_.empty()) return;
  const Coming* next = &matrices_.front();  // after the last step comes another run
  for (std::size_t i = steps_.size(); i-- > 0;) {
    steps_[i].after = next;
    if (own[i]) next = own[i];
    steps_[i].coming = next;
  }
}

}  // namespace edgeslim::builtin
