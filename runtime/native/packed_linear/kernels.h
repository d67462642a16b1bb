// The table of kernel variants: what dispatch, tests and benchmarks all read. The scalar variant is the specification.
//
// Integer paths give the same bits in every variant: sums of products are exact in 32 bits, and what follows is written
// once (generic.h) over vectors of 16 floats, with every fused multiply-add spelled out.
#pragma once

#include <cstdint>

#include "attention/attention.h"
#include "elementwise/elementwise.h"
#include "packed_linear/layout.h"
#include "state_space/selective.h"
#include "state_space/state_space.h"

namespace edgeslim {

// Activations of `tokens` tokens in 8 bits: codes [tokens, stride] in [-127, 127], zero from k to the next multiple
// of 4 and readable for 64 bytes more; sums [tokens, groups] of the codes of each weight group; scale [tokens].
struct Quantized {
  const int8_t* codes = nullptr;
  const int32_t* sums = nullptr;
  const float* scale = nullptr;
  int64_t tokens = 0, stride = 0;
};

// The same in float32: x [tokens, stride], zero from k to the next multiple of 4.
struct Floats {
  const float* x = nullptr;
  int64_t tokens = 0, stride = 0;
};

// y [tokens, y_stride], and what is added to the product: bias [n], residual [tokens, residual_stride], or null.
struct Output {
  float* y = nullptr;
  int64_t y_stride = 0;
  const float* bias = nullptr;
  const float* residual = nullptr;
  int64_t residual_stride = 0;
};

// What a token goes through before the product, from columns of wider tensors:
// t = x * function(gate) where there is a gate, else function(x); then t = t / rms(t) * norm where there is a norm.
struct Prologue {
  const float* x = nullptr;
  int64_t x_stride = 0;
  const float* gate = nullptr;
  int64_t gate_stride = 0;
  const float* norm = nullptr;
  float epsilon = 0;
  Function function = Function::none;
};

// Tiles [first, last) of a matrix. The thread is likely to go on at tile `next`, if there is one.
struct Tiles {
  int64_t first = 0, last = 0, next = 0;
};

struct Kernels {
  const char* isa;
  bool (*available)();
  // One token's floats t [k]; zero-fills up to `padded`.
  void (*prologue)(const Prologue&, int64_t token, int64_t k, int64_t padded, float* t);
  // Codes [padded] and scale of t [k].
  void (*quantize)(const float* t, int64_t k, int64_t padded, int8_t* codes, float* scale);
  // Tiles times every token, masks read anew for each token: for one or few.
  void (*few)(const Packed&, const Quantized&, const Output&, const Tiles&);
  // The same, each tile expanded once into `scratch` of many_scratch(w) bytes and used for every token.
  void (*many)(const Packed&, const Quantized&, const Output&, const Tiles&, uint8_t* scratch);
  // Whether `many` takes codes as unsigned bytes, larger by 128.
  bool (*many_unsigned)(const Packed&);
  // The same with float32 activations; `scratch` holds 16 * kFloatChunk floats and 16 floats a token.
  void (*floats)(const Packed&, const Floats&, const Output&, const Tiles&, float* scratch);
  // Heads [count, head_size] of one position.
  void (*rotate)(const Rotation&, const float* x, int64_t count, float* out);
  // Query rows [first, last) of one head.
  void (*attend)(const Attention&, int64_t first, int64_t last);
  // Channels [first, last) of one sequence; tokens of one head.
  void (*convolve)(const Convolution&, int64_t first, int64_t last);
  // pairs [tokens, 16] of the b and c of a scan, which heads of a group share; `turned` holds [state_size up to 16, 16].
  void (*relate)(const Scan&, float* pairs, float* turned);
  void (*scan)(const Scan&);
  // Channels [first, last), a multiple of 16 apart from the last, of one sequence.
  void (*scan_selectively)(const SelectiveScan&, int64_t first, int64_t last);
  // A function of each entry.
  void (*map)(const Mapping&);
};

constexpr int64_t kFloatChunk = 256;  // inputs of a tile that are expanded to float32 at a time
constexpr int64_t kFew = 3;           // up to so many tokens `few` is faster

// Bytes of scratch for `many`: two tiles expanded, or as PairTile has them.
static inline int64_t many_scratch(const Packed& w) {
  const int64_t expanded = w.steps * kStepPositions, pairs = PairTile::bytes(w);
  return 2 * (expanded > pairs ? expanded : pairs);
}

static inline bool never(const Packed&) { return false; }

extern const Kernels kScalar, kAvx2, kAvx512, kNeon;

// The variants compiled into this library, best first, ended by null.
const Kernels* const* variants();

// The best one that this processor runs, or the one that the environment variable EDGESLIM_ISA names.
const Kernels& chosen();

}  // namespace edgeslim
