#include "packed_linear/layout.h"

#include "core/cpu.h"

namespace edgeslim {
namespace {

constexpr int64_t kMostOutputs = int64_t{1} << 31;  // with the next: every product of sizes stays below 2^63
constexpr int64_t kMostInputs = int64_t{1} << 24;
constexpr int64_t kLongestSum = 65536;          // inputs: 255 * 127 * 65536 still fits 32 bits

using Long = long long;

Fault check_numbers(const Packed& w) {
  if (w.n < 1 || w.n >= kMostOutputs || w.k < 1 || w.k >= kMostInputs)
    return fault("n must be in [1, 2^31) and k in [1, 2^24), got %lld and %lld", Long(w.n), Long(w.k));
  if (w.bits != 3 && w.bits != 4 && w.bits != 8 && w.bits != 16 && w.bits != 32)
    return fault("bits must be 3, 4, 8, 16 or 32, got %lld", Long(w.bits));
  if (w.is_integer() && w.k > kLongestSum)
    return fault("k must be at most %lld for integer values, got %lld", Long(kLongestSum), Long(w.k));
  if (w.group < 0 || w.group % kStepInputs || w.group >= kMostInputs || (w.group && !w.is_integer()))
    return fault("group must be 0 or a multiple of 4, and 0 for float values, got %lld", Long(w.group));
  if (w.is_integer() != (w.scale_type != ScaleType::none))
    return fault("integer values need scales and float values have none");
  if (w.layout == Layout::nm) {
    if ((w.pattern_m != 2 && w.pattern_m != 4) || w.pattern_n < 1 || w.pattern_n >= w.pattern_m)
      return fault("layout nm needs 0 < n < m and m 2 or 4, got %lld:%lld", Long(w.pattern_n), Long(w.pattern_m));
  } else if (w.layout != Layout::dense && w.layout != Layout::bitmap) {
    return fault("layout must be 0, 1 or 2, got %d", int(w.layout));
  }
  return {};
}

// Whether each row of a step keeps pattern_n of every pattern_m inputs, all 16 rows at once: a word for each input, and
// their bits added up as a two-bit number.
bool follows_pattern(uint64_t mask, const Packed& w) {
  const uint64_t rows = w.is_integer() ? 0x1111111111111111u : 0xffffu;
  const int apart = w.is_integer() ? 1 : kTileRows;
  const uint64_t a = mask & rows, b = (mask >> apart) & rows, c = (mask >> 2 * apart) & rows, d = (mask >> 3 * apart) & rows;
  if (w.pattern_m == 2) return (a ^ b) == rows && (c ^ d) == rows;
  const uint64_t ones = a ^ b ^ c ^ d, twos = (a & b) ^ (c & d) ^ ((a ^ b) & (c ^ d));
  return ones == (w.pattern_n & 1 ? rows : 0) && twos == (w.pattern_n & 2 ? rows : 0);
}

// Bytes that the values of one tile take by its masks.
__attribute__((always_inline)) inline int64_t count_bytes(const uint8_t* masks, int64_t steps, int64_t bits) {
  int64_t bytes = 0;
  for (int64_t step = 0; step < steps; ++step) bytes += bytes_of(count_ones(load_mask(masks, step)), bits);
  return bytes;
}

int64_t count_plainly(const uint8_t* masks, int64_t steps, int64_t bits) { return count_bytes(masks, steps, bits); }

#if defined(EDGESLIM_X86)
// The same by the instruction that the oldest processors of this architecture lack: masks are a sixth of a model's bytes.
__attribute__((target("popcnt"))) int64_t count_by_instruction(const uint8_t* masks, int64_t steps, int64_t bits) {
  return count_bytes(masks, steps, bits);
}
#endif

int64_t bytes_of_masks(const uint8_t* masks, int64_t steps, int64_t bits) {
#if defined(EDGESLIM_X86)
  if (cpu().avx2) return count_by_instruction(masks, steps, bits);
#endif
  return count_plainly(masks, steps, bits);
}

Fault check_masks(const Packed& w) {
  for (int64_t tile = 0; tile < w.tiles; ++tile) {
    const uint8_t* masks = tile_masks(w, tile);
    for (int64_t step = 0; w.layout == Layout::nm && step < w.steps; ++step)
      if (!follows_pattern(load_mask(masks, step), w))
        return fault("masks: tile %lld, step %lld is not %lld:%lld", Long(tile), Long(step), Long(w.pattern_n),
                     Long(w.pattern_m));
    if (w.layout != Layout::bitmap) continue;
    const int64_t bytes = bytes_of_masks(masks, w.steps, w.bits);
    const int64_t span = load_offset(w, tile + 1) - load_offset(w, tile);
    if (bytes != span)
      return fault("offsets: tile %lld spans %lld bytes, its masks name %lld", Long(tile), Long(span), Long(bytes));
  }
  return {};
}

// Offsets rise from 0 and stay within the values: only then may their differences be trusted.
Fault check_offsets(const Packed& w, int64_t value_count) {
  if (load_offset(w, 0) != 0) return fault("offsets must begin with 0, got %lld", Long(load_offset(w, 0)));
  for (int64_t tile = 0; tile < w.tiles; ++tile) {
    const int64_t here = load_offset(w, tile), next = load_offset(w, tile + 1);
    if (next < here || next > value_count - kSlack)
      return fault("offsets must rise and end 64 bytes before the %lld values do, got %lld after %lld",
                   Long(value_count), Long(next), Long(here));
  }
  return {};
}

}  // namespace

Fault check(Packed& w, const PackedSizes& sizes) {
  if (Fault wrong = check_numbers(w)) return wrong;
  w.tiles = ceil_div(w.n, kTileRows);
  w.steps = ceil_div(w.k, kStepInputs);
  w.groups = w.group ? ceil_div(w.k, w.group) : 1;
  const int64_t stored = w.layout == Layout::nm ? kStepPositions * w.pattern_n / w.pattern_m : kStepPositions;
  w.step_bytes = bytes_of(stored, w.bits);
  const int64_t masks = w.layout == Layout::dense ? 0 : w.tiles * w.steps * 8;
  const int64_t offsets = w.layout == Layout::bitmap ? w.tiles + 1 : 0;
  const int64_t scales = w.is_integer() ? w.tiles * w.groups * kTileRows : 0;
  if (sizes.masks != masks) return fault("masks must have %lld bytes, got %lld", Long(masks), Long(sizes.masks));
  if (sizes.offsets != offsets) return fault("offsets must be %lld, got %lld", Long(offsets), Long(sizes.offsets));
  if (sizes.scales != scales) return fault("scales must be %lld, got %lld", Long(scales), Long(sizes.scales));
  if (sizes.values < kSlack) return fault("values must have at least 64 bytes, got %lld", Long(sizes.values));
  if (w.layout == Layout::bitmap) {
    if (Fault wrong = check_offsets(w, sizes.values)) return wrong;
  } else {
    const int64_t values = w.tiles * w.steps * w.step_bytes + kSlack;
    if (sizes.values < values) return fault("values must have %lld bytes, got %lld", Long(values), Long(sizes.values));
  }
  return w.layout == Layout::dense ? Fault{} : check_masks(w);
}

}  // namespace edgeslim
