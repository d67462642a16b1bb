// A reader of JSON (RFC 8259) for files that nobody vouches for: bounded in size and depth, never recursing further.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace edgeslim {

class Json {
 public:
  enum class Kind { null, boolean, number, text, array, object };

  static constexpr std::size_t kMostBytes = std::size_t{64} << 20;
  static constexpr int kMostDepth = 64;  // arrays and objects inside one another

  // Returns the value that `text` is, a null one with `*wrong` set where it is none.
  static Json parse(std::string_view text, std::string* wrong);

  Kind kind() const { return kind_; }
  bool is(Kind kind) const { return kind_ == kind; }

  // The member `name` of an object (the last one of that name), the entry of an array; a null value elsewhere.
  const Json& operator[](std::string_view name) const;
  const std::vector<Json>& entries() const { return entries_; }
  const std::vector<std::pair<std::string, Json>>& members() const { return members_; }

  // The value where it is of that kind, else `otherwise`. Numbers must be whole and fit.
  int64_t integer(int64_t otherwise) const;
  bool boolean(bool otherwise) const { return is(Kind::boolean) ? number_ != 0 : otherwise; }
  const std::string& text() const { return text_; }
  bool is_integer() const { return integer(0) == integer(1); }

 private:
  friend class JsonReader;

  Kind kind_ = Kind::null;
  double number_ = 0;
  std::string text_;
  std::vector<Json> entries_;
  std::vector<std::pair<std::string, Json>> members_;
};

// `text` as a JSON string, in quotes.
std::string quoted(std::string_view text);

}  // namespace edgeslim
