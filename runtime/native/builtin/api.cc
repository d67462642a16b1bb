// The functions of ort/abi.h and ort/session_abi.h, over builtin/program.h: operators and sessions of this library then
// run the same way with and without ONNX Runtime. Only entries that those two headers name are filled.
#include <cstring>
#include <new>

#include "builtin/program.h"
#include "ort/session_abi.h"

namespace edgeslim::builtin {
namespace {

constexpr std::size_t kEntries = 300;

struct Options {
  int threads = 0;
  bool operators = false;
};

struct RunOptions {
  std::atomic<bool> terminate{false};
};

const Tensor* tensor_of(const ort::Value* value) { return reinterpret_cast<const Tensor*>(value); }
ort::Value* value_of(const Tensor* tensor) { return reinterpret_cast<ort::Value*>(const_cast<Tensor*>(tensor)); }
const TensorType* type_of(const ort::TypeShape* type) { return reinterpret_cast<const TensorType*>(type); }
const Program* program_of(const ort::Session* session) { return reinterpret_cast<const Program*>(session); }
const KernelView* view_of(const void* opaque) { return static_cast<const KernelView*>(opaque); }

const Fault kNoMemory = fault("out of memory");

ort::Status* status_of(const Fault& wrong) {
  if (!wrong) return nullptr;
  const Fault* made = new (std::nothrow) Fault(wrong);
  return reinterpret_cast<ort::Status*>(const_cast<Fault*>(made ? made : &kNoMemory));
}

// Runs `f`, which returns a fault; what the standard library throws becomes one. Kernels do not know exceptions.
template <class F>
ort::Status* guarded(F f) {
  try {
    return status_of(f());
  } catch (const std::exception&) {
    return status_of(fault("out of memory"));
  }
}

Fault unknown() { return fault("the built-in executor does not have this"); }

// ---- for kernels ----------------------------------------------------------------------------------------------------

struct ForKernels {
  static ort::Status* create_status(int, const char* text) { return status_of(fault("%s", text)); }
  static ort::Status* create_domain(const char*, ort::OpDomain** domain) {
    static char one;
    *domain = reinterpret_cast<ort::OpDomain*>(&one);
    return nullptr;
  }
  static ort::Status* domain_add(ort::OpDomain*, const ort::CustomOp*) { return nullptr; }
  static ort::Status* add_domain(ort::SessionOptions* options, ort::OpDomain*) {
    reinterpret_cast<Options*>(options)->operators = true;
    return nullptr;
  }

  static const Attribute* attribute(const ort::KernelInfo* info, const char* name) {
    const auto& all = view_of(info)->step->node->attributes;
    const auto at = all.find(name);
    return at == all.end() ? nullptr : &at->second;
  }
  static ort::Status* attribute_float(const ort::KernelInfo* info, const char* name, float* value) {
    return guarded([&] {
      const Attribute* found = attribute(info, name);
      if (!found || !found->has_number) return unknown();
      *value = found->number;
      return Fault{};
    });
  }
  static ort::Status* attribute_int(const ort::KernelInfo* info, const char* name, int64_t* value) {
    return guarded([&] {
      if (!std::strcmp(name, ort::kOwnThreads)) {
        *value = int64_t(view_of(info)->program->threads().count());
        return Fault{};
      }
      const Attribute* found = attribute(info, name);
      if (!found || !found->has_integer) return unknown();
      *value = found->integer;
      return Fault{};
    });
  }
  static ort::Status* attribute_string(const ort::KernelInfo* info, const char* name, char* text, std::size_t* size) {
    return guarded([&] {
      const Attribute* found = attribute(info, name);
      if (!found || !found->has_text || (text && found->text.size() >= *size)) return unknown();
      if (text) std::memcpy(text, found->text.c_str(), found->text.size() + 1);
      *size = found->text.size() + 1;
      return Fault{};
    });
  }

  static ort::Status* info_input_count(const ort::KernelInfo* info, std::size_t* count) {
    *count = view_of(info)->input_count();
    return nullptr;
  }
  static ort::Status* constant_input(const ort::KernelInfo* info, std::size_t index, int* is_constant, const ort::Value** value) {
    const Tensor* found = view_of(info)->constant(index);
    *is_constant = found != nullptr;
    *value = value_of(found);
    return nullptr;
  }
  static ort::Status* input_count(const ort::KernelContext* context, std::size_t* count) {
    *count = view_of(context)->input_count();
    return nullptr;
  }
  static ort::Status* input(const ort::KernelContext* context, std::size_t index, const ort::Value** value) {
    *value = value_of(view_of(context)->input(index));
    return nullptr;
  }
  static ort::Status* output(ort::KernelContext* context, std::size_t index, const int64_t* shape, std::size_t rank, ort::Value** value) {
    return guarded([&] {
      const KernelView* view = view_of(context);
      Fault wrong;
      const int element = view->step->op->output_type(view->step->op, index);
      *value = value_of(view->output(index, element, std::vector<int64_t>(shape, shape + rank), &wrong));
      return wrong;
    });
  }
  static ort::Status* parallel_for(const ort::KernelContext* context, void (*task)(void*, std::size_t), std::size_t count, std::size_t, void* data) {
    view_of(context)->program->threads().run(task, count, data);
    return nullptr;
  }
};

// ---- for both -------------------------------------------------------------------------------------------------------

struct ForBoth {
  static ort::Status* tensor_data(ort::Value* value, void** data) {
    *data = tensor_of(value)->data;
    return nullptr;
  }
  static ort::Status* type_shape(const ort::Value* value, ort::TypeShape** type) {
    const TensorType* base = tensor_of(value);
    *type = reinterpret_cast<ort::TypeShape*>(const_cast<TensorType*>(base));
    return nullptr;
  }
  static ort::Status* element_type(const ort::TypeShape* type, int* element) {
    *element = type_of(type)->element;
    return nullptr;
  }
  static ort::Status* dimension_count(const ort::TypeShape* type, std::size_t* rank) {
    *rank = type_of(type)->shape.size();
    return nullptr;
  }
  static ort::Status* dimensions(const ort::TypeShape* type, int64_t* shape, std::size_t rank) {
    const std::vector<int64_t>& from = type_of(type)->shape;
    if (rank > from.size()) return status_of(unknown());
    if (rank) std::memcpy(shape, from.data(), rank * sizeof(int64_t));
    return nullptr;
  }
  static void release_type_shape(ort::TypeShape*) {}  // it is part of its tensor
  static void release_status(ort::Status* status) {
    const auto* wrong = reinterpret_cast<const Fault*>(status);
    if (wrong != &kNoMemory) delete wrong;
  }
};

// ---- for sessions ---------------------------------------------------------------------------------------------------

template <class T>
ort::Status* give_dummy(T** object) {  // of what has no content here
  static char one;
  *object = reinterpret_cast<T*>(&one);
  return nullptr;
}

struct ForSessions {
  static const char* error_message(const ort::Status* status) { return reinterpret_cast<const Fault*>(status)->text; }
  static ort::Status* create_env(int, const char*, ort::Env** env) { return give_dummy(env); }
  static ort::Status* disable_telemetry(const ort::Env*) { return nullptr; }
  static ort::Status* cpu_memory(int, int, ort::MemoryInfo** memory) { return give_dummy(memory); }
  static ort::Status* default_allocator(ort::Allocator** allocator) { return give_dummy(allocator); }
  static ort::Status* allocator_free(ort::Allocator*, void* memory) {
    std::free(memory);
    return nullptr;
  }

  static ort::Status* create_options(ort::SessionOptions** options) {
    return guarded([&] {
      *options = reinterpret_cast<ort::SessionOptions*>(new Options);
      return Fault{};
    });
  }
  static ort::Status* disable_arena(ort::SessionOptions*) { return nullptr; }
  static ort::Status* set_log_severity(ort::SessionOptions*, int) { return nullptr; }
  static ort::Status* add_entry(ort::SessionOptions*, const char*, const char*) { return nullptr; }
  static ort::Status* set_threads(ort::SessionOptions* options, int threads) {
    reinterpret_cast<Options*>(options)->threads = threads;
    return nullptr;
  }
  static ort::Status* register_library(ort::SessionOptions*, const ort::PathChar*) { return status_of(unknown()); }
  static void release_options(ort::SessionOptions* options) { delete reinterpret_cast<Options*>(options); }

  static ort::Status* create_session(const ort::Env*, const ort::PathChar* path, const ort::SessionOptions* options, ort::Session** session) {
    return guarded([&] {
      const auto* asked = reinterpret_cast<const Options*>(options);
      auto made = std::make_unique<Program>();
      const std::basic_string<ort::PathChar> wide(path);
      const std::string plain(wide.begin(), wide.end());
      if (Fault wrong = made->file().open(plain)) return wrong;
      if (Fault wrong = made->make(asked->threads, asked->operators)) return wrong;
      *session = reinterpret_cast<ort::Session*>(made.release());
      return Fault{};
    });
  }
  static void release_session(ort::Session* session) { delete reinterpret_cast<Program*>(session); }

  static ort::Status* session_input_count(const ort::Session* session, std::size_t* count) {
    *count = program_of(session)->inputs().size();
    return nullptr;
  }
  static ort::Status* session_output_count(const ort::Session* session, std::size_t* count) {
    *count = program_of(session)->outputs().size();
    return nullptr;
  }
  static ort::Status* type_info(const Port& port, ort::TypeInfo** info) {
    *info = reinterpret_cast<ort::TypeInfo*>(const_cast<TensorType*>(&port.type));
    return nullptr;
  }
  static ort::Status* input_type_info(const ort::Session* session, std::size_t index, ort::TypeInfo** info) {
    return type_info(program_of(session)->inputs()[index], info);
  }
  static ort::Status* output_type_info(const ort::Session* session, std::size_t index, ort::TypeInfo** info) {
    return type_info(program_of(session)->outputs()[index], info);
  }
  static ort::Status* tensor_info(const ort::TypeInfo* info, const ort::TypeShape** type) {
    *type = reinterpret_cast<const ort::TypeShape*>(info);
    return nullptr;
  }
  static void release_type_info(ort::TypeInfo*) {}  // it is part of the graph
  static ort::Status* symbolic_dimensions(const ort::TypeShape* type, const char** symbols, std::size_t rank) {
    const std::vector<std::string>& from = type_of(type)->symbols;
    for (std::size_t i = 0; i < rank; ++i) symbols[i] = i < from.size() ? from[i].c_str() : "";
    return nullptr;
  }
  static ort::Status* name(const Port& port, char** text) {
    *text = static_cast<char*>(std::malloc(port.name.size() + 1));
    if (!*text) return status_of(fault("out of memory"));
    std::memcpy(*text, port.name.c_str(), port.name.size() + 1);
    return nullptr;
  }
  static ort::Status* input_name(const ort::Session* session, std::size_t index, ort::Allocator*, char** text) {
    return name(program_of(session)->inputs()[index], text);
  }
  static ort::Status* output_name(const ort::Session* session, std::size_t index, ort::Allocator*, char** text) {
    return name(program_of(session)->outputs()[index], text);
  }

  static ort::Status* create_tensor(const ort::MemoryInfo*, void* data, std::size_t bytes, const int64_t* shape, std::size_t rank, int element, ort::Value** value) {
    return guarded([&] {
      auto made = std::make_unique<Tensor>();
      made->element = element;
      made->shape.assign(shape, shape + rank);
      std::size_t needed = 0;
      if (!count_bytes(element, made->shape, &needed) || needed > bytes) return fault("a tensor does not fit into its memory");
      made->data = data;
      *value = value_of(made.release());
      return Fault{};
    });
  }
  static ort::Status* create_owned_tensor(ort::Allocator*, const int64_t* shape, std::size_t rank, int element, ort::Value** value) {
    return guarded([&] {
      auto made = std::make_unique<Tensor>();
      made->element = element;
      made->shape.assign(shape, shape + rank);
      std::size_t bytes = 0;
      if (!count_bytes(element, made->shape, &bytes)) return fault("a tensor is too large or of a type that is not known here");
      made->own.reset(static_cast<char*>(std::calloc(bytes + 1, 1)));
      if (!(made->data = made->own.get())) return fault("out of memory");
      *value = value_of(made.release());
      return Fault{};
    });
  }
  static void release_value(ort::Value* value) { delete tensor_of(value); }

  static ort::Status* create_run_options(ort::RunOptions** options) {
    return guarded([&] {
      *options = reinterpret_cast<ort::RunOptions*>(new RunOptions);
      return Fault{};
    });
  }
  static ort::Status* set_terminate(ort::RunOptions* options) {
    reinterpret_cast<RunOptions*>(options)->terminate = true;
    return nullptr;
  }
  static ort::Status* unset_terminate(ort::RunOptions* options) {
    reinterpret_cast<RunOptions*>(options)->terminate = false;
    return nullptr;
  }
  static void release_run_options(ort::RunOptions* options) { delete reinterpret_cast<RunOptions*>(options); }

  static ort::Status* run(ort::Session* session, const ort::RunOptions* options, const char* const* input_names, const ort::Value* const* inputs,
                          std::size_t input_count, const char* const* output_names, std::size_t output_count, ort::Value** outputs) {
    return guarded([&] {
      std::vector<Program::Named> in, out;
      for (std::size_t i = 0; i < input_count; ++i) in.push_back({input_names[i], const_cast<Tensor*>(tensor_of(inputs[i]))});
      for (std::size_t i = 0; i < output_count; ++i) out.push_back({output_names[i], const_cast<Tensor*>(tensor_of(outputs[i]))});
      auto* program = reinterpret_cast<Program*>(session);
      if (Fault wrong = program->run(in, &out, reinterpret_cast<const RunOptions*>(options)->terminate)) return wrong;
      for (std::size_t i = 0; i < output_count; ++i) outputs[i] = value_of(out[i].tensor);
      return Fault{};
    });
  }
};

// A function of that name in one of the three, whichever has it.
struct All : ForKernels, ForBoth, ForSessions {};

struct Table {
  void* entries[kEntries] = {};

  Table() {
#define EDGESLIM_FILL_KERNELS(name, official, index, ...) fill<decltype(ort::Functions::name)>(index, All::name);
#define EDGESLIM_FILL_SESSIONS(name, official, index, ...) fill<decltype(ort::SessionFunctions::name)>(index, All::name);
    EDGESLIM_ORT_FUNCTIONS(EDGESLIM_FILL_KERNELS)
    EDGESLIM_ORT_SESSION_FUNCTIONS(EDGESLIM_FILL_SESSIONS)
#undef EDGESLIM_FILL_KERNELS
#undef EDGESLIM_FILL_SESSIONS
  }

  template <class Function>
  void fill(std::size_t index, Function function) {
    entries[index] = reinterpret_cast<void*>(function);
  }
};

const ort::Api* table(uint32_t) {
  static const Table made;
  return reinterpret_cast<const ort::Api*>(made.entries);
}

const char* version() { return ""; }

}  // namespace

const ort::ApiBase* api_base() {
  static const ort::ApiBase base = {table, version};
  return &base;
}

}  // namespace edgeslim::builtin
