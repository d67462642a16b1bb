#include "engine/states.h"

#include <cstdlib>

namespace edgeslim {
namespace {

constexpr std::size_t kAlignment = 64;
constexpr std::size_t kMostBytes = std::size_t{1} << (sizeof(std::size_t) * 8 - 12);

std::size_t aligned(std::size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

std::size_t elements(const std::vector<int64_t>& shape) {
  std::size_t product = 1;
  for (const int64_t d : shape) product *= std::size_t(d);
  return product;
}

Status damaged() { return failure(EDGESLIM_BAD_STATE, "the saved state is damaged or of another model"); }

}  // namespace

States::~States() {
  all_.clear();
  std::free(memory_);
}

Status States::make(const Model& model, int64_t room) {
  model_ = &model;
  room_ = room;
  std::size_t total = kAlignment;
  for (const StateSpec& spec : model.states) {
    One one;
    one.spec = &spec;
    one.kind = !spec.grows ? Kind::swapped : model.shares_buffer ? Kind::shared : Kind::grown;
    std::vector<int64_t> shape = spec.shape;
    if (spec.grows) shape[spec.grows] = 1;
    one.bytes = elements(shape) * spec.element_bytes;
    if (spec.grows && one.bytes && std::size_t(room) > kMostBytes / one.bytes)
      return failure(EDGESLIM_OUT_OF_MEMORY, "out of memory: a cache of %lld tokens is too large", (long long)room);
    if (spec.grows) one.bytes *= one.kind == Kind::shared ? std::size_t(room) : 0;
    total += aligned(one.bytes) * (one.kind == Kind::swapped ? 2 : 1);
    all_.push_back(std::move(one));
  }
  memory_ = std::calloc(total, 1);  // pages come when they are written to
  if (!memory_) return failure(EDGESLIM_OUT_OF_MEMORY, "out of memory: %zu bytes of state are needed", total);
  auto* at = reinterpret_cast<char*>(aligned(reinterpret_cast<std::size_t>(memory_)));
  for (One& one : all_) {
    one.buffers[0] = at;
    at += aligned(one.bytes);
    one.buffers[1] = one.kind == Kind::swapped ? at : nullptr;
    at += one.kind == Kind::swapped ? aligned(one.bytes) : 0;
    if (Status s = make_values(&one); s.failed()) return s;
  }
  return {};
}

Status States::make_values(One* one) {
  if (one->kind == Kind::grown) return empty(*one->spec, &one->values[0]);
  std::vector<int64_t> shape = one->spec->shape;
  if (one->spec->grows) shape[one->spec->grows] = room_;
  for (int i = 0; i < 2; ++i)
    if (one->buffers[i])
      if (Status s = value_over(*one->spec, shape, one->buffers[i], one->bytes, &one->values[i]); s.failed()) return s;
  return {};
}

Status States::empty(const StateSpec& spec, OrtValuePtr* value) const {
  static char nothing;
  std::vector<int64_t> shape = spec.shape;
  shape[spec.grows] = 0;
  return value_over(spec, shape, &nothing, 0, value);
}

Status States::value_over(const StateSpec& spec, std::vector<int64_t> shape, void* data, std::size_t bytes,
                          OrtValuePtr* value) const {
  const OrtLibrary& library = *model_->library;
  ort::Value* made = nullptr;
  Status s = library.check(library.f.create_tensor(library.cpu, data, bytes, shape.data(), shape.size(), spec.element, &made),
                           EDGESLIM_RUNTIME_FAILED, "a state");
  *value = OrtValuePtr(made, {&library});
  return s;
}

void States::reset() {
  for (One& one : all_) {
    if (one.kind == Kind::swapped) std::memset(one.buffers[front_], 0, one.bytes);
    if (one.kind == Kind::grown) empty(*one.spec, &one.values[0]);
  }
}

void States::append_inputs(std::vector<const ort::Value*>* values) const {
  for (const One& one : all_) values->push_back(one.values[one.kind == Kind::swapped ? front_ : 0].get());
}

void States::append_outputs(std::vector<ort::Value*>* values) const {
  for (const One& one : all_)
    values->push_back(one.kind == Kind::grown ? nullptr : one.values[one.kind == Kind::swapped ? 1 - front_ : 0].get());
}

void States::accept(ort::Value* const* outputs) {
  front_ = 1 - front_;
  for (One& one : all_) {
    if (one.kind == Kind::grown) one.values[0] = OrtValuePtr(*outputs, {model_->library});
    ++outputs;
  }
}

void States::drop(ort::Value* const* outputs) const {
  for (const One& one : all_) {
    if (one.kind == Kind::grown && *outputs) model_->library->f.release_value(*outputs);
    ++outputs;
  }
}

// A cache of `position` tokens lies in its room in `count` pieces of `used` bytes, `stride` bytes apart.
void States::rows(const One& one, int64_t position, std::size_t* count, std::size_t* used, std::size_t* stride) const {
  const std::vector<int64_t>& shape = one.spec->shape;
  *count = 1;
  *used = one.bytes;
  *stride = one.bytes;
  if (one.kind != Kind::shared) return;
  const std::size_t token = std::size_t(shape[3]) * one.spec->element_bytes;
  *count = std::size_t(shape[1]);
  *used = std::size_t(position) * token;
  *stride = std::size_t(room_) * token;
}

Status States::write(int64_t position, ByteWriter* to) const {
  for (const One& one : all_) {
    if (one.kind == Kind::grown) {
      if (Status s = write_grown(one, to); s.failed()) return s;
      continue;
    }
    std::size_t count, used, stride;
    rows(one, position, &count, &used, &stride);
    to->put(uint64_t(count * used));
    const char* from = one.buffers[one.kind == Kind::swapped ? front_ : 0];
    for (std::size_t i = 0; i < count; ++i) to->put(from + i * stride, used);
  }
  return {};
}

Status States::read(int64_t position, ByteReader* from, bool apply) {
  for (One& one : all_) {
    if (one.kind == Kind::grown) {
      if (Status s = read_grown(&one, from, apply); s.failed()) return s;
      continue;
    }
    std::size_t count, used, stride;
    uint64_t bytes = 0;
    rows(one, position, &count, &used, &stride);
    if (!from->get(&bytes) || bytes != count * used) return damaged();
    const char* data = from->take(std::size_t(bytes));
    if (!data) return damaged();
    char* to = one.buffers[one.kind == Kind::swapped ? front_ : 0];
    for (std::size_t i = 0; apply && used && i < count; ++i) std::memcpy(to + i * stride, data + i * used, used);
  }
  return {};
}

Status States::write_grown(const One& one, ByteWriter* to) const {
  const OrtLibrary& library = *model_->library;
  ort::TypeShape* info = nullptr;
  std::vector<int64_t> shape(one.spec->shape.size());
  void* data = nullptr;
  Status s = library.check(library.f.type_shape(one.values[0].get(), &info), EDGESLIM_RUNTIME_FAILED, "a state");
  if (s.failed()) return s;
  s = library.check(library.f.dimensions(info, shape.data(), shape.size()), EDGESLIM_RUNTIME_FAILED, "a state");
  library.f.release_type_shape(info);
  if (!s.failed()) s = library.check(library.f.tensor_data(one.values[0].get(), &data), EDGESLIM_RUNTIME_FAILED, "a state");
  if (s.failed()) return s;
  to->put(uint64_t(shape[one.spec->grows]));
  to->put(data, elements(shape) * one.spec->element_bytes);
  return {};
}

Status States::read_grown(One* one, ByteReader* from, bool apply) {
  uint64_t tokens = 0;
  std::vector<int64_t> shape = one->spec->shape;
  if (!from->get(&tokens) || tokens > uint64_t(room_)) return damaged();
  shape[one->spec->grows] = int64_t(tokens);
  const std::size_t bytes = elements(shape) * one->spec->element_bytes;
  const char* data = from->take(bytes);
  if (!data) return damaged();
  if (!apply) return {};
  if (!tokens) return empty(*one->spec, &one->values[0]);
  const OrtLibrary& library = *model_->library;
  ort::Value* made = nullptr;
  void* to = nullptr;
  Status s = library.check(library.f.create_owned_tensor(library.allocator, shape.data(), shape.size(), one->spec->element, &made),
                           EDGESLIM_OUT_OF_MEMORY, "a state");
  if (s.failed()) return s;
  OrtValuePtr value(made, {&library});
  s = library.check(library.f.tensor_data(made, &to), EDGESLIM_RUNTIME_FAILED, "a state");
  if (s.failed()) return s;
  std::memcpy(to, data, bytes);
  one->values[0] = std::move(value);
  return {};
}

}  // namespace edgeslim
