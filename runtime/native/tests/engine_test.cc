// The runtime without Python: `engine_test` checks the readers of files and the samplers; `engine_test BUNDLE ORT` also
// loads a bundle and tries sessions: steps and chunks, sampling, cancelling from another thread, saved states, faults.
// A third argument says how often it cancels.
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "engine/bundle.h"
#include "engine/hash.h"
#include "engine/sampler.h"
#include "engine/utf8.h"
#include "include/edgeslim.h"
#include "tests/packer.h"

namespace {

using namespace edgeslim;

int64_t passed = 0, failed = 0;
int rounds = 20;  // of cancelling

void expect(bool holds, const char* what) {
  ++(holds ? passed : failed);
  if (!holds) std::printf("failed: %s\n", what);
}

// ---- readers

bool is_json(const std::string& text) {
  std::string wrong;
  Json::parse(text, &wrong);
  return wrong.empty();
}

std::string nested(int depth) { return std::string(std::size_t(depth), '[') + std::string(std::size_t(depth), ']'); }

void json_reader() {
  for (const char* text : {"{}", " [ ] ", "null", "true", "-0", "0.5e-3", "1E+9", "\"\\u00e9\\ud83d\\ude00\\n\"", "[1,[2,{\"a\":[]}]]",
                           "{\"a\":1,\"a\":2}", "1e999", "\"\xc3\xa9\""})
    expect(is_json(text), text);
  for (const char* text : {"", " ", "{", "}", "[1,]", "{\"a\":1,}", "{a:1}", "01", "-", "1.", ".5", "1e", "+1", "nul", "truee",
                           "\"", "\"\\x\"", "\"\\u12\"", "\"\\u12g4\"", "\"a\nb\"", "[1 2]", "{\"a\" 1}", "NaN", "Infinity", "// a\n1",
                           "'a'", "1 2", "[1}", "\xef\xbb\xbf{}"})
    expect(!is_json(text), text);
  expect(!is_json(std::string("\"a\0b\"", 5)), "a zero inside a text");
  expect(!is_json(std::string("[1\0]", 4)), "a zero between values");
  expect(is_json(nested(Json::kMostDepth)), "the greatest depth");
  expect(!is_json(nested(Json::kMostDepth + 1)), "one deeper");
  expect(!is_json(std::string(1000000, '[')), "a million open brackets");
  expect(!is_json(std::string(1000000, '{')), "a million open braces");
  expect(!is_json(std::string(Json::kMostBytes + 1, ' ')), "too many bytes");
  expect(!is_json(std::string(100000, '9')), "a number of 100,000 digits");
  std::string wrong;
  const Json value = Json::parse(R"({"a": 1, "a": 2, "t": "\u00e9\ud83d\ude00\ud800x", "n": 1e300, "h": 0.5, "w": 3.0})", &wrong);
  expect(value["a"].integer(0) == 2, "the last member of a name counts");
  expect(value["t"].text() == "\xc3\xa9\xf0\x9f\x98\x80\xef\xbf\xbdx", "escapes become UTF-8, a lone surrogate U+FFFD");
  expect(value["n"].integer(-7) == -7 && value["h"].integer(-7) == -7 && value["w"].integer(0) == 3, "whole numbers only");
  expect(value["none"]["of"]["these"].integer(5) == 5, "what is not there is null");
  expect(Json::parse(quoted("a\"\\\n\x01"), &wrong).text() == "a\"\\\n\x01", "quoted texts read back");
}

void paths() {
  for (const char* path : {"model.onnx", "a/b.onnx", "a/..b", "...", "./a", "a//b"}) expect(stays_inside(path), path);
  for (const char* path : {"", "/etc/passwd", "..", "../a", "a/../../b", "a/..", "a\\..\\b", "c:a", "a\nb", "a/../b"})
    expect(!stays_inside(path), path);
  expect(!stays_inside(std::string(5000, 'a')), "a path of 5000 bytes");
  expect(!stays_inside(std::string("a\0b", 3)), "a zero in a path");
}

Status read(const char* manifest, const char* genai, const char* config, const char* generation, Bundle* bundle) {
  BundleFiles files;
  std::string wrong;
  const std::pair<const char*, Json*> texts[] = {
      {manifest, &files.manifest}, {genai, &files.genai}, {config, &files.config}, {generation, &files.generation}};
  for (const auto& [text, json] : texts)
    if (text) *json = Json::parse(text, &wrong);
  expect(wrong.empty(), "the test's own JSON");
  bundle->folder = "here";
  return read_bundle(files, bundle);
}

void bundle_reader() {
  Bundle b;
  expect(!read(R"({"format":1,"lowering":"kernel","weight_bytes":7,"files":{"model.onnx":{"bytes":3}}})",
               R"({"model":{"vocab_size":9,"context_length":8,"eos_token_id":5,"decoder":{"filename":"g.onnx","session_options":
               {"intra_op_num_threads":3,"enable_cpu_mem_arena":false,"session.a":"1","session.b":true,"custom_ops_library":"libedgeslim.so"}}},
               "search":{"max_length":6,"past_present_share_buffer":true}})",
               R"({"vocab_size":1,"edgeslim":{"reduction":{}}})", R"({"eos_token_id":[2,3],"bos_token_id":4})", &b).failed(), "a whole bundle");
  expect(b.vocab_size == 9 && b.context_length == 8 && b.max_length == 6 && b.threads == 3 && b.weight_bytes == 7, "its numbers");
  expect(b.graph == "g.onnx" && b.packed && b.shares_buffer && b.reduces_prompts && !b.arena, "its flags");
  expect(b.end_tokens == std::vector<int32_t>{2, 3} && b.bos == 4, "its tokens");
  expect(b.entries.size() == 2 && b.entries[1].second == "1" && b.foreign_library.empty(), "its session options");
  const struct {
    const char *manifest, *genai, *why;
  } bad[] = {
      {R"({"format":2})", nullptr, "another format"},
      {R"({"format":1,"files":{"../x":{}}})", nullptr, "a file outside"},
      {R"({"format":1,"files":{"/x":{}}})", nullptr, "an absolute file"},
      {R"({"format":1,"weight_bytes":-1})", nullptr, "negative bytes"},
      {nullptr, R"({"model":{"vocab_size":0}})", "no vocabulary"},
      {nullptr, R"({"model":{"vocab_size":"9"}})", "a vocabulary in words"},
      {nullptr, R"({"model":{"vocab_size":1e18}})", "a vocabulary too large"},
      {nullptr, R"({"model":{"context_length":0.5}})", "half a token"},
      {nullptr, R"({"model":{"decoder":{"filename":"../../model.onnx"}}})", "a graph outside"},
      {nullptr, R"({"model":{"decoder":{"filename":"C:\\model.onnx"}}})", "a graph on a drive"},
      {nullptr, R"({"model":{"decoder":{"filename":""}}})", "a graph without a name"},
      {nullptr, R"({"model":{"decoder":{"session_options":{"custom_ops_library":"../evil.so"}}}})", "a library outside"},
      {nullptr, R"({"model":{"decoder":{"session_options":{"ep.context_file_path":"/tmp/x"}}}})", "an option that writes files"},
      {nullptr, R"({"model":{"decoder":{"session_options":{"intra_op_num_threads":100000}}}})", "too many threads"},
  };
  for (const auto& one : bad) {
    Bundle spoilt;
    const Status s = read(one.manifest, one.genai, nullptr, nullptr, &spoilt);
    expect(s.code == EDGESLIM_BAD_BUNDLE && !s.text.empty(), one.why);
  }
}

// ---- samplers

int32_t draw(const std::vector<float>& logits, const edgeslim_sampling& sampling, int64_t position = 0,
             std::vector<int32_t> seen = {}) {
  int32_t token = -1;
  edgeslim_error error;
  expect(!edgeslim_sample(logits.data(), int32_t(logits.size()), seen.data(), int64_t(seen.size()), &sampling, position, &token, &error),
         "a draw");
  return token;
}

void samplers() {
  edgeslim_sampling s = {};
  s.size = sizeof s;
  const std::vector<float> logits = {1, 4, 3, 4, -1};
  expect(draw(logits, s) == 1, "greedy takes the first of the largest");
  expect(draw({NAN, -INFINITY, 2}, s) == 2 && draw({NAN, NAN}, s) == 0, "NaN is never the largest");
  s.repetition_penalty = 2;
  expect(draw(logits, s, 0, {1, 3}) == 2 && draw({-1, -1.5f}, s, 0, {0}) == 1, "a penalty makes seen tokens less likely");
  s.repetition_penalty = 0;
  s.temperature = 1;
  s.top_k = 1;
  for (int64_t i = 0; i < 50; ++i) expect(draw(logits, s, i) % 2 == 1, "top_k keeps those equal to the k-th");
  s.top_k = 0;
  s.top_p = 1e-9f;
  for (int64_t i = 0; i < 50; ++i) expect(draw(logits, s, i) == 1, "top_p keeps at least one");
  s.top_p = 0;
  s.min_p = 1;
  for (int64_t i = 0; i < 50; ++i) expect(draw(logits, s, i) % 2 == 1, "min_p 1 keeps the likeliest");
  s.min_p = 0;
  expect(draw({INFINITY, 0, INFINITY}, s, 3) != 1, "infinite logits share everything");
  expect(draw({-INFINITY, -INFINITY, -INFINITY}, s, 3) >= 0, "no likely token at all is still a token");
  const float bad[][5] = {{-1, 1, 0, 0, 0}, {0, -1, 0, 0, 0}, {0, NAN, 0, 0, 0}, {0, INFINITY, 0, 0, 0},
                          {0, 1, -1, 0, 0}, {0, 1, 0, 2, 0},  {0, 1, 0, NAN, 0}, {0, 1, 0, 0, -0.1f}};
  for (const auto& one : bad) {
    edgeslim_sampling wrong = {sizeof wrong, one[0], one[1], int32_t(one[2]), one[3], one[4], 0};
    int32_t token = 0;
    edgeslim_error error;
    expect(edgeslim_sample(logits.data(), 5, nullptr, 0, &wrong, 0, &token, &error) == EDGESLIM_INVALID_ARGUMENT && error.message[0],
           "sampling that cannot be meant is refused");
  }
}

// ---- sessions

struct Loaded {
  edgeslim_model* model = nullptr;

  Loaded(const char* bundle, const char* runtime, uint32_t flags) {
    edgeslim_model_options options = {};
    options.size = sizeof options;
    options.flags = flags;
    options.threads = 2;
    options.onnxruntime = runtime;
    edgeslim_error error;
    expect(!edgeslim_model_load(bundle, &options, &model, &error), "a bundle loads");
  }
  Loaded(const Loaded&) = delete;
  Loaded& operator=(const Loaded&) = delete;
  ~Loaded() { edgeslim_model_free(model); }

  bool needs_onnxruntime() const {
    edgeslim_model_info info = {};
    info.size = sizeof info;
    edgeslim_error error;
    expect(!edgeslim_model_get_info(model, &info, &error), "what the model is");
    return info.onnxruntime[0] != 0;
  }
};

// A session of a model that outlives it.
struct Owner {
  edgeslim_model* model;
  edgeslim_session* session = nullptr;

  explicit Owner(const Loaded& loaded, int64_t room = 0, int64_t chunk = 0) : model(loaded.model) {
    edgeslim_session_options wanted = {sizeof wanted, 0, room, chunk};
    edgeslim_error error;
    expect(model && !edgeslim_session_open(model, &wanted, &session, &error), "a session opens");
  }
  Owner(const Owner&) = delete;
  Owner& operator=(const Owner&) = delete;
  ~Owner() { edgeslim_session_free(session); }
};

constexpr int32_t kPrompt[] = {5, 60, 7, 200, 11, 9};
constexpr int64_t kCount = 6;

int32_t keep(int32_t token, void* user) {
  static_cast<std::vector<int32_t>*>(user)->push_back(token);
  return 0;
}

int32_t generate(edgeslim_session* session, const int32_t* prompt, int64_t count, int64_t most, edgeslim_sampling sampling,
                 std::vector<int32_t>* tokens) {
  edgeslim_generation g = {};
  g.size = sizeof g;
  g.end_token_count = -1;
  g.max_new_tokens = most;
  g.sampling = sampling;
  g.on_token = keep;
  g.user = tokens;
  edgeslim_error error;
  return edgeslim_session_generate(session, prompt, count, &g, &error);
}

std::vector<int32_t> written(edgeslim_session* session, edgeslim_sampling sampling, int64_t most = 24) {
  std::vector<int32_t> tokens;
  edgeslim_session_reset(session);
  expect(!generate(session, kPrompt, kCount, most, sampling, &tokens), "generation");
  return tokens;
}

std::vector<char> saved(edgeslim_session* session) {
  size_t needed = 0;
  edgeslim_error error;
  expect(!edgeslim_session_save(session, nullptr, 0, &needed, &error), "the size of a state");
  std::vector<char> state(needed);
  expect(!edgeslim_session_save(session, state.data(), state.size(), &needed, &error) && needed == state.size(), "a state is saved");
  expect(edgeslim_session_save(session, state.data(), needed - 1, &needed, &error) == EDGESLIM_INVALID_ARGUMENT, "too little room");
  return state;
}

void saved_states(const Loaded& loaded) {
  Owner one(loaded), other(loaded, 64, 4);
  edgeslim_error error;
  edgeslim_sampling sampling = {sizeof sampling, 1.1f, 0.9f, 40, 0.95f, 0.01f, 7};
  edgeslim_session_feed(one.session, kPrompt, kCount, &error);
  const std::vector<char> state = saved(one.session);
  std::vector<int32_t> first, again, elsewhere;
  generate(one.session, nullptr, 0, 20, sampling, &first);
  expect(!edgeslim_session_restore(one.session, state.data(), state.size(), &error), "a state is restored");
  generate(one.session, nullptr, 0, 20, sampling, &again);
  expect(first.size() == 20 && first == again, "the same text follows");
  expect(!edgeslim_session_restore(other.session, state.data(), state.size(), &error), "into another session too");
  generate(other.session, nullptr, 0, 20, sampling, &elsewhere);
  expect(first == elsewhere, "and the same text follows there");

  edgeslim_session_restore(one.session, state.data(), state.size(), &error);
  const std::vector<float> logits(edgeslim_session_logits(one.session), edgeslim_session_logits(one.session) + 200);
  tests::Random random(3);
  for (int i = 0; i < 300; ++i) {
    std::vector<char> spoilt = state;
    const int64_t kind = random.below(4), size = int64_t(spoilt.size());
    if (kind == 0) spoilt.resize(std::size_t(random.below(size)));
    if (kind == 1) spoilt.resize(std::size_t(size + random.below(64)));
    if (kind >= 2 && !spoilt.empty()) spoilt[std::size_t(random.below(kind == 2 ? std::min<int64_t>(size, 64) : size))] ^= char(1 + random.below(255));
    expect(spoilt == state || edgeslim_session_restore(one.session, spoilt.data(), spoilt.size(), &error) == EDGESLIM_BAD_STATE,
           "a damaged state is refused");
    if (kind == 3 || spoilt.size() < 8) continue;  // numbers inside may be any: only sizes and places are checked
    Hash hash;
    hash.add(spoilt.data(), spoilt.size() - 8);
    std::memcpy(spoilt.data() + spoilt.size() - 8, &hash.value, 8);
    edgeslim_session_restore(one.session, spoilt.data(), spoilt.size(), &error);
  }
  expect(!edgeslim_session_restore(one.session, state.data(), state.size(), &error) &&
             !std::memcmp(logits.data(), edgeslim_session_logits(one.session), 200 * sizeof(float)),
         "the session is whole after all that");
}

void cancelling(const Loaded& loaded) {
  Owner one(loaded);
  edgeslim_sampling greedy = {};
  const std::vector<int32_t> expected = written(one.session, greedy, 40);
  edgeslim_error error;
  for (int i = 0; i < rounds; ++i) {
    edgeslim_session_reset(one.session);
    std::vector<int32_t> tokens;
    std::atomic<int32_t> code{-1};
    std::thread writer([&] { code = generate(one.session, kPrompt, kCount, 40, greedy, &tokens); });
    std::this_thread::sleep_for(std::chrono::microseconds(i * 300));
    edgeslim_session_cancel(one.session);
    writer.join();
    expect(code == EDGESLIM_OK || code == EDGESLIM_CANCELLED, "cancelling ends a generation");
    expect(edgeslim_session_feed(one.session, kPrompt, 1, &error) == EDGESLIM_CANCELLED, "and every later call");
    edgeslim_session_resume(one.session);
    const int64_t position = edgeslim_session_position(one.session);
    std::vector<int32_t> all(kPrompt, kPrompt + kCount), rest;
    all.insert(all.end(), tokens.begin(), tokens.end());
    expect(position <= int64_t(all.size()), "the position is one of the text");
    expect(std::equal(tokens.begin(), tokens.end(), expected.begin()), "what was written before is right");
    const int64_t left = int64_t(all.size()) - position;
    if (tokens.size() == 40) continue;
    if (left || !edgeslim_session_logits(one.session))
      expect(left && !edgeslim_session_feed(one.session, all.data() + position, left, &error), "the state goes on where it was");
    expect(!generate(one.session, nullptr, 0, 40 - int64_t(tokens.size()), greedy, &rest), "and generates");
    tokens.insert(tokens.end(), rest.begin(), rest.end());
    expect(tokens == expected, "the text is the one that an undisturbed session writes");
  }
}

void faults(const char* bundle, const char* runtime, const Loaded& loaded) {
  edgeslim_error error;
  edgeslim_model* model = nullptr;
  edgeslim_model_options options = {};
  options.size = sizeof options;
  options.onnxruntime = runtime;
  expect(edgeslim_model_load("/nowhere", &options, &model, &error) == EDGESLIM_BAD_BUNDLE && !model, "no folder");
  expect(edgeslim_model_load(nullptr, &options, &model, &error) == EDGESLIM_INVALID_ARGUMENT, "a null folder");
  expect(edgeslim_model_load(bundle, &options, nullptr, nullptr) == EDGESLIM_INVALID_ARGUMENT, "a null model, a null error");
  options.graph = "../model.onnx";
  expect(edgeslim_model_load(bundle, &options, &model, &error) == EDGESLIM_INVALID_ARGUMENT, "a graph outside");
  options.graph = "edgeslim.json";
  expect(edgeslim_model_load(bundle, &options, &model, &error) == EDGESLIM_BAD_BUNDLE, "a graph that is none");
  options.graph = nullptr;
  options.flags = EDGESLIM_WITH_ONNXRUNTIME | EDGESLIM_WITHOUT_ONNXRUNTIME;
  expect(edgeslim_model_load(bundle, &options, &model, &error) == EDGESLIM_INVALID_ARGUMENT, "both executors");
  options.flags = EDGESLIM_WITH_ONNXRUNTIME;
  options.onnxruntime = "/nowhere/libonnxruntime.so";
  expect(edgeslim_model_load(bundle, &options, &model, &error) == EDGESLIM_RUNTIME_UNAVAILABLE, "no runtime");
  options.onnxruntime = "libc.so.6";
  expect(edgeslim_model_load(bundle, &options, &model, &error) == EDGESLIM_RUNTIME_UNAVAILABLE, "another library");
  options.size = 1;
  expect(edgeslim_model_load(bundle, &options, &model, &error) == EDGESLIM_INVALID_ARGUMENT, "a structure without a size");

  Owner one(loaded, 16);
  int32_t token = 0;
  const int32_t far[] = {1 << 30}, below[] = {-1};
  std::vector<int32_t> many(17, 1);
  expect(edgeslim_session_sample(one.session, nullptr, &token, &error) == EDGESLIM_WRONG_ORDER, "sampling before feeding");
  expect(!edgeslim_session_logits(one.session), "no logits before feeding");
  expect(edgeslim_session_feed(one.session, far, 1, &error) == EDGESLIM_INVALID_ARGUMENT, "a token out of range");
  expect(edgeslim_session_feed(one.session, below, 1, &error) == EDGESLIM_INVALID_ARGUMENT, "a negative token");
  expect(edgeslim_session_feed(one.session, kPrompt, 0, &error) == EDGESLIM_INVALID_ARGUMENT, "no tokens");
  expect(edgeslim_session_feed(one.session, nullptr, 3, &error) == EDGESLIM_INVALID_ARGUMENT, "null tokens");
  expect(edgeslim_session_feed(nullptr, kPrompt, 3, &error) == EDGESLIM_INVALID_ARGUMENT, "a null session");
  expect(edgeslim_session_feed(one.session, many.data(), 17, &error) == EDGESLIM_CONTEXT_FULL, "more than there is room for");
  edgeslim_session* session = nullptr;
  const edgeslim_session_options huge = {sizeof huge, 0, int64_t{1} << 40, 0}, negative = {sizeof negative, 0, -1, 0};
  expect(edgeslim_session_open(one.model, &huge, &session, &error) == EDGESLIM_INVALID_ARGUMENT, "room beyond bounds");
  expect(edgeslim_session_open(one.model, &negative, &session, &error) == EDGESLIM_INVALID_ARGUMENT, "negative room");
  std::vector<int32_t> tokens;
  edgeslim_generation g = {};
  g.size = sizeof g;
  g.end_token_count = -1;
  g.max_new_tokens = 100;
  expect(!edgeslim_session_generate(one.session, kPrompt, kCount, &g, &error) && g.ended_by == EDGESLIM_END_ROOM && g.produced == 11,
         "generation ends where the room is full");
  edgeslim_model_free(nullptr);
  edgeslim_session_free(nullptr);
}

void sessions(const Loaded& loaded) {
  Owner one(loaded), chunked(loaded, 0, 2);
  edgeslim_sampling greedy = {}, drawn = {sizeof drawn, 1.2f, 1.5f, 50, 0.9f, 0.02f, 11};
  edgeslim_error error;
  const std::vector<int32_t> tokens = written(one.session, greedy);
  std::printf("tokens");
  for (const int32_t token : tokens) std::printf(" %d", int(token));
  std::printf("\n");
  expect(written(one.session, greedy) == tokens, "a reset session writes the same");
  expect(written(chunked.session, greedy) == tokens, "and one that is fed in chunks");
  expect(written(one.session, drawn) == written(one.session, drawn), "the same seed draws the same");
  edgeslim_sampling reseeded = drawn;
  reseeded.seed = 12;
  expect(written(one.session, drawn) != written(one.session, reseeded), "another seed draws others");
  edgeslim_session_reset(one.session);
  expect(!edgeslim_session_feed(one.session, kPrompt, kCount, &error), "a prompt");
  std::vector<int32_t> stepped;
  for (int i = 0; i < 24; ++i) {
    int32_t token = 0;
    expect(!edgeslim_session_sample(one.session, &drawn, &token, &error), "a sample");
    stepped.push_back(token);
    expect(!edgeslim_session_feed(one.session, &token, 1, &error), "a step");
  }
  expect(stepped == written(one.session, drawn), "steps and generation draw the same");
  std::vector<std::vector<int32_t>> shared(3);
  std::vector<std::thread> threads;
  for (std::vector<int32_t>& out : shared)
    threads.emplace_back([&one, &out, greedy] {
      edgeslim_session* session = nullptr;
      edgeslim_error wrong;
      edgeslim_session_open(one.model, nullptr, &session, &wrong);
      generate(session, kPrompt, kCount, 24, greedy, &out);
      edgeslim_session_free(session);
    });
  for (std::thread& thread : threads) thread.join();
  for (const std::vector<int32_t>& out : shared) expect(out == tokens, "sessions of one model on several threads");
}

// ---- text

void characters() {
  for (const char* text : {"", "a", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xee\x80\x80", "\xef\xbf\xbf",
                           "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf", "na\xc3\xafve \xe6\xbc\xa2 \xf0\x9f\x99\x82"})
    expect(is_utf8(text), text);
  for (const char* text : {"\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xc2", "\xc2x", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xe6\xbc", "\xe6\xbcx",
                           "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "a\xf0\x9f\x99"})
    expect(!is_utf8(text), "what is no UTF-8");
  const std::string text = "na\xc3\xafve \xe6\xbc\xa2\xf0\x9f\x99\x82";
  std::string waiting, taken;
  for (const char byte : text) {
    waiting += byte;
    take_utf8(&waiting, &taken);
    expect(is_utf8(taken) && text.compare(0, taken.size(), taken) == 0, "whole characters only");
  }
  expect(taken == text && waiting.empty(), "byte by byte, all of it");
  waiting = "a\x80\xe6\xbc\xc3\xa9\xf0\x9f";
  taken.clear();
  take_utf8(&waiting, &taken);
  expect(taken == "a\xc3\xa9" && waiting == "\xf0\x9f", "what is no character is dropped, what may become one waits");
}

void tokenizer_faults() {
  edgeslim_error error;
  edgeslim_tokenizer* tokenizer = nullptr;
  edgeslim_decoder* decoder = nullptr;
  int64_t count = 0;
  size_t size = 0;
  const char* text = nullptr;
  expect(edgeslim_tokenizer_open(nullptr, nullptr, &tokenizer, &error) == EDGESLIM_INVALID_ARGUMENT, "no folder");
  expect(edgeslim_tokenizer_open("/nowhere", nullptr, nullptr, &error) == EDGESLIM_INVALID_ARGUMENT, "nowhere to put it");
  expect(edgeslim_tokenizer_open("/nowhere", nullptr, &tokenizer, &error) == EDGESLIM_BAD_BUNDLE && !tokenizer, "no bundle");
  expect(edgeslim_tokenizer_encode(nullptr, "a", 1, nullptr, 0, &count, &error) == EDGESLIM_INVALID_ARGUMENT, "no tokenizer");
  expect(edgeslim_tokenizer_decode(nullptr, nullptr, 0, nullptr, 0, &size, &error) == EDGESLIM_INVALID_ARGUMENT, "nor to decode");
  expect(edgeslim_decoder_open(nullptr, &decoder, &error) == EDGESLIM_INVALID_ARGUMENT, "nor for a decoder");
  expect(edgeslim_decoder_push(nullptr, 1, &text, &error) == EDGESLIM_INVALID_ARGUMENT, "no decoder");
  edgeslim_tokenizer_free(nullptr);
  edgeslim_decoder_free(nullptr);
}

// With ONNX Runtime, or without it where that can be; returns whether it was there. One model serves all cases, as loading
// takes long where the processor is emulated.
bool every_case(const char* bundle, const char* runtime, uint32_t flags) {
  const Loaded loaded(bundle, runtime, flags);
  if (!loaded.model) return true;
  sessions(loaded);
  saved_states(loaded);
  cancelling(loaded);
  faults(bundle, runtime, loaded);
  const bool needs = loaded.needs_onnxruntime();
  for (int i = 0; i < (needs ? 1 : 10); ++i) Owner{Loaded(bundle, runtime, flags)};
  return needs;
}

}  // namespace

int main(int argc, char** argv) {
  json_reader();
  characters();
  tokenizer_faults();
  paths();
  bundle_reader();
  samplers();
  if (argc == 4) rounds = std::atoi(argv[3]);
  if (argc >= 3) {
    if (!every_case(argv[1], argv[2], 0)) every_case(argv[1], argv[2], EDGESLIM_WITH_ONNXRUNTIME);
  }
  std::printf("%lld passed, %lld failed\n", (long long)passed, (long long)failed);
  return failed != 0;
}
