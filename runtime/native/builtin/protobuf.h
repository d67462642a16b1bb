// The wire format of protocol buffers, read from bytes that are not trusted: every length is checked before use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

namespace edgeslim::builtin {

// Bytes that belong to somebody else.
struct Bytes {
  const uint8_t* data = nullptr;
  std::size_t size = 0;

  std::string text() const { return std::string(reinterpret_cast<const char*>(data), size); }
};

// The fields of one message in order. `next` moves on; what the current field holds is asked for by its kind, and a
// field of another kind than asked for makes the message damaged.
class Message {
 public:
  explicit Message(Bytes bytes) : at_(bytes.data), end_(bytes.data + bytes.size) {}

  // Whether there is another field. False at the end, and for good where the message is damaged.
  bool next() {
    if (damaged_ || at_ == end_) return false;
    uint64_t key = 0;
    if (!varint(&key)) return fail();
    field_ = uint32_t(key >> 3);
    kind_ = int(key & 7);
    if (kind_ == kVarint) return varint(&number_) || fail();
    if (kind_ == kEight) return take(8) || fail();
    if (kind_ == kFour) return take(4) || fail();
    uint64_t length = 0;
    return (kind_ == kLength && field_ && varint(&length) && take(length)) || fail();
  }

  bool damaged() const { return damaged_; }
  uint32_t field() const { return field_; }
  bool is_bytes() const { return kind_ == kLength; }

  int64_t integer() { return kind_ == kVarint ? int64_t(number_) : int64_t(fail()); }
  Bytes bytes() { return kind_ == kLength ? value_ : (fail(), Bytes{}); }
  float number() {
    float x = 0;
    if (kind_ == kFour) std::memcpy(&x, value_.data, 4);
    else fail();
    return x;
  }

 private:
  enum Kind { kVarint = 0, kEight = 1, kLength = 2, kFour = 5 };

  bool fail() {
    damaged_ = true;
    return false;
  }

  bool varint(uint64_t* number) {
    *number = 0;
    for (int shift = 0; shift < 64 && at_ != end_; shift += 7) {
      const uint8_t byte = *at_++;
      *number |= uint64_t(byte & 127) << shift;
      if (!(byte & 128)) return true;
    }
    return false;
  }

  bool take(uint64_t length) {
    if (length > uint64_t(end_ - at_)) return false;
    value_ = {at_, std::size_t(length)};
    at_ += length;
    return true;
  }

  const uint8_t* at_;
  const uint8_t* const end_;
  uint32_t field_ = 0;
  int kind_ = 0;
  uint64_t number_ = 0;
  Bytes value_;
  bool damaged_ = false;
};

// Calls f with every integer of a repeated field, whether the message packs them or not.
template <class F>
void each_integer(Message* message, F f) {
  if (!message->is_bytes()) return f(message->integer());
  const Bytes packed = message->bytes();
  uint64_t number = 0;
  int shift = 0;
  for (std::size_t i = 0; i < packed.size && shift < 64; ++i) {
    number |= uint64_t(packed.data[i] & 127) << shift;
    shift += 7;
    if (packed.data[i] & 128) continue;
    f(int64_t(number));
    number = 0;
    shift = 0;
  }
}

}  // namespace edgeslim::builtin
