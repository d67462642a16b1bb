// An ONNX file as this library needs it. Nothing in the file is trusted.
#pragma once

#include <list>
#include <map>
#include <string>
#include <vector>

#include "builtin/mapped_file.h"
#include "builtin/tensor.h"

namespace edgeslim::builtin {

struct Attribute {
  int64_t integer = 0;
  float number = 0;
  std::string text;
  std::vector<int64_t> integers;
  bool has_integer = false, has_number = false, has_text = false;
  Tensor tensor;
  bool has_tensor = false;
};

struct Node {
  std::string domain, op, name;
  std::vector<std::string> inputs, outputs;  // empty: left out
  std::map<std::string, Attribute> attributes;

  int64_t integer(const char* attribute, int64_t otherwise) const;
};

struct Port {
  std::string name;
  TensorType type;
};

struct OnnxGraph {
  std::map<std::string, int64_t> opsets;
  std::vector<Node> nodes;
  std::map<std::string, Tensor> initializers;  // data lies in the mapped files, at any address
  std::vector<Port> inputs, outputs;
};

// The graph in `model`, whose weights in other files lie in those that `open` maps: open(location, &bytes) is given the
// name that the graph has for them. A graph with what this library never needs (functions aside, which are passed over)
// is refused by a fault.
using OpenData = Fault (*)(void* owner, const std::string& location, Bytes* bytes);
Fault read_onnx(Bytes model, OpenData open, void* owner, OnnxGraph* graph);

// A graph together with the files that its weights lie in.
class OnnxFile {
 public:
  Fault open(const std::string& path);
  // Of bytes that stay where they are: a model, and by their names the files of its weights.
  Fault read(Bytes model, std::map<std::string, Bytes> data);
  const OnnxGraph& graph() const { return graph_; }

 private:
  static Fault open_data(void* owner, const std::string& location, Bytes* bytes);

  std::string folder_;
  MappedFile model_;
  std::map<std::string, MappedFile> mapped_;
  std::map<std::string, Bytes> data_;
  OnnxGraph graph_;
};

}  // namespace edgeslim::builtin
