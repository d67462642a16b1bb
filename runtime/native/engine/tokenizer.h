// A bundle's tokenizer.json by onnxruntime-extensions: text to tokens, tokens to text, at once or one by one. What the
// extensions leave to their caller is done here: the tokens around a text, special tokens, characters cut in two.
#pragma once

#include <string>
#include <vector>

#include "engine/json.h"
#include "engine/ortx_library.h"

namespace edgeslim {

class Tokenizer {
 public:
  static Status open(const std::string& folder, const char* library, Tokenizer* tokenizer);

  // Replaces `tokens` by those of `text`, which must be UTF-8; `special` puts those around it that the bundle says.
  Status encode(const char* text, bool special, std::vector<int32_t>* tokens) const;
  // Replaces `text` by that of `tokens`: what a TextDecoder gives for them.
  Status decode(const int32_t* tokens, int64_t count, std::string* text) const;

 private:
  friend class TextDecoder;

  void read(const Json& file);

  const OrtxLibrary* library_ = nullptr;
  OrtxPtr tokenizer_;
  std::vector<int32_t> before_, after_;
  std::vector<int32_t> silent_;  // special tokens, which have no text
  bool drops_space_ = false;     // the one that the first word of a text was given
};

// Tokens in, text out. Its tokenizer must live longer.
class TextDecoder {
 public:
  Status open(const Tokenizer& tokenizer);

  // The text that `token` completes, often none: always whole characters. It stays until the next call.
  Status push(int32_t token, const std::string** text);

 private:
  const Tokenizer* tokenizer_ = nullptr;
  OrtxPtr cache_;
  std::string bytes_, text_;
  bool begins_ = true;
};

}  // namespace edgeslim
