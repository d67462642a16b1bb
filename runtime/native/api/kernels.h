// The kernels by themselves, for tests and benchmarks: plain C, no inference runtime.
#pragma once

#include <stdint.h>

#if defined(_WIN32)
#define EDGESLIM_API __declspec(dllexport)
#else
#define EDGESLIM_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

// A packed matrix and the sizes of its tensors, in elements; the fields are those of packed_linear/layout.h.
typedef struct {
  int32_t layout, scale_type;
  int64_t n, k, bits, group, pattern_n, pattern_m;
  const uint8_t* values;
  const uint8_t* masks;
  const int64_t* offsets;
  const void* scales;
  int64_t value_count, mask_count, offset_count, scale_count;
} edgeslim_packed;

// What PackedLinear computes, on `threads` threads of its own (1: the caller's), `repeats` times over.
typedef struct {
  const float* x;
  int64_t x_stride;
  const float* gate;
  int64_t gate_stride;
  const float* norm;
  float epsilon;
  const float* bias;
  const float* residual;
  float* y;
  int64_t tokens;
  int32_t float_activations, threads, repeats;
  const char* function;  // by name; null: silu of a gate
} edgeslim_linear;

// Name of the variant `index`, null after the last; whether this processor runs it.
EDGESLIM_API const char* edgeslim_isa(int32_t index);
EDGESLIM_API int32_t edgeslim_isa_available(int32_t index);
// The variant that operators use here.
EDGESLIM_API const char* edgeslim_isa_chosen(void);

// Returns 0, or 1 with a message in `text` where the matrix is malformed or memory is out. `isa` null: the chosen one.
EDGESLIM_API int32_t edgeslim_check(const edgeslim_packed* w, char* text, int64_t size);
EDGESLIM_API int32_t edgeslim_run_linear(const edgeslim_packed* w, const edgeslim_linear* call, const char* isa,
                                         char* text, int64_t size);
// Rows `ids` [count] of the matrix: out [count, k].
EDGESLIM_API int32_t edgeslim_gather(const edgeslim_packed* w, const int64_t* ids, int64_t count, float* out,
                                     char* text, int64_t size);
// Reads `bytes` bytes at `data` once and returns a sum that depends on all of them.
EDGESLIM_API uint64_t edgeslim_read(const uint8_t* data, int64_t bytes);

#ifdef __cplusplus
}
#endif
