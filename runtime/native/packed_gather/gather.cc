#include "packed_gather/gather.h"

#include "core/half.h"

namespace edgeslim {
namespace {

float load_single(const uint8_t* at) {
  float x;
  std::memcpy(&x, at, 4);
  return x;
}

float load_half(const uint8_t* at) {
  uint16_t x;
  std::memcpy(&x, at, 2);
  return half_to_float(x);
}

float stored_float(const Packed& w, const uint8_t* values, int64_t index) {
  return w.bits == 32 ? load_single(values + 4 * index) : load_half(values + 2 * index);
}

float scale_of(const Packed& w, int64_t row, int64_t group) {
  const int64_t at = ((row / kTileRows) * w.groups + group) * kTileRows + row % kTileRows;
  const auto* scales = static_cast<const uint8_t*>(w.scales);
  return w.scale_type == ScaleType::half ? load_half(scales + 2 * at) : load_single(scales + 4 * at);
}

}  // namespace

void unpack_row(const Packed& w, int64_t row, float* out) {
  const int64_t tile = row / kTileRows, lane = row % kTileRows;
  const uint8_t* values = w.values + tile_start(w, tile);
  for (int64_t step = 0; step < w.steps; ++step) {
    const uint64_t mask = w.layout == Layout::dense ? ~uint64_t{0} : load_mask(tile_masks(w, tile), step);
    for (int64_t j = 0; j < kStepInputs && step * kStepInputs + j < w.k; ++j) {
      const int64_t p = w.is_integer() ? kStepInputs * lane + j : kTileRows * j + lane;
      float value = 0;
      if ((mask >> p) & 1) {
        const int64_t index = count_ones(mask & ((uint64_t{1} << p) - 1));
        value = w.is_integer() ? float(stored_code(values, index, w.bits) - w.zero_code()) * scale_of(w, row, step / w.group_steps())
                               : stored_float(w, values, index);
      }
      out[step * kStepInputs + j] = value;
    }
    values += bytes_of(count_ones(mask), w.bits);
  }
}

}  // namespace edgeslim
