// UTF-8 as the Unicode standard defines it (table 3-7): neither overlong forms nor surrogates.
#pragma once

#include <string>
#include <string_view>

namespace edgeslim {

// Bytes of the character that `text` begins with; 0 where it begins with none, -1 where its rest may follow.
inline int utf8_character(std::string_view text) {
  const auto byte = [text](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  if (text.empty()) return -1;
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  if (first < 0xc2 || first > 0xf4) return 0;
  const int length = first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
  const unsigned char low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
  const unsigned char high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
  for (int i = 1; i < length; ++i) {
    if (std::size_t(i) >= text.size()) return -1;
    if (byte(std::size_t(i)) < (i == 1 ? low : 0x80) || byte(std::size_t(i)) > (i == 1 ? high : 0xbf)) return 0;
  }
  return length;
}

inline bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const int length = utf8_character(text);
    if (length < 1) return false;
    text.remove_prefix(std::size_t(length));
  }
  return true;
}

// Moves what is complete from the front of `bytes` to the end of `text`; bytes of no character are dropped.
inline void take_utf8(std::string* bytes, std::string* text) {
  std::size_t at = 0;
  while (at < bytes->size()) {
    const int length = utf8_character(std::string_view(*bytes).substr(at));
    if (length < 0) break;
    text->append(*bytes, at, std::size_t(length));
    at += length ? std::size_t(length) : 1;
  }
  bytes->erase(0, at);
}

}  // namespace edgeslim
