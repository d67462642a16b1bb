// AVX2 with FMA and F16C: no expansion of bytes, so they are looked up by tables; no products of four bytes, so pairs
// are multiplied and summed in 16 bits, in ways that never saturate:
//   bits 8     |q| (at most 128) times a (at most 127) with the sign of q: a pair stays below 32767
//   bits 3, 4  codes (at most 15) times a: eight pairs stay below 32767, and are widened together
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include <immintrin.h>

#include "core/cpu.h"
#include "attention/generic.h"
#include "elementwise/generic.h"
#include "packed_linear/generic.h"
#include "packed_linear/spread.h"
#include "state_space/generic.h"
#include "state_space/selective_generic.h"

namespace edgeslim {
namespace {

// ---- 16 floats -----------------------------------------------------------------------------------------------------

static inline __m256i first_lanes(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static inline const __m128i* bytes16(const void* p) { return static_cast<const __m128i*>(p); }
static inline const __m256i* bytes32(const void* p) { return static_cast<const __m256i*>(p); }

// Stored floats `eight` to the lanes that 8 bits of mask name.
static inline __m256 expand_lanes(__m256 eight, uint32_t mask) {
  const __m256i from = _mm256_cvtepi8_epi32(_mm_loadl_epi64(bytes16(kSpread.from[mask])));
  const __m256 moved = _mm256_permutevar8x32_ps(eight, from);
  return _mm256_andnot_ps(_mm256_castsi256_ps(_mm256_srai_epi32(from, 31)), moved);
}

struct Ymm {
  static constexpr int kRegisters = 8;
  __m256 lo, hi;

  static Ymm load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static Ymm load_some(const float* p, int64_t count) {
    if (count == 16) return load(p);
    return {_mm256_maskload_ps(p, first_lanes(count)), _mm256_maskload_ps(p + 8, first_lanes(count - 8))};
  }
  void store(float* p) const {
    _mm256_storeu_ps(p, lo);
    _mm256_storeu_ps(p + 8, hi);
  }
  void store_some(float* p, int64_t count) const {
    if (count == 16) return store(p);
    _mm256_maskstore_ps(p, first_lanes(count), lo);
    _mm256_maskstore_ps(p + 8, first_lanes(count - 8), hi);
  }
  static Ymm set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static Ymm add(Ymm a, Ymm b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
  static Ymm sub(Ymm a, Ymm b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
  static Ymm mul(Ymm a, Ymm b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
  static Ymm div(Ymm a, Ymm b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
  static Ymm fma(Ymm a, Ymm b, Ymm c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
  }
  static Ymm min(Ymm a, Ymm b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
  static Ymm max(Ymm a, Ymm b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
  static Ymm abs(Ymm a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
  }
  static Ymm round(Ymm a) {
    constexpr int kToEven = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.lo, kToEven), _mm256_round_ps(a.hi, kToEven)};
  }
  static __m256 power(__m256 a) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
  }
  static Ymm power_of_two(Ymm a) { return {power(a.lo), power(a.hi)}; }
  static __m256 plus_exponent(__m256 p, __m256 n) {
    const __m256i up = _mm256_slli_epi32(_mm256_castps_si256(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), up));
  }
  static Ymm add_exponent(Ymm p, Ymm n) { return {plus_exponent(p.lo, n.lo), plus_exponent(p.hi, n.hi)}; }
  static void turn_eight(__m256* rows) {
    __m256 pairs[8], fours[8];
    for (int i = 0; i < 8; i += 2) {
      pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
      pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
      for (int half = 0; half < 2; ++half) {
        fours[i + 2 * half] = _mm256_shuffle_ps(pairs[i + half], pairs[i + half + 2], 0x44);
        fours[i + 2 * half + 1] = _mm256_shuffle_ps(pairs[i + half], pairs[i + half + 2], 0xee);
      }
    for (int c = 0; c < 4; ++c) {
      rows[c] = _mm256_permute2f128_ps(fours[c], fours[c + 4], 0x20);
      rows[c + 4] = _mm256_permute2f128_ps(fours[c], fours[c + 4], 0x31);
    }
  }
  static void turn(Ymm* rows) {
    __m256 quarter[2][2][8];
    for (int i = 0; i < 16; ++i) {
      quarter[i / 8][0][i % 8] = rows[i].lo;
      quarter[i / 8][1][i % 8] = rows[i].hi;
    }
    for (auto& row : quarter)
      for (auto& one : row) turn_eight(one);
    for (int i = 0; i < 16; ++i) rows[i] = {quarter[0][i / 8][i % 8], quarter[1][i / 8][i % 8]};
  }
  void to_codes(int8_t* p) const {  // the low byte of each: packing would saturate what is not a number
    const __m256i low = _mm256_set1_epi32(255);
    const __m256i a = _mm256_and_si256(_mm256_cvtps_epi32(lo), low), b = _mm256_and_si256(_mm256_cvtps_epi32(hi), low);
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xd8);
    const __m128i codes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), codes);
  }
  static Ymm from_integers(__m256i lo, __m256i hi) { return {_mm256_cvtepi32_ps(lo), _mm256_cvtepi32_ps(hi)}; }
  static Ymm from_half(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(bytes16(p))), _mm256_cvtph_ps(_mm_loadu_si128(bytes16(p + 8)))};
  }
  static Ymm from_codes(const uint8_t* p, int input) {
    const __m128i shift = _mm_cvtsi32_si128(8 * input);
    const __m256i low = _mm256_set1_epi32(255);
    return from_integers(_mm256_and_si256(_mm256_srl_epi32(_mm256_loadu_si256(bytes32(p)), shift), low),
                         _mm256_and_si256(_mm256_srl_epi32(_mm256_loadu_si256(bytes32(p + 32)), shift), low));
  }
  static Ymm expand_single(const uint8_t* values, uint32_t mask) {
    const uint8_t* const upper = values + 4 * count_ones(mask & 255);
    return {expand_lanes(_mm256_castsi256_ps(_mm256_loadu_si256(bytes32(values))), mask & 255),
            expand_lanes(_mm256_castsi256_ps(_mm256_loadu_si256(bytes32(upper))), mask >> 8)};
  }
  static Ymm expand_half(const uint8_t* values, uint32_t mask) {
    const uint8_t* const upper = values + 2 * count_ones(mask & 255);
    return {expand_lanes(_mm256_cvtph_ps(_mm_loadu_si128(bytes16(values))), mask & 255),
            expand_lanes(_mm256_cvtph_ps(_mm_loadu_si128(bytes16(upper))), mask >> 8)};
  }
};

// ---- stored bytes to columns: a step's 64 positions, 32 a register -------------------------------------------------

struct Column {
  __m256i lo, hi;
};

// For 0 … 8 stored bytes before them, what the upper 8 positions of 16 add to where they look.
struct Later {
  alignas(64) uint8_t by[9][16];
  constexpr Later() : by() {
    for (int count = 0; count < 9; ++count)
      for (int i = 8; i < 16; ++i) by[count][i] = uint8_t(count);
  }
};
static constexpr Later kLater;

// The next stored bytes, xor `flip`, to the 16 positions that 16 bits of mask name; zero elsewhere.
static inline __m128i expand16(const uint8_t*& values, const uint8_t* masks, __m128i flip) {
  const int first = count_ones(masks[0]), second = count_ones(masks[1]);
  const __m128i lower = _mm_loadl_epi64(bytes16(kSpread.from[masks[0]]));
  const double* const upper = reinterpret_cast<const double*>(kSpread.from[masks[1]]);
  __m128i from = _mm_castpd_si128(_mm_loadh_pd(_mm_castsi128_pd(lower), upper));
  from = _mm_add_epi8(from, _mm_load_si128(bytes16(kLater.by[first])));
  const __m128i stored = _mm_xor_si128(_mm_loadu_si128(bytes16(values)), flip);
  values += first + second;
  return _mm_shuffle_epi8(stored, from);
}

static inline Column expand64(const uint8_t*& values, const uint8_t* masks, __m128i flip) {
  const __m128i a = expand16(values, masks, flip), b = expand16(values, masks + 2, flip);
  const __m128i c = expand16(values, masks + 4, flip), d = expand16(values, masks + 6, flip);
  return {_mm256_set_m128i(b, a), _mm256_set_m128i(d, c)};
}

// 16 bytes to their 32 nibbles.
static inline __m256i nibbles(const uint8_t* packed) {
  const __m256i pairs = _mm256_cvtepu8_epi16(_mm_loadu_si128(bytes16(packed)));
  return _mm256_and_si256(_mm256_or_si256(pairs, _mm256_slli_epi16(pairs, 4)), _mm256_set1_epi8(15));
}

// Two codes of 3 bits lie in 6: for each pair of 32 codes the two bytes with its bits, and what moves those up to bit 6.
struct Threes {
  alignas(32) uint8_t from[32];
  alignas(32) uint16_t times[16];

  constexpr Threes() : from(), times() {
    for (int pair = 0; pair < 16; ++pair) {
      from[2 * pair] = uint8_t(6 * pair / 8);
      from[2 * pair + 1] = uint8_t(6 * pair / 8 + 1);
      times[pair] = uint16_t(1 << (6 - 6 * pair % 8));
    }
  }
};
static constexpr Threes kThrees;

// Words with the bits of two codes each, as 32 codes; the words of a half register repeat after four.
static inline __m256i threes_of(__m256i words) {
  const __m256i pairs = _mm256_mullo_epi16(words, _mm256_load_si256(bytes32(kThrees.times)));
  return _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(pairs, 6), _mm256_set1_epi16(7)),
                         _mm256_and_si256(_mm256_srli_epi16(pairs, 1), _mm256_set1_epi16(0x700)));
}

// Which bytes become the words of 16 codes, in both halves of a register.
static inline __m256i threes_from() { return _mm256_broadcastsi128_si256(_mm_load_si128(bytes16(kThrees.from))); }

// 12 bytes to their 32 codes of 3 bits; reads 16.
static inline __m256i threes(const uint8_t* packed) {
  const __m256i bytes = _mm256_broadcastsi128_si256(_mm_loadu_si128(bytes16(packed)));
  return threes_of(_mm256_shuffle_epi8(bytes, _mm256_load_si256(bytes32(kThrees.from))));
}

// The columns of a tile in order. Bits 8: q, zero where nothing is stored. Fewer: codes, that of zero where nothing is.
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
      const __m256i flip = _mm256_set1_epi8(char(128));
      const Column column = {_mm256_xor_si256(_mm256_loadu_si256(bytes32(values)), flip),
                             _mm256_xor_si256(_mm256_loadu_si256(bytes32(values + 32)), flip)};
      values += kStepPositions;
      return column;
    }
    masks += 8;
    return expand64(values, masks - 8, _mm_set1_epi8(char(128)));
  }
};

template <>
struct Reader<4, Layout::dense> {
  const uint8_t* values;

  Reader(const Packed& w, int64_t tile) : values(w.values + tile_start(w, tile)) {}

  Column next() {
    values += 32;
    return {nibbles(values - 32), nibbles(values - 16)};
  }
};

struct Nibbles {
  static void spread_nibbles(const uint8_t* packed, uint8_t* codes) {  // xor 8, so that zero stands for nothing
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), _mm256_xor_si256(nibbles(packed), _mm256_set1_epi8(8)));
  }
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
    const Column column = expand64(at, masks, _mm_setzero_si128());
    ahead.pass(int(at - begin));
    masks += 8;
    const __m256i flip = _mm256_set1_epi8(8);
    return {_mm256_xor_si256(column.lo, flip), _mm256_xor_si256(column.hi, flip)};
  }
};

template <>
struct Reader<3, Layout::dense> {
  const uint8_t* values;

  Reader(const Packed& w, int64_t tile) : values(w.values + tile_start(w, tile)) {}

  Column next() {
    values += 24;
    return {threes(values - 24), threes(values - 12)};
  }
};

struct ThreeBits {
  static void spread_threes(const uint8_t* packed, uint8_t* codes) {  // xor 4, so that zero stands for nothing
    const __m256i flip = _mm256_set1_epi8(4);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), _mm256_xor_si256(threes(packed), flip));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + 32), _mm256_xor_si256(threes(packed + 12), flip));
  }
};

template <Layout LAYOUT>
struct Reader<3, LAYOUT> {
  const uint8_t* masks;
  ThreesAhead<ThreeBits> ahead;

  Reader(const Packed& w, int64_t tile)
      : masks(tile_masks(w, tile)), ahead(w.values + tile_start(w, tile), masks, w.steps) {}

  Column next() {
    const uint8_t* at = ahead.next();
    const Column column = expand64(at, masks, _mm_setzero_si128());
    masks += 8;
    const __m256i flip = _mm256_set1_epi8(4);
    return {_mm256_xor_si256(column.lo, flip), _mm256_xor_si256(column.hi, flip)};
  }
};

static inline void store_column(uint8_t* to, Column column) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), column.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 32), column.hi);
}

static inline Column load_column(const uint8_t* from) {
  return {_mm256_loadu_si256(bytes32(from)), _mm256_loadu_si256(bytes32(from + 32))};
}

// Columns that lie expanded in memory.
struct Expanded {
  const uint8_t* codes;

  Column next() {
    codes += kStepPositions;
    return load_column(codes - kStepPositions);
  }
};

// ---- products ------------------------------------------------------------------------------------------------------

static inline __m256i four_inputs(const int8_t* codes) {
  int32_t four;
  std::memcpy(&four, codes, 4);
  return _mm256_set1_epi32(four);
}

static inline __m256i widened(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }

// Adds the products of `steps` columns with the inputs at `a`, `stride` apart for each token, to sums of 16 outputs.
template <int BITS, int TOKENS, class Columns>
static inline void add_products(Columns& columns, int64_t steps, const int8_t* a, int64_t stride,
                                __m256i (*sum)[2]) {
  if (BITS == 8) {
    for (; steps > 0; --steps, a += kStepInputs) {
      const Column q = columns.next();
      const __m256i lo = _mm256_abs_epi8(q.lo), hi = _mm256_abs_epi8(q.hi);
      for (int t = 0; t < TOKENS; ++t) {
        const __m256i four = four_inputs(a + t * stride);
        const __m256i pairs[2] = {_mm256_maddubs_epi16(lo, _mm256_sign_epi8(four, q.lo)),
                                  _mm256_maddubs_epi16(hi, _mm256_sign_epi8(four, q.hi))};
        for (int i = 0; i < 2; ++i) sum[t][i] = _mm256_add_epi32(sum[t][i], widened(pairs[i]));
      }
    }
    return;
  }
  while (steps > 0) {
    __m256i pairs[TOKENS][2] = {};
    for (int64_t some = steps < 8 ? steps : 8; some > 0; --some, --steps, a += kStepInputs) {
      const Column codes = columns.next();
      for (int t = 0; t < TOKENS; ++t) {
        const __m256i four = four_inputs(a + t * stride);
        pairs[t][0] = _mm256_add_epi16(pairs[t][0], _mm256_maddubs_epi16(codes.lo, four));
        pairs[t][1] = _mm256_add_epi16(pairs[t][1], _mm256_maddubs_epi16(codes.hi, four));
      }
    }
    for (int t = 0; t < TOKENS; ++t)
      for (int i = 0; i < 2; ++i) sum[t][i] = _mm256_add_epi32(sum[t][i], widened(pairs[t][i]));
  }
}

// One tile times TOKENS tokens from `token` on.
template <int BITS, int TOKENS, class Columns>
static void product(const Packed& w, Columns columns, int64_t tile, const Quantized& x, int64_t token,
                    const Output& out) {
  const int8_t* const a = x.codes + token * x.stride;
  Ymm total[TOKENS];
  for (Ymm& one : total) one = Ymm::set(0);
  for (int64_t group = 0, step = 0; group < w.groups; ++group) {
    __m256i sum[TOKENS][2];
    for (int t = 0; t < TOKENS; ++t) {
      const int32_t zero = BITS == 8 ? 0 : -(1 << (BITS - 1)) * x.sums[(token + t) * w.groups + group];
      sum[t][0] = sum[t][1] = _mm256_set1_epi32(zero);
    }
    const int64_t steps = w.steps_of(group);
    add_products<BITS, TOKENS>(columns, steps, a + kStepInputs * step, x.stride, sum);
    step += steps;
    const Ymm scales = load_scales<Ymm>(w, tile, group);
    for (int t = 0; t < TOKENS; ++t) total[t] = Ymm::fma(Ymm::from_integers(sum[t][0], sum[t][1]), scales, total[t]);
  }
  for (int t = 0; t < TOKENS; ++t)
    emit(out, w.n, tile, token + t, Ymm::mul(total[t], Ymm::set(x.scale[token + t])));
}

// ---- two of every four inputs ---------------------------------------------------------------------------------------
//
// A row keeps two of a step's four inputs: the inputs are brought to the values, and nothing is expanded. A register has
// a word for each of 8 outputs, of one step in its lower and of the next in its upper half.

// For four bits of mask, where the first and the second that is set are, among the inputs of two steps; none: 0x80.
struct Places {
  alignas(32) uint8_t first[32], second[32];

  constexpr Places() : first(), second() {
    for (int i = 0; i < 32; ++i) {
      first[i] = place_of(i % 16, 0, i / 16);
      second[i] = place_of(i % 16, 1, i / 16);
    }
  }
  static constexpr uint8_t place_of(int four, int which, int part) {
    for (int bit = 0; bit < 4; ++bit)
      if ((four >> bit) & 1 && which-- == 0) return uint8_t(4 * part + bit);
    return 0x80;
  }
};
static constexpr Places kPlaces;

static inline __m256i join(__m128i lower, __m128i upper) { return _mm256_set_m128i(upper, lower); }

// The values q of two steps.
template <int BITS>
static inline Column pair_values(const uint8_t* values) {
  const auto of_half = [&](const uint8_t* first) {  // the other step's are 4 BITS bytes later
    const __m256i zero = _mm256_set1_epi8(char(1 << (BITS - 1)));
    const uint8_t* const second = first + 4 * BITS;
    if (BITS == 8)
      return _mm256_sub_epi8(join(_mm_loadu_si128(bytes16(first)), _mm_loadu_si128(bytes16(second))), zero);
    if (BITS == 4) {
      const __m128i bytes = _mm_unpacklo_epi64(_mm_loadl_epi64(bytes16(first)), _mm_loadl_epi64(bytes16(second)));
      const __m256i pairs = _mm256_cvtepu8_epi16(bytes), spread = _mm256_or_si256(pairs, _mm256_slli_epi16(pairs, 4));
      return _mm256_sub_epi8(_mm256_and_si256(spread, _mm256_set1_epi8(15)), zero);
    }
    const __m256i bytes = join(_mm_loadu_si128(bytes16(first)), _mm_loadu_si128(bytes16(second)));
    return _mm256_sub_epi8(threes_of(_mm256_shuffle_epi8(bytes, threes_from())), zero);
  };
  return {of_half(values), of_half(values + 2 * BITS)};
}

// Where the inputs of the next two of `steps` steps go, by their masks; of a lone one only its own.
static inline Column pair_places(const uint8_t* masks, int64_t steps) {
  const __m128i both = steps > 1 ? _mm_loadu_si128(bytes16(masks)) : _mm_loadl_epi64(bytes16(masks));
  const __m256i bytes = _mm256_cvtepu8_epi16(both), spread = _mm256_or_si256(bytes, _mm256_slli_epi16(bytes, 4));
  const __m256i fours = _mm256_and_si256(spread, _mm256_set1_epi8(15));
  const __m256i first = _mm256_shuffle_epi8(_mm256_load_si256(bytes32(kPlaces.first)), fours);
  const __m256i second = _mm256_shuffle_epi8(_mm256_load_si256(bytes32(kPlaces.second)), fours);
  return {_mm256_unpacklo_epi8(first, second), _mm256_unpackhi_epi8(first, second)};
}

// Both halves' 16-bit sums of 8 outputs, in 32 bits.
static inline __m256i halves_added(__m256i sums) {
  return _mm256_add_epi32(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(sums)),
                          _mm256_cvtepi16_epi32(_mm256_extracti128_si256(sums, 1)));
}

template <int BITS>
static void few_pairs(const Packed& w, const Quantized& x, const Output& out, const Tiles& tiles) {
  constexpr int64_t kPairs = BITS == 8 ? 1 : 16;  // of steps, whose products a sum of 16 bits holds
  for (int64_t tile = tiles.first; tile < tiles.last; ++tile)
    for (int64_t token = 0; token < x.tokens; ++token) {
      const uint8_t *values = w.values + tile_start(w, tile), *masks = tile_masks(w, tile);
      const int8_t* a = x.codes + token * x.stride;
      Ymm total = Ymm::set(0);
      for (int64_t group = 0; group < w.groups; ++group) {
        int64_t steps = w.steps_of(group);
        __m256i lo = _mm256_setzero_si256(), hi = lo;
        while (steps > 0) {
          __m256i some_lo = _mm256_setzero_si256(), some_hi = some_lo;
          for (int64_t pair = 0; pair < kPairs && steps > 0; ++pair, steps -= 2, a += 8) {
            const Column q = pair_values<BITS>(values), places = pair_places(masks, steps);
            int64_t eight;
            std::memcpy(&eight, a, 8);
            const __m256i inputs = _mm256_set1_epi64x(eight);
            const __m256i a_lo = _mm256_sign_epi8(_mm256_shuffle_epi8(inputs, places.lo), q.lo);
            const __m256i a_hi = _mm256_sign_epi8(_mm256_shuffle_epi8(inputs, places.hi), q.hi);
            some_lo = _mm256_add_epi16(some_lo, _mm256_maddubs_epi16(_mm256_abs_epi8(q.lo), a_lo));
            some_hi = _mm256_add_epi16(some_hi, _mm256_maddubs_epi16(_mm256_abs_epi8(q.hi), a_hi));
            values += 8 * BITS, masks += 16;
          }
          lo = _mm256_add_epi32(lo, halves_added(some_lo));
          hi = _mm256_add_epi32(hi, halves_added(some_hi));
        }
        total = Ymm::fma(Ymm::from_integers(lo, hi), load_scales<Ymm>(w, tile, group), total);
      }
      emit(out, w.n, tile, token, Ymm::mul(total, Ymm::set(x.scale[token])));
    }
}

// Words of 8 outputs, of one step in the lower half and the next in the upper, as four bytes an output.
static inline __m256i steps_joined(__m256i words) {
  const __m128i first = _mm256_castsi256_si128(words), second = _mm256_extracti128_si256(words, 1);
  return join(_mm_unpacklo_epi16(first, second), _mm_unpackhi_epi16(first, second));
}

// The tile as PairTile has it. Inputs of values below 8 bits are unsigned, larger by 128, which each sum begins by taking off.
template <int BITS>
static void expand_pairs(const Packed& w, int64_t tile, uint8_t* to) {
  const uint8_t *values = w.values + tile_start(w, tile), *masks = tile_masks(w, tile);
  const __m256i ones = _mm256_set1_epi8(1), none = _mm256_set1_epi8(char(0x80));
  for (int64_t group = 0; group < w.groups; ++group) {
    uint8_t* const start = to + group * PairTile::group_bytes(w);
    uint8_t* pair = start + PairTile::kStart;
    Column sum = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    int64_t steps = w.steps_of(group);
    for (; steps > 0; steps -= 2, values += 8 * BITS, masks += 16, pair += PairTile::kPair) {
      const Column words = pair_values<BITS>(values);
      const Column at = pair_places(masks, steps);
      const Column places = {steps_joined(at.lo), steps_joined(at.hi)};
      const auto taken = [&](__m256i q, __m256i place) { return _mm256_andnot_si256(_mm256_cmpeq_epi8(place, none), q); };
      const Column q = {taken(steps_joined(words.lo), places.lo), taken(steps_joined(words.hi), places.hi)};
      sum.lo = _mm256_add_epi32(sum.lo, widened(_mm256_maddubs_epi16(ones, q.lo)));
      sum.hi = _mm256_add_epi32(sum.hi, widened(_mm256_maddubs_epi16(ones, q.hi)));
      store_column(pair, q);
      store_column(pair + 64, places);
    }
    const auto off = [](__m256i s) {
      return BITS == 8 ? _mm256_setzero_si256() : _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_slli_epi32(s, 7));
    };
    store_column(start, {off(sum.lo), off(sum.hi)});
  }
}

// sum += the products of `pairs` pairs of steps from `pair` on with the inputs at `a`, for each token.
template <int BITS, int TOKENS>
static inline void add_pairs(const uint8_t* pair, int64_t pairs, const int8_t* a, int64_t stride, __m256i (*sum)[2]) {
  constexpr int64_t kSome = BITS == 8 ? 1 : 8;  // whose products a sum of 16 bits holds
  while (pairs > 0) {
    __m256i some[TOKENS][2] = {};
    for (int64_t i = pairs < kSome ? pairs : kSome; i > 0; --i, --pairs, a += 8, pair += PairTile::kPair) {
      const Column q = load_column(pair), places = load_column(pair + 64);
      const Column size = {_mm256_abs_epi8(q.lo), _mm256_abs_epi8(q.hi)};
      for (int t = 0; t < TOKENS; ++t) {
        int64_t eight;
        std::memcpy(&eight, a + t * stride, 8);
        const __m256i inputs = _mm256_set1_epi64x(eight);
        const auto products = [&](__m256i place, __m256i value, __m256i magnitude) {
          const __m256i met = _mm256_shuffle_epi8(inputs, place);
          return BITS == 8 ? _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(met, value)) : _mm256_maddubs_epi16(met, value);
        };
        some[t][0] = _mm256_add_epi16(some[t][0], products(places.lo, q.lo, size.lo));
        some[t][1] = _mm256_add_epi16(some[t][1], products(places.hi, q.hi, size.hi));
      }
    }
    for (int t = 0; t < TOKENS; ++t)
      for (int i = 0; i < 2; ++i) sum[t][i] = _mm256_add_epi32(sum[t][i], widened(some[t][i]));
  }
}

// One tile, as expand_pairs leaves it, times TOKENS tokens from `token` on.
template <int BITS, int TOKENS>
static void pair_product(const Packed& w, const uint8_t* expanded, int64_t tile, const Quantized& x, int64_t token,
                         const Output& out) {
  const int8_t* const a = x.codes + token * x.stride;
  Ymm total[TOKENS];
  for (Ymm& one : total) one = Ymm::set(0);
  for (int64_t group = 0; group < w.groups; ++group, expanded += PairTile::group_bytes(w)) {
    const Column start = load_column(expanded);
    __m256i sum[TOKENS][2];
    for (int t = 0; t < TOKENS; ++t) sum[t][0] = start.lo, sum[t][1] = start.hi;
    add_pairs<BITS, TOKENS>(expanded + PairTile::kStart, ceil_div(w.steps_of(group), 2),
                            a + kStepInputs * group * w.group_steps(), x.stride, sum);
    const Ymm scales = load_scales<Ymm>(w, tile, group);
    for (int t = 0; t < TOKENS; ++t) total[t] = Ymm::fma(Ymm::from_integers(sum[t][0], sum[t][1]), scales, total[t]);
  }
  for (int t = 0; t < TOKENS; ++t)
    emit(out, w.n, tile, token + t, Ymm::mul(total[t], Ymm::set(x.scale[token + t])));
}

template <int BITS>
static void many_pairs(const Packed& w, const Quantized& x, const Output& out, const Tiles& tiles, uint8_t* scratch) {
  for (int64_t tile = tiles.first; tile < tiles.last; ++tile) {
    expand_pairs<BITS>(w, tile, scratch);
    int64_t token = 0;
    for (; token + 4 <= x.tokens; token += 4) pair_product<BITS, 4>(w, scratch, tile, x, token, out);
    for (; token < x.tokens; ++token) pair_product<BITS, 1>(w, scratch, tile, x, token, out);
  }
}

static bool takes_unsigned(const Packed& w) { return has_pairs(w) && w.bits < 8; }

template <int BITS, Layout LAYOUT>
static void few_of(const Packed& w, const Quantized& x, const Output& out, const Tiles& tiles) {
  for (int64_t tile = tiles.first; tile < tiles.last; ++tile) {
    int64_t token = 0;
    for (; token + 3 <= x.tokens; token += 3)
      product<BITS, 3>(w, Reader<BITS, LAYOUT>(w, tile), tile, x, token, out);
    if (x.tokens - token == 2) product<BITS, 2>(w, Reader<BITS, LAYOUT>(w, tile), tile, x, token, out);
    if (x.tokens - token == 1) product<BITS, 1>(w, Reader<BITS, LAYOUT>(w, tile), tile, x, token, out);
  }
}

template <int BITS, Layout LAYOUT>
static void many_of(const Packed& w, const Quantized& x, const Output& out, const Tiles& tiles, uint8_t* scratch) {
  for (int64_t tile = tiles.first; tile < tiles.last; ++tile) {
    Reader<BITS, LAYOUT> reader(w, tile);
    for (int64_t step = 0; step < w.steps; ++step) store_column(scratch + kStepPositions * step, reader.next());
    int64_t token = 0;  // sums of four tokens fill half of the registers
    for (; token + 4 <= x.tokens; token += 4) product<BITS, 4>(w, Expanded{scratch}, tile, x, token, out);
    for (; token < x.tokens; ++token) product<BITS, 1>(w, Expanded{scratch}, tile, x, token, out);
  }
}

// ---- the table -----------------------------------------------------------------------------------------------------

struct Avx2 {
  using Vector = Ymm;

  static const uint8_t* expand_step(const Packed& w, const uint8_t* values, uint64_t mask, uint8_t* codes) {
    uint8_t masks[8], taken[kStepPositions + 16];
    std::memcpy(masks, &mask, 8);
    const uint8_t* from = values;
    if (w.bits == 4) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(taken), nibbles(values));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(taken + 32), nibbles(values + 16));
      from = taken;
    } else if (w.bits == 3) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(taken), threes(values));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(taken + 32), threes(values + 12));
      from = taken;
    }
    const char zero = char(w.zero_code());
    const Column column = expand64(from, masks, _mm_set1_epi8(zero));
    const __m256i flip = _mm256_set1_epi8(zero);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), _mm256_xor_si256(column.lo, flip));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + 32), _mm256_xor_si256(column.hi, flip));
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
  if (has_pairs(w)) {
    if (w.bits == 8) return few_pairs<8>(w, x, out, tiles);
    return w.bits == 4 ? few_pairs<4>(w, x, out, tiles) : few_pairs<3>(w, x, out, tiles);
  }
  if (w.bits == 8) EDGESLIM_BY_LAYOUT(few_of, 8, w, x, out, tiles)
  if (w.bits == 4) EDGESLIM_BY_LAYOUT(few_of, 4, w, x, out, tiles)
  EDGESLIM_BY_LAYOUT(few_of, 3, w, x, out, tiles)
}

void many(const Packed& w, const Quantized& x, const Output& out, const Tiles& tiles, uint8_t* scratch) {
  if (has_pairs(w)) {
    if (w.bits == 8) return many_pairs<8>(w, x, out, tiles, scratch);
    return w.bits == 4 ? many_pairs<4>(w, x, out, tiles, scratch) : many_pairs<3>(w, x, out, tiles, scratch);
  }
  if (w.bits == 8) EDGESLIM_BY_LAYOUT(many_of, 8, w, x, out, tiles, scratch)
  if (w.bits == 4) EDGESLIM_BY_LAYOUT(many_of, 4, w, x, out, tiles, scratch)
  EDGESLIM_BY_LAYOUT(many_of, 3, w, x, out, tiles, scratch)
}

bool available() { return cpu().avx2; }

}  // namespace

const Kernels kAvx2 = {"avx2", available, prologue<Ymm>, quantize<Ymm>, few, many, takes_unsigned, floats<Avx2>,
                       rotate<Ymm>, attend<Ymm>, convolve<Ymm>, relate<Ymm>, scan<Ymm>, scan_selectively<Ymm>,
                       map<Ymm>};

}  // namespace edgeslim

#endif
