#include "engine/json.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace edgeslim {

class JsonReader {
 public:
  explicit JsonReader(std::string_view text) : text_(text) {}

  Json read(std::string* wrong) {
    Json value;
    space();
    if (read_value(&value, 0)) {
      space();
      if (at_ == text_.size()) return value;
      fault_ = "the end";
    }
    char where[96];
    std::snprintf(where, sizeof where, "expected %s at byte %zu", fault_, at_);
    *wrong = where;
    return {};
  }

 private:
  bool fail(const char* expected) {
    fault_ = expected;
    return false;
  }

  int peek() const { return at_ < text_.size() ? static_cast<unsigned char>(text_[at_]) : -1; }

  bool take(char c) {
    if (peek() != c) return false;
    ++at_;
    return true;
  }

  void space() {
    while (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r') ++at_;
  }

  bool word(const char* letters) {
    const std::string_view wanted(letters);
    if (text_.substr(at_, wanted.size()) != wanted) return fail("a value");
    at_ += wanted.size();
    return true;
  }

  bool read_value(Json* value, int depth) {
    switch (peek()) {
      case '{': return read_object(value, depth + 1);
      case '[': return read_array(value, depth + 1);
      case '"': value->kind_ = Json::Kind::text; return read_text(&value->text_);
      case 'n': return word("null");
      case 't': value->number_ = 1; [[fallthrough]];
      case 'f': value->kind_ = Json::Kind::boolean; return word(value->number_ != 0 ? "true" : "false");
      default: return read_number(value);
    }
  }

  bool read_object(Json* value, int depth) {
    if (depth > Json::kMostDepth) return fail("less nesting");
    value->kind_ = Json::Kind::object;
    ++at_;
    space();
    if (take('}')) return true;
    do {
      space();
      std::pair<std::string, Json> member;
      if (peek() != '"') return fail("a name in quotes");
      if (!read_text(&member.first)) return false;
      space();
      if (!take(':')) return fail("a colon");
      space();
      if (!read_value(&member.second, depth)) return false;
      value->members_.push_back(std::move(member));
      space();
    } while (take(','));
    return take('}') || fail("a comma or closing brace");
  }

  bool read_array(Json* value, int depth) {
    if (depth > Json::kMostDepth) return fail("less nesting");
    value->kind_ = Json::Kind::array;
    ++at_;
    space();
    if (take(']')) return true;
    do {
      space();
      value->entries_.emplace_back();
      if (!read_value(&value->entries_.back(), depth)) return false;
      space();
    } while (take(','));
    return take(']') || fail("a comma or closing bracket");
  }

  bool read_digits() {
    const std::size_t first = at_;
    while (peek() >= '0' && peek() <= '9') ++at_;
    return at_ > first || fail("a digit");
  }

  bool read_number(Json* value) {
    const std::size_t first = at_;
    take('-');
    if (peek() == '0')
      ++at_;
    else if (!read_digits())
      return fail("a value");
    if (take('.') && !read_digits()) return false;
    if (take('e') || take('E')) {
      if (!take('+')) take('-');
      if (!read_digits()) return false;
    }
    if (at_ - first > 64) return fail("a shorter number");
    value->kind_ = Json::Kind::number;
    value->number_ = std::strtod(std::string(text_.substr(first, at_ - first)).c_str(), nullptr);
    return true;
  }

  bool read_hex(uint32_t* code) {
    *code = 0;
    for (int i = 0; i < 4; ++i) {
      const int c = peek();
      const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
      if (digit < 0) return fail("four hexadecimal digits");
      *code = *code * 16 + uint32_t(digit);
      ++at_;
    }
    return true;
  }

  // One \uXXXX, or the two of a surrogate pair. A surrogate alone becomes U+FFFD.
  bool read_code(uint32_t* code) {
    if (!read_hex(code)) return false;
    if (*code >= 0xd800 && *code < 0xdc00 && text_.substr(at_, 2) == "\\u") {
      const std::size_t before = at_;
      uint32_t low = 0;
      at_ += 2;
      if (!read_hex(&low)) return false;
      if (low >= 0xdc00 && low < 0xe000) {
        *code = 0x10000 + ((*code - 0xd800) << 10) + (low - 0xdc00);
        return true;
      }
      at_ = before;
    }
    if (*code >= 0xd800 && *code < 0xe000) *code = 0xfffd;
    return true;
  }

  static void append(uint32_t code, std::string* out) {
    if (code < 0x80) {
      *out += char(code);
      return;
    }
    const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static constexpr uint32_t kLead[] = {0, 0xc0, 0xe0, 0xf0};
    *out += char(kLead[more] | (code >> (6 * more)));
    for (int i = more - 1; i >= 0; --i) *out += char(0x80 | ((code >> (6 * i)) & 0x3f));
  }

  bool read_escape(std::string* out) {
    const int c = peek();
    ++at_;
    switch (c) {
      case '"': case '\\': case '/': *out += char(c); return true;
      case 'b': *out += '\b'; return true;
      case 'f': *out += '\f'; return true;
      case 'n': *out += '\n'; return true;
      case 'r': *out += '\r'; return true;
      case 't': *out += '\t'; return true;
      case 'u': {
        uint32_t code = 0;
        if (!read_code(&code)) return false;
        append(code, out);
        return true;
      }
      default: --at_; return fail("a known escape");
    }
  }

  bool read_text(std::string* out) {
    ++at_;
    while (true) {
      const int c = peek();
      if (c < 0x20) return fail("the rest of a text");  // its end, or a control character
      ++at_;
      if (c == '"') return true;
      if (c == '\\') {
        if (!read_escape(out)) return false;
      } else {
        *out += char(c);
      }
    }
  }

  std::string_view text_;
  std::size_t at_ = 0;
  const char* fault_ = "a value";
};

Json Json::parse(std::string_view text, std::string* wrong) {
  if (text.size() > kMostBytes) {
    *wrong = "it is larger than 64 MiB";
    return {};
  }
  return JsonReader(text).read(wrong);
}

const Json& Json::operator[](std::string_view name) const {
  static const Json nothing;
  for (auto member = members_.rbegin(); member != members_.rend(); ++member)
    if (member->first == name) return member->second;
  return nothing;
}

int64_t Json::integer(int64_t otherwise) const {
  constexpr double kMost = 9007199254740992.0;  // 2^53: whole numbers beyond are not exact
  if (!is(Kind::number) || !(std::fabs(number_) <= kMost) || number_ != std::floor(number_)) return otherwise;
  return int64_t(number_);
}

std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) >= 0x20) {
      out += c;
      continue;
    }
    char code[8];
    std::snprintf(code, sizeof code, "\\u%04x", unsigned(static_cast<unsigned char>(c)));
    out += code;
  }
  return out + "\"";
}

}  // namespace edgeslim
