// Damaged edgeslim.json, genai_config.json, config.json and generation_config.json, given to the readers in process:
// `fuzz_bundle SEED COUNT [FIRST] [--seconds S]`. Each execution takes valid files and changes a few bytes, words or
// pieces. What is accepted must lie inside the bundle and in range. Execution i depends on SEED and i alone.
#include <string>

#include "engine/bundle.h"
#include "fuzz/campaign.h"
#include "fuzz/mutate.h"

namespace {

using namespace edgeslim;
using tests::Random;

const std::string kFiles[4] = {
    R"({"source":{"id":"a/b","model_type":"llama"},"weights":"int8","weight_bytes":245060072,"layers":[{"name":"model.layers.0",
"shape":[1600,960],"sparsity":0.5,"bytes":959519,"form":"bitmap_int8","stored":0.494952}],"files":{"model.onnx":{"bytes":263775,
"sha256":"e828"},"lib/aarch64/libedgeslim.so":{"bytes":594120,"sha256":"aebd"},"model.onnx.data":{"bytes":245060072,"sha256":""}},
"parity":{"tolerance":1e-4,"whole":4.76837158203125e-06},"lowering":"kernel","libraries":{"x86_64":"libedgeslim.so"},"format":1,
"session_options":{"session.disable_prepacking":"1"},"engines":["ort"]})",
    R"({"model":{"type":"decoder","vocab_size":49152,"context_length":2048,"eos_token_id":[2],"pad_token_id":0,"bos_token_id":1,
"decoder":{"session_options":{"log_id":"edgeslim","provider_options":[],"custom_ops_library":"libedgeslim.so","intra_op_num_threads":2,
"enable_cpu_mem_arena":false,"session.disable_prepacking":"1"},"filename":"model.onnx","inputs":{"input_ids":"input_ids",
"past_key_names":"past_key_values.%d.key"}}},"search":{"do_sample":false,"max_length":2048,"past_present_share_buffer":true,
"chunk_size":256}})",
    R"({"architectures":["LlamaForCausalLM"],"eos_token_id":2,"max_position_embeddings":2048,"vocab_size":49152,"edgeslim":{
"reduction":{"layers":[3],"ratios":[0.2]}},"rope_scaling":null,"tie_word_embeddings":true})",
    "{\"bos_token_id\":1,\"eos_token_id\":[2,7],\"text\":\"\\u00e9\\ud83d\\ude00\\n\"}"};

// Said in other words than the reader's: every component of a path that is left.
bool leaves(const std::string& path) {
  if (path.empty() || path[0] == '/' || path.find('\\') != std::string::npos || path.find(':') != std::string::npos) return true;
  const std::string framed = "/" + path + "/";
  return framed.find("/../") != std::string::npos;
}

const char* inspect(const Bundle& b) {
  if (leaves(b.graph)) return "the graph leaves the bundle";
  if (!b.foreign_library.empty() && leaves(b.foreign_library)) return "a library leaves the bundle";
  for (const int64_t number : {b.vocab_size, b.context_length, b.max_length, b.chunk, b.threads})
    if (number < 0 || number >= int64_t{1} << 31) return "a number is out of range";
  for (const int32_t token : b.end_tokens)
    if (token < 0) return "a token is negative";
  for (const auto& [name, value] : b.entries)
    if (name.find("file") != std::string::npos || name.find("path") != std::string::npos) return "an option names files";
  return nullptr;
}

const char* execute(Random& random, bool* accepted) {
  BundleFiles files;
  Json* const to[] = {&files.manifest, &files.genai, &files.config, &files.generation};
  const int64_t victim = random.below(5);  // 4: all of them
  bool whole = true;
  for (int i = 0; i < 4; ++i) {
    std::string wrong;
    const std::string text = victim == i || victim == 4 ? fuzz::mutated_text(kFiles[i], random) : kFiles[i];
    const std::vector<char> exact(text.begin(), text.end());  // ends where its memory does
    *to[i] = Json::parse({exact.data(), exact.size()}, &wrong);
    whole = whole && wrong.empty();
  }
  if (!whole) return nullptr;
  Bundle bundle;
  const Status status = read_bundle(files, &bundle);
  *accepted = !status.failed();
  if (status.failed()) return status.text.empty() ? "a refusal says nothing" : nullptr;
  return inspect(bundle);
}

}  // namespace

int main(int argc, char** argv) { return edgeslim::fuzz::run_campaign("fuzz_bundle", argc, argv, execute); }
