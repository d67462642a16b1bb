#include "engine/model.h"

#include <algorithm>

#include "engine/files.h"

namespace edgeslim {
namespace {

constexpr char kPast[] = "past_key_values.", kPresent[] = "present.";
constexpr int64_t kMostElements = int64_t{1} << 36;
constexpr int64_t kDefaultRoom = 4096;

#if defined(_WIN32)
std::wstring native(const std::string& path) { return std::wstring(path.begin(), path.end()); }
#else
const std::string& native(const std::string& path) { return path; }
#endif

// An input or output of the graph.
struct Port {
  std::string name;
  int element = ort::kUndefined;
  std::vector<int64_t> shape;  // -1: symbolic
  std::vector<std::string> symbols;
};

bool starts_with(const std::string& text, const char* beginning) { return text.rfind(beginning, 0) == 0; }

std::size_t bytes_of(int element) {
  switch (element) {
    case ort::kFloat: case ort::kInt32: return 4;
    case ort::kInt64: return 8;
    case ort::kFloat16: return 2;
    default: return 0;
  }
}

class Loader {
 public:
  Loader(Model* model, const edgeslim_model_options& asked) : m_(*model), asked_(asked) {}

  Status load(const char* folder) {
    if (Status s = open_bundle(folder, &m_.bundle); s.failed()) return s;
    if (asked_.graph) {
      if (!stays_inside(asked_.graph))
        return failure(EDGESLIM_INVALID_ARGUMENT, "graph must be a file inside the bundle, got %.120s", asked_.graph);
      m_.bundle.graph = asked_.graph;
    }
    graph_ = m_.bundle.folder + "/" + m_.bundle.graph;
    if (file_bytes(graph_) < 0)
      return failure(EDGESLIM_BAD_BUNDLE, "%s: not a bundle: it has no %s", folder, m_.bundle.graph.c_str());
    if (Status s = open_somewhere(); s.failed()) return s;
    return read_ports();
  }

 private:
  Status check(ort::Status* said) const {
    return m_.library->check(said, EDGESLIM_BAD_BUNDLE, (graph_ + " does not load").c_str());
  }

  // Without ONNX Runtime where that can be, and it was not asked for.
  Status open_somewhere() {
    Status refusal;
    if (!(asked_.flags & EDGESLIM_WITH_ONNXRUNTIME)) {
      OrtLibrary::built_in(&m_.library);
      refusal = open_session();
      if (!refusal.failed() || (asked_.flags & EDGESLIM_WITHOUT_ONNXRUNTIME)) return refusal;
    }
    if (Status s = OrtLibrary::load(asked_.onnxruntime, &m_.library); s.failed())
      return refusal.failed() ? failure(s.code, "%s; it is needed: %s", s.text.c_str(), refusal.text.c_str()) : s;
    return open_session();
  }

  Status open_session() {
    const OrtLibrary& library = *m_.library;
    ort::SessionOptions* made = nullptr;
    if (Status s = check(library.f.create_options(&made)); s.failed()) return s;
    const OrtOptionsPtr options(made, {m_.library});
    if (Status s = set_options(options.get()); s.failed()) return s;
    ort::Session* session = nullptr;
    if (Status s = check(library.f.create_session(library.env, native(graph_).c_str(), options.get(), &session)); s.failed())
      return s;
    m_.session = OrtSessionPtr(session, {m_.library});
    return {};
  }

  Status set_options(ort::SessionOptions* options) {
    const ort::SessionFunctions& f = m_.library->f;
    m_.threads = asked_.threads ? asked_.threads : int32_t(m_.bundle.threads);
    Status s = check(f.set_log_severity(options, ort::kErrors));
    if (!s.failed() && m_.threads) s = check(f.set_threads(options, m_.threads));
    if (!s.failed() && !m_.bundle.arena) s = check(f.disable_arena(options));
    for (const auto& [name, value] : m_.bundle.entries)
      if (!s.failed()) s = check(f.add_entry(options, name.c_str(), value.c_str()));
    m_.operators = !(asked_.flags & EDGESLIM_FUNCTION_BODIES);
    if (!s.failed() && m_.operators) s = check(ort::register_operators(options, m_.library->base));
    if (!s.failed() && !m_.bundle.foreign_library.empty()) s = add_foreign_library(options);
    return s;
  }

  Status add_foreign_library(ort::SessionOptions* options) {
    const std::string path = m_.bundle.folder + "/" + m_.bundle.foreign_library;
    if (!(asked_.flags & EDGESLIM_FOREIGN_LIBRARIES))
      return failure(EDGESLIM_BAD_BUNDLE, "%s wants the operator library %.120s; it is loaded only when asked for",
                     m_.bundle.folder.c_str(), m_.bundle.foreign_library.c_str());
    return check(m_.library->f.register_library(options, native(path).c_str()));
  }

  Status read_ports() {
    const ort::SessionFunctions& f = m_.library->f;
    std::vector<Port> inputs, outputs;
    Status s = list(f.session_input_count, f.input_name, f.input_type_info, &inputs);
    if (!s.failed()) s = list(f.session_output_count, f.output_name, f.output_type_info, &outputs);
    if (!s.failed()) s = read_inputs(inputs, outputs);
    if (!s.failed()) s = read_logits(outputs);
    if (!s.failed()) decide_room();
    return s;
  }

  template <class Count, class Name, class Info>
  Status list(Count count_of, Name name_of, Info info_of, std::vector<Port>* ports) {
    const OrtLibrary& library = *m_.library;
    std::size_t count = 0;
    if (Status s = check(count_of(m_.session.get(), &count)); s.failed()) return s;
    for (std::size_t i = 0; i < count; ++i) {
      Port port;
      char* name = nullptr;
      if (Status s = check(name_of(m_.session.get(), i, library.allocator, &name)); s.failed()) return s;
      port.name = name;
      library.check(library.f.allocator_free(library.allocator, name), EDGESLIM_INTERNAL, "free");
      ort::TypeInfo* info = nullptr;
      if (Status s = check(info_of(m_.session.get(), i, &info)); s.failed()) return s;
      Status s = read_type(info, &port);
      library.f.release_type_info(info);
      if (s.failed()) return s;
      ports->push_back(std::move(port));
    }
    return {};
  }

  Status read_type(const ort::TypeInfo* info, Port* port) {
    const ort::SessionFunctions& f = m_.library->f;
    const ort::TypeShape* tensor = nullptr;
    std::size_t rank = 0;
    Status s = check(f.tensor_info(info, &tensor));
    if (s.failed() || !tensor) return s;
    s = check(f.element_type(tensor, &port->element));
    if (!s.failed()) s = check(f.dimension_count(tensor, &rank));
    port->shape.resize(rank);
    std::vector<const char*> symbols(rank, nullptr);
    if (!s.failed()) s = check(f.dimensions(tensor, port->shape.data(), rank));
    if (!s.failed()) s = check(f.symbolic_dimensions(tensor, symbols.data(), rank));
    for (const char* symbol : symbols) port->symbols.emplace_back(symbol ? symbol : "");
    return s;
  }

  Status refuse(const char* what, const std::string& name) const {
    return failure(EDGESLIM_BAD_BUNDLE, "%s: %s %.120s", graph_.c_str(), what, name.c_str());
  }

  Status read_inputs(const std::vector<Port>& inputs, const std::vector<Port>& outputs) {
    bool ids = false;
    for (const Port& port : inputs) {
      const bool whole = port.element == ort::kInt64 && port.shape.size() == 2;
      if (starts_with(port.name, kPast)) {
        if (Status s = add_state(port, outputs); s.failed()) return s;
      } else if (port.name == "input_ids") {
        ids = port.shape.size() == 2 && (whole || port.element == ort::kInt32);
        m_.ids_element = port.element;
      } else if (port.name == "attention_mask" && whole) {
        m_.wants_mask = true;
      } else if (port.name == "position_ids" && whole) {
        m_.wants_positions = true;
      } else {
        return refuse("there is nothing to give to its input", port.name);
      }
    }
    return ids ? Status{} : refuse("it takes no tokens by the name", "input_ids");
  }

  Status add_state(const Port& port, const std::vector<Port>& outputs) {
    StateSpec state;
    state.past = port.name;
    state.present = kPresent + port.name.substr(sizeof kPast - 1);
    state.element = port.element;
    state.element_bytes = bytes_of(port.element);
    state.shape = port.shape;
    if (!state.element_bytes || state.shape.size() < 2) return refuse("a state of this type cannot be kept:", port.name);
    const auto named = [&](const Port& output) { return output.name == state.present; };
    const auto present = std::find_if(outputs.begin(), outputs.end(), named);
    if (present == outputs.end() || present->element != port.element || present->shape.size() != port.shape.size())
      return refuse("no output of the same type for its state", port.name);
    state.shape[0] = 1;
    int64_t elements = 1;
    for (std::size_t i = 1; i < state.shape.size(); ++i) {
      if (state.shape[i] < 0) {
        if (state.grows) return refuse("two dimensions are unknown of its state", port.name);
        state.grows = i;
        state.counted = port.symbols[i];
        continue;
      }
      if (state.shape[i] > kMostElements || elements > kMostElements / std::max<int64_t>(1, state.shape[i]))
        return refuse("it is too large:", port.name);
      elements *= state.shape[i];
    }
    m_.states.push_back(std::move(state));
    return {};
  }

  Status read_logits(const std::vector<Port>& outputs) {
    const auto logits = std::find_if(outputs.begin(), outputs.end(), [](const Port& p) { return p.name == "logits"; });
    if (logits == outputs.end() || logits->shape.size() != 3 ||
        (logits->element != ort::kFloat && logits->element != ort::kFloat16))
      return refuse("it gives no logits by the name", "logits");
    m_.logits_element = logits->element;
    m_.last_logits = logits->shape[1] == 1;
    m_.vocab_size = logits->shape[2] > 0 ? logits->shape[2] : m_.bundle.vocab_size;
    if (m_.vocab_size < 1 || m_.vocab_size > INT32_MAX)
      return failure(EDGESLIM_BAD_BUNDLE, "%s: neither its graph nor its files say vocab_size",
                     m_.bundle.folder.c_str());
    return {};
  }

  // One buffer for a cache before and after a run needs attention that writes into it, and one length in all layers.
  void decide_room() {
    m_.shares_buffer = m_.bundle.shares_buffer;
    const StateSpec* first = nullptr;
    for (const StateSpec& state : m_.states) {
      if (!state.grows) continue;
      if (!first) first = &state;
      const bool cache = state.shape.size() == 4 && state.grows == 2;
      m_.shares_buffer = m_.shares_buffer && cache && state.counted == first->counted;
    }
    if (!m_.grows()) return;
    m_.context_length = m_.bundle.context_length;
    const int64_t most = m_.bundle.max_length ? m_.bundle.max_length : kDefaultRoom;
    m_.default_room = m_.context_length ? std::min(m_.context_length, most) : most;
  }

  Model& m_;
  const edgeslim_model_options& asked_;
  std::string graph_;
};

}  // namespace

bool Model::grows() const {
  return std::any_of(states.begin(), states.end(), [](const StateSpec& state) { return state.grows != 0; });
}

Status Model::load(const char* folder, const edgeslim_model_options& options, Model* model) {
  constexpr uint32_t kBoth = EDGESLIM_WITH_ONNXRUNTIME | EDGESLIM_WITHOUT_ONNXRUNTIME;
  if ((options.flags & kBoth) == kBoth)
    return failure(EDGESLIM_INVALID_ARGUMENT, "flags ask for a run with ONNX Runtime and without it");
  if (options.threads < 0 || options.threads > 1024)
    return failure(EDGESLIM_INVALID_ARGUMENT, "threads must be in [0, 1024], got %d", int(options.threads));
  return Loader(model, options).load(folder);
}

}  // namespace edgeslim
