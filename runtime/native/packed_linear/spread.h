// Expansion of stored bytes by a mask, for instruction sets that look bytes up in a register but cannot expand.
#pragma once

#include <cstdint>
#include <cstring>

#include "packed_linear/layout.h"

namespace edgeslim {

// For each 8 bits of mask: which stored byte goes to each of its 8 positions. 0x80, and 0x80 plus a few, says none: byte
// lookups give 0 there.
struct Spread {
  alignas(64) uint8_t from[256][8];

  constexpr Spread() : from() {
    for (int mask = 0; mask < 256; ++mask)
      for (int position = 0, stored = 0; position < 8; ++position)
        from[mask][position] = (mask >> position) & 1 ? uint8_t(stored++) : 0x80;
  }
};

static constexpr Spread kSpread;

// Nibbles of a tile, taken apart to bytes some way ahead of the step that expands them: a load right after a store that
// it only partly overlaps would wait for it. Isa::spread_nibbles turns 16 bytes into 32.
template <class Isa>
class NibblesAhead {
 public:
  NibblesAhead(const uint8_t* values, const uint8_t* end) : taken_(values), end_(end), at_(codes_), full_(codes_) {}
  NibblesAhead(const NibblesAhead&) = delete;  // it points into itself

  // The 64 codes from here on, or all that the tile still has.
  const uint8_t* codes() {
    if (full_ - at_ < 64 && taken_ < end_) take();
    return at_;
  }

  // On to the next step, which begins on a whole byte.
  void pass(int codes) { at_ += codes + (codes & 1); }

 private:
  static constexpr int64_t kAhead = 512;  // bytes of values

  void take() {
    std::memmove(codes_, at_, 64);
    full_ = codes_ + (full_ - at_);
    at_ = codes_;
    const uint8_t* const stop = end_ - taken_ < kAhead ? end_ : taken_ + kAhead;
    for (; taken_ < stop; taken_ += 16, full_ += 32) Isa::spread_nibbles(taken_, full_);
  }

  const uint8_t* taken_;  // up to here values are in `codes_`
  const uint8_t* const end_;
  const uint8_t* at_;
  uint8_t* full_;
  uint8_t codes_[64 + 2 * kAhead + 64];
};

// Steps of 3-bit codes, each taken apart to 64 bytes a few steps ahead of its use, for the same reason.
// Isa::spread_threes turns 24 bytes into 64.
template <class Isa>
class ThreesAhead {
 public:
  ThreesAhead(const uint8_t* values, const uint8_t* masks, int64_t steps) : values_(values), masks_(masks), steps_(steps) {
    while (taken_ < kAhead) take();
  }

  // The codes of the next step.
  const uint8_t* next() {
    take();
    return slots_[used_++ % kSlots];
  }

 private:
  static constexpr int64_t kAhead = 6, kSlots = 8;

  void take() {
    if (taken_ < steps_) {
      Isa::spread_threes(values_, slots_[taken_ % kSlots]);
      values_ += bytes_of(count_ones(load_mask(masks_, taken_)), 3);
    }
    ++taken_;
  }

  const uint8_t* values_;
  const uint8_t* const masks_;
  const int64_t steps_;
  int64_t taken_ = 0, used_ = 0;
  alignas(64) uint8_t slots_[kSlots][64 + 64];  // 64 more: expansion reads 16 bytes from wherever a code may be
};

}  // namespace edgeslim
