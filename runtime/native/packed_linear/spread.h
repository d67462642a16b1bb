// Expansion of stored bytes by a mask, for instruction sets that look bytes up in a register but cannot expand.
#pragma once

#include <cstdint>

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

}  // namespace edgeslim
