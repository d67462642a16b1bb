// include/edgeslim.h for Java: the native methods of org.edgeslim.Native. A fault becomes an EdgeslimException; what a
// listener throws stays pending until the call returns. Handles are pointers; the Java side sees to their lifetime.
#include <jni.h>

#include <cstdlib>
#include <cstring>
#include <memory>

#include "include/edgeslim.h"

namespace {

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Bytes = std::unique_ptr<char, Free>;

// The elements of a Java array, copied or pinned as the machine likes; null where the array is.
template <class Array, class Element, Element* (JNIEnv::*Get)(Array, jboolean*), void (JNIEnv::*Release)(Array, Element*, jint)>
class Elements {
 public:
  Elements(JNIEnv* env, Array array)
      : env_(env), array_(array), data_(array ? (env->*Get)(array, nullptr) : nullptr) {}
  Elements(const Elements&) = delete;
  Elements& operator=(const Elements&) = delete;
  ~Elements() {
    if (data_) (env_->*Release)(array_, data_, JNI_ABORT);  // nothing is written back
  }
  const Element* data() const { return data_; }
  jsize size() const { return data_ ? env_->GetArrayLength(array_) : 0; }

 private:
  JNIEnv* env_;
  Array array_;
  Element* data_;
};
using Ints = Elements<jintArray, jint, &JNIEnv::GetIntArrayElements, &JNIEnv::ReleaseIntArrayElements>;
using Floats = Elements<jfloatArray, jfloat, &JNIEnv::GetFloatArrayElements, &JNIEnv::ReleaseFloatArrayElements>;
using Octets = Elements<jbyteArray, jbyte, &JNIEnv::GetByteArrayElements, &JNIEnv::ReleaseByteArrayElements>;

// A text that ends with a zero.
class Text {
 public:
  Text(JNIEnv* env, jbyteArray text) : bytes_(env, text) {}
  const char* c() const { return reinterpret_cast<const char*>(bytes_.data()); }

 private:
  Octets bytes_;
};

jbyteArray to_bytes(JNIEnv* env, const char* data, std::size_t size) {
  const jbyteArray array = env->NewByteArray(jsize(size));
  if (array) env->SetByteArrayRegion(array, 0, jsize(size), reinterpret_cast<const jbyte*>(data));
  return array;
}

// Throws what `error` says; returns whether `code` is a fault.
bool thrown(JNIEnv* env, int32_t code, const edgeslim_error& error) {
  if (code == EDGESLIM_OK) return false;
  if (env->ExceptionCheck()) return true;
  const jclass type = env->FindClass("org/edgeslim/EdgeslimException");
  const jmethodID make = type ? env->GetMethodID(type, "<init>", "(I[B)V") : nullptr;
  const jbyteArray message = make ? to_bytes(env, error.message, std::strlen(error.message)) : nullptr;
  const jobject fault = message ? env->NewObject(type, make, jint(code), message) : nullptr;
  if (fault) env->Throw(static_cast<jthrowable>(fault));
  return true;
}

void throw_out_of_memory(JNIEnv* env) {
  edgeslim_error error = {EDGESLIM_OUT_OF_MEMORY, "out of memory"};
  thrown(env, error.code, error);
}

edgeslim_model* model_of(jlong handle) { return reinterpret_cast<edgeslim_model*>(handle); }
edgeslim_session* session_of(jlong handle) { return reinterpret_cast<edgeslim_session*>(handle); }
edgeslim_tokenizer* tokenizer_of(jlong handle) { return reinterpret_cast<edgeslim_tokenizer*>(handle); }
edgeslim_decoder* decoder_of(jlong handle) { return reinterpret_cast<edgeslim_decoder*>(handle); }

edgeslim_model_options options_of(jint flags, jint threads, const Text& onnxruntime, const Text& graph) {
  edgeslim_model_options options = {};
  options.size = sizeof options;
  options.flags = uint32_t(flags);
  options.threads = threads;
  options.onnxruntime = onnxruntime.c();
  options.graph = graph.c();
  return options;
}

// `numbers`: repetition_penalty, temperature, top_p, min_p.
edgeslim_sampling sampling_of(JNIEnv* env, jfloatArray numbers, jint top_k, jlong seed) {
  edgeslim_sampling sampling = {};
  sampling.size = sizeof sampling;
  const Floats given(env, numbers);
  if (given.size() == 4) {
    sampling.repetition_penalty = given.data()[0];
    sampling.temperature = given.data()[1];
    sampling.top_p = given.data()[2];
    sampling.min_p = given.data()[3];
  }
  sampling.top_k = top_k;
  sampling.seed = uint64_t(seed);
  return sampling;
}

struct Listener {
  JNIEnv* env;
  jobject object;
  jmethodID on_token;
};

int32_t tell(int32_t token, void* user) {
  const auto* listener = static_cast<const Listener*>(user);
  const jboolean on = listener->env->CallBooleanMethod(listener->object, listener->on_token, jint(token));
  return listener->env->ExceptionCheck() || !on;
}

}  // namespace

#define EDGESLIM_JNI(type, name) extern "C" JNIEXPORT type JNICALL Java_org_edgeslim_Native_##name

EDGESLIM_JNI(jstring, version)(JNIEnv* env, jclass) { return env->NewStringUTF(edgeslim_version()); }

EDGESLIM_JNI(jlong, loadModel)
(JNIEnv* env, jclass, jbyteArray folder, jint flags, jint threads, jbyteArray onnxruntime, jbyteArray graph) {
  const Text path(env, folder), runtime(env, onnxruntime), file(env, graph);
  const edgeslim_model_options options = options_of(flags, threads, runtime, file);
  edgeslim_model* model = nullptr;
  edgeslim_error error;
  thrown(env, edgeslim_model_load(path.c(), &options, &model, &error), error);
  return reinterpret_cast<jlong>(model);
}

EDGESLIM_JNI(void, freeModel)(JNIEnv*, jclass, jlong model) { edgeslim_model_free(model_of(model)); }

EDGESLIM_JNI(jlongArray, modelNumbers)(JNIEnv* env, jclass, jlong model) {
  edgeslim_model_info info = {};
  info.size = sizeof info;
  edgeslim_error error;
  if (thrown(env, edgeslim_model_get_info(model_of(model), &info, &error), error)) return nullptr;
  const jlong numbers[] = {info.vocab_size, info.context_length, info.room, info.bos_token, info.packed, info.threads};
  const jlongArray array = env->NewLongArray(6);
  if (array) env->SetLongArrayRegion(array, 0, 6, numbers);
  return array;
}

EDGESLIM_JNI(jobjectArray, modelTexts)(JNIEnv* env, jclass, jlong model) {
  edgeslim_model_info info = {};
  info.size = sizeof info;
  edgeslim_error error;
  if (thrown(env, edgeslim_model_get_info(model_of(model), &info, &error), error)) return nullptr;
  const jclass type = env->FindClass("java/lang/String");
  const jobjectArray array = type ? env->NewObjectArray(2, type, nullptr) : nullptr;
  const char* const texts[] = {info.onnxruntime, info.isa};
  for (jsize i = 0; array && i < 2; ++i) {
    const jstring text = env->NewStringUTF(texts[i]);  // ASCII
    if (!text) return nullptr;
    env->SetObjectArrayElement(array, i, text);
  }
  return array;
}

EDGESLIM_JNI(jintArray, endTokens)(JNIEnv* env, jclass, jlong model) {
  const int32_t count = edgeslim_model_end_tokens(model_of(model), nullptr, 0);
  const jintArray array = env->NewIntArray(count);
  jint* const tokens = array ? env->GetIntArrayElements(array, nullptr) : nullptr;
  if (!tokens) return nullptr;
  edgeslim_model_end_tokens(model_of(model), reinterpret_cast<int32_t*>(tokens), count);
  env->ReleaseIntArrayElements(array, tokens, 0);
  return array;
}

// `counts`: prompt tokens, new tokens, repeats; 0 is the default of each.
EDGESLIM_JNI(jbyteArray, profile)
(JNIEnv* env, jclass, jbyteArray folder, jint flags, jint threads, jbyteArray onnxruntime, jbyteArray graph,
 jintArray counts) {
  constexpr std::size_t kMost = std::size_t{1} << 16;
  const Text path(env, folder), runtime(env, onnxruntime), file(env, graph);
  const edgeslim_model_options model = options_of(flags, threads, runtime, file);
  const Ints given(env, counts);
  edgeslim_profile_options options = {};
  options.size = sizeof options;
  if (given.size() == 3) {
    options.prompt_tokens = given.data()[0];
    options.new_tokens = given.data()[1];
    options.repeats = given.data()[2];
  }
  const Bytes json(static_cast<char*>(std::malloc(kMost)));
  if (!json) return throw_out_of_memory(env), nullptr;
  std::size_t needed = 0;
  edgeslim_error error;
  if (thrown(env, edgeslim_profile(path.c(), &model, &options, json.get(), kMost, &needed, &error), error)) return nullptr;
  return to_bytes(env, json.get(), needed);
}

EDGESLIM_JNI(jlong, openSession)(JNIEnv* env, jclass, jlong model, jlong room, jlong chunk) {
  const edgeslim_session_options options = {sizeof options, 0, room, chunk};
  edgeslim_session* session = nullptr;
  edgeslim_error error;
  thrown(env, edgeslim_session_open(model_of(model), &options, &session, &error), error);
  return reinterpret_cast<jlong>(session);
}

EDGESLIM_JNI(void, freeSession)(JNIEnv*, jclass, jlong session) { edgeslim_session_free(session_of(session)); }

EDGESLIM_JNI(void, reset)(JNIEnv*, jclass, jlong session) { edgeslim_session_reset(session_of(session)); }

EDGESLIM_JNI(jlong, position)(JNIEnv*, jclass, jlong session) { return edgeslim_session_position(session_of(session)); }

EDGESLIM_JNI(jlong, room)(JNIEnv*, jclass, jlong session) { return edgeslim_session_room(session_of(session)); }

EDGESLIM_JNI(void, feed)(JNIEnv* env, jclass, jlong session, jintArray tokens) {
  const Ints given(env, tokens);
  edgeslim_error error;
  thrown(env, edgeslim_session_feed(session_of(session), given.data(), given.size(), &error), error);
}

// Fills `logits`, as long as the vocabulary; returns false where there are none.
EDGESLIM_JNI(jboolean, logits)(JNIEnv* env, jclass, jlong session, jfloatArray logits) {
  const float* const found = edgeslim_session_logits(session_of(session));
  if (found) env->SetFloatArrayRegion(logits, 0, env->GetArrayLength(logits), found);
  return found != nullptr;
}

EDGESLIM_JNI(jint, sample)(JNIEnv* env, jclass, jlong session, jfloatArray numbers, jint top_k, jlong seed) {
  const edgeslim_sampling sampling = sampling_of(env, numbers, top_k, seed);
  int32_t token = 0;
  edgeslim_error error;
  thrown(env, edgeslim_session_sample(session_of(session), &sampling, &token, &error), error);
  return token;
}

EDGESLIM_JNI(jint, generate)
(JNIEnv* env, jclass, jlong session, jintArray prompt, jlong max_new_tokens, jintArray end_tokens, jfloatArray numbers,
 jint top_k, jlong seed, jobject listener) {
  const Ints given(env, prompt), ends(env, end_tokens);
  const jclass type = env->FindClass("org/edgeslim/TokenListener");
  Listener told = {env, listener, type ? env->GetMethodID(type, "onToken", "(I)Z") : nullptr};
  if (!told.on_token) return 0;
  edgeslim_generation generation = {};
  generation.size = sizeof generation;
  generation.end_token_count = !end_tokens ? 0 : ends.size() ? ends.size() : -1;
  generation.end_tokens = ends.data();
  generation.max_new_tokens = max_new_tokens;
  generation.sampling = sampling_of(env, numbers, top_k, seed);
  if (listener) {
    generation.on_token = tell;
    generation.user = &told;
  }
  edgeslim_error error;
  thrown(env, edgeslim_session_generate(session_of(session), given.data(), given.size(), &generation, &error), error);
  return generation.ended_by;
}

EDGESLIM_JNI(void, cancel)(JNIEnv*, jclass, jlong session) { edgeslim_session_cancel(session_of(session)); }

EDGESLIM_JNI(void, resume)(JNIEnv*, jclass, jlong session) { edgeslim_session_resume(session_of(session)); }

EDGESLIM_JNI(jbyteArray, save)(JNIEnv* env, jclass, jlong session) {
  std::size_t needed = 0;
  edgeslim_error error;
  if (thrown(env, edgeslim_session_save(session_of(session), nullptr, 0, &needed, &error), error)) return nullptr;
  const Bytes state(needed <= std::size_t(INT32_MAX) ? static_cast<char*>(std::malloc(needed)) : nullptr);
  if (!state) return throw_out_of_memory(env), nullptr;
  if (thrown(env, edgeslim_session_save(session_of(session), state.get(), needed, &needed, &error), error)) return nullptr;
  return to_bytes(env, state.get(), needed);
}

EDGESLIM_JNI(void, restore)(JNIEnv* env, jclass, jlong session, jbyteArray state) {
  const Octets given(env, state);
  edgeslim_error error;
  thrown(env, edgeslim_session_restore(session_of(session), given.data(), std::size_t(given.size()), &error), error);
}

EDGESLIM_JNI(jlong, openTokenizer)(JNIEnv* env, jclass, jbyteArray folder, jbyteArray library) {
  const Text path(env, folder), extensions(env, library);
  edgeslim_tokenizer* tokenizer = nullptr;
  edgeslim_error error;
  thrown(env, edgeslim_tokenizer_open(path.c(), extensions.c(), &tokenizer, &error), error);
  return reinterpret_cast<jlong>(tokenizer);
}

EDGESLIM_JNI(void, freeTokenizer)(JNIEnv*, jclass, jlong tokenizer) { edgeslim_tokenizer_free(tokenizer_of(tokenizer)); }

EDGESLIM_JNI(jintArray, encode)(JNIEnv* env, jclass, jlong tokenizer, jbyteArray text, jboolean special) {
  const Text given(env, text);
  int64_t needed = 0;
  edgeslim_error error;
  const auto* const from = tokenizer_of(tokenizer);
  if (thrown(env, edgeslim_tokenizer_encode(from, given.c(), special, nullptr, 0, &needed, &error), error)) return nullptr;
  const jintArray array = env->NewIntArray(jsize(needed));
  jint* const tokens = array ? env->GetIntArrayElements(array, nullptr) : nullptr;
  if (!tokens) return nullptr;
  const int32_t code = edgeslim_tokenizer_encode(from, given.c(), special, reinterpret_cast<int32_t*>(tokens), needed, &needed, &error);
  env->ReleaseIntArrayElements(array, tokens, 0);
  return thrown(env, code, error) ? nullptr : array;
}

EDGESLIM_JNI(jbyteArray, decode)(JNIEnv* env, jclass, jlong tokenizer, jintArray tokens) {
  const Ints given(env, tokens);
  std::size_t needed = 0;
  edgeslim_error error;
  const auto* const from = tokenizer_of(tokenizer);
  if (thrown(env, edgeslim_tokenizer_decode(from, given.data(), given.size(), nullptr, 0, &needed, &error), error)) return nullptr;
  const Bytes text(static_cast<char*>(std::malloc(needed + 1)));
  if (!text) return throw_out_of_memory(env), nullptr;
  const int32_t code = edgeslim_tokenizer_decode(from, given.data(), given.size(), text.get(), needed + 1, &needed, &error);
  return thrown(env, code, error) ? nullptr : to_bytes(env, text.get(), needed);
}

EDGESLIM_JNI(jlong, openDecoder)(JNIEnv* env, jclass, jlong tokenizer) {
  edgeslim_decoder* decoder = nullptr;
  edgeslim_error error;
  thrown(env, edgeslim_decoder_open(tokenizer_of(tokenizer), &decoder, &error), error);
  return reinterpret_cast<jlong>(decoder);
}

EDGESLIM_JNI(void, freeDecoder)(JNIEnv*, jclass, jlong decoder) { edgeslim_decoder_free(decoder_of(decoder)); }

EDGESLIM_JNI(jbyteArray, push)(JNIEnv* env, jclass, jlong decoder, jint token) {
  const char* text = nullptr;
  edgeslim_error error;
  if (thrown(env, edgeslim_decoder_push(decoder_of(decoder), token, &text, &error), error)) return nullptr;
  return to_bytes(env, text, std::strlen(text));
}
