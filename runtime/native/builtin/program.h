// A graph that consists of this library's operators and a few standard ones, run without ONNX Runtime.
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <mutex>

#include "builtin/arena.h"
#include "builtin/onnx_file.h"
#include "builtin/standard_ops.h"
#include "builtin/thread_pool.h"

namespace edgeslim::builtin {

// One operator, ready to run. Values are known by their numbers; -1: left out.
struct Step {
  const Node* node = nullptr;
  const ort::CustomOp* op = nullptr;  // of this library, with its kernel, or
  void* kernel = nullptr;
  const StandardOp* standard = nullptr;  // a standard one
  std::vector<int> inputs, outputs;
  std::vector<int> spent;             // values that nothing needs after it
  const Coming* coming = nullptr;     // the matrix that it, or the first step after it that has one, reads
  const Coming* after = nullptr;      // the matrix that is read after it
};

class Program;

// What one run changes.
struct Run {
  std::vector<Tensor> tensors;               // intermediate values, by number
  std::vector<const Tensor*> values;         // all values that there are by now
  std::vector<Tensor*> given;                // where the caller wants an output to be written
  std::vector<std::unique_ptr<Tensor>> made; // outputs that the caller takes over
  std::vector<bool> wanted;                  // values that are outputs
  std::vector<bool> skipped;                 // steps that no wanted value needs; empty: none
  Arena arena;
};

// What a kernel sees while it is made and while it runs, behind ort::KernelInfo and ort::KernelContext.
struct KernelView {
  const Program* program;
  const Step* step;
  Run* run;

  std::size_t input_count() const { return step->inputs.size(); }
  const Tensor* constant(std::size_t index) const;
  const Tensor* input(std::size_t index) const;
  Tensor* output(std::size_t index, int element, const std::vector<int64_t>& shape, Fault* wrong) const;
};

class Program {
 public:
  Program() = default;
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  ~Program();

  // What is to be opened first.
  OnnxFile& file() { return file_; }

  // Makes the kernels of the file's graph. One with an operator that is not known here is refused, and with one of this
  // library's unless `operators`. With 0 `threads` there are as many as processors.
  Fault make(int threads, bool operators);

  const std::vector<Port>& inputs() const { return file_.graph().inputs; }
  const std::vector<Port>& outputs() const { return file_.graph().outputs; }
  ThreadPool& threads() const { return *threads_; }

  // Runs what of the graph the outputs named need. One that is null is made, and the caller's. Several threads may be in
  // here.
  struct Named {
    const char* name;
    Tensor* tensor;
  };
  Fault run(const std::vector<Named>& inputs, std::vector<Named>* outputs, const std::atomic<bool>& terminate);

 private:
  friend struct KernelView;

  Fault number_values();
  Fault add_constant(const Node& node);
  Fault add_step(const Node& node, bool operators);
  int number_of(const std::string& name);
  void find_last_uses();
  void find_matrices();
  Fault bind(const std::vector<Named>& inputs, const std::vector<Named>& outputs, Run* run) const;
  std::vector<bool> find_skipped(const Run& run) const;
  Fault run_steps(Run* run, const std::atomic<bool>& terminate) const;
  Fault check_inputs(const Step& step, const Run& run) const;
  std::unique_ptr<Run> take_run();

  OnnxFile file_;
  std::unique_ptr<ThreadPool> threads_;
  std::map<std::string, int> numbers_;
  std::vector<const Tensor*> constants_;  // by number; null: no constant
  std::vector<bool> known_;               // by number, while the graph is read: inputs, constants, outputs of steps
  std::list<Tensor> own_constants_;
  std::vector<Step> steps_;
  std::deque<Coming> matrices_;           // of steps that read all of theirs, in their order

  std::mutex mutex_;
  std::vector<std::unique_ptr<Run>> idle_;
};

// The table of functions that ONNX Runtime's library would give, for graphs of this kind. builtin/api.cc.
const ort::ApiBase* api_base();

}  // namespace edgeslim::builtin
