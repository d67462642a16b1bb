// Small ONNX files for the native tests, written field by field.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace edgeslim::tests {

class Proto {
 public:
  Proto& integer(uint32_t field, int64_t value) {
    varint(field << 3);
    varint(uint64_t(value));
    return *this;
  }
  Proto& bytes(uint32_t field, const std::string& value) {
    varint(field << 3 | 2);
    varint(value.size());
    text_ += value;
    return *this;
  }
  Proto& number(uint32_t field, float value) {
    varint(field << 3 | 5);
    char raw[4];
    std::memcpy(raw, &value, 4);
    text_.append(raw, 4);
    return *this;
  }
  const std::string& text() const { return text_; }

 private:
  void varint(uint64_t value) {
    for (; value > 127; value >>= 7) text_ += char(value | 128);
    text_ += char(value);
  }
  std::string text_;
};

// A tensor whose elements lie in the file `location` from `offset` on, or, where that is empty, in `raw`.
struct TensorSpec {
  std::string name;
  int element = 1;
  std::vector<int64_t> shape;
  std::string raw, location;
  int64_t offset = 0, length = 0;

  std::string text() const {
    Proto p;
    for (const int64_t d : shape) p.integer(1, d);
    p.integer(2, element).bytes(8, name);
    if (location.empty()) return p.bytes(9, raw).text();
    for (const auto& [key, value] : {std::pair<std::string, std::string>{"location", location}, {"offset", std::to_string(offset)}, {"length", std::to_string(length)}})
      p.bytes(13, Proto().bytes(1, key).bytes(2, value).text());
    return p.integer(14, 1).text();
  }
};

inline std::string attribute(const std::string& name, int64_t value) { return Proto().bytes(1, name).integer(3, value).integer(20, 2).text(); }
inline std::string attribute(const std::string& name, const std::string& value) {
  return Proto().bytes(1, name).bytes(4, value).integer(20, 3).text();
}
inline std::string attribute(const std::string& name, float value) { return Proto().bytes(1, name).number(2, value).integer(20, 1).text(); }

struct NodeSpec {
  std::string domain, op;
  std::vector<std::string> inputs, outputs, attributes;

  std::string text() const {
    Proto p;
    for (const std::string& one : inputs) p.bytes(1, one);
    for (const std::string& one : outputs) p.bytes(2, one);
    p.bytes(3, "node " + outputs.front()).bytes(4, op).bytes(7, domain);
    for (const std::string& one : attributes) p.bytes(5, one);
    return p.text();
  }
};

// -1: a dimension of no known length.
struct PortSpec {
  std::string name;
  int element = 1;
  std::vector<int64_t> shape;

  std::string text() const {
    Proto dims;
    for (const int64_t d : shape) dims.bytes(1, d < 0 ? Proto().bytes(2, "some").text() : Proto().integer(1, d).text());
    const std::string tensor = Proto().integer(1, element).bytes(2, dims.text()).text();
    return Proto().bytes(1, name).bytes(2, Proto().bytes(1, tensor).text()).text();
  }
};

struct GraphSpec {
  std::vector<NodeSpec> nodes;
  std::vector<TensorSpec> initializers;
  std::vector<PortSpec> inputs, outputs;
  int64_t opset = 24;

  std::string text() const {
    Proto graph;
    for (const NodeSpec& one : nodes) graph.bytes(1, one.text());
    for (const TensorSpec& one : initializers) graph.bytes(5, one.text());
    for (const PortSpec& one : inputs) graph.bytes(11, one.text());
    for (const PortSpec& one : outputs) graph.bytes(12, one.text());
    return Proto()
        .integer(1, 10)
        .bytes(8, Proto().bytes(1, "").integer(2, opset).text())
        .bytes(8, Proto().bytes(1, "edgeslim").integer(2, 1).text())
        .bytes(7, graph.text())
        .text();
  }
};

}  // namespace edgeslim::tests
