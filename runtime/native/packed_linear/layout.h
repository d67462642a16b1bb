// The packed matrix: what its bytes mean, and the check that an untrusted one passes before a kernel sees it.
//
// A matrix W [n outputs, k inputs] is cut into TILES of 16 outputs, a tile into STEPS of 4 inputs: 64 positions a step.
// tiles = ceil(n / 16), steps = ceil(k / 4). Outputs and inputs beyond n and k are padding and stand for zero.
//
// Position p of a step is  output 4-row-major  p = 4 * (output % 16) + input % 4   for integer values (bits 3, 4, 8),
//                          input-major         p = 16 * (input % 4) + output % 16  for float values (bits 16, 32).
// The first is what four-way integer dot products eat; the second gives a vector of 16 outputs for each input.
//
// values   bytes of the stored positions of a step in ascending p, each step starting on a whole byte, tile after tile,
//          followed by at least 64 bytes of padding that kernels may read.
//          bits 8: q + 128; bits 4: q + 8, two a byte, the lower nibble first; bits 3: q + 4 in [0, 7], value i of a
//          step in bits 3 i … 3 i + 2 of its bytes, counted from the lowest bit of the first: eight in three bytes;
//          bits 16, 32: IEEE half or single, little-endian. Other widths are reserved.
//          As tensors: uint8 for integers, float16, float.
// masks    64 bits a step, little-endian: bit p says that position p is stored. Layouts bitmap and nm.
// offsets  int64 [tiles + 1]: where each tile's values begin, in bytes; the last one is their end. Layout bitmap.
// scales   float or half [tiles, groups, 16]; groups = 1 where group is 0, else ceil(k / group), group a multiple of 4.
//          A weight is q * scale. Float values have none.
//
// Layouts: dense   every position is stored;
//          bitmap  those that the mask names, any number;
//          nm      as bitmap, but each row has exactly pattern_n of every pattern_m (2 or 4) inputs, padding included,
//                  so that every step takes the same number of bytes and no offsets are needed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/text.h"

namespace edgeslim {

constexpr int64_t kTileRows = 16;
constexpr int64_t kStepInputs = 4;
constexpr int64_t kStepPositions = 64;
constexpr int64_t kSlack = 64;  // readable bytes after the last value

enum class Layout : int32_t { dense = 0, bitmap = 1, nm = 2 };
enum class ScaleType : int32_t { none = 0, single = 1, half = 2 };

struct Packed {
  Layout layout = Layout::dense;
  ScaleType scale_type = ScaleType::none;
  int64_t n = 0, k = 0;
  int64_t bits = 8, group = 0;
  int64_t pattern_n = 0, pattern_m = 0;
  const uint8_t* values = nullptr;
  const uint8_t* masks = nullptr;
  const int64_t* offsets = nullptr;
  const void* scales = nullptr;
  // Derived by `check`:
  int64_t tiles = 0, steps = 0, groups = 1, step_bytes = 0;

  bool is_integer() const { return bits <= 8; }
  int64_t group_steps() const { return group ? group / kStepInputs : steps; }
  int64_t steps_of(int64_t index) const {  // of one group: the last may have fewer
    const int64_t left = steps - index * group_steps();
    return left < group_steps() ? left : group_steps();
  }
  int zero_code() const { return 1 << (bits - 1); }
};

// How many elements the tensors of an untrusted matrix really have.
struct PackedSizes {
  int64_t values = 0, masks = 0, offsets = 0, scales = 0;
};

// Checks sizes, offsets and counts of `packed` against `sizes` and fills in what is derived; empty where all is well.
// Every mask is read once: afterwards no kernel can leave the tensors.
Fault check(Packed& packed, const PackedSizes& sizes);

// Functions in headers are static: each file of kernels is compiled for another instruction set, and the linker must not
// let one serve for all.
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

static inline int64_t bytes_of(int64_t count, int64_t bits) { return (count * bits + 7) / 8; }

// Code `index` of those of 3, 4 or 8 bits that begin at `values`; may read the byte after it.
static inline uint8_t stored_code(const uint8_t* values, int64_t index, int64_t bits) {
  if (bits == 8) return values[index];
  const int64_t at = index * bits;
  const uint32_t word = values[at / 8] | uint32_t{values[at / 8 + 1]} << 8;
  return uint8_t((word >> (at % 8)) & ((1u << bits) - 1));
}

static inline int count_ones(uint64_t mask) { return __builtin_popcountll(mask); }

static inline uint64_t load_mask(const uint8_t* masks, int64_t index) {
  uint64_t mask;
  std::memcpy(&mask, masks + index * 8, 8);
  return mask;
}

// Tensors of a mapped file may lie at any address: numbers in them are read byte by byte, as memcpy does.
static inline int64_t load_offset(const Packed& w, int64_t tile) {
  int64_t offset;
  std::memcpy(&offset, reinterpret_cast<const uint8_t*>(w.offsets) + tile * 8, 8);
  return offset;
}

static inline int64_t tile_start(const Packed& w, int64_t tile) {
  return w.layout == Layout::bitmap ? load_offset(w, tile) : tile * w.steps * w.step_bytes;
}

static inline const uint8_t* tile_masks(const Packed& w, int64_t tile) { return w.masks + tile * w.steps * 8; }

// Whether a row keeps two of a step's four inputs, so that two steps, of one group, can share a product.
static inline bool has_pairs(const Packed& w) {
  return w.layout == Layout::nm && 2 * w.pattern_n == w.pattern_m && (w.groups == 1 || w.group_steps() % 2 == 0);
}

// Such a tile in memory as kernels of many tokens read it: of each group what its sums begin with, then of every two steps
// values and places, 64 bytes each, byte 4 o + i being output o's i-th.
struct PairTile {
  static constexpr int64_t kStart = 64, kPair = 128;  // bytes

  static int64_t group_bytes(const Packed& w) { return kStart + kPair * ceil_div(w.steps_of(0), 2); }
  static int64_t bytes(const Packed& w) { return w.groups * group_bytes(w); }
};

}  // namespace edgeslim
