// One call of each recurrence: channels and heads are shared out.
#pragma once

#include "core/pool.h"
#include "packed_linear/kernels.h"

namespace edgeslim {

// Letters as in state_space.h. Every sequence of `of_first` lies [T, x_stride], [C, K - 1] or [T, C] floats after the
// one before.
void run_convolution(const Convolution& of_first, int64_t batch, const Kernels& kernels, const Pool& pool);

struct ScanCall {
  const float* xbc = nullptr;      // [B, T, H P + 2 G N]
  const float* dt = nullptr;       // [B, T, dt_stride], H columns, before bias and softplus
  const float* dt_bias = nullptr;  // [H]
  const float* a_log = nullptr;    // [H], log of -A
  const float* skip = nullptr;     // [H], D of the paper
  const float* past = nullptr;     // [B, H, N, P]; may be the same memory as present
  float* present = nullptr;
  float* y = nullptr;  // [B, T, H P]
  int64_t batch = 0, tokens = 0, dt_stride = 0, heads = 0, groups = 0, state_size = 0, head_size = 0;
};

void run_scan(const ScanCall& call, const Kernels& kernels, const Pool& pool);

// Letters as in selective.h. `a_log` [C, N], log of -A, to `rate` as SelectiveScan has it.
void find_rates(const float* a_log, int64_t channels, int64_t state_size, float* rate);
// Every sequence of `of_first` lies T rows, or a state, after the one before.
void run_selective_scan(const SelectiveScan& of_first, int64_t batch, const Kernels& kernels, const Pool& pool);

}  // namespace edgeslim
