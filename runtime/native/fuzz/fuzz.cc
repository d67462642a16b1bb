// Packed matrices with damaged attributes and tensors, given to the reader in process: `fuzz SEED COUNT [FIRST]
// [--seconds S]` runs COUNT executions, or as many as fit in S seconds. Each is a valid matrix after up to four random
// changes, in memory of exactly its size, so that a sanitizer sees the first byte read outside. What the check accepts
// is multiplied by every variant, whose bits must agree; what it refuses, every entry must refuse.
//
// Execution i depends on SEED and i alone: `fuzz SEED 1 i` repeats it.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "tests/packer.h"

namespace {

using namespace edgeslim::tests;

int64_t execution = 0;

#if defined(__SANITIZE_ADDRESS__)
extern "C" void __sanitizer_set_death_callback(void (*)(void));
void name_execution() { std::fprintf(stderr, "in execution %lld\n", (long long)execution); }
#endif

struct Finding {
  std::string text;
};

std::vector<Matrix> corpus(uint64_t seed) {
  Random random(seed);
  std::vector<Matrix> all;
  for (int i = 0; i < 512; ++i) {
    static constexpr int32_t kBits[] = {3, 4, 8, 16, 32}, kGroups[] = {0, 4, 8, 32}, kPatterns[][2] = {{1, 2}, {1, 4}, {2, 4}, {3, 4}};
    Form form{int32_t(random.below(3)), kBits[random.below(5)]};
    if (form.is_integer()) form.group = kGroups[random.below(4)];
    form.half_scales = form.is_integer() && random.below(2);
    const auto& pattern = kPatterns[random.below(4)];
    if (form.layout == 2) form.pattern_n = pattern[0], form.pattern_m = pattern[1];
    all.push_back(Packer(form, 1 + random.below(40), 1 + random.below(40), double(random.below(5)) / 4, random).pack());
  }
  return all;
}

// A matrix under attack.
class Victim {
 public:
  Victim(const Matrix& m, Random& random) : random_(random), w_(m.view()) {
    tensors_[0] = m.values;
    tensors_[1] = m.masks;
    tensors_[2] = m.offsets;
    tensors_[3] = m.scales;
    for (int64_t changes = random.below(5); changes > 0; --changes) change();
    settle();
  }

  const edgeslim_packed& view() const { return w_; }

 private:
  void change() {
    switch (random_.below(6)) {
      case 0: return change_number();
      case 1: return change_size();
      case 2: return move_mask_bit();
      case 3: return change_offset();
      default: return change_bytes();
    }
  }

  int64_t number(int64_t old) {
    static constexpr int64_t kKnown[] = {0,     1,     2,          3,         4,           5,         8,         16,
                                         32,    64,    65536,      65537,     1 << 24,     (1LL << 31) - 1, 1LL << 31,
                                         1LL << 32, 1LL << 60, INT64_MAX, INT64_MAX - 3, INT64_MIN, -1, -4};
    const int64_t kind = random_.below(3);
    if (kind == 0) return int64_t(uint64_t(old) + uint64_t(random_.below(9) - 4));
    if (kind == 1) return kKnown[random_.below(int64_t(sizeof kKnown / sizeof *kKnown))];
    return int64_t((uint64_t(random_.bits()) << 32) | random_.bits()) >> random_.below(64);
  }

  void change_number() {
    int64_t* const fields[] = {&w_.n, &w_.k, &w_.bits, &w_.group, &w_.pattern_n, &w_.pattern_m};
    const int64_t which = random_.below(8);
    if (which == 6)
      w_.layout = int32_t(random_.below(4) ? random_.below(3) : number(w_.layout));
    else if (which == 7)
      w_.scale_type = int32_t(random_.below(3));
    else
      *fields[which] = number(*fields[which]);
  }

  void change_size() {
    std::vector<uint8_t>& tensor = tensors_[random_.below(4)];
    const auto size = int64_t(tensor.size());
    const int64_t kind = random_.below(4);
    const int64_t wanted = kind == 0 ? 0 : kind == 1 ? random_.below(size + 1) : size + random_.below(33) - 16;
    tensor.resize(std::size_t(std::max<int64_t>(0, wanted)), uint8_t(random_.bits()));
  }

  // One bit to another place of its step: the count stays, so that the check may pass.
  void move_mask_bit() {
    std::vector<uint8_t>& masks = tensors_[1];
    if (masks.size() < 8) return;
    uint8_t* const step = masks.data() + 8 * random_.below(int64_t(masks.size() / 8));
    const int64_t a = random_.below(64), b = random_.below(64);
    const bool at_a = (step[a / 8] >> (a % 8)) & 1, at_b = (step[b / 8] >> (b % 8)) & 1;
    if (at_a == at_b) return;
    step[a / 8] = uint8_t(step[a / 8] ^ (1 << (a % 8)));
    step[b / 8] = uint8_t(step[b / 8] ^ (1 << (b % 8)));
  }

  void change_offset() {
    std::vector<uint8_t>& offsets = tensors_[2];
    if (offsets.size() < 8) return;
    const int64_t count = int64_t(offsets.size() / 8), first = random_.below(count);
    const int64_t last = random_.below(2) ? first + 1 : count;
    int64_t value = 0;
    std::memcpy(&value, offsets.data() + 8 * first, 8);
    const uint64_t by = uint64_t(number(value)) - uint64_t(value);
    for (int64_t i = first; i < last; ++i) {
      std::memcpy(&value, offsets.data() + 8 * i, 8);
      value = int64_t(uint64_t(value) + by);
      std::memcpy(offsets.data() + 8 * i, &value, 8);
    }
  }

  void change_bytes() {
    std::vector<uint8_t>& tensor = tensors_[random_.below(4)];
    for (int64_t i = random_.below(4); i >= 0 && !tensor.empty(); --i) {
      uint8_t& byte = tensor[std::size_t(random_.below(int64_t(tensor.size())))];
      byte = random_.below(2) ? uint8_t(random_.bits()) : uint8_t(byte ^ (1 << random_.below(8)));
    }
  }

  // Copies of the tensors that end where their memory does, at any address.
  void settle() {
    const int64_t skew = random_.below(2) ? 0 : random_.below(16);
    const uint8_t* begins[4];
    for (int i = 0; i < 4; ++i) {
      std::vector<uint8_t> exact(tensors_[i].size() + std::size_t(skew));
      std::copy(tensors_[i].begin(), tensors_[i].end(), exact.begin() + skew);
      tensors_[i].swap(exact);
      begins[i] = tensors_[i].data() + skew;
    }
    w_.values = begins[0];
    w_.masks = begins[1];
    w_.offsets = reinterpret_cast<const int64_t*>(begins[2]);
    w_.scales = begins[3];
    w_.value_count = size(0, skew);
    w_.mask_count = size(1, skew);
    w_.offset_count = size(2, skew) / 8;
    w_.scale_count = size(3, skew) / (w_.scale_type == 2 ? 2 : 4);
  }

  int64_t size(int tensor, int64_t skew) const { return int64_t(tensors_[tensor].size()) - skew; }

  Random& random_;
  edgeslim_packed w_;
  std::vector<uint8_t> tensors_[4];  // values, masks, offsets, scales
};

struct Inputs {
  int64_t tokens;
  bool single;
  std::vector<float> x, gate, bias;
  const char* function = nullptr;

  Inputs(const edgeslim_packed& w, Random& random)
      : tokens(random.below(7)),
        single(random.below(3) == 0),
        x(std::size_t(tokens * w.k)),
        gate(random.below(3) ? 0 : x.size()),
        bias(std::size_t(w.n)) {
    const auto strange = [&] { return random.below(2) ? NAN : INFINITY; };
    for (std::vector<float>* all : {&x, &gate})
      for (float& one : *all) one = random.below(500) ? random.value() : strange();
    for (float& one : bias) one = random.value();
    const char* const functions[] = {nullptr, "silu", "gelu", "gelu_tanh", "relu", "relu_squared"};
    function = functions[random.below(2) ? 0 : random.below(6)];
    if (random.below(8) == 0) std::fill(x.begin(), x.end(), random.value());
  }
};

bool multiplies(const edgeslim_packed& w, const Inputs& in, const char* isa, std::vector<float>* y) {
  y->assign(std::size_t(in.tokens * w.n), 0.0f);
  edgeslim_linear call = {};
  call.x = in.x.data();
  call.x_stride = call.gate_stride = w.k;
  call.gate = in.gate.empty() ? nullptr : in.gate.data();
  call.function = in.function;
  call.bias = in.bias.data();
  call.y = y->data();
  call.tokens = in.tokens;
  call.float_activations = in.single;
  call.threads = call.repeats = 1;
  char text[256];
  return edgeslim_run_linear(&w, &call, isa, text, sizeof text) == 0;
}

void run_every_variant(const edgeslim_packed& w, Random& random) {
  const Inputs in(w, random);
  std::vector<float> expected, got;
  if (!multiplies(w, in, "scalar", &expected)) throw Finding{"run_linear refuses what check accepts"};
  for (int32_t i = 0; edgeslim_isa(i); ++i) {
    if (!edgeslim_isa_available(i)) continue;
    if (!multiplies(w, in, edgeslim_isa(i), &got)) throw Finding{"a variant refuses what check accepts"};
    for (std::size_t j = 0; j < got.size(); ++j)
      if (std::memcmp(&got[j], &expected[j], 4) && !(std::isnan(got[j]) && std::isnan(expected[j])))
        throw Finding{std::string(edgeslim_isa(i)) + " differs from scalar"};
  }
}

void gather(const edgeslim_packed& w, Random& random) {
  std::vector<int64_t> ids(std::size_t(random.below(4)));
  bool inside = true;
  for (int64_t& id : ids) {
    id = random.below(8) ? random.below(w.n) : random.below(2) ? w.n : -int64_t(random.bits());
    inside = inside && id >= 0 && id < w.n;
  }
  std::vector<float> rows(ids.size() * std::size_t(w.k));
  char text[256];
  if ((edgeslim_gather(&w, ids.data(), int64_t(ids.size()), rows.data(), text, sizeof text) == 0) != inside)
    throw Finding{"gather must refuse ids outside and no others"};
}

// Returns whether the reader accepted the matrix.
bool execute(const Matrix& m, Random& random) {
  const Victim victim(m, random);
  const edgeslim_packed& w = victim.view();
  char text[256] = {0};
  if (edgeslim_check(&w, text, sizeof text) == 0) {
    run_every_variant(w, random);
    gather(w, random);
    return true;
  }
  if (!text[0]) throw Finding{"a refusal says nothing"};
  edgeslim_linear call = {};
  call.threads = call.repeats = 1;
  if (edgeslim_run_linear(&w, &call, nullptr, text, sizeof text) == 0) throw Finding{"run_linear accepts what check refuses"};
  if (edgeslim_gather(&w, nullptr, 0, nullptr, text, sizeof text) == 0) throw Finding{"gather accepts what check refuses"};
  return false;
}

struct Options {
  uint64_t seed = 0;
  int64_t count = 0, first = 0;
  double seconds = 1e9;
};

Options read(int argc, char** argv) {
  Options o;
  int place = 0;
  for (int i = 1; i < argc; ++i) {
    if (!std::strcmp(argv[i], "--seconds") && i + 1 < argc) {
      o.seconds = std::atof(argv[++i]);
      continue;
    }
    const long long number = std::atoll(argv[i]);
    (place == 0 ? reinterpret_cast<int64_t&>(o.seed) : place == 1 ? o.count : o.first) = number;
    ++place;
  }
  return o;
}

}  // namespace

int main(int argc, char** argv) {
  const Options o = read(argc, argv);
  if (o.count <= 0) {
    std::fprintf(stderr, "usage: fuzz SEED COUNT [FIRST] [--seconds S]\n");
    return 2;
  }
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_set_death_callback(name_execution);
#endif
  const std::vector<Matrix> matrices = corpus(o.seed);
  const auto begin = std::chrono::steady_clock::now();
  const auto passed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(); };
  int64_t accepted = 0, done = 0;
  for (; done < o.count && (done % 256 || passed() < o.seconds); ++done) {
    execution = o.first + done;
    Random random(o.seed * 0x100000001b3u + uint64_t(execution) + 1);
    try {
      accepted += execute(matrices[std::size_t(random.below(int64_t(matrices.size())))], random);
    } catch (const Finding& finding) {
      std::printf("finding: %s; repeat it by: fuzz %llu 1 %lld\n", finding.text.c_str(), (unsigned long long)o.seed,
                  (long long)execution);
      return 1;
    }
  }
  std::printf("seed %llu: %lld executions in %.0f s, %lld accepted, no finding\n", (unsigned long long)o.seed, (long long)done,
              passed(), (long long)accepted);
  return 0;
}
