#include "builtin/onnx_file.h"

#include "engine/bundle.h"

namespace edgeslim::builtin {
namespace {

// Numbers of fields in onnx.proto.
namespace model { enum { kGraph = 7, kOpset = 8 }; }
namespace opset { enum { kDomain = 1, kVersion = 2 }; }
namespace graph { enum { kNode = 1, kInitializer = 5, kInput = 11, kOutput = 12, kSparseInitializer = 15 }; }
namespace node { enum { kInput = 1, kOutput = 2, kName = 3, kOp = 4, kAttribute = 5, kDomain = 7 }; }
namespace attribute { enum { kName = 1, kFloat = 2, kInt = 3, kString = 4, kTensor = 5, kGraph = 6, kInts = 8, kGraphs = 11 }; }
namespace tensor { enum { kDims = 1, kType = 2, kFloats = 4, kInt32s = 5, kInt64s = 7, kName = 8, kRaw = 9, kExternal = 13, kLocation = 14 }; }
namespace entry { enum { kKey = 1, kValue = 2 }; }
namespace value_info { enum { kName = 1, kType = 2 }; }
namespace type { enum { kTensor = 1 }; }
namespace tensor_type { enum { kElement = 1, kShape = 2 }; }
namespace shape { enum { kDim = 1 }; }
namespace dim { enum { kValue = 1, kSymbol = 2 }; }

constexpr std::size_t kMostNodes = 1 << 20;
constexpr std::size_t kMostRank = 16;

Fault damaged(const char* what) { return fault("its %s is damaged", what); }

// Decimal digits and nothing else, as an offset or a length is written.
bool read_number(const std::string& text, uint64_t* number) {
  *number = 0;
  if (text.empty() || text.size() > 18) return false;
  for (const char c : text) {
    if (c < '0' || c > '9') return false;
    *number = *number * 10 + uint64_t(c - '0');
  }
  return true;
}

class Reader {
 public:
  Reader(OpenData open, void* owner, OnnxGraph* graph) : open_(open), owner_(owner), graph_(*graph) {}

  Fault read(Bytes bytes) {
    Message m(bytes);
    Fault wrong;
    while (!wrong && m.next()) {
      if (m.field() == model::kGraph) wrong = read_graph(m.bytes());
      if (m.field() == model::kOpset) wrong = read_opset(m.bytes());
    }
    return wrong ? wrong : m.damaged() ? damaged("model") : Fault{};
  }

 private:
  Fault read_opset(Bytes bytes) {
    Message m(bytes);
    std::string domain;
    int64_t version = 0;
    while (m.next()) {
      if (m.field() == opset::kDomain) domain = m.bytes().text();
      if (m.field() == opset::kVersion) version = m.integer();
    }
    graph_.opsets[domain == "ai.onnx" ? "" : domain] = version;
    return m.damaged() ? damaged("operator set") : Fault{};
  }

  Fault read_graph(Bytes bytes) {
    Message m(bytes);
    Fault wrong;
    while (!wrong && m.next()) switch (m.field()) {
        case graph::kNode: wrong = read_node(m.bytes()); break;
        case graph::kInitializer: wrong = read_initializer(m.bytes()); break;
        case graph::kInput: wrong = read_port(m.bytes(), &graph_.inputs); break;
        case graph::kOutput: wrong = read_port(m.bytes(), &graph_.outputs); break;
        case graph::kSparseInitializer: return fault("it has a sparse initializer");
      }
    return wrong ? wrong : m.damaged() ? damaged("graph") : Fault{};
  }

  Fault read_node(Bytes bytes) {
    if (graph_.nodes.size() >= kMostNodes) return fault("it has more than %zu nodes", kMostNodes);
    Message m(bytes);
    Node made;
    Fault wrong;
    while (!wrong && m.next()) switch (m.field()) {
        case node::kInput: made.inputs.push_back(m.bytes().text()); break;
        case node::kOutput: made.outputs.push_back(m.bytes().text()); break;
        case node::kName: made.name = m.bytes().text(); break;
        case node::kOp: made.op = m.bytes().text(); break;
        case node::kDomain: made.domain = m.bytes().text(); break;
        case node::kAttribute: wrong = read_attribute(m.bytes(), &made); break;
      }
    if (made.domain == "ai.onnx") made.domain.clear();
    graph_.nodes.push_back(std::move(made));
    return wrong ? wrong : m.damaged() ? damaged("node") : Fault{};
  }

  Fault read_attribute(Bytes bytes, Node* node) {
    Message m(bytes);
    Attribute made;
    std::string name;
    Fault wrong;
    while (!wrong && m.next()) switch (m.field()) {
        case attribute::kName: name = m.bytes().text(); break;
        case attribute::kFloat: made.number = m.number(), made.has_number = true; break;
        case attribute::kInt: made.integer = m.integer(), made.has_integer = true; break;
        case attribute::kString: made.text = m.bytes().text(), made.has_text = true; break;
        case attribute::kInts: each_integer(&m, [&](int64_t i) { made.integers.push_back(i); }); break;
        case attribute::kTensor: {
          std::string unnamed;
          wrong = read_tensor(m.bytes(), &unnamed, &made.tensor);
          made.has_tensor = true;
          break;
        }
        case attribute::kGraph: case attribute::kGraphs: return fault("a node has a graph of its own");
      }
    node->attributes[name] = std::move(made);
    return wrong ? wrong : m.damaged() ? damaged("attribute") : Fault{};
  }

  Fault read_initializer(Bytes bytes) {
    std::string name;
    Tensor made;
    if (Fault wrong = read_tensor(bytes, &name, &made)) return wrong;
    graph_.initializers[name] = std::move(made);
    return {};
  }

  // Where the elements of a tensor are: in one of these.
  struct Payload {
    Bytes raw, floats;
    std::vector<int64_t> integers;  // of a field of 32 or 64 bits
    std::map<std::string, std::string> external;
    bool is_external = false;
  };

  Fault read_tensor(Bytes bytes, std::string* name, Tensor* made) {
    Message m(bytes);
    Payload payload;
    while (m.next()) switch (m.field()) {
        case tensor::kDims: each_integer(&m, [&](int64_t d) { made->shape.push_back(d); }); break;
        case tensor::kType: made->element = int(m.integer()); break;
        case tensor::kFloats: payload.floats = m.bytes(); break;
        case tensor::kInt32s: case tensor::kInt64s:
          each_integer(&m, [&](int64_t i) { payload.integers.push_back(i); });
          break;
        case tensor::kName: *name = m.bytes().text(); break;
        case tensor::kRaw: payload.raw = m.bytes(); break;
        case tensor::kExternal: read_entry(m.bytes(), &payload.external); break;
        case tensor::kLocation: payload.is_external = m.integer() == 1; break;
      }
    std::size_t size = 0;
    if (m.damaged() || made->shape.size() > kMostRank || !count_bytes(made->element, made->shape, &size))
      return fault("tensor %.80s is damaged or of a type that is not known here", name->c_str());
    if (Fault wrong = find_elements(payload, size, made)) return fault("tensor %.80s: %s", name->c_str(), wrong.text);
    return {};
  }

  static void read_entry(Bytes bytes, std::map<std::string, std::string>* entries) {
    Message m(bytes);
    std::string key, value;
    while (m.next()) {
      if (m.field() == entry::kKey) key = m.bytes().text();
      if (m.field() == entry::kValue) value = m.bytes().text();
    }
    (*entries)[key] = value;
  }

  Fault find_elements(const Payload& payload, std::size_t size, Tensor* made) {
    Bytes found = payload.raw.size ? payload.raw : payload.floats;
    if (payload.is_external) {
      if (Fault wrong = find_external(payload.external, size, &found)) return wrong;
    } else if (!payload.integers.empty()) {
      return store_integers(payload.integers, size, made);
    }
    if (found.size != size) return fault("it should have %zu bytes, it has %zu", size, found.size);
    made->data = const_cast<uint8_t*>(found.data);
    if (reinterpret_cast<std::uintptr_t>(found.data) % element_bytes(made->element) == 0) return {};
    if (!allocate(size, made)) return fault("out of memory");
    std::memcpy(made->data, found.data, size);
    return {};
  }

  static bool allocate(std::size_t size, Tensor* made) {
    made->own.reset(static_cast<char*>(std::malloc(size + 1)));
    made->data = made->own.get();
    return made->data != nullptr;
  }

  Fault find_external(const std::map<std::string, std::string>& entries, std::size_t size, Bytes* found) {
    const auto entry = [&](const char* key) {
      const auto at = entries.find(key);
      return at == entries.end() ? std::string() : at->second;
    };
    uint64_t offset = 0, length = size;
    if ((!entry("offset").empty() && !read_number(entry("offset"), &offset)) ||
        (!entry("length").empty() && !read_number(entry("length"), &length)))
      return fault("its offset or length is no number");
    Bytes file;
    if (Fault wrong = open_(owner_, entry("location"), &file)) return wrong;
    if (offset > file.size || length > file.size - offset) return fault("it lies beyond the end of its file");
    *found = {file.data + offset, std::size_t(length)};
    return {};
  }

  static Fault store_integers(const std::vector<int64_t>& integers, std::size_t size, Tensor* made) {
    if (made->element != ort::kInt64 && made->element != ort::kInt32) return fault("its elements are written in a form that is not known here");
    const std::size_t each = element_bytes(made->element);
    if (integers.size() * each != size) return fault("it has another number of elements than its shape says");
    if (!allocate(size, made)) return fault("out of memory");
    for (std::size_t i = 0; i < integers.size(); ++i) {
      if (each == 8) made->as<int64_t>()[i] = integers[i];
      else made->as<int32_t>()[i] = int32_t(integers[i]);
    }
    return {};
  }

  Fault read_port(Bytes bytes, std::vector<Port>* ports) {
    Message m(bytes);
    Port made;
    Bytes type_bytes, tensor_bytes;
    while (m.next()) {
      if (m.field() == value_info::kName) made.name = m.bytes().text();
      if (m.field() == value_info::kType) type_bytes = m.bytes();
    }
    Message t(type_bytes);
    while (t.next())
      if (t.field() == type::kTensor) tensor_bytes = t.bytes();
    bool whole = read_type(tensor_bytes, &made.type);
    ports->push_back(std::move(made));
    return whole && !m.damaged() && !t.damaged() ? Fault{} : damaged("list of inputs and outputs");
  }

  static bool read_type(Bytes bytes, TensorType* made) {
    Message m(bytes);
    Bytes shape_bytes;
    while (m.next()) {
      if (m.field() == tensor_type::kElement) made->element = int(m.integer());
      if (m.field() == tensor_type::kShape) shape_bytes = m.bytes();
    }
    Message s(shape_bytes);
    bool whole = true;
    while (s.next())
      if (s.field() == shape::kDim) whole = read_dimension(s.bytes(), made) && whole;
    return whole && !m.damaged() && !s.damaged() && made->shape.size() <= kMostRank;
  }

  static bool read_dimension(Bytes bytes, TensorType* made) {
    Message m(bytes);
    int64_t value = -1;
    std::string symbol;
    while (m.next()) {
      if (m.field() == dim::kValue) value = m.integer();
      if (m.field() == dim::kSymbol) symbol = m.bytes().text();
    }
    made->shape.push_back(value < -1 ? -1 : value);
    made->symbols.push_back(symbol);
    return !m.damaged();
  }

  const OpenData open_;
  void* const owner_;
  OnnxGraph& graph_;
};

}  // namespace

int64_t Node::integer(const char* attribute, int64_t otherwise) const {
  const auto at = attributes.find(attribute);
  return at != attributes.end() && at->second.has_integer ? at->second.integer : otherwise;
}

Fault read_onnx(Bytes model, OpenData open, void* owner, OnnxGraph* graph) { return Reader(open, owner, graph).read(model); }

Fault OnnxFile::open(const std::string& path) {
  const std::size_t slash = path.find_last_of("/\\");
  folder_ = slash == std::string::npos ? "." : path.substr(0, slash);
  if (Fault wrong = model_.open(path)) return wrong;
  return read_onnx(model_.bytes(), open_data, this, &graph_);
}

Fault OnnxFile::read(Bytes model, std::map<std::string, Bytes> data) {
  data_ = std::move(data);
  return read_onnx(model, open_data, this, &graph_);
}

Fault OnnxFile::open_data(void* owner, const std::string& location, Bytes* bytes) {
  auto* self = static_cast<OnnxFile*>(owner);
  if (!stays_inside(location)) return fault("its file %.120s lies outside the folder", location.c_str());
  auto at = self->data_.find(location);
  if (at == self->data_.end()) {
    if (self->folder_.empty()) return fault("its file %.120s is missing", location.c_str());
    MappedFile& file = self->mapped_[location];
    if (Fault wrong = file.open(self->folder_ + "/" + location)) return wrong;
    at = self->data_.emplace(location, file.bytes()).first;
  }
  *bytes = at->second;
  return {};
}

}  // namespace edgeslim::builtin
