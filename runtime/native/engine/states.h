// The state of one sequence: caches of keys and values, recurrent and convolution states.
//
// A cache of fixed room goes into a run and comes out of it in the same memory. A state of fixed size has two buffers
// that change places after a run, so that a run that fails leaves the state before it. A cache that grows by copies
// belongs to ONNX Runtime between runs, and every layer's has a length of its own.
#pragma once

#include <vector>

#include "engine/bytes.h"
#include "engine/model.h"

namespace edgeslim {

class States {
 public:
  States() = default;
  States(const States&) = delete;
  States& operator=(const States&) = delete;
  ~States();

  // Takes memory for `room` tokens. `model` must outlive the states.
  Status make(const Model& model, int64_t room);
  void reset();

  // Appends what a run takes and gives, in the order of the model's states. Null outputs are ONNX Runtime's to make.
  void append_inputs(std::vector<const ort::Value*>* values) const;
  void append_outputs(std::vector<ort::Value*>* values) const;
  // After a run: its outputs are the state now. After a run that failed: they are dropped.
  void accept(ort::Value* const* outputs);
  void drop(ort::Value* const* outputs) const;

  // The state of `position` tokens. `read` with `apply` false only checks that the state is one of this model's.
  Status write(int64_t position, ByteWriter* to) const;
  Status read(int64_t position, ByteReader* from, bool apply);

 private:
  enum class Kind { shared, swapped, grown };
  struct One {
    const StateSpec* spec = nullptr;
    Kind kind = Kind::swapped;
    std::size_t bytes = 0;            // of one buffer
    char* buffers[2] = {nullptr, nullptr};
    OrtValuePtr values[2];            // over the buffers; a grown one has its present value in the first
  };

  Status make_values(One* one);
  Status empty(const StateSpec& spec, OrtValuePtr* value) const;
  Status value_over(const StateSpec& spec, std::vector<int64_t> shape, void* data, std::size_t bytes,
                    OrtValuePtr* value) const;
  Status write_grown(const One& one, ByteWriter* to) const;
  Status read_grown(One* one, ByteReader* from, bool apply);
  void rows(const One& one, int64_t position, std::size_t* count, std::size_t* used, std::size_t* stride) const;

  const Model* model_ = nullptr;
  int64_t room_ = 0;
  int front_ = 0;  // which buffer of the swapped states holds the state
  void* memory_ = nullptr;
  std::vector<One> all_;
};

}  // namespace edgeslim
