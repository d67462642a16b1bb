// y = prologue(x) Wᵀ + bias + residual for a packed W: how the work is cut and shared out.
#pragma once

#include "core/pool.h"
#include "packed_linear/kernels.h"

namespace edgeslim {

enum class Activations { int8, single };

// What PackedLinear may apply to its gate, or to x where there is none.
struct NamedFunction {
  const char* name;
  Function function;
};
constexpr NamedFunction kFunctions[] = {{"silu", Function::silu},
                                        {"gelu", Function::gelu},
                                        {"gelu_tanh", Function::gelu_tanh},
                                        {"relu", Function::relu},
                                        {"relu_squared", Function::relu_squared}};

// The function for which `is(name)` holds, null where there is none.
template <class Is>
const Function* find_function(Is is) {
  for (const NamedFunction& one : kFunctions)
    if (is(one.name)) return &one.function;
  return nullptr;
}

// What is applied where `named` is asked for, null: none by name.
static inline Function applied(const Function* named, bool gated) {
  return named ? *named : gated ? Function::silu : Function::none;
}

static inline Fault unknown_function() { return fault("function must be silu, gelu, gelu_tanh, relu or relu_squared"); }

// Runs on `kernels` for `tokens` tokens; false where memory is out. `w` has passed `check`.
bool run_linear(const Packed& w, const Kernels& kernels, Activations activations, const Prologue& in, int64_t tokens,
                const Output& out, const Pool& pool);

}  // namespace edgeslim
