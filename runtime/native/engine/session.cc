#include "engine/session.h"

#include <algorithm>
#include <new>

#include "core/half.h"
#include "engine/hash.h"

namespace edgeslim {
namespace {

// Tokens fed at once: fewer leave more of what layers tell each other in caches, more read weights less often, which are
// what counts where there is no recurrence. Pieces are multiples of kEvenTokens, as kernels take them together.
constexpr int64_t kAttendedChunk = 512, kRecurrentChunk = 256, kEvenTokens = 64;
constexpr int64_t kMostRoom = (int64_t{1} << 31) - 1;
constexpr char kMagic[8] = {'e', 'd', 'g', 'e', 's', 'l', 'm', '1'};

// Tokens of each of the fewest pieces of `count`, none longer than `chunk`, that are about as long as each other.
int64_t piece_of(int64_t count, int64_t chunk) {
  const int64_t pieces = (count + chunk - 1) / chunk, even = (count + pieces - 1) / pieces;
  return std::min(chunk, (even + kEvenTokens - 1) / kEvenTokens * kEvenTokens);
}

Status cancelled_status() { return failure(EDGESLIM_CANCELLED, "cancelled"); }

}  // namespace

Status Session::open(const Model& model, const edgeslim_session_options& options) {
  if (options.room < 0 || options.room > kMostRoom)
    return failure(EDGESLIM_INVALID_ARGUMENT, "room must be in [0, 2^31), got %lld", (long long)options.room);
  if (options.chunk < 0 || options.chunk > kMostRoom)
    return failure(EDGESLIM_INVALID_ARGUMENT, "chunk must be in [0, 2^31), got %lld", (long long)options.chunk);
  if (model.context_length && options.room > model.context_length)
    return failure(EDGESLIM_INVALID_ARGUMENT, "room must be at most %lld, the model's context, got %lld",
                   (long long)model.context_length, (long long)options.room);
  model_ = &model;
  room_ = model.grows() ? (options.room ? options.room : model.default_room) : options.room;
  const int64_t of_kind = model.grows() ? kAttendedChunk : kRecurrentChunk;
  const int64_t usual = model.bundle.reduces_prompts ? kMostRoom : model.bundle.chunk ? model.bundle.chunk : of_kind;
  chunk_ = options.chunk ? options.chunk : usual;
  seen_ = SeenTokens(std::size_t(model.vocab_size));
  logits_.resize(std::size_t(model.vocab_size));
  input_names_ = {"input_ids"};
  output_names_ = {"logits"};
  if (model.wants_mask) input_names_.push_back("attention_mask");
  if (model.wants_positions) input_names_.push_back("position_ids");
  for (const StateSpec& state : model.states) {
    input_names_.push_back(state.past.c_str());
    output_names_.push_back(state.present.c_str());
  }
  ort::RunOptions* run_options = nullptr;
  Status s = model.library->check(model.library->f.create_run_options(&run_options), EDGESLIM_RUNTIME_FAILED, "options");
  run_options_ = OrtRunOptionsPtr(run_options, {model.library});
  if (!s.failed()) s = states_.make(model, room_);
  return s;
}

void Session::reset() {
  states_.reset();
  seen_.clear();
  position_ = 0;
  has_logits_ = false;
}

Status Session::check_tokens(const int32_t* tokens, int64_t count) const {
  if (!tokens || count < 1) return failure(EDGESLIM_INVALID_ARGUMENT, "there must be at least one token");
  if (room_ && count > room_ - position_)
    return failure(EDGESLIM_CONTEXT_FULL, "%lld tokens do not fit behind %lld: there is room for %lld in all",
                   (long long)count, (long long)position_, (long long)room_);
  for (int64_t i = 0; i < count; ++i)
    if (tokens[i] < 0 || tokens[i] >= model_->vocab_size)
      return failure(EDGESLIM_INVALID_ARGUMENT, "token ids must be in [0, %lld), got %d", (long long)model_->vocab_size,
                     int(tokens[i]));
  return {};
}

Status Session::feed(const int32_t* tokens, int64_t count) {
  if (cancelled()) return cancelled_status();
  if (Status s = check_tokens(tokens, count); s.failed()) return s;
  const int64_t piece = piece_of(count, chunk_);
  while (count > 0) {
    const int64_t now = std::min(count, piece);
    if (Status s = run(tokens, now, now == count); s.failed()) return s;
    tokens += now;
    count -= now;
  }
  return {};
}

Status Session::run(const int32_t* tokens, int64_t count, bool wants_logits) {
  if (cancelled()) return cancelled_status();
  if (Status s = bind_tokens(tokens, count); s.failed()) return s;
  if (Status s = run_graph(count, wants_logits); s.failed()) return cancelled() ? cancelled_status() : s;
  position_ += count;
  for (int64_t i = 0; i < count; ++i) seen_.add(tokens[i]);
  return {};
}

Status Session::bind(void* data, std::size_t bytes, int64_t length, int element, OrtValuePtr* value) const {
  const OrtLibrary& library = *model_->library;
  const int64_t shape[] = {1, length};
  ort::Value* made = nullptr;
  Status s = library.check(library.f.create_tensor(library.cpu, data, bytes, shape, 2, element, &made),
                           EDGESLIM_RUNTIME_FAILED, "tokens");
  *value = OrtValuePtr(made, {&library});
  return s;
}

Status Session::bind_tokens(const int32_t* tokens, int64_t count) {
  const bool wide = model_->ids_element == ort::kInt64;
  const std::size_t bytes = std::size_t(count) * (wide ? 8 : 4);
  ids_.resize(bytes);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t id = tokens[i];
    std::memcpy(ids_.data() + (wide ? 8 : 4) * i, wide ? static_cast<const void*>(&id) : tokens + i, wide ? 8 : 4);
  }
  Status s = bind(ids_.data(), bytes, count, model_->ids_element, &ids_value_);
  const int64_t end = position_ + count;
  if (!s.failed() && model_->wants_mask) {
    mask_.resize(std::max(mask_.size(), std::size_t(end)), 1);
    s = bind(mask_.data(), std::size_t(end) * 8, end, ort::kInt64, &mask_value_);
  }
  if (!s.failed() && model_->wants_positions) {
    positions_.resize(std::size_t(count));
    for (int64_t i = 0; i < count; ++i) positions_[std::size_t(i)] = position_ + i;
    s = bind(positions_.data(), std::size_t(count) * 8, count, ort::kInt64, &positions_value_);
  }
  return s;
}

Status Session::run_graph(int64_t count, bool wants_logits) {
  const OrtLibrary& library = *model_->library;
  inputs_.assign(1, ids_value_.get());
  if (model_->wants_mask) inputs_.push_back(mask_value_.get());
  if (model_->wants_positions) inputs_.push_back(positions_value_.get());
  states_.append_inputs(&inputs_);
  const bool own_logits = model_->logits_element == ort::kFloat && (model_->last_logits || count == 1);
  if (own_logits && !logits_value_) {
    const int64_t shape[] = {1, 1, model_->vocab_size};
    ort::Value* made = nullptr;
    Status s = library.check(library.f.create_tensor(library.cpu, logits_.data(), logits_.size() * sizeof(float), shape, 3, ort::kFloat, &made),
                             EDGESLIM_RUNTIME_FAILED, "logits");
    if (s.failed()) return s;
    logits_value_ = OrtValuePtr(made, {&library});
  }
  outputs_.assign(1, own_logits ? logits_value_.get() : nullptr);
  states_.append_outputs(&outputs_);
  has_logits_ = false;  // they are being written over
  const std::size_t first = wants_logits ? 0 : 1;
  Status s = library.check(
      library.f.run(model_->session.get(), run_options_.get(), input_names_.data(), inputs_.data(), inputs_.size(),
                    output_names_.data() + first, outputs_.size() - first, outputs_.data() + first),
      EDGESLIM_RUNTIME_FAILED, "the run");
  if (!own_logits && outputs_[0]) {
    const OrtValuePtr made(outputs_[0], {&library});
    if (!s.failed()) s = read_logits(made.get());
  }
  if (s.failed()) {
    states_.drop(outputs_.data() + 1);
    return s;
  }
  states_.accept(outputs_.data() + 1);
  has_logits_ = wants_logits;
  return {};
}

// Keeps the last position's.
Status Session::read_logits(ort::Value* value) {
  const OrtLibrary& library = *model_->library;
  ort::TypeShape* info = nullptr;
  int64_t shape[3] = {0, 0, 0};
  void* data = nullptr;
  std::size_t rank = 0;
  Status s = library.check(library.f.type_shape(value, &info), EDGESLIM_RUNTIME_FAILED, "logits");
  if (s.failed()) return s;
  s = library.check(library.f.dimension_count(info, &rank), EDGESLIM_RUNTIME_FAILED, "logits");
  if (!s.failed() && rank == 3) s = library.check(library.f.dimensions(info, shape, 3), EDGESLIM_RUNTIME_FAILED, "logits");
  library.f.release_type_shape(info);
  if (!s.failed()) s = library.check(library.f.tensor_data(value, &data), EDGESLIM_RUNTIME_FAILED, "logits");
  if (s.failed()) return s;
  if (shape[0] != 1 || shape[1] < 1 || shape[2] != model_->vocab_size)
    return failure(EDGESLIM_RUNTIME_FAILED, "logits have another shape than the model says");
  const std::size_t last = std::size_t((shape[1] - 1) * shape[2]);
  for (std::size_t i = 0; i < logits_.size(); ++i)
    logits_[i] = model_->logits_element == ort::kFloat ? static_cast<const float*>(data)[last + i]
                                                       : half_to_float(static_cast<const uint16_t*>(data)[last + i]);
  return {};
}

Status Session::sample(const edgeslim_sampling& sampling, int32_t* token) {
  if (cancelled()) return cancelled_status();
  if (!has_logits_) return failure(EDGESLIM_WRONG_ORDER, "there are no logits to sample from: feed tokens first");
  if (Status s = check_sampling(sampling); s.failed()) return s;
  *token = sampler_.draw(logits_.data(), logits_.size(), seen_, sampling, position_);
  return {};
}

void Session::cancel() {
  const std::lock_guard<std::mutex> lock(cancelling_);
  cancelled_ = true;
  model_->library->check(model_->library->f.set_terminate(run_options_.get()), EDGESLIM_INTERNAL, "cancel");
}

void Session::resume() {
  const std::lock_guard<std::mutex> lock(cancelling_);
  model_->library->check(model_->library->f.unset_terminate(run_options_.get()), EDGESLIM_INTERNAL, "resume");
  cancelled_ = false;
}

// Of what a saved state depends on: the weights, and names, types and shapes of the states.
uint64_t Session::identity() const {
  Hash hash;
  hash.add(&model_->bundle.identity, sizeof model_->bundle.identity);
  hash.add(&model_->vocab_size, sizeof model_->vocab_size);
  hash.add(&model_->shares_buffer, sizeof model_->shares_buffer);
  for (const StateSpec& state : model_->states) {
    hash.add(state.past.data(), state.past.size());
    hash.add(&state.element, sizeof state.element);
    hash.add(state.shape.data(), state.shape.size() * sizeof(int64_t));
  }
  return hash.value;
}

// magic, identity, position, whether there are logits, tokens seen, logits, states, and a checksum of all these.
Status Session::save(void* data, std::size_t capacity, std::size_t* needed) const {
  ByteWriter to(data, capacity);
  to.put(kMagic);
  to.put(identity());
  to.put(position_);
  to.put(uint64_t(has_logits_));
  to.put(seen_.words().data(), seen_.words().size() * sizeof(uint64_t));
  to.put(logits_.data(), logits_.size() * sizeof(float));
  if (Status s = states_.write(position_, &to); s.failed()) return s;
  *needed = to.size() + sizeof(uint64_t);
  if (!data) return {};
  if (*needed > capacity)
    return failure(EDGESLIM_INVALID_ARGUMENT, "the state has %zu bytes, there is room for %zu", *needed, capacity);
  Hash hash;
  hash.add(data, to.size());
  to.put(hash.value);
  return {};
}

Status Session::restore(const void* data, std::size_t size) {
  Hash hash;
  uint64_t sum = 0;
  if (!data || size < sizeof sum) return failure(EDGESLIM_BAD_STATE, "the saved state is damaged or of another model");
  hash.add(data, size - sizeof sum);
  std::memcpy(&sum, static_cast<const char*>(data) + size - sizeof sum, sizeof sum);
  if (sum != hash.value) return failure(EDGESLIM_BAD_STATE, "the saved state is damaged: its checksum differs");
  for (const bool apply : {false, true}) {
    ByteReader from(data, size - sizeof sum);
    if (Status s = read_state(&from, apply); s.failed()) return s;
  }
  return {};
}

Status Session::read_state(ByteReader* from, bool apply) {
  char magic[sizeof kMagic];
  uint64_t other = 0, has_logits = 0;
  int64_t position = 0;
  if (!from->get(&magic) || std::memcmp(magic, kMagic, sizeof kMagic) || !from->get(&other) || other != identity())
    return failure(EDGESLIM_BAD_STATE, "the saved state is of another model, or of another version of this library");
  if (!from->get(&position) || position < 0 || !from->get(&has_logits) || has_logits > 1)
    return failure(EDGESLIM_BAD_STATE, "the saved state is damaged");
  if (room_ && position > room_)
    return failure(EDGESLIM_BAD_STATE, "the saved state has %lld tokens, this session has room for %lld",
                   (long long)position, (long long)room_);
  const char* seen = from->take(seen_.words().size() * sizeof(uint64_t));
  const char* logits = seen ? from->take(logits_.size() * sizeof(float)) : nullptr;
  if (!logits) return failure(EDGESLIM_BAD_STATE, "the saved state is damaged");
  if (Status s = states_.read(position, from, apply); s.failed()) return s;
  if (from->left()) return failure(EDGESLIM_BAD_STATE, "the saved state is damaged: it goes on behind its end");
  if (!apply) return {};
  std::memcpy(seen_.words().data(), seen, seen_.words().size() * sizeof(uint64_t));
  std::memcpy(logits_.data(), logits, logits_.size() * sizeof(float));
  position_ = position;
  has_logits_ = has_logits != 0;
  return {};
}

}  // namespace edgeslim
