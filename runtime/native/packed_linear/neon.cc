// NEON with dot products of four bytes (ARMv8.2): no expansion, so stored bytes are looked up by tables. Weights are
// expanded as signed q, zero where nothing is stored, so that products need no correction.
#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)

#include <arm_neon.h>

#include "attention/generic.h"
#include "elementwise/generic.h"
#include "core/cpu.h"
#include "packed_linear/generic.h"
#include "packed_linear/spread.h"
#include "state_space/generic.h"
#include "state_space/selective_generic.h"

namespace edgeslim {
namespace {

// ---- 16 floats -----------------------------------------------------------------------------------------------------

// For each 4 bits of mask: the bytes of stored singles that go to its 4 lanes; 255, which looks up 0, for none.
struct SpreadSingles {
  alignas(64) uint8_t from[16][16];

  constexpr SpreadSingles() : from() {
    for (int mask = 0; mask < 16; ++mask)
      for (int lane = 0, stored = 0; lane < 4; ++lane) {
        const bool here = (mask >> lane) & 1;
        for (int byte = 0; byte < 4; ++byte) from[mask][4 * lane + byte] = here ? uint8_t(4 * stored + byte) : 255;
        stored += here;
      }
  }
};
static constexpr SpreadSingles kSpreadSingles;

static inline float32x4_t halves(uint8x16_t eight, int upper) {
  const float16x8_t h = vreinterpretq_f16_u8(eight);
  return upper ? vcvt_high_f32_f16(h) : vcvt_f32_f16(vget_low_f16(h));
}

// Stored halves, 8 at most, to the lanes that 8 bits of mask name.
static inline uint8x16_t expand_halves(const uint8_t* values, uint32_t mask) {
  const uint8x8_t lower = vqshl_n_u8(vld1_u8(kSpread.from[mask]), 1);  // saturates where there is none
  const uint8x8_t upper = vorr_u8(lower, vdup_n_u8(1));
  return vqtbl1q_u8(vld1q_u8(values), vcombine_u8(vzip1_u8(lower, upper), vzip2_u8(lower, upper)));
}

struct Neon16 {
  static constexpr int kRegisters = 8;
  float32x4_t v[4];

  using V = Neon16;
  static V load(const float* p) {
    V r;
    for (int i = 0; i < 4; ++i) r.v[i] = vld1q_f32(p + 4 * i);
    return r;
  }
  static V load_some(const float* p, int64_t count) {
    if (count == 16) return load(p);
    float lanes[16] = {0};
    std::memcpy(lanes, p, sizeof(float) * std::size_t(count));
    return load(lanes);
  }
  void store(float* p) const {
    for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, v[i]);
  }
  void store_some(float* p, int64_t count) const {
    if (count == 16) return store(p);
    float lanes[16];
    store(lanes);
    std::memcpy(p, lanes, sizeof(float) * std::size_t(count));
  }
  template <class F>
  static V each(F f) {
    V r;
    for (int i = 0; i < 4; ++i) r.v[i] = f(i);
    return r;
  }
  static V set(float x) { return each([&](int) { return vdupq_n_f32(x); }); }
  static V add(V a, V b) { return each([&](int i) { return vaddq_f32(a.v[i], b.v[i]); }); }
  static V sub(V a, V b) { return each([&](int i) { return vsubq_f32(a.v[i], b.v[i]); }); }
  static V mul(V a, V b) { return each([&](int i) { return vmulq_f32(a.v[i], b.v[i]); }); }
  static V div(V a, V b) { return each([&](int i) { return vdivq_f32(a.v[i], b.v[i]); }); }
  static V fma(V a, V b, V c) { return each([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); }); }
  // By comparison, so that the second is taken where one is not a number, as everywhere else.
  static V min(V a, V b) { return each([&](int i) { return vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); }); }
  static V max(V a, V b) { return each([&](int i) { return vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); }); }
  static V abs(V a) { return each([&](int i) { return vabsq_f32(a.v[i]); }); }
  static V round(V a) { return each([&](int i) { return vrndnq_f32(a.v[i]); }); }
  static V power_of_two(V a) {
    return each([&](int i) {
      return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(a.v[i]), vdupq_n_s32(127)), 23));
    });
  }
  static V add_exponent(V p, V n) {
    return each([&](int i) {
      const uint32x4_t up = vshlq_n_u32(vreinterpretq_u32_f32(n.v[i]), 23);
      return vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(p.v[i]), up));
    });
  }
  static void turn(V* rows) {
    V turned[16];
    for (int g = 0; g < 4; ++g)
      for (int q = 0; q < 4; ++q) {  // rows 4 g to 4 g + 3, columns 4 q to 4 q + 3
        const V* four = rows + 4 * g;
        const float32x4_t a = vtrn1q_f32(four[0].v[q], four[1].v[q]), b = vtrn2q_f32(four[0].v[q], four[1].v[q]);
        const float32x4_t c = vtrn1q_f32(four[2].v[q], four[3].v[q]), d = vtrn2q_f32(four[2].v[q], four[3].v[q]);
        turned[4 * q + 0].v[g] = vcombine_f32(vget_low_f32(a), vget_low_f32(c));
        turned[4 * q + 1].v[g] = vcombine_f32(vget_low_f32(b), vget_low_f32(d));
        turned[4 * q + 2].v[g] = vcombine_f32(vget_high_f32(a), vget_high_f32(c));
        turned[4 * q + 3].v[g] = vcombine_f32(vget_high_f32(b), vget_high_f32(d));
      }
    for (int i = 0; i < 16; ++i) rows[i] = turned[i];
  }
  void to_codes(int8_t* p) const {
    int16x4_t words[4];
    for (int i = 0; i < 4; ++i) words[i] = vmovn_s32(vcvtq_s32_f32(v[i]));
    vst1_s8(p, vmovn_s16(vcombine_s16(words[0], words[1])));
    vst1_s8(p + 8, vmovn_s16(vcombine_s16(words[2], words[3])));
  }
  static V from_integers(const int32x4_t* x) { return each([&](int i) { return vcvtq_f32_s32(x[i]); }); }
  static V from_half(const uint16_t* p) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(p);
    return each([&](int i) { return halves(vld1q_u8(bytes + 16 * (i / 2)), i % 2); });
  }
  static V from_codes(const uint8_t* p, int input) {
    const uint8x16x4_t by_input = vld4q_u8(p);
    const uint8x16_t codes = by_input.val[input];
    const uint16x8_t words[2] = {vmovl_u8(vget_low_u8(codes)), vmovl_high_u8(codes)};
    return each([&](int i) {
      const uint16x8_t eight = words[i / 2];
      return vcvtq_f32_u32(i % 2 ? vmovl_high_u16(eight) : vmovl_u16(vget_low_u16(eight)));
    });
  }
  static V expand_single(const uint8_t* values, uint32_t mask) {
    return each([&](int i) {
      const uint32_t four = (mask >> (4 * i)) & 15;
      const uint8_t* const stored = values + 4 * count_ones(mask & ((1u << (4 * i)) - 1));
      return vreinterpretq_f32_u8(vqtbl1q_u8(vld1q_u8(stored), vld1q_u8(kSpreadSingles.from[four])));
    });
  }
  static V expand_half(const uint8_t* values, uint32_t mask) {
    const uint8x16_t lower = expand_halves(values, mask & 255);
    const uint8x16_t upper = expand_halves(values + 2 * count_ones(mask & 255), mask >> 8);
    return each([&](int i) { return halves(i < 2 ? lower : upper, i % 2); });
  }
};

// ---- stored bytes to columns: a step's 64 positions, 16 a register -------------------------------------------------

struct Column {
  uint8x16_t part[4];

  static Column load(const uint8_t* p) { return {{vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)}}; }
  void store(uint8_t* p) const {
    for (int i = 0; i < 4; ++i) vst1q_u8(p + 16 * i, part[i]);
  }
  Column flipped(uint8_t by) const {
    Column r;
    for (int i = 0; i < 4; ++i) r.part[i] = veorq_u8(part[i], vdupq_n_u8(by));
    return r;
  }
};

// Byte j: how many bits are set in bytes 0 … j of a mask. There is no count of bits but that of vectors.
static inline uint64_t counts_up_to(uint64_t mask) {
  const uint64_t counts = vget_lane_u64(vreinterpret_u64_u8(vcnt_u8(vcreate_u8(mask))), 0);
  return counts * 0x0101010101010101u;
}

// Stored bytes, xor `flip`, to the positions that the mask names; zero elsewhere. Moves `values` on.
static inline Column expand64(const uint8_t*& values, const uint8_t* masks, uint8_t flip) {
  const uint64_t up_to = counts_up_to(load_mask(masks, 0)), before = up_to << 8;
  Column column;
  for (int i = 0; i < 4; ++i) {
    const auto first = uint8_t(before >> (16 * i)), middle = uint8_t(up_to >> (16 * i));
    const uint8x8_t lower = vld1_u8(kSpread.from[masks[2 * i]]);
    const uint8x8_t upper = vadd_u8(vld1_u8(kSpread.from[masks[2 * i + 1]]), vdup_n_u8(uint8_t(middle - first)));
    const uint8x16_t stored = veorq_u8(vld1q_u8(values + first), vdupq_n_u8(flip));
    column.part[i] = vqtbl1q_u8(stored, vcombine_u8(lower, upper));
  }
  values += up_to >> 56;
  return column;
}

// 16 bytes to their 32 nibbles, as codes.
static inline uint8x16x2_t nibbles(const uint8_t* packed) {
  const uint8x16_t pairs = vld1q_u8(packed), lower = vandq_u8(pairs, vdupq_n_u8(15)), upper = vshrq_n_u8(pairs, 4);
  return {{vzip1q_u8(lower, upper), vzip2q_u8(lower, upper)}};
}

static inline void store_nibbles(const uint8_t* packed, uint8x16_t zero, uint8_t* to) {
  const uint8x16x2_t codes = nibbles(packed);
  vst1q_u8(to, vsubq_u8(codes.val[0], zero));
  vst1q_u8(to + 16, vsubq_u8(codes.val[1], zero));
}

// Two codes of 3 bits lie in 6: for each pair of 16 codes the two bytes with its bits, and what moves those down to bit 0.
struct Threes {
  alignas(16) uint8_t from[16];
  alignas(16) int16_t shift[8];

  constexpr Threes() : from(), shift() {
    for (int pair = 0; pair < 8; ++pair) {
      from[2 * pair] = uint8_t(6 * pair / 8);
      from[2 * pair + 1] = uint8_t(6 * pair / 8 + 1);
      shift[pair] = int16_t(-(6 * pair % 8));
    }
  }
};
static constexpr Threes kThrees;

// 24 bytes to their 64 codes of 3 bits, less `zero`; reads 34.
static inline Column threes(const uint8_t* packed, uint8_t zero) {
  const uint8x16_t from = vld1q_u8(kThrees.from);
  const int16x8_t shift = vld1q_s16(kThrees.shift);
  Column codes;
  for (int i = 0; i < 4; ++i) {
    const uint8x16_t words = vqtbl1q_u8(vld1q_u8(packed + 6 * i), from);
    const uint16x8_t pairs = vshlq_u16(vreinterpretq_u16_u8(words), shift);
    const uint8x16_t apart = vreinterpretq_u8_u16(vsliq_n_u16(pairs, pairs, 5));  // the second code to bit 8
    codes.part[i] = vsubq_u8(vandq_u8(apart, vdupq_n_u8(7)), vdupq_n_u8(zero));
  }
  return codes;
}

// The columns of a tile in order: q, zero where nothing is stored.
template <int BITS, Layout LAYOUT>
struct Reader;

template <Layout LAYOUT>
struct Reader<8, LAYOUT> {
  const uint8_t* values;
  const uint8_t* masks;

  Reader(const Packed& w, int64_t tile)
      : values(w.values + tile_start(w, tile)), masks(LAYOUT == Layout::dense ? nullptr : tile_masks(w, tile)) {}

  Column next() {
    if (LAYOUT == Layout::dense) {
      values += kStepPositions;
      return Column::load(values - kStepPositions).flipped(128);
    }
    masks += 8;
    return expand64(values, masks - 8, 128);
  }
};

template <>
struct Reader<4, Layout::dense> {
  const uint8_t* values;

  Reader(const Packed& w, int64_t tile) : values(w.values + tile_start(w, tile)) {}

  Column next() {
    const uint8x16x2_t first = nibbles(values), second = nibbles(values + 16);
    const uint8x16_t zero = vdupq_n_u8(8);
    values += 32;
    return {{vsubq_u8(first.val[0], zero), vsubq_u8(first.val[1], zero), vsubq_u8(second.val[0], zero),
             vsubq_u8(second.val[1], zero)}};
  }
};

struct Nibbles {
  static void spread_nibbles(const uint8_t* packed, uint8_t* q) { store_nibbles(packed, vdupq_n_u8(8), q); }
};

template <Layout LAYOUT>
struct Reader<4, LAYOUT> {
  const uint8_t* masks;
  NibblesAhead<Nibbles> ahead;

  Reader(const Packed& w, int64_t tile)
      : masks(tile_masks(w, tile)), ahead(w.values + tile_start(w, tile), w.values + tile_start(w, tile + 1)) {}

  Column next() {
    const uint8_t* const begin = ahead.codes();
    const uint8_t* at = begin;
    const Column column = expand64(at, masks, 0);
    ahead.pass(int(at - begin));
    masks += 8;
    return column;
  }
};

template <>
struct Reader<3, Layout::dense> {
  const uint8_t* values;

  Reader(const Packed& w, int64_t tile) : values(w.values + tile_start(w, tile)) {}

  Column next() {
    values += 24;
    return threes(values - 24, 4);
  }
};

struct ThreeBits {
  static void spread_threes(const uint8_t* packed, uint8_t* q) { threes(packed, 4).store(q); }
};

template <Layout LAYOUT>
struct Reader<3, LAYOUT> {
  const uint8_t* masks;
  ThreesAhead<ThreeBits> ahead;

  Reader(const Packed& w, int64_t tile)
      : masks(tile_masks(w, tile)), ahead(w.values + tile_start(w, tile), masks, w.steps) {}

  Column next() {
    const uint8_t* at = ahead.next();
    masks += 8;
    return expand64(at, masks - 8, 0);
  }
};

// Columns that lie expanded in memory.
struct Expanded {
  const uint8_t* q;

  Column next() {
    q += kStepPositions;
    return Column::load(q - kStepPositions);
  }
};

// ---- products ------------------------------------------------------------------------------------------------------

static inline int8x16_t four_inputs(const int8_t* codes) {
  return vreinterpretq_s8_s32(vld1q_dup_s32(reinterpret_cast<const int32_t*>(codes)));
}

// One tile times TOKENS tokens from `token` on.
template <int TOKENS, class Columns>
static void product(const Packed& w, Columns columns, int64_t tile, const Quantized& x, int64_t token,
                    const Output& out) {
  const int8_t* a = x.codes + token * x.stride;
  Neon16 total[TOKENS];
  for (Neon16& one : total) one = Neon16::set(0);
  for (int64_t group = 0, step = 0; group < w.groups; ++group) {
    int32x4_t sum[TOKENS][4];
    for (auto& of_token : sum)
      for (int32x4_t& four : of_token) four = vdupq_n_s32(0);
    const int64_t end = step + w.steps_of(group);
    for (; step < end; ++step, a += kStepInputs) {
      const Column q = columns.next();
      for (int t = 0; t < TOKENS; ++t) {
        const int8x16_t four = four_inputs(a + t * x.stride);
        for (int i = 0; i < 4; ++i) sum[t][i] = vdotq_s32(sum[t][i], vreinterpretq_s8_u8(q.part[i]), four);
      }
    }
    const Neon16 scales = load_scales<Neon16>(w, tile, group);
    for (int t = 0; t < TOKENS; ++t) total[t] = Neon16::fma(Neon16::from_integers(sum[t]), scales, total[t]);
  }
  for (int t = 0; t < TOKENS; ++t)
    emit(out, w.n, tile, token + t, Neon16::mul(total[t], Neon16::set(x.scale[token + t])));
}

template <int BITS, Layout LAYOUT>
static void few_of(const Packed& w, const Quantized& x, const Output& out, const Tiles& tiles) {
  using Columns = Reader<BITS, LAYOUT>;
  for (int64_t tile = tiles.first; tile < tiles.last; ++tile) {
    int64_t token = 0;
    for (; token + 3 <= x.tokens; token += 3) product<3>(w, Columns(w, tile), tile, x, token, out);
    if (x.tokens - token == 2) product<2>(w, Columns(w, tile), tile, x, token, out);
    if (x.tokens - token == 1) product<1>(w, Columns(w, tile), tile, x, token, out);
  }
}

template <int BITS, Layout LAYOUT>
static void many_of(const Packed& w, const Quantized& x, const Output& out, const Tiles& tiles, uint8_t* scratch) {
  for (int64_t tile = tiles.first; tile < tiles.last; ++tile) {
    Reader<BITS, LAYOUT> reader(w, tile);
    for (int64_t step = 0; step < w.steps; ++step) reader.next().store(scratch + kStepPositions * step);
    int64_t token = 0;  // sums of five tokens, a column and an input fill 25 of 32 registers
    for (; token + 5 <= x.tokens; token += 5) product<5>(w, Expanded{scratch}, tile, x, token, out);
    for (; token + 2 <= x.tokens; token += 2) product<2>(w, Expanded{scratch}, tile, x, token, out);
    for (; token < x.tokens; ++token) product<1>(w, Expanded{scratch}, tile, x, token, out);
  }
}

// ---- the table -----------------------------------------------------------------------------------------------------

struct Neon {
  using Vector = Neon16;

  static const uint8_t* expand_step(const Packed& w, const uint8_t* values, uint64_t mask, uint8_t* codes) {
    uint8_t masks[8], taken[kStepPositions + 16];
    std::memcpy(masks, &mask, 8);
    const auto zero = uint8_t(w.zero_code());
    const uint8_t* from = values;
    if (w.bits == 4) {
      store_nibbles(values, vdupq_n_u8(0), taken);
      store_nibbles(values + 16, vdupq_n_u8(0), taken + 32);
      from = taken;
    } else if (w.bits == 3) {
      threes(values, 0).store(taken);
      from = taken;
    }
    expand64(from, masks, zero).flipped(zero).store(codes);
    return values + bytes_of(count_ones(mask), w.bits);
  }
};

// Calls f<BITS, LAYOUT>(arguments…) for the matrix at hand.
#define EDGESLIM_BY_LAYOUT(f, bits, ...)                              \
  switch (w.layout) {                                                 \
    case Layout::dense: return f<bits, Layout::dense>(__VA_ARGS__);   \
    case Layout::bitmap: return f<bits, Layout::bitmap>(__VA_ARGS__); \
    case Layout::nm: return f<bits, Layout::nm>(__VA_ARGS__);         \
  }

void few(const Packed& w, const Quantized& x, const Output& out, const Tiles& tiles) {
  if (w.bits == 8) EDGESLIM_BY_LAYOUT(few_of, 8, w, x, out, tiles)
  if (w.bits == 4) EDGESLIM_BY_LAYOUT(few_of, 4, w, x, out, tiles)
  EDGESLIM_BY_LAYOUT(few_of, 3, w, x, out, tiles)
}

void many(const Packed& w, const Quantized& x, const Output& out, const Tiles& tiles, uint8_t* scratch) {
  if (w.bits == 8) EDGESLIM_BY_LAYOUT(many_of, 8, w, x, out, tiles, scratch)
  if (w.bits == 4) EDGESLIM_BY_LAYOUT(many_of, 4, w, x, out, tiles, scratch)
  EDGESLIM_BY_LAYOUT(many_of, 3, w, x, out, tiles, scratch)
}

bool available() { return cpu().neon_dot; }

}  // namespace

const Kernels kNeon = {"neon-dot", available, prologue<Neon16>, quantize<Neon16>, few, many, never, floats<Neon>,
                       rotate<Neon16>, attend<Neon16>, convolve<Neon16>, relate<Neon16>, scan<Neon16>, scan_selectively<Neon16>,
                       map<Neon16>};

}  // namespace edgeslim

#endif
