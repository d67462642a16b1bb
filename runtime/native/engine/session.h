// One sequence: tokens in, logits out, the state kept between calls.
#pragma once

#include <atomic>
#include <mutex>
#include <vector>

#include "engine/sampler.h"
#include "engine/states.h"

namespace edgeslim {

class Session {
 public:
  Session() = default;
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  Status open(const Model& model, const edgeslim_session_options& options);
  void reset();

  int64_t position() const { return position_; }
  int64_t room() const { return room_; }
  const Model& model() const { return *model_; }
  const float* logits() const { return has_logits_ ? logits_.data() : nullptr; }
  bool is_full() const { return room_ && position_ >= room_; }

  Status feed(const int32_t* tokens, int64_t count);
  Status sample(const edgeslim_sampling& sampling, int32_t* token);

  void cancel();
  void resume();
  bool cancelled() const { return cancelled_.load(); }

  Status save(void* data, std::size_t capacity, std::size_t* needed) const;
  Status restore(const void* data, std::size_t size);

 private:
  Status check_tokens(const int32_t* tokens, int64_t count) const;
  Status run(const int32_t* tokens, int64_t count, bool wants_logits);
  Status bind_tokens(const int32_t* tokens, int64_t count);
  Status bind(void* data, std::size_t bytes, int64_t length, int element, OrtValuePtr* value) const;
  Status read_logits(ort::Value* value);
  Status run_graph(int64_t count, bool wants_logits);
  uint64_t identity() const;
  Status read_state(ByteReader* from, bool apply);

  const Model* model_ = nullptr;
  int64_t room_ = 0, chunk_ = 0, position_ = 0;
  States states_;
  SeenTokens seen_;
  Sampler sampler_;
  std::vector<float> logits_;
  bool has_logits_ = false;

  OrtRunOptionsPtr run_options_;
  OrtValuePtr ids_value_, mask_value_, positions_value_, logits_value_;
  std::vector<char> ids_, half_logits_;
  std::vector<int64_t> mask_, positions_;
  std::vector<const char*> input_names_, output_names_;
  std::vector<const ort::Value*> inputs_;
  std::vector<ort::Value*> outputs_;

  std::mutex cancelling_;
  std::atomic<bool> cancelled_{false};
};

// Prompt, then token after token, to whoever listens; see edgeslim_session_generate.
Status generate(Session* session, const int32_t* prompt, int64_t count, edgeslim_generation* generation);

}  // namespace edgeslim
