// Every variant of the kernels against the scalar one, bit for bit, and the scalar one against a dense product in double
// precision. A program of its own, so that it also runs where there is no Python: `kernels_test [--need ISA] [EVERY]`
// runs every EVERYth case (1: all) and fails where this processor does not run ISA.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "tests/packer.h"

namespace {

using namespace edgeslim::tests;

constexpr int64_t kTokens[] = {1, 2, 3, 4, 5, 13};
constexpr int64_t kOutputs[] = {1, 15, 16, 17, 50};
constexpr int64_t kInputs[] = {1, 3, 4, 5, 69, 270};  // 270: more than the float path expands at a time
constexpr double kDensities[] = {0, 0.1, 0.5, 0.9, 1};
constexpr float kGuard = 12345.5f;
constexpr double kFunctionError = 1e-6;  // of what x is multiplied by, or of x where there is no gate

// What a gate goes through, or x where there is none, in double precision; the first is what no name says.
struct Activation {
  const char* name;
  double (*exact)(double);
};
double silu(double x) { return x / (1 + std::exp(-x)); }
double gelu(double x) { return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))); }
double gelu_tanh(double x) { return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }
double relu(double x) { return std::max(x, 0.0); }
double relu_squared(double x) { return relu(x) * relu(x); }
constexpr Activation kActivations[] = {{nullptr, silu},           {"silu", silu}, {"gelu", gelu},
                                       {"gelu_tanh", gelu_tanh}, {"relu", relu}, {"relu_squared", relu_squared}};

std::vector<std::string> runnable() {
  std::vector<std::string> names;
  for (int32_t i = 0; edgeslim_isa(i); ++i)
    if (edgeslim_isa_available(i)) names.push_back(edgeslim_isa(i));
  return names;
}

// Floats that begin `skew` floats past an alignment of 64 bytes, `guard` more on both sides.
class Floats {
 public:
  Floats(int64_t count, int64_t skew) : memory_(std::size_t(count + 64), kGuard), count_(count) {
    const auto address = reinterpret_cast<uintptr_t>(memory_.data()) / 4;
    first_ = 16 + int64_t(-(address + 16) & 15) + skew;
  }
  float* data() { return memory_.data() + first_; }
  const float* data() const { return memory_.data() + first_; }
  int64_t size() const { return count_; }
  bool guards_stand() const {
    for (int64_t i = 0; i < int64_t(memory_.size()); ++i)
      if ((i < first_ || i >= first_ + count_) && memory_[std::size_t(i)] != kGuard) return false;
    return true;
  }

 private:
  std::vector<float> memory_;
  int64_t count_, first_;
};

enum class Inputs { ordinary, zero, tiny, huge, with_nan, with_infinity };

// What a case multiplies its matrix by: columns of wider tensors, and what is added.
struct Operands {
  int64_t tokens, x_stride, gate_stride;
  Activation function;
  bool has_gate, has_norm, has_bias, has_residual;
  Inputs inputs;
  Floats x, gate, norm, bias, residual;

  Operands(const Matrix& m, int64_t t, Random& random)
      : tokens(t),
        x_stride(m.k + random.below(3)),
        gate_stride(m.k + random.below(3)),
        function(kActivations[random.below(2) ? 0 : random.below(6)]),
        has_gate(random.below(2)),
        has_norm(random.below(2)),
        has_bias(random.below(2)),
        has_residual(random.below(2)),
        inputs(random.below(3) ? Inputs::ordinary : Inputs(random.below(6))),
        x(t * x_stride, random.below(16)),
        gate(t * gate_stride, random.below(16)),
        norm(m.k, random.below(16)),
        bias(m.n, random.below(16)),
        residual(t * m.n, random.below(16)) {
    for (Floats* one : {&x, &gate, &norm, &bias, &residual})
      for (int64_t i = 0; i < one->size(); ++i) one->data()[i] = random.value();
    spoil(random);
  }

  // The same largest input everywhere.
  void make_extreme(float value) {
    has_gate = has_norm = false;
    function = kActivations[0];
    inputs = Inputs::ordinary;
    std::fill(x.data(), x.data() + x.size(), value);
  }

  bool ordinary() const { return inputs <= Inputs::zero; }

 private:
  void spoil(Random& random) {
    const float factor = inputs == Inputs::zero   ? 0.0f
                         : inputs == Inputs::tiny ? 1e-39f
                         : inputs == Inputs::huge ? 1e37f
                                                  : 1.0f;
    Floats& spoiled = has_gate && random.below(2) ? gate : x;
    for (int64_t i = 0; i < spoiled.size(); ++i) spoiled.data()[i] *= factor;
    if (inputs == Inputs::with_nan) spoiled.data()[random.below(spoiled.size())] = NAN;
    if (inputs == Inputs::with_infinity) spoiled.data()[random.below(spoiled.size())] = -INFINITY;
  }
};

// A tensor's bytes at an address that is odd, even, or aligned.
class Moved {
 public:
  Moved(const std::vector<uint8_t>& bytes, int64_t skew) : memory_(bytes.size() + 64), skew_(skew) {
    std::copy(bytes.begin(), bytes.end(), memory_.begin() + skew);
  }
  const uint8_t* data() const { return memory_.data() + skew_; }

 private:
  std::vector<uint8_t> memory_;
  int64_t skew_;
};

struct Run {
  bool good;
  Floats y;
};

Run run(const edgeslim_packed& w, const Operands& o, bool single, int32_t threads, int64_t skew, const char* isa) {
  Run result{true, Floats(o.tokens * w.n, skew)};
  edgeslim_linear call = {};
  call.x = o.x.data();
  call.x_stride = o.x_stride;
  call.gate = o.has_gate ? o.gate.data() : nullptr;
  call.gate_stride = o.gate_stride;
  call.norm = o.has_norm ? o.norm.data() : nullptr;
  call.epsilon = 1e-5f;
  call.bias = o.has_bias ? o.bias.data() : nullptr;
  call.residual = o.has_residual ? o.residual.data() : nullptr;
  call.y = result.y.data();
  call.tokens = o.tokens;
  call.float_activations = single;
  call.threads = threads;
  call.repeats = 1;
  call.function = o.function.name;
  char text[256];
  if (edgeslim_run_linear(&w, &call, isa, text, sizeof text)) {
    std::printf("%s: %s\n", isa, text);
    result.good = false;
  }
  result.good = result.good && result.y.guards_stand();
  return result;
}

bool same_bits(const Floats& a, const Floats& b) {
  for (int64_t i = 0; i < a.size(); ++i) {
    const float x = a.data()[i], y = b.data()[i];
    if (std::memcmp(&x, &y, 4) && !(std::isnan(x) && std::isnan(y))) return false;
  }
  return true;
}

// What a matrix is multiplied by, and how far float32 may be from it beyond its rounding.
struct Product {
  std::vector<double> t, slack;
};

Product prologue(const Matrix& m, const Operands& o, int64_t token) {
  Product p{std::vector<double>(std::size_t(m.k)), std::vector<double>(std::size_t(m.k))};
  double squares = 0, slack_squares = 0;
  for (std::size_t i = 0; i < p.t.size(); ++i) {
    const double x = o.x.data()[token * o.x_stride + int64_t(i)], gate = o.gate.data()[token * o.gate_stride + int64_t(i)];
    p.t[i] = o.has_gate ? x * o.function.exact(gate) : o.function.name ? o.function.exact(x) : x;
    p.slack[i] = o.has_gate ? std::fabs(x) * kFunctionError : o.function.name ? kFunctionError : 0;
    squares += p.t[i] * p.t[i];
    slack_squares += p.slack[i] * p.slack[i];
  }
  const double inverse = 1 / std::sqrt(squares / double(m.k) + 1e-5f);
  for (std::size_t i = 0; o.has_norm && i < p.t.size(); ++i) {
    const double factor = o.norm.data()[i] * inverse;
    p.slack[i] = std::fabs(factor) * (p.slack[i] + std::fabs(p.t[i]) * std::sqrt(slack_squares / double(m.k)) * inverse);
    p.t[i] *= factor;
  }
  return p;
}

// Within float32 rounding of k products, and, where activations are rounded to 8 bits, half a step of each of them.
bool near_dense(const Matrix& m, const Operands& o, bool single, const Floats& y) {
  for (int64_t token = 0; token < o.tokens; ++token) {
    const auto [t, slack] = prologue(m, o, token);
    double largest = 0;
    for (double one : t) largest = std::max(largest, std::fabs(one));
    const double step = single || !m.form.is_integer() ? 0 : largest / 127;
    for (int64_t row = 0; row < m.n; ++row) {
      double sum = o.has_bias ? o.bias.data()[row] : 0, bound = 1e-5;
      if (o.has_residual) sum += o.residual.data()[token * m.n + row];
      for (int64_t i = 0; i < m.k; ++i) {
        const double weight = m.weights[std::size_t(row * m.k + i)];
        sum += weight * t[std::size_t(i)];
        bound += std::fabs(weight) * (0.501 * step + 1e-5 * std::fabs(t[std::size_t(i)]) + slack[std::size_t(i)]);
      }
      if (!(std::fabs(y.data()[token * m.n + row] - sum) <= bound)) return false;
    }
  }
  return true;
}

struct Count {
  int64_t passed = 0, failed = 0;

  void add(bool good, const Matrix& m, const Operands& o, bool single, const std::string& what) {
    ++(good ? passed : failed);
    if (good || failed > 20) return;
    const Form& f = m.form;
    std::printf("%s: layout %d %d:%d bits %d group %d, %lld x %lld, %lld tokens, %s, inputs %d, %s of %s\n", what.c_str(),
                f.layout, f.pattern_n, f.pattern_m, f.bits, f.group, (long long)m.n, (long long)m.k, (long long)o.tokens,
                single ? "float" : "int8", int(o.inputs), o.function.name ? o.function.name : "default",
                o.has_gate ? "gate" : "x");
  }
};

void compare(const Matrix& m, const Operands& o, bool single, Random& random, Count* count) {
  static const std::vector<std::string> names = runnable();
  edgeslim_packed w = m.view();
  const Moved values(m.values, random.below(64)), masks(m.masks, random.below(64));
  const Moved offsets(m.offsets, random.below(64)), scales(m.scales, random.below(64));
  w.values = values.data();
  w.masks = masks.data();
  w.offsets = reinterpret_cast<const int64_t*>(offsets.data());
  w.scales = scales.data();
  const int64_t skew = random.below(16);
  const Run expected = run(w, o, single, 1, skew, "scalar");
  const bool near = !o.ordinary() || near_dense(m, o, single, expected.y);
  count->add(expected.good && near, m, o, single, "scalar and dense");
  for (const std::string& name : names) {
    const int32_t threads = random.below(16) ? 1 : 2;
    if (name == "scalar" && threads == 1) continue;
    const Run got = run(w, o, single, threads, skew, name.c_str());
    count->add(got.good && same_bits(got.y, expected.y), m, o, single, name);
  }
}

bool refuses_unknown_functions() {
  Random random(1);
  const Matrix m = Packer(Form{0, 8}, 16, 16, 1, random).pack();
  const edgeslim_packed w = m.view();
  float x[16] = {0}, y[16];
  edgeslim_linear call = {};
  call.x = x;
  call.y = y;
  call.tokens = call.threads = call.repeats = 1;
  call.function = "gelu_new";
  char text[256] = {0};
  const bool refused = edgeslim_run_linear(&w, &call, nullptr, text, sizeof text) && std::strstr(text, "function must be");
  if (!refused) std::printf("an unknown function is not refused: %s\n", text);
  return refused;
}

std::vector<Form> forms() {
  std::vector<Form> all;
  for (const Form& layout : {Form{0, 0}, Form{1, 0}, Form{2, 0, 0, 1, 2}, Form{2, 0, 0, 1, 4}, Form{2, 0, 0, 2, 4},
                             Form{2, 0, 0, 3, 4}})
    for (int32_t bits : {3, 4, 8, 16, 32})
      for (int32_t group : {0, 4, 32, 64}) {
        if (bits > 8 && group) continue;
        Form form = layout;
        form.bits = bits;
        form.group = group;
        form.half_scales = bits <= 8 && group > 4;
        all.push_back(form);
      }
  return all;
}

// Every weight and every input as large as it can be: where sums in few bits would overflow.
void compare_extremes(Count* count) {
  for (const Form& form : forms())
    for (Codes codes : {Codes::lowest, Codes::highest})
      for (float input : {-2.0f, 2.0f})
        for (int64_t tokens : {1, 5}) {
          if (!form.is_integer()) continue;
          Random random(7);
          const int64_t longest = form.layout == 0 && !form.group ? 65536 : 1000;
          const Matrix m = Packer(form, 16, longest, 1, random, codes).pack();
          Operands o(m, tokens, random);
          o.make_extreme(input);
          compare(m, o, false, random, count);
        }
}

Count compare_all(int64_t every) {
  Count count;
  compare_extremes(&count);
  int64_t number = 0;
  for (const Form& form : forms())
    for (int64_t n : kOutputs)
      for (int64_t k : kInputs)
        for (double density : kDensities) {
          if (form.layout != 1 && density != 0.5) continue;
          if (number++ % every) continue;
          Random random{uint64_t(number)};
          const Matrix m = Packer(form, n, k, density, random).pack();
          for (int64_t tokens : kTokens)
            for (bool single : {false, true}) compare(m, Operands(m, tokens, random), single, random, &count);
        }
  return count;
}

}  // namespace

int main(int argc, char** argv) {
  int64_t every = 1;
  std::string needed = "scalar", found;
  for (int i = 1; i < argc; ++i) {
    if (!std::strcmp(argv[i], "--need") && i + 1 < argc)
      needed = argv[++i];
    else
      every = std::max(1L, std::atol(argv[i]));
  }
  if (!refuses_unknown_functions()) return 1;
  bool has_needed = false;
  for (const std::string& name : runnable()) {
    found += (found.empty() ? "" : ", ") + name;
    has_needed = has_needed || name == needed;
  }
  std::printf("variants: %s\n", found.c_str());
  if (!has_needed) std::printf("this processor or library does not run kernels for %s\n", needed.c_str());
  const Count count = compare_all(every);
  std::printf("%lld passed, %lld failed\n", (long long)count.passed, (long long)count.failed);
  return count.failed || !has_needed;
}
