// How fuzzers damage files: texts of JSON, protobuf messages field by field, and plain bytes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "tests/packer.h"

namespace edgeslim::fuzz {

using tests::Random;

inline const char* const kWords[] = {"{",    "}",   "[",     "]",     "\"",   ":",      ",",    "\\",     "\\u",  "\\ud800", "null", "true",
                                     "1e999", "-1", "1e18",  "0.5",   "../",  "..",     "/",    "C:\\\\", "\x01", "\xff",    "",     "99999999999999999999",
                                     "{\"format\":1}", "\"filename\":\"../x\"", "\"custom_ops_library\":\"/x.so\"", "\"ep.context_file_path\":\"x\""};

inline const char* any_word(Random& random) { return kWords[random.below(int64_t(sizeof kWords / sizeof *kWords))]; }

// Up to four bytes, words or pieces of `text` changed.
inline std::string mutated_text(std::string text, Random& random) {
  for (int64_t changes = random.below(5); changes > 0; --changes) {
    const int64_t size = int64_t(text.size()), at = random.below(size + 1), length = random.below(std::min<int64_t>(size - at + 1, 40));
    switch (random.below(6)) {
      case 0: text.erase(std::size_t(at), std::size_t(length)); break;
      case 1: text.insert(std::size_t(at), any_word(random)); break;
      case 2: text.replace(std::size_t(at), std::size_t(length), any_word(random)); break;
      case 3: text.insert(std::size_t(at), text.substr(std::size_t(random.below(size + 1)), std::size_t(random.below(60)))); break;
      case 4:
        if (at < size) text[std::size_t(at)] = char(random.bits());
        break;
      default: text.insert(std::size_t(at), std::string(std::size_t(random.below(100)), "[{\"0 "[random.below(5)]));
    }
  }
  return text;
}

inline uint64_t extreme(Random& random) {
  const uint64_t numbers[] = {0, 1, 2, 3, 7, 127, 128, 255, 65535, uint64_t{1} << 20, uint64_t{1} << 31, (uint64_t{1} << 31) - 1,
                              uint64_t{1} << 32, uint64_t{1} << 62, (uint64_t{1} << 63) - 1, uint64_t{1} << 63, ~uint64_t{0}, ~uint64_t{0} - 1};
  return random.below(5) ? numbers[random.below(int64_t(sizeof numbers / sizeof *numbers))] : random.bits();
}

// Bytes, words of eight and pieces changed; sometimes the end cut off.
inline std::string mutated_bytes(std::string data, Random& random) {
  for (int64_t changes = 1 + random.below(6); changes > 0 && !data.empty(); --changes) {
    const int64_t size = int64_t(data.size()), at = random.below(size), length = 1 + random.below(std::min<int64_t>(size - at, 64));
    const uint64_t word = extreme(random);
    switch (random.below(8)) {
      case 0: data.resize(std::size_t(at)); break;
      case 1: data.erase(std::size_t(at), std::size_t(length)); break;
      case 2: data.insert(std::size_t(at), data.substr(std::size_t(random.below(size)), std::size_t(length))); break;
      case 3: std::memset(&data[std::size_t(at)], int(random.bits() & 255), std::size_t(length)); break;
      case 4: case 5:
        if (at / 8 * 8 + 8 <= size) std::memcpy(&data[std::size_t(at / 8 * 8)], &word, 8);
        break;
      default: data[std::size_t(at)] = char(random.bits());
    }
  }
  return data;
}

// A protobuf message as fields, so that lengths are right again after a change. Payloads that read as messages are taken
// for such.
struct Field {
  uint64_t number = 0;
  int wire = 0;  // 0 varint, 1 eight bytes, 2 payload, 5 four bytes
  uint64_t value = 0;
  std::string payload;
  std::vector<Field> fields;

  bool is_message() const { return wire == 2 && !fields.empty(); }
};

class Protobuf {
 public:
  static bool read(std::string_view data, int depth, std::vector<Field>* fields) {
    while (!data.empty()) {
      Field field;
      uint64_t key = 0, length = 0;
      if (!varint(&data, &key)) return false;
      field.number = key >> 3;
      field.wire = int(key & 7);
      if (field.number < 1 || field.number > 1000) return false;
      if (field.wire == 0) {
        if (!varint(&data, &field.value)) return false;
      } else if (field.wire == 1 || field.wire == 5) {
        const std::size_t bytes = field.wire == 1 ? 8 : 4;
        if (data.size() < bytes) return false;
        field.payload = data.substr(0, bytes);
        data.remove_prefix(bytes);
      } else if (field.wire == 2) {
        if (!varint(&data, &length) || length > data.size()) return false;
        field.payload = data.substr(0, std::size_t(length));
        data.remove_prefix(std::size_t(length));
        if (depth == 0 || length > (1 << 22) || !read(field.payload, depth - 1, &field.fields)) field.fields.clear();
      } else {
        return false;
      }
      fields->push_back(std::move(field));
    }
    return true;
  }

  static std::string write(const std::vector<Field>& fields) {
    std::string data;
    for (const Field& field : fields) {
      put(field.number << 3 | uint64_t(field.wire), &data);
      const std::string payload = field.is_message() ? write(field.fields) : field.payload;
      if (field.wire == 0) put(field.value, &data);
      if (field.wire == 2) put(payload.size(), &data);
      data += payload;
    }
    return data;
  }

 private:
  static bool varint(std::string_view* data, uint64_t* value) {
    *value = 0;
    for (int shift = 0; shift < 64 && !data->empty(); shift += 7) {
      const auto byte = static_cast<unsigned char>(data->front());
      data->remove_prefix(1);
      *value |= uint64_t(byte & 127) << shift;
      if (byte < 128) return true;
    }
    return false;
  }

  static void put(uint64_t value, std::string* data) {
    for (; value > 127; value >>= 7) data->push_back(char(value | 128));
    data->push_back(char(value));
  }
};

// All fields of a message and of those inside it, with the list that each is in.
inline void list_fields(std::vector<Field>* fields, std::vector<std::pair<std::vector<Field>*, std::size_t>>* all) {
  for (std::size_t i = 0; i < fields->size(); ++i) {
    all->emplace_back(fields, i);
    list_fields(&(*fields)[i].fields, all);
  }
}

inline void mutate_field(std::vector<Field>* message, Random& random) {
  std::vector<std::pair<std::vector<Field>*, std::size_t>> all;
  list_fields(message, &all);
  if (all.empty()) return;
  const auto [list, index] = all[std::size_t(random.below(int64_t(all.size())))];
  const auto [other_list, other_index] = all[std::size_t(random.below(int64_t(all.size())))];
  const Field other = (*other_list)[other_index];
  Field& field = (*list)[index];
  switch (random.below(8)) {
    case 0: list->erase(list->begin() + std::ptrdiff_t(index)); break;
    case 1: list->insert(list->begin() + std::ptrdiff_t(index), Field(field)); break;
    case 2: field.number = 1 + uint64_t(random.below(32)); break;
    case 3:  // another field's content in this one's place: names that refer to others
      if (field.wire == other.wire) {
        const uint64_t number = field.number;
        field = other;
        field.number = number;
      }
      break;
    default:
      if (field.wire == 0) field.value = extreme(random);
      else if (!field.is_message()) field.payload = random.below(3) ? mutated_bytes(field.payload, random) : any_word(random);
      else mutate_field(&field.fields, random);
  }
}

// `data` with one to three fields changed; its bytes where it is no message.
inline std::string mutated_protobuf(const std::string& data, Random& random) {
  std::vector<Field> message;
  if (!Protobuf::read(data, 12, &message)) return mutated_bytes(data, random);
  for (int64_t changes = 1 + random.below(3); changes > 0; --changes) mutate_field(&message, random);
  return Protobuf::write(message);
}

}  // namespace edgeslim::fuzz
