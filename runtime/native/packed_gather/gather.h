#pragma once

#include "packed_linear/layout.h"

namespace edgeslim {

// Row `row` of W as floats, out [k].
void unpack_row(const Packed& w, int64_t row, float* out);

}  // namespace edgeslim
