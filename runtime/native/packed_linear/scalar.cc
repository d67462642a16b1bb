// The specification: every other variant is tested against this one.
#include "core/half.h"
#include "attention/generic.h"
#include "elementwise/generic.h"
#include "packed_linear/generic.h"
#include "state_space/generic.h"
#include "state_space/selective_generic.h"

namespace edgeslim {
namespace {

struct Sixteen {
  static constexpr int kRegisters = 1;
  float lane[16];

  template <class F>
  static Sixteen each(F f) {
    Sixteen r;
    for (int i = 0; i < 16; ++i) r.lane[i] = f(i);
    return r;
  }
  using V = Sixteen;
  static V load(const float* p) {  // of any address: scales lie where a file has them
    V r;
    std::memcpy(r.lane, static_cast<const void*>(p), sizeof r.lane);
    return r;
  }
  static V load_some(const float* p, int64_t count) { return each([&](int i) { return i < count ? p[i] : 0.0f; }); }
  void store(float* p) const { std::memcpy(p, lane, sizeof lane); }
  void store_some(float* p, int64_t count) const { std::memcpy(p, lane, sizeof(float) * count); }
  static V set(float x) { return each([&](int) { return x; }); }
  static V add(V a, V b) { return each([&](int i) { return a.lane[i] + b.lane[i]; }); }
  static V sub(V a, V b) { return each([&](int i) { return a.lane[i] - b.lane[i]; }); }
  static V mul(V a, V b) { return each([&](int i) { return a.lane[i] * b.lane[i]; }); }
  static V div(V a, V b) { return each([&](int i) { return a.lane[i] / b.lane[i]; }); }
  static V fma(V a, V b, V c) { return each([&](int i) { return std::fma(a.lane[i], b.lane[i], c.lane[i]); }); }
  static V min(V a, V b) { return each([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; }); }
  static V max(V a, V b) { return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; }); }
  static V abs(V a) { return each([&](int i) { return std::fabs(a.lane[i]); }); }
  static V round(V a) { return each([&](int i) { return std::nearbyintf(a.lane[i]); }); }
  static V power_of_two(V a) { return each([&](int i) { return std::ldexp(1.0f, int(a.lane[i])); }); }
  static V add_exponent(V p, V n) {
    return each([&](int i) {
      uint32_t a, b;
      std::memcpy(&a, &p.lane[i], 4);
      std::memcpy(&b, &n.lane[i], 4);
      a += b << 23;
      float sum;
      std::memcpy(&sum, &a, 4);
      return sum;
    });
  }
  static void turn(V* rows) {
    for (int i = 0; i < 16; ++i)
      for (int j = 0; j < i; ++j) std::swap(rows[i].lane[j], rows[j].lane[i]);
  }
  void to_codes(int8_t* p) const {
    for (int i = 0; i < 16; ++i) p[i] = int8_t(lane[i]);
  }
  static V from_int32(const int32_t* p) { return each([&](int i) { return float(p[i]); }); }
  static V from_codes(const uint8_t* p, int input) { return each([&](int i) { return float(p[4 * i + input]); }); }
  static V from_half(const uint16_t* p) {
    uint16_t half[16];
    std::memcpy(half, static_cast<const void*>(p), sizeof half);
    return each([&](int i) { return half_to_float(half[i]); });
  }
  template <class F>
  static V expand(uint32_t mask, F next) {
    return each([&](int i) { return (mask >> i) & 1 ? next() : 0.0f; });
  }
  static V expand_single(const uint8_t* values, uint32_t mask) {
    return expand(mask, [&] {
      float x;
      std::memcpy(&x, values, 4);
      values += 4;
      return x;
    });
  }
  static V expand_half(const uint8_t* values, uint32_t mask) {
    return expand(mask, [&] {
      uint16_t x;
      std::memcpy(&x, values, 2);
      values += 2;
      return half_to_float(x);
    });
  }
};

struct Scalar {
  using Vector = Sixteen;

  static const uint8_t* expand_step(const Packed& w, const uint8_t* values, uint64_t mask, uint8_t* codes) {
    int64_t stored = 0;
    for (int p = 0; p < kStepPositions; ++p) {
      codes[p] = uint8_t(w.zero_code());
      if (!((mask >> p) & 1)) continue;
      codes[p] = stored_code(values, stored++, w.bits);
    }
    return values + bytes_of(stored, w.bits);
  }
};

void few(const Packed& w, const Quantized& x, const Output& out, const Tiles& tiles) {
  for (int64_t token = 0; token < x.tokens; ++token) {
    const int8_t* a = x.codes + token * x.stride;
    for (int64_t tile = tiles.first; tile < tiles.last; ++tile) {
      const uint8_t* values = w.values + tile_start(w, tile);
      Sixteen total = Sixteen::set(0);
      for (int64_t group = 0; group < w.groups; ++group) {
        int32_t sum[16];
        for (int32_t& s : sum) s = -w.zero_code() * x.sums[token * w.groups + group];
        const int64_t begin = group * w.group_steps(), end = begin + w.group_steps();
        for (int64_t step = begin; step < (end < w.steps ? end : w.steps); ++step) {
          uint8_t codes[kStepPositions];
          values = Scalar::expand_step(w, values, step_mask(w, tile, step), codes);
          for (int p = 0; p < kStepPositions; ++p) sum[p / 4] += codes[p] * a[4 * step + p % 4];
        }
        total = Sixteen::fma(Sixteen::from_int32(sum), load_scales<Sixteen>(w, tile, group), total);
      }
      emit(out, w.n, tile, token, Sixteen::mul(total, Sixteen::set(x.scale[token])));
    }
  }
}

void many(const Packed& w, const Quantized& x, const Output& out, const Tiles& tiles, uint8_t*) {
  few(w, x, out, tiles);
}

bool always() { return true; }

}  // namespace

const Kernels kScalar = {"scalar", always, prologue<Sixteen>, quantize<Sixteen>, few, many, never, floats<Scalar>,
                         rotate<Sixteen>, attend<Sixteen>, convolve<Sixteen>, relate<Sixteen>, scan<Sixteen>, scan_selectively<Sixteen>,
                         map<Sixteen>};

}  // namespace edgeslim
