// y = prologue(x) Wᵀ + bias + residual for a packed W: how the work is cut and shared out.
#pragma once

#include "core/pool.h"
#include "packed_linear/kernels.h"

namespace edgeslim {

enum class Activations { int8, single };

// Runs on `kernels` for `tokens` tokens; false where memory is out. `w` has passed `check`.
bool run_linear(const Packed& w, const Kernels& kernels, Activations activations, const Prologue& in, int64_t tokens,
                const Output& out, const Pool& pool);

}  // namespace edgeslim
