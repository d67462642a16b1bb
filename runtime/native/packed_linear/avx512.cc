// AVX-512 with VBMI2 (expansion of bytes by a mask) and VNNI (products of four bytes).
#if defined(__AVX512VBMI2__) && defined(__AVX512VNNI__)

#include <immintrin.h>

#include "core/cpu.h"
#include "attention/generic.h"
#include "elementwise/generic.h"
#include "packed_linear/generic.h"
#include "state_space/generic.h"
#include "state_space/selective_generic.h"

namespace edgeslim {
namespace {

static inline __mmask16 first_lanes(int64_t count) { return __mmask16((1u << count) - 1); }

struct Zmm {
  static constexpr int kRegisters = 32;
  __m512 v;

  static Zmm load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Zmm load_some(const float* p, int64_t count) { return {_mm512_maskz_loadu_ps(first_lanes(count), p)}; }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store_some(float* p, int64_t count) const { _mm512_mask_storeu_ps(p, first_lanes(count), v); }
  static Zmm set(float x) { return {_mm512_set1_ps(x)}; }
  static Zmm add(Zmm a, Zmm b) { return {_mm512_add_ps(a.v, b.v)}; }
  static Zmm sub(Zmm a, Zmm b) { return {_mm512_sub_ps(a.v, b.v)}; }
  static Zmm mul(Zmm a, Zmm b) { return {_mm512_mul_ps(a.v, b.v)}; }
  static Zmm div(Zmm a, Zmm b) { return {_mm512_div_ps(a.v, b.v)}; }
  static Zmm fma(Zmm a, Zmm b, Zmm c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  static Zmm min(Zmm a, Zmm b) { return {_mm512_min_ps(a.v, b.v)}; }
  static Zmm max(Zmm a, Zmm b) { return {_mm512_max_ps(a.v, b.v)}; }
  static Zmm abs(Zmm a) { return {_mm512_abs_ps(a.v)}; }
  static Zmm round(Zmm a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
  static Zmm power_of_two(Zmm a) {
    const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(a.v), _mm512_set1_epi32(127));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23))};
  }
  static Zmm add_exponent(Zmm p, Zmm n) {
    const __m512i up = _mm512_slli_epi32(_mm512_castps_si512(n.v), 23);
    return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p.v), up))};
  }
  static void turn(Zmm* rows) {
    __m512 pairs[16], fours[16];
    for (int i = 0; i < 16; i += 2) {
      pairs[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
      pairs[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
    }
    for (int i = 0; i < 16; i += 4)
      for (int half = 0; half < 2; ++half) {
        const __m512d a = _mm512_castps_pd(pairs[i + half]), b = _mm512_castps_pd(pairs[i + half + 2]);
        fours[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
        fours[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
      }
    for (int c = 0; c < 4; ++c) {  // of fours[4 g + c], lane q of 128 bits has column 4 q + c of rows 4 g to 4 g + 3
      const __m512 even = _mm512_shuffle_f32x4(fours[c], fours[c + 4], 0x88);
      const __m512 odd = _mm512_shuffle_f32x4(fours[c], fours[c + 4], 0xdd);
      const __m512 even_below = _mm512_shuffle_f32x4(fours[c + 8], fours[c + 12], 0x88);
      const __m512 odd_below = _mm512_shuffle_f32x4(fours[c + 8], fours[c + 12], 0xdd);
      rows[c].v = _mm512_shuffle_f32x4(even, even_below, 0x88);
      rows[c + 4].v = _mm512_shuffle_f32x4(odd, odd_below, 0x88);
      rows[c + 8].v = _mm512_shuffle_f32x4(even, even_below, 0xdd);
      rows[c + 12].v = _mm512_shuffle_f32x4(odd, odd_below, 0xdd);
    }
  }
  void to_codes(int8_t* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
  }
  static Zmm from_int32(const int32_t* p) { return {_mm512_cvtepi32_ps(_mm512_loadu_si512(p))}; }
  static Zmm from_half(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static Zmm from_codes(const uint8_t* p, int input) {
    const __m512i bytes = _mm512_srl_epi32(_mm512_loadu_si512(p), _mm_cvtsi32_si128(8 * input));
    return {_mm512_cvtepi32_ps(_mm512_and_si512(bytes, _mm512_set1_epi32(255)))};
  }
  static Zmm expand_single(const uint8_t* values, uint32_t mask) {  // the loads stay apart, as in load_codes
    __m512 stored = _mm512_loadu_ps(values);
    asm volatile("" : "+v"(stored));
    return {_mm512_maskz_expand_ps(__mmask16(mask), stored)};
  }
  static Zmm expand_half(const uint8_t* values, uint32_t mask) {
    __m256i stored = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
    asm volatile("" : "+v"(stored));
    return {_mm512_cvtph_ps(_mm256_maskz_expand_epi16(__mmask16(mask), stored))};
  }
};

// The template's sum in the template's order, without a detour through memory.
static inline float sum_of_lanes(Zmm a) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// 64 codes of 3 bits lie in 24 bytes: three of them to each word of 64 bits, then from bit 3 i eight bits to byte i.
struct Threes {
  alignas(64) uint8_t from[64], shift[64];

  constexpr Threes() : from(), shift() {
    for (int i = 0; i < 64; ++i) {
      from[i] = uint8_t(i / 8 * 3 + i % 8 % 3);
      shift[i] = uint8_t(i % 8 * 3);
    }
  }
};
static constexpr Threes kThrees;

// 64 stored codes, one a byte. The load must stay apart from the expansion: with a memory operand vpexpandb is
// microcoded on AMD processors, which costs a product two thirds of its speed.
template <int BITS>
static inline __m512i load_codes(const uint8_t* values) {
  __m512i codes;
  if (BITS == 8) {
    codes = _mm512_loadu_si512(values);
  } else if (BITS == 3) {
    const __m512i packed = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)));
    const __m512i words = _mm512_permutexvar_epi8(_mm512_load_si512(kThrees.from), packed);
    const __m512i spread = _mm512_multishift_epi64_epi8(_mm512_load_si512(kThrees.shift), words);
    codes = _mm512_and_si512(spread, _mm512_set1_epi8(7));
  } else {
    const __m512i pairs = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)));
    const __m512i spread = _mm512_slli_epi16(pairs, 4);
    codes = _mm512_ternarylogic_epi32(pairs, spread, _mm512_set1_epi8(15), 0xa8);  // (pairs | spread) & 15
  }
  asm volatile("" : "+v"(codes));
  return codes;
}

// How many bytes ahead of its use a stream is asked for: the processor's own prefetcher stays too close behind, and a
// core that waits for memory reads a third less. Addresses beyond the tensors' ends do no harm.
constexpr int64_t kValuesAhead = 8192, kMasksAhead = 2048;

// Asks for memory ahead of its use: past the end of the tiles at hand for those that come next.
struct Ahead {
  const uint8_t *values_end, *masks_end;
  int64_t values_jump = 0, masks_jump = 0;

  Ahead(const Packed& w, const Tiles& tiles)
      : values_end(w.values + tile_start(w, tiles.last)),
        masks_end(w.layout == Layout::dense ? nullptr : tile_masks(w, tiles.last)) {
    if (tiles.next >= w.tiles) return;
    values_jump = tile_start(w, tiles.next) - tile_start(w, tiles.last);
    if (masks_end) masks_jump = tile_masks(w, tiles.next) - masks_end;
  }

  // The next lines of a stream of values that is read up to `values`, the next of one of masks.
  template <int64_t BYTES>
  void ask(const uint8_t* values, const uint8_t* masks) const {
    const uint8_t* const at = values + kValuesAhead + (values + kValuesAhead >= values_end ? values_jump : 0);
    for (int64_t line = 0; line < BYTES; line += 64) _mm_prefetch(reinterpret_cast<const char*>(at) + line, _MM_HINT_T0);
    if (!masks) return;
    _mm_prefetch(reinterpret_cast<const char*>(masks) + kMasksAhead + (masks + kMasksAhead >= masks_end ? masks_jump : 0),
                 _MM_HINT_T0);
  }
};

// Reads the steps of one tile in order.
template <int BITS, Layout LAYOUT>
struct Reader {
  const uint8_t* values;
  const uint8_t* masks;
  const uint8_t* taken;  // masks of steps whose values are taken
  int64_t step_bytes;
  __m512i zero;

  Reader(const Packed& w, int64_t tile)
      : values(w.values + tile_start(w, tile)),
        masks(LAYOUT == Layout::dense ? nullptr : tile_masks(w, tile)),
        taken(masks),
        step_bytes(w.step_bytes),
        zero(_mm512_set1_epi8(char(1 << (BITS - 1)))) {}

  // Asks for what four steps will read, later.
  void ask(const Ahead& ahead) const {
    constexpr int64_t most = BITS * (LAYOUT == Layout::dense ? 32 : 16);  // bytes; of a mask's positions half are usual
    ahead.ask<most>(values, masks);
  }

  // The next step's stored codes; moves on to the step after it.
  __m512i take() {
    const __m512i codes = load_codes<BITS>(values);
    values += LAYOUT == Layout::bitmap ? bytes_of(count_ones(load_mask(taken, 0)), BITS) : step_bytes;
    if (LAYOUT == Layout::bitmap) taken += 8;
    return codes;
  }

  // Those of step `index` after the last one that was passed, at their positions.
  __m512i spread(__m512i codes, int64_t index) const {
    return LAYOUT == Layout::dense ? codes : _mm512_mask_expand_epi8(zero, __mmask64(load_mask(masks, index)), codes);
  }

  void pass(int64_t steps) {
    if (LAYOUT != Layout::dense) masks += 8 * steps;
  }

  __m512i next() {
    const __m512i column = spread(take(), 0);
    pass(1);
    return column;
  }
};

// The stored codes of four steps.
struct Four {
  __m512i codes[4];

  template <class R>
  void take(R& reader) {
    for (__m512i& one : codes) one = reader.take();
  }
};

static inline __m512i four_inputs(const int8_t* codes) {
  int32_t four;
  std::memcpy(&four, codes, 4);
  return _mm512_set1_epi32(four);
}

// sum += four products a lane. In assembly: gcc 12 copies every sum before it adds to it, and spills for want of registers.
static inline void add_products(__m512i& sum, __m512i codes, __m512i four) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(four));
}

static inline __m512i correction(const Packed& w, const Quantized& x, int64_t token, int64_t group) {
  return _mm512_set1_epi32(-w.zero_code() * x.sums[token * w.groups + group]);
}

static inline Zmm scaled(const Packed& w, int64_t tile, int64_t group, __m512i sum, Zmm total) {
  return Zmm::fma({_mm512_cvtepi32_ps(sum)}, load_scales<Zmm>(w, tile, group), total);
}

// The products of the four steps whose codes are taken, added to four sums, which hide the latency of a product. With
// MORE the next four are taken before: a processor that looks ahead by itself does not look far enough past so many wide
// instructions that wait for each other.
template <bool MORE, class R>
static inline void add_four(R& reader, Four& ahead, const int8_t* a, __m512i* sums) {
  __m512i columns[4];
  for (int i = 0; i < 4; ++i) {
    columns[i] = reader.spread(ahead.codes[i], i);
    asm volatile("" : "+v"(columns[i]));  // here, before more is taken
  }
  reader.pass(4);
  if (MORE) ahead.take(reader);
  for (int i = 0; i < 4; ++i) add_products(sums[i % 2], columns[i], four_inputs(a + 4 * i));
}

template <int BITS, Layout LAYOUT>
static void few_of(const Packed& w, const Quantized& x, const Output& out, const Tiles& tiles) {
  const Ahead memory(w, tiles);
  const bool fours = w.groups == 1 || w.group_steps() % 4 == 0;  // whether groups end where fours of steps do
  for (int64_t tile = tiles.first; tile < tiles.last; ++tile)
    for (int64_t token = 0; token < x.tokens; ++token) {
      Reader<BITS, LAYOUT> reader(w, tile);
      const int8_t* a = x.codes + token * x.stride;
      Zmm total = Zmm::set(0);
      int64_t left = fours ? w.steps / 4 : 0;  // fours of steps
      Four ahead;
      if (left) ahead.take(reader);
      for (int64_t group = 0; group < w.groups; ++group) {
        __m512i sums[2] = {correction(w, x, token, group), _mm512_setzero_si512()};
        int64_t steps = w.steps_of(group);
        for (; steps >= 4 && left > 1; steps -= 4, a += 16, --left) {
          reader.ask(memory);
          add_four<true>(reader, ahead, a, sums);
        }
        if (steps >= 4 && left == 1) {
          add_four<false>(reader, ahead, a, sums);
          steps -= 4, a += 16, left = 0;
        }
        for (; steps > 0; --steps, a += 4) add_products(sums[0], reader.next(), four_inputs(a));
        const __m512i sum = _mm512_add_epi32(sums[0], sums[1]);
        total = scaled(w, tile, group, sum, total);
      }
      emit(out, w.n, tile, token, Zmm::mul(total, Zmm::set(x.scale[token])));
    }
}

// ---- two of every four inputs ---------------------------------------------------------------------------------------
//
// A row keeps two of a step's four inputs, so that its values of two steps fill a lane of a product: the inputs are
// brought to the values, and nothing is expanded. Byte 4 o + 2 part + which of a register belongs to output o, step
// `part` of the two and the first or second value of that step.
template <int BITS>
struct PairTables {
  alignas(64) uint8_t value[64], value_shift[64], mask[64], mask_shift[64], kind[64], place[64];

  constexpr PairTables() : value(), value_shift(), mask(), mask_shift(), kind(), place() {
    for (int i = 0; i < 64; ++i) {
      const int word = i / 8, output = i / 4, part = i / 2 % 2, which = i % 2;
      const int first = 4 * word * BITS;  // of the bits of a step's values, where those of two outputs begin
      // Bytes 0 and 1 of each word of 64 bits: values of the first step; 2 and 3: of the second, 4 BITS bytes later.
      value[i] = BITS == 8 ? uint8_t(32 * part + 2 * output + which) : uint8_t(first / 8 + i % 2 + 4 * BITS * (i / 2 % 2));
      value_shift[i] = uint8_t(16 * part + first % 8 + (2 * (output % 2) + which) * BITS);
      mask[i] = uint8_t(word + 8 * (i % 2));
      mask_shift[i] = uint8_t(8 * part + 4 * (output % 2));
      kind[i] = uint8_t(32 * part + 16 * which);
      place[i] = place_of(i % 16, i / 16 % 2, i / 32);
    }
  }

  // Where the first or second bit of four is, among the inputs of two steps; none where there is no such bit.
  static constexpr uint8_t place_of(int four, int which, int part) {
    for (int bit = 0; bit < 4; ++bit)
      if ((four >> bit) & 1 && which-- == 0) return uint8_t(4 * part + bit);
    return 0x80;
  }
};
template <int BITS>
static constexpr PairTables<BITS> kPairTables;

// Sums of products with codes, and of the inputs that met one, from which the codes' zero is taken off at the end.
struct PairSums {
  __m512i codes = _mm512_setzero_si512(), inputs = _mm512_setzero_si512();
};

template <int BITS>
static inline __m512i pair_codes(const uint8_t* values) {
  const PairTables<BITS>& tables = kPairTables<BITS>;
  if (BITS == 8) return _mm512_permutexvar_epi8(_mm512_load_si512(tables.value), _mm512_loadu_si512(values));
  const __m512i packed = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)));
  const __m512i words = _mm512_permutexvar_epi8(_mm512_load_si512(tables.value), packed);
  const __m512i codes = _mm512_multishift_epi64_epi8(_mm512_load_si512(tables.value_shift), words);
  return _mm512_and_si512(codes, _mm512_set1_epi8((1 << BITS) - 1));
}

// Which of eight inputs each byte of two steps meets, from the steps' masks; bit 7 where none.
template <int BITS>
static inline __m512i pair_places(__m128i masks) {
  const PairTables<BITS>& tables = kPairTables<BITS>;
  const __m512i words = _mm512_permutexvar_epi8(_mm512_load_si512(tables.mask), _mm512_castsi128_si512(masks));
  const __m512i fours = _mm512_multishift_epi64_epi8(_mm512_load_si512(tables.mask_shift), words);
  const __m512i kinds =  // (fours & 15) | kind
      _mm512_ternarylogic_epi32(fours, _mm512_set1_epi8(15), _mm512_load_si512(tables.kind), 0xea);
  return _mm512_permutexvar_epi8(kinds, _mm512_load_si512(tables.place));
}

// The masks of the next two of `steps` steps; of a lone one only its own.
static inline __m128i pair_masks(const uint8_t* masks, int64_t steps) {
  const auto* from = reinterpret_cast<const __m128i*>(masks);
  return steps > 1 ? _mm_loadu_si128(from) : _mm_loadl_epi64(from);
}

// Two steps: which inputs they take, their values, their eight inputs.
template <int BITS>
static inline void add_pair(__m128i masks, const uint8_t* values, const int8_t* a, PairSums& sums) {
  int64_t eight;
  std::memcpy(&eight, a, 8);
  const __m512i inputs = _mm512_shuffle_epi8(_mm512_set1_epi64(eight), pair_places<BITS>(masks));
  add_products(sums.codes, pair_codes<BITS>(values), inputs);
  add_products(sums.inputs, _mm512_set1_epi8(1), inputs);
}

template <int BITS>
static void few_pairs(const Packed& w, const Quantized& x, const Output& out, const Tiles& tiles) {
  const Ahead memory(w, tiles);
  constexpr int64_t bytes = 4 * BITS;  // of a step's values
  for (int64_t tile = tiles.first; tile < tiles.last; ++tile)
    for (int64_t token = 0; token < x.tokens; ++token) {
      const uint8_t *values = w.values + tile_start(w, tile), *masks = tile_masks(w, tile);
      const int8_t* a = x.codes + token * x.stride;
      Zmm total = Zmm::set(0);
      for (int64_t group = 0; group < w.groups; ++group) {
        PairSums even, odd;
        int64_t steps = w.steps_of(group);
        for (; steps >= 4; steps -= 4, values += 4 * bytes, masks += 32, a += 16) {
          memory.ask<4 * bytes>(values, masks);
          add_pair<BITS>(_mm_loadu_si128(reinterpret_cast<const __m128i*>(masks)), values, a, even);
          add_pair<BITS>(_mm_loadu_si128(reinterpret_cast<const __m128i*>(masks + 16)), values + 2 * bytes, a + 8, odd);
        }
        for (; steps > 0; steps -= 2, values += 2 * bytes, masks += 16, a += 8)
          add_pair<BITS>(pair_masks(masks, steps), values, a, even);
        const __m512i zeros = _mm512_slli_epi32(_mm512_add_epi32(even.inputs, odd.inputs), BITS - 1);
        const __m512i sum = _mm512_sub_epi32(_mm512_add_epi32(even.codes, odd.codes), zeros);
        total = scaled(w, tile, group, sum, total);
      }
      emit(out, w.n, tile, token, Zmm::mul(total, Zmm::set(x.scale[token])));
    }
}

// ---- many tokens -----------------------------------------------------------------------------------------------------

// Before what indexes an array of sums: only unrolled loops leave it in registers.
#define EDGESLIM_UNROLLED _Pragma("GCC unroll 12")

// Tiles as a block of tokens reads them: every input's code a byte. `apart` bytes lie between tiles.
struct Whole {
  const uint8_t* codes;
  int64_t apart;

  static int64_t bytes(const Packed& w) { return w.steps * kStepPositions; }

  // A tile as this structure reads it.
  template <int BITS, Layout LAYOUT>
  static void expand(const Packed& w, int64_t tile, uint8_t* codes) {
    Reader<BITS, LAYOUT> reader(w, tile);
    for (int64_t step = 0; step < w.steps; ++step) _mm512_storeu_si512(codes + kStepPositions * step, reader.next());
  }

  // What sums of a group begin with.
  __m512i start(const Packed& w, const Quantized& x, int64_t token, int64_t group, int) const {
    return correction(w, x, token, group);
  }

  // sums += the steps of a group from `first` on, before `last`, times TOKENS tokens, `a` the first's.
  template <int TILES, int TOKENS>
  void add(const Packed&, const int8_t* a, int64_t stride, int64_t, int64_t first, int64_t last,
           __m512i (&sums)[TILES][TOKENS]) const {
    for (int64_t step = first; step < last; ++step) {
      __m512i column[TILES];
      EDGESLIM_UNROLLED for (int i = 0; i < TILES; ++i) column[i] = _mm512_loadu_si512(codes + i * apart + kStepPositions * step);
      EDGESLIM_UNROLLED for (int t = 0; t < TOKENS; ++t) {
        const __m512i four = four_inputs(a + t * stride + kStepInputs * step);
        EDGESLIM_UNROLLED for (int i = 0; i < TILES; ++i) add_products(sums[i][t], column[i], four);
      }
    }
  }
};

// The same where two steps share a product. Inputs are unsigned here, larger by 128, and values signed, so that what is to be
// taken off depends on the row alone.
struct Pairs : PairTile {
  const uint8_t* codes;
  int64_t apart;

  Pairs(const uint8_t* codes, int64_t apart) : codes(codes), apart(apart) {}

  template <int BITS, Layout>
  static void expand(const Packed& w, int64_t tile, uint8_t* codes) {
    const uint8_t *values = w.values + tile_start(w, tile), *masks = tile_masks(w, tile);
    for (int64_t group = 0; group < w.groups; ++group) {
      uint8_t* const start = codes + group * group_bytes(w);
      uint8_t* to = start + kStart;
      __m512i sum = _mm512_setzero_si512();
      int64_t steps = w.steps_of(group);
      for (; steps > 0; steps -= 2, values += 8 * BITS, masks += 16, to += kPair) {
        const __m512i places = pair_places<BITS>(pair_masks(masks, steps));
        const __m512i signed_codes = _mm512_sub_epi8(pair_codes<BITS>(values), _mm512_set1_epi8(char(1 << (BITS - 1))));
        const __m512i taken = _mm512_maskz_mov_epi8(_knot_mask64(_mm512_movepi8_mask(places)), signed_codes);
        add_products(sum, _mm512_set1_epi8(1), taken);
        _mm512_storeu_si512(to, taken);
        _mm512_storeu_si512(to + 64, places);
      }
      _mm512_storeu_si512(start, _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sum, 7)));
    }
  }

  __m512i start(const Packed& w, const Quantized&, int64_t, int64_t group, int tile) const {
    return _mm512_loadu_si512(codes + tile * apart + group * group_bytes(w));
  }

  template <int TILES, int TOKENS>
  void add(const Packed& w, const int8_t* a, int64_t stride, int64_t group, int64_t first, int64_t last,
           __m512i (&sums)[TILES][TOKENS]) const {
    const uint8_t* from = codes + group * group_bytes(w) + kStart;
    a += kStepInputs * first;
    for (int64_t left = last - first; left > 0; left -= 2, from += kPair, a += 2 * kStepInputs) {
      __m512i values[TILES], places[TILES];
      EDGESLIM_UNROLLED for (int i = 0; i < TILES; ++i) {
        values[i] = _mm512_loadu_si512(from + i * apart);
        places[i] = _mm512_loadu_si512(from + i * apart + 64);
      }
      EDGESLIM_UNROLLED for (int t = 0; t < TOKENS; ++t) {
        int64_t eight;
        std::memcpy(&eight, a + t * stride, 8);
        const __m512i inputs = _mm512_set1_epi64(eight);
        EDGESLIM_UNROLLED for (int i = 0; i < TILES; ++i)
          add_products(sums[i][t], _mm512_shuffle_epi8(inputs, places[i]), values[i]);
      }
    }
  }
};

// Asks for the lines that TOKENS tokens of the tiles from `tile` on are written to: wide outputs lie far from the core.
template <int TILES, int TOKENS>
static inline void ask_for_outputs(const Output& out, int64_t n, int64_t tile, int64_t token) {
  const int64_t first = tile * kTileRows, most = n - 1 - first;
  EDGESLIM_UNROLLED for (int t = 0; t < TOKENS; ++t) {
    const float* y = out.y + (token + t) * out.y_stride + first;
    for (int64_t i = 0; i < TILES * kTileRows; i += 16) __builtin_prefetch(y + (i < most ? i : most), 1);
    __builtin_prefetch(y + (TILES * kTileRows - 1 < most ? TILES * kTileRows - 1 : most), 1);
  }
}

// Rows of outputs that are all there, each with its token's scale; what a store might change is read before the first.
template <bool RESIDUAL, int TILES, int TOKENS>
static inline void emit_rows(const float* scale, const float* residual, int64_t residual_stride, float* y, int64_t stride,
                             const Zmm (&totals)[TILES][TOKENS]) {
  EDGESLIM_UNROLLED for (int t = 0; t < TOKENS; ++t) {
    const Zmm of_token = Zmm::set(scale[t]);
    EDGESLIM_UNROLLED for (int i = 0; i < TILES; ++i) {
      Zmm value = Zmm::mul(totals[i][t], of_token);
      if (RESIDUAL) value = Zmm::add(value, Zmm::load(residual + kTileRows * i));
      value.store(y + kTileRows * i);
    }
    y += stride;
    if (RESIDUAL) residual += residual_stride;
  }
}

// `totals` of TILES tiles from `tile` on times TOKENS tokens from `token` on, with the tokens' scales.
template <int TILES, int TOKENS>
static inline void emit_block(const Packed& w, const Quantized& x, const Output& out, int64_t tile, int64_t token,
                              const Zmm (&totals)[TILES][TOKENS]) {
  const int64_t first = tile * kTileRows;
  if (w.n - first >= TILES * kTileRows && !out.bias) {
    float* y = out.y + token * out.y_stride + first;
    if (!out.residual) return emit_rows<false>(x.scale + token, nullptr, 0, y, out.y_stride, totals);
    const float* residual = out.residual + token * out.residual_stride + first;
    return emit_rows<true>(x.scale + token, residual, out.residual_stride, y, out.y_stride, totals);
  }
  alignas(64) float kept[TILES][TOKENS][kTileRows];
  EDGESLIM_UNROLLED for (int t = 0; t < TOKENS; ++t)
    EDGESLIM_UNROLLED for (int i = 0; i < TILES; ++i) totals[i][t].store(kept[i][t]);
  for (int t = 0; t < TOKENS; ++t)
    for (int i = 0; i < TILES; ++i)
      emit(out, w.n, tile + i, token + t, Zmm::mul(Zmm::load(kept[i][t]), Zmm::set(x.scale[token + t])));
}

// TILES tiles from `tile` on times TOKENS tokens from `token` on: all inputs under one scale.
template <int TILES, int TOKENS, class Tile>
static inline void block(const Packed& w, const Tile& codes, int64_t tile, const Quantized& x, int64_t token,
                         const Output& out) {
  ask_for_outputs<TILES, TOKENS>(out, w.n, tile, token);
  __m512i sums[TILES][TOKENS];
  EDGESLIM_UNROLLED for (int t = 0; t < TOKENS; ++t)
    EDGESLIM_UNROLLED for (int i = 0; i < TILES; ++i) sums[i][t] = codes.start(w, x, token + t, 0, i);
  codes.add(w, x.codes + token * x.stride, x.stride, 0, 0, w.steps, sums);
  Zmm totals[TILES][TOKENS];
  EDGESLIM_UNROLLED for (int i = 0; i < TILES; ++i) {
    const Zmm scales = load_scales<Zmm>(w, tile + i, 0);
    EDGESLIM_UNROLLED for (int t = 0; t < TOKENS; ++t)
      totals[i][t] = Zmm::fma({_mm512_cvtepi32_ps(sums[i][t])}, scales, Zmm::set(0));
  }
  emit_block(w, x, out, tile, token, totals);
}

// The same where groups of inputs have scales of their own: a second set of sums.
template <int TILES, int TOKENS, class Tile>
static inline void block_of_groups(const Packed& w, const Tile& codes, int64_t tile, const Quantized& x, int64_t token,
                                   const Output& out) {
  ask_for_outputs<TILES, TOKENS>(out, w.n, tile, token);
  Zmm total[TILES][TOKENS];
  for (auto& of_tile : total)
    for (Zmm& one : of_tile) one = Zmm::set(0);
  for (int64_t group = 0, step = 0; group < w.groups; ++group) {
    __m512i sums[TILES][TOKENS];
    EDGESLIM_UNROLLED for (int t = 0; t < TOKENS; ++t)
      EDGESLIM_UNROLLED for (int i = 0; i < TILES; ++i) sums[i][t] = codes.start(w, x, token + t, group, i);
    const int64_t end = step + w.steps_of(group);
    codes.add(w, x.codes + token * x.stride, x.stride, group, step, end, sums);
    step = end;
    EDGESLIM_UNROLLED for (int i = 0; i < TILES; ++i) {
      const Zmm scales = load_scales<Zmm>(w, tile + i, group);
      EDGESLIM_UNROLLED for (int t = 0; t < TOKENS; ++t) total[i][t] = Zmm::fma({_mm512_cvtepi32_ps(sums[i][t])}, scales, total[i][t]);
    }
  }
  emit_block(w, x, out, tile, token, total);
}

// Bytes that will be read soon, asked for a share at a time so that they come while products are made.
struct Coming {
  const uint8_t* at = nullptr;
  const uint8_t* end = nullptr;
  int64_t share = 0;

  void ask() {
    for (int64_t left = share; left > 0 && at < end; left -= 64, at += 64)
      _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T1);
  }
};

// As many tokens as two tiles have registers for: 24 sums in all, half of them where groups need a second set.
constexpr int kBlockTokens = 12, kGroupBlockTokens = 6;

template <int TILES, class Tile>
static void blocks(const Packed& w, const Tile& codes, int64_t tile, const Quantized& x, const Output& out, Coming values,
                   Coming masks) {
  int64_t token = 0;
  const auto each = [&](auto tokens, auto f) {
    for (; token + tokens <= x.tokens; token += tokens) {
      values.ask();
      masks.ask();
      f();
    }
  };
#define EDGESLIM_BLOCK(f, tokens) \
  each(std::integral_constant<int, tokens>{}, [&] { f<TILES, tokens>(w, codes, tile, x, token, out); })
  if (w.groups == 1) {
    EDGESLIM_BLOCK(block, kBlockTokens);
    EDGESLIM_BLOCK(block, 8);
    EDGESLIM_BLOCK(block, 4);
    EDGESLIM_BLOCK(block, 1);
  } else {
    EDGESLIM_BLOCK(block_of_groups, kGroupBlockTokens);
    EDGESLIM_BLOCK(block_of_groups, 2);
    EDGESLIM_BLOCK(block_of_groups, 1);
  }
#undef EDGESLIM_BLOCK
}

// What tiles [tile, tile + 2), if there are such, take, to be asked for in as many shares as there are blocks.
template <Layout LAYOUT>
static std::pair<Coming, Coming> coming(const Packed& w, int64_t tile, int64_t tokens) {
  const int64_t end = tile + 2 < w.tiles ? tile + 2 : w.tiles;
  if (tile >= end || tokens == 0) return {};
  const auto shared = [&](const uint8_t* from, const uint8_t* to) {
    return Coming{from, to, 64 * ceil_div(to - from, 64 * ceil_div(tokens, w.groups == 1 ? kBlockTokens : kGroupBlockTokens))};
  };
  const Coming values = shared(w.values + tile_start(w, tile), w.values + tile_start(w, end));
  return {values, LAYOUT == Layout::dense ? Coming{} : shared(tile_masks(w, tile), tile_masks(w, end))};
}

template <int BITS, Layout LAYOUT, class Tile = Whole>
static void many_of(const Packed& w, const Quantized& x, const Output& out, const Tiles& tiles, uint8_t* scratch) {
  const bool in_place = LAYOUT == Layout::dense && BITS == 8;
  const int64_t apart = Tile::bytes(w);
  for (int64_t tile = tiles.first; tile < tiles.last; tile += 2) {
    const bool pair = tile + 1 < tiles.last;
    if (!in_place) Tile::template expand<BITS, LAYOUT>(w, tile, scratch);
    if (!in_place && pair) Tile::template expand<BITS, LAYOUT>(w, tile + 1, scratch + apart);
    const Tile codes = {in_place ? w.values + tile_start(w, tile) : scratch, apart};
    const auto [values, masks] = coming<LAYOUT>(w, tile + 2 < tiles.last ? tile + 2 : tiles.next, x.tokens);
    pair ? blocks<2>(w, codes, tile, x, out, values, masks) : blocks<1>(w, codes, tile, x, out, values, masks);
  }
}

struct Avx512 {
  using Vector = Zmm;

  static const uint8_t* expand_step(const Packed& w, const uint8_t* values, uint64_t mask, uint8_t* codes) {
    const __m512i stored = w.bits == 8   ? load_codes<8>(values)
                           : w.bits == 4 ? load_codes<4>(values)
                                         : load_codes<3>(values);
    const __m512i zero = _mm512_set1_epi8(char(w.zero_code()));
    _mm512_storeu_si512(codes, _mm512_mask_expand_epi8(zero, __mmask64(mask), stored));
    return values + bytes_of(count_ones(mask), w.bits);
  }
};

// Calls f<BITS, LAYOUT>(arguments…) for the matrix at hand.
#define EDGESLIM_BY_LAYOUT(f, bits, ...)                                     \
  switch (w.layout) {                                                        \
    case Layout::dense: return f<bits, Layout::dense>(__VA_ARGS__);          \
    case Layout::bitmap: return f<bits, Layout::bitmap>(__VA_ARGS__);        \
    case Layout::nm: return f<bits, Layout::nm>(__VA_ARGS__);                \
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
    if (w.bits == 8) return many_of<8, Layout::nm, Pairs>(w, x, out, tiles, scratch);
    if (w.bits == 4) return many_of<4, Layout::nm, Pairs>(w, x, out, tiles, scratch);
    return many_of<3, Layout::nm, Pairs>(w, x, out, tiles, scratch);
  }
  if (w.bits == 8) EDGESLIM_BY_LAYOUT(many_of, 8, w, x, out, tiles, scratch)
  if (w.bits == 4) EDGESLIM_BY_LAYOUT(many_of, 4, w, x, out, tiles, scratch)
  EDGESLIM_BY_LAYOUT(many_of, 3, w, x, out, tiles, scratch)
}

bool available() { return cpu().avx512; }

}  // namespace

const Kernels kAvx512 = {"avx512-vnni", available, prologue<Zmm>, quantize<Zmm>, few, many, has_pairs, floats<Avx512>,
                         rotate<Zmm>, attend<Zmm>, convolve<Zmm>, relate<Zmm>, scan<Zmm>, scan_selectively<Zmm>,
                         map<Zmm>};

}  // namespace edgeslim

#endif
