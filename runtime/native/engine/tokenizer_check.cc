#include "engine/tokenizer_check.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <vector>

namespace edgeslim {
namespace {

constexpr std::size_t kCharsmapLength = 4;  // the bytes that say how long the first part of a character map is

// The extensions know tokenizers by classes of transformers, and not those that newer versions of it write. These stand
// for what tokenizer.json says; all else they read there. Null: they have none.
const char* class_of(const Json& model) {
  const std::string& type = model["type"].text();
  if (type == "Unigram") return "T5Tokenizer";
  if (type != "BPE") return nullptr;
  return model["byte_fallback"].boolean(false) ? "LlamaTokenizer" : "PreTrainedTokenizer";
}

Status expected(const std::string& path, const char* where, std::size_t entry, const char* what) {
  return failure(EDGESLIM_BAD_BUNDLE, "%s: %s: entry %zu must be %s", path.c_str(), where, entry, what);
}

Status check_kind(const Json& value, Json::Kind kind, const std::string& path, const char* where, const char* what) {
  if (value.is(kind)) return {};
  return failure(EDGESLIM_BAD_BUNDLE, "%s: %s must be %s", path.c_str(), where, what);
}

// Each token of a BPE vocabulary is written at the place that its id says, into as many places as there are tokens.
Status check_vocabulary(const Json& vocabulary, const std::string& path) {
  if (Status s = check_kind(vocabulary, Json::Kind::object, path, "model.vocab", "an object"); s.failed()) return s;
  std::vector<std::string_view> tokens;
  for (const auto& member : vocabulary.members()) tokens.push_back(member.first);
  std::sort(tokens.begin(), tokens.end());
  const int64_t count = std::unique(tokens.begin(), tokens.end()) - tokens.begin();
  for (const auto& [token, id] : vocabulary.members())
    if (id.integer(-1) < 0 || id.integer(-1) >= count)
      return failure(EDGESLIM_BAD_BUNDLE, "%s: the id of '%.40s' must be in [0, %lld), as many tokens there are", path.c_str(),
                     token.c_str(), (long long)count);
  return {};
}

// A merge written as one text is read as a line of merges.txt: they wait for ever at an empty one and at a comment.
Status check_merges(const Json& merges, const std::string& path) {
  constexpr const char* where = "model.merges";
  if (Status s = check_kind(merges, Json::Kind::array, path, where, "an array"); s.failed()) return s;
  for (std::size_t i = 0; i < merges.entries().size(); ++i) {
    const Json& merge = merges.entries()[i];
    if (!merge.is(Json::Kind::text)) continue;
    const std::size_t first = merge.text().find_first_not_of('\r');
    if (first == std::string::npos || (i == 0 && merge.text()[first] == '#'))
      return expected(path, where, i, "a pair of tokens; begin one with '#' as [\"#\", ...]");
  }
  return {};
}

Status check_pieces(const Json& vocabulary, const std::string& path) {
  constexpr const char* where = "model.vocab";
  if (Status s = check_kind(vocabulary, Json::Kind::array, path, where, "an array"); s.failed()) return s;
  for (std::size_t i = 0; i < vocabulary.entries().size(); ++i) {
    const std::vector<Json>& piece = vocabulary.entries()[i].entries();
    if (piece.size() != 2 || !piece[0].is(Json::Kind::text) || !piece[1].is(Json::Kind::number))
      return expected(path, where, i, "a token and its score");
  }
  return {};
}

// The bytes that `text` stands for in base64; none where it is no such text.
std::vector<unsigned char> from_base64(std::string_view text) {
  constexpr char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  while (!text.empty() && text.back() == '=') text.remove_suffix(1);
  std::vector<unsigned char> bytes;
  uint32_t bits = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char* digit = text[i] ? std::strchr(digits, text[i]) : nullptr;
    if (!digit) return {};
    bits = bits << 6 | uint32_t(digit - digits);
    if (i % 4) bytes.push_back(static_cast<unsigned char>(bits >> (6 - i % 4 * 2)));
  }
  return bytes;
}

// A map of characters: its length, an array of 32-bit words, and texts that end with a zero.
Status check_charsmap(const Json& normalizer, const std::string& path) {
  const Json& map = normalizer["precompiled_charsmap"];
  if (!map.is(Json::Kind::text) || map.text().empty()) return {};
  const std::vector<unsigned char> bytes = from_base64(map.text());
  uint32_t words = 0;
  if (bytes.size() > kCharsmapLength) std::memcpy(&words, bytes.data(), kCharsmapLength);
  if (bytes.size() > kCharsmapLength && words < bytes.size() - kCharsmapLength && bytes.back() == 0) return {};
  return failure(EDGESLIM_BAD_BUNDLE, "%s: normalizer: its precompiled_charsmap is none", path.c_str());
}

Status check_added(const Json& added, const std::string& path) {
  for (std::size_t i = 0; i < added.entries().size(); ++i) {
    const Json& token = added.entries()[i];
    if (token["id"].integer(-1) < 0 || !token["content"].is(Json::Kind::text) || !token["special"].is(Json::Kind::boolean))
      return expected(path, "added_tokens", i, "a token with its id, content and special");
  }
  return {};
}

Status check_unigram(const Json& file, const std::string& path) {
  if (Status s = check_pieces(file["model"]["vocab"], path); s.failed()) return s;
  if (Status s = check_charsmap(file["normalizer"], path); s.failed()) return s;
  for (const Json& part : file["normalizer"]["normalizers"].entries())
    if (Status s = check_charsmap(part, path); s.failed()) return s;
  return {};
}

}  // namespace

Status check_tokenizer(const Json& file, const std::string& path, const char** type) {
  const Json& model = file["model"];
  *type = class_of(model);
  if (!*type)
    return failure(EDGESLIM_BAD_BUNDLE, "%s: its model is '%.40s'; BPE and Unigram are read", path.c_str(),
                   model["type"].text().c_str());
  if (Status s = check_added(file["added_tokens"], path); s.failed()) return s;
  if (model["type"].text() == "Unigram") return check_unigram(file, path);
  if (Status s = check_vocabulary(model["vocab"], path); s.failed()) return s;
  return check_merges(model["merges"], path);
}

}  // namespace edgeslim
