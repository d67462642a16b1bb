// include/edgeslim.h over the engine: null pointers, sizes of structures, and no exception outside.
#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "engine/profile.h"
#include "engine/tokenizer.h"

#if !defined(EDGESLIM_VERSION)
#define EDGESLIM_VERSION "0.0.0"
#endif

struct edgeslim_model : edgeslim::Model {};
struct edgeslim_session : edgeslim::Session {};
struct edgeslim_tokenizer : edgeslim::Tokenizer {};
struct edgeslim_decoder : edgeslim::TextDecoder {};

namespace {

using namespace edgeslim;

int32_t report(const Status& status, edgeslim_error* error) noexcept {
  if (error) {
    error->code = status.code;
    std::snprintf(error->message, sizeof error->message, "%s", status.text.c_str());
  }
  return status.code;
}

int32_t report_plain(int32_t code, const char* text, edgeslim_error* error) noexcept {
  if (error) {
    error->code = code;
    std::snprintf(error->message, sizeof error->message, "%s", text);
  }
  return code;
}

// Runs `f`, which returns a status; what the standard library throws becomes a code.
template <class F>
int32_t guarded(edgeslim_error* error, const F& f) noexcept {
  try {
    return report(f(), error);
  } catch (const std::bad_alloc&) {
    return report_plain(EDGESLIM_OUT_OF_MEMORY, "out of memory", error);
  } catch (const std::exception& thrown) {
    return report_plain(EDGESLIM_INTERNAL, thrown.what(), error);
  } catch (...) {
    return report_plain(EDGESLIM_INTERNAL, "unknown", error);
  }
}

Status missing(const char* what) { return failure(EDGESLIM_INVALID_ARGUMENT, "%s must not be null", what); }

// Copies a caller's structure, which an older or newer header may have made shorter or longer than ours.
template <class T>
Status read_options(const T* given, const char* name, T* ours) {
  std::memset(static_cast<void*>(ours), 0, sizeof *ours);
  if (!given) return {};
  if (given->size < 8) return failure(EDGESLIM_INVALID_ARGUMENT, "%s: size must be sizeof(%s)", name, name);
  std::memcpy(static_cast<void*>(ours), given, std::min<std::size_t>(given->size, sizeof *ours));
  return {};
}

}  // namespace

extern "C" {

int32_t edgeslim_api_version(void) { return EDGESLIM_API_VERSION; }

const char* edgeslim_version(void) { return EDGESLIM_VERSION; }

int32_t edgeslim_model_load(const char* folder, const edgeslim_model_options* options, edgeslim_model** model,
                            edgeslim_error* error) {
  return guarded(error, [&] {
    if (!folder || !model) return missing(folder ? "model" : "folder");
    *model = nullptr;
    edgeslim_model_options ours;
    if (Status s = read_options(options, "edgeslim_model_options", &ours); s.failed()) return s;
    auto made = std::make_unique<edgeslim_model>();
    if (Status s = Model::load(folder, ours, made.get()); s.failed()) return s;
    *model = made.release();
    return Status{};
  });
}

void edgeslim_model_free(edgeslim_model* model) { delete model; }

int32_t edgeslim_model_get_info(const edgeslim_model* model, edgeslim_model_info* info, edgeslim_error* error) {
  return guarded(error, [&] {
    if (!model || !info) return missing(model ? "info" : "model");
    if (info->size < 8) return failure(EDGESLIM_INVALID_ARGUMENT, "size must be sizeof(edgeslim_model_info)");
    edgeslim_model_info ours = {};
    ours.size = info->size;
    ours.vocab_size = int32_t(model->vocab_size);
    ours.context_length = model->context_length;
    ours.room = model->default_room;
    ours.bos_token = model->bundle.bos;
    ours.end_token_count = int32_t(model->bundle.end_tokens.size());
    ours.packed = model->bundle.packed;
    ours.threads = model->threads;
    std::snprintf(ours.onnxruntime, sizeof ours.onnxruntime, "%s", model->library->version.c_str());
    std::snprintf(ours.isa, sizeof ours.isa, "%s", products_of(*model));
    std::memcpy(info, &ours, std::min<std::size_t>(info->size, sizeof ours));
    return Status{};
  });
}

int32_t edgeslim_model_end_tokens(const edgeslim_model* model, int32_t* tokens, int32_t capacity) {
  if (!model) return 0;
  const auto& ends = model->bundle.end_tokens;
  for (std::size_t i = 0; tokens && i < ends.size() && int32_t(i) < capacity; ++i) tokens[i] = ends[i];
  return int32_t(ends.size());
}

int32_t edgeslim_session_open(edgeslim_model* model, const edgeslim_session_options* options,
                              edgeslim_session** session, edgeslim_error* error) {
  return guarded(error, [&] {
    if (!model || !session) return missing(model ? "session" : "model");
    *session = nullptr;
    edgeslim_session_options ours;
    if (Status s = read_options(options, "edgeslim_session_options", &ours); s.failed()) return s;
    auto made = std::make_unique<edgeslim_session>();
    if (Status s = made->open(*model, ours); s.failed()) return s;
    *session = made.release();
    return Status{};
  });
}

void edgeslim_session_free(edgeslim_session* session) { delete session; }

void edgeslim_session_reset(edgeslim_session* session) {
  guarded(nullptr, [&] {
    if (session) session->reset();
    return Status{};
  });
}

int64_t edgeslim_session_position(const edgeslim_session* session) { return session ? session->position() : 0; }

int64_t edgeslim_session_room(const edgeslim_session* session) { return session ? session->room() : 0; }

int32_t edgeslim_session_feed(edgeslim_session* session, const int32_t* tokens, int64_t count, edgeslim_error* error) {
  return guarded(error, [&] { return session ? session->feed(tokens, count) : missing("session"); });
}

const float* edgeslim_session_logits(const edgeslim_session* session) { return session ? session->logits() : nullptr; }

int32_t edgeslim_session_sample(edgeslim_session* session, const edgeslim_sampling* sampling, int32_t* token,
                                edgeslim_error* error) {
  return guarded(error, [&] {
    if (!session || !token) return missing(session ? "token" : "session");
    edgeslim_sampling ours;
    if (Status s = read_options(sampling, "edgeslim_sampling", &ours); s.failed()) return s;
    return session->sample(ours, token);
  });
}

int32_t edgeslim_sample(const float* logits, int32_t vocab_size, const int32_t* seen, int64_t seen_count,
                        const edgeslim_sampling* sampling, int64_t position, int32_t* token, edgeslim_error* error) {
  return guarded(error, [&] {
    if (!logits || !token || (seen_count && !seen)) return missing(!logits ? "logits" : !token ? "token" : "seen");
    if (vocab_size < 1 || seen_count < 0)
      return failure(EDGESLIM_INVALID_ARGUMENT, "vocab_size must be at least 1, seen_count at least 0");
    edgeslim_sampling ours;
    if (Status s = read_options(sampling, "edgeslim_sampling", &ours); s.failed()) return s;
    if (Status s = check_sampling(ours); s.failed()) return s;
    SeenTokens tokens{std::size_t(vocab_size)};
    for (int64_t i = 0; i < seen_count; ++i) {
      if (seen[i] < 0 || seen[i] >= vocab_size)
        return failure(EDGESLIM_INVALID_ARGUMENT, "token ids must be in [0, %d), got %d", int(vocab_size), int(seen[i]));
      tokens.add(seen[i]);
    }
    *token = Sampler().draw(logits, std::size_t(vocab_size), tokens, ours, position);
    return Status{};
  });
}

double edgeslim_uniform(uint64_t seed, int64_t position) { return uniform(seed, position); }

int32_t edgeslim_session_generate(edgeslim_session* session, const int32_t* prompt, int64_t count,
                                  edgeslim_generation* generation, edgeslim_error* error) {
  return guarded(error, [&] {
    if (!session || !generation) return missing(session ? "generation" : "session");
    if (generation->size != sizeof *generation)
      return failure(EDGESLIM_INVALID_ARGUMENT, "size must be sizeof(edgeslim_generation)");
    return generate(session, prompt, count, generation);
  });
}

void edgeslim_session_cancel(edgeslim_session* session) {
  guarded(nullptr, [&] {
    if (session) session->cancel();
    return Status{};
  });
}

void edgeslim_session_resume(edgeslim_session* session) {
  guarded(nullptr, [&] {
    if (session) session->resume();
    return Status{};
  });
}

int32_t edgeslim_tokenizer_open(const char* folder, const char* library, edgeslim_tokenizer** tokenizer, edgeslim_error* error) {
  return guarded(error, [&] {
    if (!folder || !tokenizer) return missing(folder ? "tokenizer" : "folder");
    *tokenizer = nullptr;
    auto made = std::make_unique<edgeslim_tokenizer>();
    if (Status s = Tokenizer::open(folder, library, made.get()); s.failed()) return s;
    *tokenizer = made.release();
    return Status{};
  });
}

void edgeslim_tokenizer_free(edgeslim_tokenizer* tokenizer) { delete tokenizer; }

int32_t edgeslim_tokenizer_encode(const edgeslim_tokenizer* tokenizer, const char* text, int32_t special, int32_t* tokens,
                                  int64_t capacity, int64_t* needed, edgeslim_error* error) {
  return guarded(error, [&] {
    if (!tokenizer || !text || !needed) return missing(!tokenizer ? "tokenizer" : !text ? "text" : "needed");
    std::vector<int32_t> found;
    if (Status s = tokenizer->encode(text, special != 0, &found); s.failed()) return s;
    *needed = int64_t(found.size());
    if (!tokens) return Status{};
    if (capacity < *needed)
      return failure(EDGESLIM_INVALID_ARGUMENT, "the text has %lld tokens, there is room for %lld", (long long)*needed, (long long)capacity);
    std::copy(found.begin(), found.end(), tokens);
    return Status{};
  });
}

int32_t edgeslim_tokenizer_decode(const edgeslim_tokenizer* tokenizer, const int32_t* tokens, int64_t count, char* text,
                                  size_t capacity, size_t* needed, edgeslim_error* error) {
  return guarded(error, [&] {
    if (!tokenizer || !needed || (count && !tokens)) return missing(!tokenizer ? "tokenizer" : !needed ? "needed" : "tokens");
    std::string found;
    if (Status s = tokenizer->decode(tokens, count, &found); s.failed()) return s;
    *needed = found.size();
    if (!text) return Status{};
    if (capacity <= found.size())
      return failure(EDGESLIM_INVALID_ARGUMENT, "the text has %zu bytes, there is room for %zu", found.size(), capacity);
    std::memcpy(text, found.c_str(), found.size() + 1);
    return Status{};
  });
}

int32_t edgeslim_decoder_open(const edgeslim_tokenizer* tokenizer, edgeslim_decoder** decoder, edgeslim_error* error) {
  return guarded(error, [&] {
    if (!tokenizer || !decoder) return missing(tokenizer ? "decoder" : "tokenizer");
    *decoder = nullptr;
    auto made = std::make_unique<edgeslim_decoder>();
    if (Status s = made->open(*tokenizer); s.failed()) return s;
    *decoder = made.release();
    return Status{};
  });
}

void edgeslim_decoder_free(edgeslim_decoder* decoder) { delete decoder; }

int32_t edgeslim_decoder_push(edgeslim_decoder* decoder, int32_t token, const char** text, edgeslim_error* error) {
  return guarded(error, [&] {
    if (!decoder || !text) return missing(decoder ? "text" : "decoder");
    const std::string* found = nullptr;
    if (Status s = decoder->push(token, &found); s.failed()) return s;
    *text = found->c_str();
    return Status{};
  });
}

int32_t edgeslim_session_save(const edgeslim_session* session, void* data, size_t capacity, size_t* needed,
                              edgeslim_error* error) {
  return guarded(error, [&] {
    if (!session || !needed) return missing(session ? "needed" : "session");
    return session->save(data, capacity, needed);
  });
}

int32_t edgeslim_session_restore(edgeslim_session* session, const void* data, size_t size, edgeslim_error* error) {
  return guarded(error, [&] { return session ? session->restore(data, size) : missing("session"); });
}

int32_t edgeslim_profile(const char* folder, const edgeslim_model_options* model_options,
                         const edgeslim_profile_options* options, char* json, size_t capacity, size_t* needed,
                         edgeslim_error* error) {
  return guarded(error, [&] {
    if (!folder || !json || !needed) return missing(!folder ? "folder" : !json ? "json" : "needed");
    edgeslim_model_options model_ours;
    edgeslim_profile_options ours;
    if (Status s = read_options(model_options, "edgeslim_model_options", &model_ours); s.failed()) return s;
    if (Status s = read_options(options, "edgeslim_profile_options", &ours); s.failed()) return s;
    std::string text;
    if (Status s = profile(folder, model_ours, ours, &text); s.failed()) return s;
    *needed = text.size();
    if (capacity <= text.size())
      return failure(EDGESLIM_INVALID_ARGUMENT, "the profile has %zu bytes, there is room for %zu", text.size(), capacity);
    std::memcpy(json, text.c_str(), text.size() + 1);
    return Status{};
  });
}

}  // extern "C"
