// Running a graph: program.cc has made its steps.
#include <algorithm>

#include "builtin/faults.h"
#include "builtin/program.h"

namespace edgeslim::builtin {

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
  const Pool pool = threads_->view();
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
      const OutputMaker output = {&view, [](void* owner, std::size_t index, int element, const std::vector<int64_t>& shape,
                                            Fault* bad) {
                                    return static_cast<KernelView*>(owner)->output(index, element, shape, bad);
                                  }};
      wrong = step.standard->run({*step.node, inputs, output, pool});
    }
    if (wrong) return at_node(*step.node, wrong);
    for (const int number : step.spent)
      if (run->values[std::size_t(number)] == &run->tensors[std::size_t(number)])
        run->arena.give(run->tensors[std::size_t(number)].data);
  }
  return {};
}

}  // namespace edgeslim::builtin
