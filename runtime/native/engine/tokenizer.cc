#include "engine/tokenizer.h"

#include <algorithm>
#include <utility>

#include "engine/files.h"
#include "engine/tokenizer_check.h"
#include "engine/utf8.h"

namespace edgeslim {
namespace {

constexpr int64_t kMostTokens = int64_t{1} << 31;

// Calls `visit` with `part`, or with every part where it is a sequence of them under `name`.
template <class F>
void each_part(const Json& part, const char* name, const F& visit) {
  if (part["type"].text() != "Sequence") return visit(part);
  for (const Json& one : part[name].entries()) visit(one);
}

// The tokens that a template puts around a single text.
void read_template(const Json& part, std::vector<int32_t>* before, std::vector<int32_t>* after) {
  if (part["type"].text() != "TemplateProcessing") return;
  std::vector<int32_t>* side = before;
  for (const Json& piece : part["single"].entries()) {
    if (piece["Sequence"].is(Json::Kind::object)) side = after;
    for (const Json& id : part["special_tokens"][piece["SpecialToken"]["id"].text()]["ids"].entries())
      if (const int64_t token = id.integer(-1); token >= 0 && token < kMostTokens) side->push_back(int32_t(token));
  }
}

// Whether a text's decoder takes the space away that its encoder put before the first word.
bool drops_space(const Json& part) {
  const std::string& type = part["type"].text();
  if (type == "Strip") return part["content"].text() == " " && part["start"].integer(0) > 0;
  return type == "Metaspace" && part["prepend_scheme"].text() != "never" && part["add_prefix_space"].boolean(true);
}

}  // namespace

void Tokenizer::read(const Json& file) {
  for (const Json& token : file["added_tokens"].entries())
    if (token["special"].boolean(false)) silent_.push_back(int32_t(token["id"].integer(-1)));
  each_part(file["post_processor"], "processors", [&](const Json& part) { read_template(part, &before_, &after_); });
  each_part(file["decoder"], "decoders", [&](const Json& part) { drops_space_ = drops_space_ || drops_space(part); });
}

Status Tokenizer::open(const std::string& folder, const char* library, Tokenizer* tokenizer) {
  const std::string path = folder + "/tokenizer.json";
  std::string text, wrong;
  if (file_bytes(path) < 0) return failure(EDGESLIM_BAD_BUNDLE, "%s: it has no tokenizer.json", folder.c_str());
  if (link_leaves(folder, path)) return failure(EDGESLIM_BAD_BUNDLE, "%s is a link that leaves the bundle", path.c_str());
  if (Status s = read_file(path, Json::kMostBytes, &text); s.failed()) return s;
  const char* type = nullptr;
  {
    const Json file = Json::parse(text, &wrong);  // as large as the extensions' own: gone before they read the text
    if (!wrong.empty()) return failure(EDGESLIM_BAD_BUNDLE, "%s: not valid JSON: %s", path.c_str(), wrong.c_str());
    if (Status s = check_tokenizer(file, path, &type); s.failed()) return s;
    tokenizer->read(file);
  }
  if (Status s = OrtxLibrary::load(library, &tokenizer->library_); s.failed()) return s;
  const OrtxLibrary& ortx = *tokenizer->library_;
  const std::string config = std::string("{\"tokenizer_class\":\"") + type + "\"}";
  const ortx::TokenizerBlob files = {config.c_str(), text.c_str(), nullptr, nullptr, nullptr, config.size(), text.size(), 0, 0, 0};
  ortx::Object* made = nullptr;
  Status s = ortx.call(EDGESLIM_BAD_BUNDLE, path.c_str(), [&](auto& f) { return f.create_tokenizer(&made, &files); });
  tokenizer->tokenizer_ = OrtxPtr(made, {&ortx});
  if (s.failed()) return s;
  const char *name = "add_special_tokens", *value = "false";
  return ortx.call(EDGESLIM_RUNTIME_UNAVAILABLE, name, [&](auto& f) { return f.set_options(made, &name, &value, 1); });
}

Status Tokenizer::encode(const char* text, bool special, std::vector<int32_t>* tokens) const {
  if (!is_utf8(text)) return failure(EDGESLIM_INVALID_ARGUMENT, "the text is not UTF-8");
  ortx::Object* ids = nullptr;
  const uint32_t* data = nullptr;
  std::size_t count = 0;
  const Status s = library_->call(EDGESLIM_RUNTIME_FAILED, "encoding", [&](auto& f) {
    const int said = f.tokenize(tokenizer_.get(), &text, 1, &ids);
    return said ? said : f.ids_of(ids, 0, &data, &count);
  });
  const OrtxPtr owner(ids, {library_});
  if (s.failed()) return s;
  tokens->clear();
  if (special) *tokens = before_;
  for (std::size_t i = 0; i < count; ++i)
    if (data[i] < kMostTokens) tokens->push_back(int32_t(data[i]));  // others are bytes that no token has
  if (special) tokens->insert(tokens->end(), after_.begin(), after_.end());
  return {};
}

Status Tokenizer::decode(const int32_t* tokens, int64_t count, std::string* text) const {
  TextDecoder decoder;
  if (Status s = decoder.open(*this); s.failed()) return s;
  text->clear();
  for (int64_t i = 0; i < count; ++i) {
    const std::string* piece = nullptr;
    if (Status s = decoder.push(tokens[i], &piece); s.failed()) return s;
    *text += *piece;
  }
  return {};
}

Status TextDecoder::open(const Tokenizer& tokenizer) {
  tokenizer_ = &tokenizer;
  const OrtxLibrary& ortx = *tokenizer.library_;
  ortx::Object* cache = nullptr;
  Status s = ortx.call(EDGESLIM_RUNTIME_FAILED, "a decoder", [&](auto& f) { return f.create(ortx::kDetokenizerCache, &cache); });
  cache_ = OrtxPtr(cache, {&ortx});
  return s;
}

Status TextDecoder::push(int32_t token, const std::string** text) {
  if (token < 0) return failure(EDGESLIM_INVALID_ARGUMENT, "token ids must be at least 0, got %d", int(token));
  text_.clear();
  *text = &text_;
  const std::vector<int32_t>& silent = tokenizer_->silent_;
  if (std::find(silent.begin(), silent.end(), token) != silent.end()) return {};
  const char* piece = nullptr;
  const Status s = tokenizer_->library_->call(EDGESLIM_RUNTIME_FAILED, "decoding", [&](auto& f) {
    return f.detokenize(tokenizer_->tokenizer_.get(), cache_.get(), uint32_t(token), &piece);
  });
  if (s.failed()) return s;
  bytes_ += piece ? piece : "";
  take_utf8(&bytes_, &text_);
  if (text_.empty()) return {};
  if (std::exchange(begins_, false) && tokenizer_->drops_space_ && text_[0] == ' ') text_.erase(0, 1);
  return {};
}

}  // namespace edgeslim
