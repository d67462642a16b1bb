#include "engine/bundle.h"

#include <cstdio>
#include <cstring>

#include "engine/files.h"
#include "engine/hash.h"

namespace edgeslim {
namespace {

constexpr int64_t kMostTokens = int64_t{1} << 31;

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

bool is_ours(std::string_view library) {
  return ends_with(library, "libedgeslim.so") || ends_with(library, "libedgeslim.dylib") ||
         ends_with(library, "edgeslim.dll");
}

Status read_json(const std::string& folder, const char* name, Json* value) {
  std::string text, wrong;
  const std::string path = folder + "/" + name;
  if (file_bytes(path) < 0) return {};
  if (Status status = read_file(path, Json::kMostBytes, &text); status.failed()) return status;
  *value = Json::parse(text, &wrong);
  if (!wrong.empty()) return failure(EDGESLIM_BAD_BUNDLE, "%s: not valid JSON: %s", path.c_str(), wrong.c_str());
  if (!value->is(Json::Kind::object)) return failure(EDGESLIM_BAD_BUNDLE, "%s: expected a JSON object", path.c_str());
  return {};
}

// The number `value`, which may be missing, and otherwise lies in [low, high].
Status read_number(const Bundle& bundle, const char* name, const Json& value, int64_t low, int64_t high, int64_t* to) {
  if (value.is(Json::Kind::null)) return {};
  const int64_t number = value.integer(low - 1);
  if (number < low || number > high)
    return failure(EDGESLIM_BAD_BUNDLE, "%s: %s must be a whole number in [%lld, %lld]", bundle.folder.c_str(), name,
                   (long long)low, (long long)high);
  *to = number;
  return {};
}

std::vector<int32_t> token_ids(const Json& value) {
  std::vector<int32_t> ids;
  const auto add = [&ids](const Json& one) {
    const int64_t id = one.integer(-1);
    if (id >= 0 && id < kMostTokens) ids.push_back(int32_t(id));
  };
  add(value);
  for (const Json& one : value.entries()) add(one);
  return ids;
}

// The ids of the first object that names any: generation_config.json is what a model's author means.
std::vector<int32_t> end_tokens(const BundleFiles& files) {
  for (const Json* object : {&files.generation, &files.genai["model"], &files.config})
    if (std::vector<int32_t> ids = token_ids((*object)["eos_token_id"]); !ids.empty()) return ids;
  return {};
}

const Json& first_of(const Json& a, const Json& b) { return a.is(Json::Kind::null) ? b : a; }

// A configuration entry's value as text: Python writes flags as text, numbers and booleans.
bool entry_text(const Json& value, std::string* text) {
  if (value.is(Json::Kind::text)) {
    *text = value.text();
  } else if (value.is_integer()) {
    *text = std::to_string(value.integer(0));
  } else if (value.is(Json::Kind::boolean)) {
    *text = value.boolean(false) ? "1" : "0";
  } else {
    return false;
  }
  return true;
}

// Entries that would make a session write files, or read others than the bundle's.
bool touches_files(std::string_view name) {
  for (const char* part : {"path", "file", "folder", "dir", "profiling", "optimized_model", "ep.", "dump", "cache"})
    if (name.find(part) != std::string_view::npos) return true;
  return false;
}

Status read_session_options(const Json& options, Bundle* bundle) {
  if (Status s = read_number(*bundle, "intra_op_num_threads", options["intra_op_num_threads"], 0, 1024, &bundle->threads); s.failed())
    return s;
  bundle->arena = options["enable_cpu_mem_arena"].boolean(true);
  const std::string& library = options["custom_ops_library"].text();
  if (!is_ours(library)) bundle->foreign_library = library;
  for (const auto& [name, value] : options.members()) {
    std::string text;
    if (name.find('.') == std::string::npos || !entry_text(value, &text)) continue;
    if (touches_files(name))
      return failure(EDGESLIM_BAD_BUNDLE, "%s: genai_config.json: the session option %.80s is not taken from a bundle",
                     bundle->folder.c_str(), name.c_str());
    bundle->entries.emplace_back(name, text);
  }
  return {};
}

Status check_manifest(const Json& manifest, const Bundle& bundle) {
  if (manifest.is(Json::Kind::null)) return {};
  if (manifest["format"].integer(0) != 1)
    return failure(EDGESLIM_BAD_BUNDLE, "%s: edgeslim.json has another format than 1; export it again",
                   bundle.folder.c_str());
  for (const auto& [name, record] : manifest["files"].members())
    if (!stays_inside(name))
      return failure(EDGESLIM_BAD_BUNDLE, "%s: edgeslim.json: the path %.120s leaves the bundle", bundle.folder.c_str(),
                     name.c_str());
  return {};
}

uint64_t identity_of(const Json& manifest) {
  Hash hash;
  for (const auto& [name, record] : manifest["files"].members()) {
    if (!ends_with(name, ".onnx") && !ends_with(name, ".data")) continue;
    hash.add(name.data(), name.size());
    hash.add(record["sha256"].text().data(), record["sha256"].text().size());
  }
  return hash.value;
}

Status check_sizes(const Json& manifest, const Bundle& bundle) {
  for (const auto& [name, record] : manifest["files"].members()) {
    if (!ends_with(name, ".onnx") && !ends_with(name, ".data")) continue;
    const int64_t size = file_bytes(bundle.folder + "/" + name), said = record["bytes"].integer(-1);
    if (size >= 0 && size != said)
      return failure(EDGESLIM_BAD_BUNDLE, "%s/%s does not load: it has %lld bytes, edgeslim.json says %lld", bundle.folder.c_str(),
                     name.c_str(), (long long)size, (long long)said);
  }
  return {};
}

// A link is a path too: what is read must lie inside, wherever ONNX Runtime's version looks.
Status check_links(const Bundle& bundle) {
  for (const std::string& name : names_in(bundle.folder))
    if ((ends_with(name, ".json") || ends_with(name, ".onnx") || ends_with(name, ".data")) &&
        link_leaves(bundle.folder, bundle.folder + "/" + name))
      return failure(EDGESLIM_BAD_BUNDLE, "%s: %.120s is a link that leaves the bundle", bundle.folder.c_str(), name.c_str());
  return {};
}

}  // namespace

bool stays_inside(std::string_view path) {
  if (path.empty() || path.size() > 4096 || path.front() == '/') return false;
  for (const char c : path)
    if (c == '\\' || c == ':' || static_cast<unsigned char>(c) < 0x20) return false;
  while (true) {
    const std::size_t end = path.find('/');
    if (path.substr(0, end) == "..") return false;
    if (end == std::string_view::npos) return true;
    path.remove_prefix(end + 1);
  }
}

Status read_bundle(const BundleFiles& files, Bundle* bundle) {
  if (Status s = check_manifest(files.manifest, *bundle); s.failed()) return s;
  const Json &model = files.genai["model"], &decoder = model["decoder"], &search = files.genai["search"];
  if (decoder["filename"].is(Json::Kind::text)) bundle->graph = decoder["filename"].text();
  const struct {
    const char* name;
    const Json& value;
    int64_t low, high, *to;
  } numbers[] = {
      {"vocab_size", first_of(model["vocab_size"], files.config["vocab_size"]), 1, kMostTokens - 1, &bundle->vocab_size},
      {"context_length", first_of(model["context_length"], files.config["max_position_embeddings"]), 1, kMostTokens - 1,
       &bundle->context_length},
      {"max_length", search["max_length"], 1, kMostTokens - 1, &bundle->max_length},
      {"chunk_size", search["chunk_size"], 0, kMostTokens - 1, &bundle->chunk},
      {"weight_bytes", files.manifest["weight_bytes"], 0, int64_t{1} << 50, &bundle->weight_bytes},
  };
  for (const auto& n : numbers)
    if (Status s = read_number(*bundle, n.name, n.value, n.low, n.high, n.to); s.failed()) return s;
  const std::vector<int32_t> bos = token_ids(first_of(files.generation["bos_token_id"], files.config["bos_token_id"]));
  if (!bos.empty()) bundle->bos = bos[0];
  bundle->end_tokens = end_tokens(files);
  bundle->identity = identity_of(files.manifest);
  bundle->packed = files.manifest["lowering"].text() == "kernel";
  bundle->shares_buffer = search["past_present_share_buffer"].boolean(false);
  bundle->reduces_prompts = files.config["edgeslim"]["reduction"].is(Json::Kind::object);
  const Json& options = first_of(decoder["session_options"], files.manifest["session_options"]);
  if (Status s = read_session_options(options, bundle); s.failed()) return s;
  if (!stays_inside(bundle->graph) ||
      (!bundle->foreign_library.empty() && !stays_inside(bundle->foreign_library)))
    return failure(EDGESLIM_BAD_BUNDLE, "%s: genai_config.json: the path %.120s leaves the bundle",
                   bundle->folder.c_str(),
                   (stays_inside(bundle->graph) ? bundle->foreign_library : bundle->graph).c_str());
  return {};
}

Status open_bundle(const std::string& folder, Bundle* bundle) {
  bundle->folder = folder;
  if (!is_folder(folder)) return failure(EDGESLIM_BAD_BUNDLE, "%s: no such bundle folder", folder.c_str());
  if (Status s = check_links(*bundle); s.failed()) return s;
  BundleFiles files;
  const std::pair<const char*, Json*> names[] = {{"edgeslim.json", &files.manifest},
                                                 {"genai_config.json", &files.genai},
                                                 {"config.json", &files.config},
                                                 {"generation_config.json", &files.generation}};
  for (const auto& [name, value] : names)
    if (Status s = read_json(folder, name, value); s.failed()) return s;
  if (Status s = read_bundle(files, bundle); s.failed()) return s;
  return check_sizes(files.manifest, *bundle);
}

}  // namespace edgeslim
