#include "builtin/program.h"

#include <algorithm>

#include "ort/session_abi.h"

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

// What `status` says, if anything; releases it.
Fault take_fault(ort::Status* status) {
  if (!status) return {};
  const ort::SessionFunctions f(api_base()->get_api(ort::kApiVersion));
  const Fault wrong = fault("%s", f.error_message(status));
  f.release_status(status);
  return wrong;
}

Fault at_node(const Node& node, const Fault& wrong) {
  return fault("%.100s (%.60s): %s", node.name.c_str(), node.op.c_str(), wrong.text);
}

}  // namespace

const Tensor* KernelView::constant(std::size_t index) const {
  const int number = index < step->inputs.size() ? step->inputs[index] : -1;
  return number < 0 ? nullptr : program->constants_[std::size_t(number)];
}

const Tensor* KernelView::input(std::size_t index) const {
  const int number = index < step->inputs.size() ? step->inputs[index] : -1;
  return number < 0 ? nullptr : run->values[std::size_t(number)];
}

Tensor* KernelView::output(std::size_t index, int element, const std::vector<int64_t>& shape, Fault* wrong) const {
  const int signed_number = index < step->outputs.size() ? step->outputs[index] : -1;
  if (signed_number < 0) return nullptr;
  const auto number = std::size_t(signed_number);
  std::size_t bytes = 0;
  if (!count_bytes(element, shape, &bytes)) {
    *wrong = fault("output %zu is too large or of a type that is not known here", index);
    return nullptr;
  }
  Tensor* tensor = run->given[number];
  if (tensor) {
    if (tensor->element != element || tensor->shape != shape) {
      *wrong = fault("output %zu has another type or shape than where it is to be written", index);
      return nullptr;
    }
  } else if (run->wanted[number]) {
    run->made[number] = std::make_unique<Tensor>();
    tensor = run->made[number].get();
    tensor->own.reset(static_cast<char*>(std::malloc(bytes + 1)));
    tensor->data = tensor->own.get();
  } else {
    tensor = &run->tensors[number];
    tensor->data = run->arena.take(bytes);
  }
  if (!tensor->data) {
    *wrong = fault("out of memory: %zu bytes for output %zu", bytes, index);
    return nullptr;
  }
  tensor->element = element;
  tensor->shape = shape;
  run->values[number] = tensor;
  return tensor;
}

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
  if (node.domain.empty()) step.standard = standard_op(node.op);
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
  const std::size_t most_inputs = step.op ? step.op->input_count(step.op) : 2, most_outputs = step.op ? step.op->output_count(step.op) : 1;
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

std::unique_ptr<Run> Program::take_run() {
  std::unique_ptr<Run> run;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!idle_.empty()) {
      run = std::move(idle_.back());
      idle_.pop_back();
    }
  }
  if (!run) run = std::make_unique<Run>();
  const std::size_t count = numbers_.size();
  run->tensors.resize(count);
  run->values = constants_;
  run->given.assign(count, nullptr);
  run->made.clear();
  run->made.resize(count);
  run->wanted.assign(count, false);
  run->skipped.clear();
  return run;
}

Fault Program::run(const std::vector<Named>& inputs, std::vector<Named>* outputs, const std::atomic<bool>& terminate) {
  std::unique_ptr<Run> run = take_run();
  Fault wrong = bind(inputs, *outputs, run.get());
  if (!wrong) wrong = run_steps(run.get(), terminate);
  for (Named& output : *outputs)
    if (!wrong && !output.tensor) output.tensor = run->made[std::size_t(numbers_.at(output.name))].release();
  run->arena.rest();
  const std::lock_guard<std::mutex> lock(mutex_);
  idle_.push_back(std::move(run));
  return wrong;
}

Fault Program::bind(const std::vector<Named>& inputs, const std::vector<Named>& outputs, Run* run) const {
  for (const Port& port : this->inputs()) {
    const auto named = [&](const Named& one) { return port.name == one.name; };
    const auto at = std::find_if(inputs.begin(), inputs.end(), named);
    if (at == inputs.end() || !at->tensor) return fault("its input %.120s is missing", port.name.c_str());
    bool fits = at->tensor->element == port.type.element && at->tensor->shape.size() == port.type.shape.size();
    for (std::size_t i = 0; fits && i < port.type.shape.size(); ++i)
      fits = port.type.shape[i] < 0 || port.type.shape[i] == at->tensor->shape[i];
    if (!fits) return fault("its input %.120s has another type or shape", port.name.c_str());
    run->values[std::size_t(numbers_.at(port.name))] = at->tensor;
  }
  for (const Named& output : outputs) {
    const auto named = [&](const Port& port) { return port.name == output.name; };
    if (std::none_of(this->outputs().begin(), this->outputs().end(), named))
      return fault("there is no output %.120s", output.name);
    const auto number = std::size_t(numbers_.at(output.name));
    run->wanted[number] = true;
    run->given[number] = output.tensor;
  }
  if (outputs.size() < this->outputs().size()) run->skipped = find_skipped(*run);
  return {};
}

std::vector<bool> Program::find_skipped(const Run& run) const {
  std::vector<bool> needed = run.wanted, skipped(steps_.size());
  for (std::size_t i = steps_.size(); i-- > 0;) {
    const auto is_needed = [&](int number) { return number >= 0 && needed[std::size_t(number)]; };
    skipped[i] = std::none_of(steps_[i].outputs.begin(), steps_[i].outputs.end(), is_needed);
    if (skipped[i]) continue;
    for (const int number : steps_[i].inputs)
      if (number >= 0) needed[std::size_t(number)] = true;
  }
  return skipped;
}

Fault Program::check_inputs(const Step& step, const Run& run) const {
  for (std::size_t i = 0; i < step.op->input_count(step.op); ++i) {
    const int number = i < step.inputs.size() ? step.inputs[i] : -1;
    const Tensor* tensor = number < 0 ? nullptr : run.values[std::size_t(number)];
    const ort::ElementType type = step.op->input_type(step.op, i);
    if (!tensor && step.op->input_characteristic(step.op, i) == ort::kRequired) return fault("input %zu is missing", i);
    if (tensor && type != ort::kUndefined && tensor->element != type) return fault("input %zu has another type", i);
  }
  return {};
}

Fault Program::run_steps(Run* run, const std::atomic<bool>& terminate) const {
  std::vector<const Tensor*> inputs;
  for (std::size_t i = 0; i < steps_.size(); ++i) {
    const Step& step = steps_[i];
    if (terminate.load(std::memory_order_relaxed)) return fault("stopped");
    if (!run->skipped.empty() && run->skipped[i]) continue;
    threads_->expect(step.coming, step.after);
    KernelView view = {this, &step, run};
    Fault wrong;
    if (step.op) {
      if (Fault bad = check_inputs(step, *run)) return at_node(*step.node, bad);
      wrong = take_fault(step.op->compute_v2(step.kernel, reinterpret_cast<ort::KernelContext*>(&view)));
    } else {
      inputs.clear();
      for (const int number : step.inputs) inputs.push_back(number < 0 ? nullptr : run->values[std::size_t(number)]);
      const OutputMaker output = {&view, [](void* owner, int element, const std::vector<int64_t>& shape, Fault* bad) {
                                    return static_cast<KernelView*>(owner)->output(0, element, shape, bad);
                                  }};
      wrong = step.standard(*step.node, inputs, output);
    }
    if (wrong) return at_node(*step.node, wrong);
    for (const int number : step.spent)
      if (run->values[std::size_t(number)] == &run->tensors[std::size_t(number)])
        run->arena.give(run->tensors[std::size_t(number)].data);
  }
  return {};
}

}  // namespace edgeslim::builtin
