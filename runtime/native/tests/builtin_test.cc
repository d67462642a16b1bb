// What runs graphs without ONNX Runtime: the reader of ONNX files, the standard operators, the threads, and a small graph
// beside sums in double precision.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <thread>

#include "builtin/program.h"
#include "tests/small_graph.h"

namespace {

using namespace edgeslim;
using namespace edgeslim::builtin;
using tests::attribute;
using tests::GraphSpec;
using tests::Random;
using tests::SmallGraph;

int64_t passed = 0, failed = 0;

void expect(bool holds, const std::string& what) {
  ++(holds ? passed : failed);
  if (!holds) std::printf("failed: %s\n", what.c_str());
}

Bytes bytes_of(const std::string& text) { return {reinterpret_cast<const uint8_t*>(text.data()), text.size()}; }

template <class T>
Tensor tensor(int element, std::vector<int64_t> shape, std::vector<T>& data) {
  Tensor t;
  t.element = element;
  t.shape = std::move(shape);
  t.data = data.data();
  return t;
}

// ---- threads

void every_piece_is_done_once() {
  for (const int threads : {1, 2, 3, 8}) {
    std::vector<std::atomic<int>> done(2000);
    const std::vector<char> memory(300000);
    Coming coming;
    coming.add(memory.data(), memory.size());
    ThreadPool pool(threads);  // the last, so the first to end: its threads ask for what is coming as long as they live
    bool once = true;
    for (int job = 0; job < 3000; ++job) {
      pool.expect(job % 2 ? &coming : nullptr, job % 3 ? &coming : nullptr);
      const std::size_t count = std::size_t(job % 37);
      pool.run([](void* data, std::size_t i) { ++(*static_cast<std::vector<std::atomic<int>>*>(data))[i]; }, count, &done);
      for (std::size_t i = 0; i < count; ++i) once = done[i].exchange(0) == 1 && once;
      if (job % 500 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));  // the workers fall asleep
    }
    expect(once, "each piece of 3,000 jobs is done once, threads " + std::to_string(threads));
  }
}

void what_is_coming_is_asked_for_piece_by_piece() {
  const std::vector<char> memory(70000);
  Coming coming;
  coming.add(memory.data(), 65536);
  coming.add(memory.data(), 1600);
  for (const Pieces& pieces : {Pieces::even(16), Pieces::tapering(6, 2), Pieces::tapering(3, 5)}) {
    std::size_t all = 0;
    for (int64_t piece = 0; piece < pieces.count(); ++piece) {
      std::size_t at = 0;
      for (std::size_t now; (now = coming.ask(pieces, piece, at)) != at;) at = now;
      all += at;
    }
    expect(all == 65536 + 1600, "all pieces of two ranges, to their ends");
  }
  expect(Coming().ask(Pieces::even(16), 0, 0) == 0, "of nothing, nothing");
}

void pieces_follow_each_other_and_taper_toward_where_threads_meet() {
  for (const int64_t threads : {1, 2, 3, 4, 8})
    for (const int64_t total : {1, 30, 1000, 1 << 20}) {
      const Pieces pieces = Pieces::tapering(6, threads);
      bool ordered = pieces.start(0, total) == 0 && pieces.start(pieces.count(), total) == total;
      for (int64_t i = 0; i < pieces.count(); ++i) ordered = ordered && pieces.start(i, total) <= pieces.start(i + 1, total);
      expect(ordered, "from 0 to their end, threads " + std::to_string(threads));
      const auto length = [&](int64_t i) { return pieces.start(i + 1, total) - pieces.start(i, total); };
      if (total < 1000) continue;
      expect(length(0) > 3 * length(5), "the caller's first is longer than its last");
      expect(threads == 1 || length(pieces.count() - 1) > 3 * length(6), "those of the others, too");
      expect(pieces.start(6, total) == int64_t(double(total) / double(threads) + 0.5), "each thread has an even part");
    }
}

void callers_do_not_wait_for_each_other() {
  ThreadPool pool(3);
  std::atomic<int64_t> sum{0};
  struct Job {
    ThreadPool* pool;
    std::atomic<int64_t>* sum;
  } job = {&pool, &sum};
  const auto nested = [](void* data, std::size_t) {
    const Job* j = static_cast<Job*>(data);
    j->pool->run([](void* inner, std::size_t i) { *static_cast<Job*>(inner)->sum += int64_t(i); }, 10, data);
  };
  const auto call = [&] {
    for (int i = 0; i < 200; ++i) pool.run(nested, 7, &job);
  };
  std::thread other(call);
  call();
  other.join();
  expect(sum == 2 * 200 * 7 * 45, "two callers whose pieces call again");
}

// ---- memory of intermediate tensors

void memory_stays_for_the_next_run_that_uses_it() {
  constexpr std::size_t kLarge = 4 << 20, kSmall = 1000;
  Arena arena;
  void *large = arena.take(kLarge), *small = arena.take(kSmall);
  arena.rest();
  expect(arena.take(kLarge) == large && arena.take(kSmall) == small, "the next piece of a prompt has the same memory");
  arena.give(large);
  expect(arena.take(kLarge - 1) == large, "what was given back in a run is taken again in it");
  arena.rest();
  expect(arena.take(kSmall) == small && arena.take(kSmall) != large, "a small tensor takes no large block");
  expect(arena.bytes() > kLarge, "which is there until the run ends that did not use it");
  arena.rest();
  expect(arena.bytes() < kLarge, "and goes then");
}

// ---- standard operators

struct Made {
  Tensor tensor;  // output 0
  std::vector<char> memory;
  std::map<std::size_t, Made> others;
};

// The node `op` with `outputs` outputs, run by `threads` threads.
Fault apply(const char* op, std::vector<const Tensor*> inputs, std::map<std::string, int64_t> attributes, Made* made,
            std::size_t outputs = 1, int threads = 1) {
  Node node;
  node.op = op;
  node.outputs.resize(outputs, "y");
  for (const auto& [name, value] : attributes) {
    Attribute& attribute = node.attributes[name];
    attribute.integer = value;
    attribute.has_integer = true;
    attribute.number = 1e-5f * float(value);  // epsilon, in units of 1e-5
    attribute.has_number = true;
    if (name == "approximate") attribute.text = value ? "tanh" : "none";
  }
  made->others.clear();
  const OutputMaker output = {made, [](void* owner, std::size_t index, int element, const std::vector<int64_t>& shape,
                                       Fault* wrong) -> Tensor* {
                                Made* to = static_cast<Made*>(owner);
                                if (index) to = &to->others[index];
                                std::size_t size = 0;
                                if (!count_bytes(element, shape, &size)) return *wrong = fault("too large"), nullptr;
                                to->memory.resize(size + 1);
                                to->tensor.element = element;
                                to->tensor.shape = shape;
                                to->tensor.data = to->memory.data();
                                return &to->tensor;
                              }};
  ThreadPool pool(threads);
  const bool skips = !std::strncmp(op, "Skip", 4);
  return standard_op(skips ? "com.microsoft" : "", op)->run({node, inputs, output, pool.view()});
}

std::vector<int64_t> integers(const Made& made) {
  std::size_t count = 0;
  count_elements(made.tensor.shape, &count);
  std::vector<int64_t> all;
  for (std::size_t i = 0; i < count; ++i)
    all.push_back(made.tensor.element == ort::kInt64 ? made.tensor.as<const int64_t>()[i] : made.tensor.as<const int32_t>()[i]);
  return all;
}

using Integers = std::vector<int64_t>;

void standard_operators() {
  Integers grid = {0, 1, 2, 3, 4, 5}, pick = {-1, 0}, one = {1}, three = {3}, minus = {-1}, huge = {int64_t{1} << 40};
  const Tensor x = tensor(ort::kInt64, {2, 3}, grid), indices = tensor(ort::kInt64, {2}, pick), column = tensor(ort::kInt64, {1}, one);
  const Tensor scalar = tensor(ort::kInt64, {}, three), last = tensor(ort::kInt64, {}, minus), wide = tensor(ort::kInt64, {1}, huge);
  Integers zero = {0}, two_one = {2, 1}, vast = {int64_t{1} << 40, int64_t{1} << 40};
  const Tensor zeroth = tensor(ort::kInt64, {1}, zero), indices_2 = tensor(ort::kInt64, {2}, two_one), wide_2 = tensor(ort::kInt64, {2}, vast);
  Made made;
  expect(!apply("Gather", {&x, &indices}, {{"axis", 1}}, &made) && made.tensor.shape == Integers{2, 2} && integers(made) == Integers{2, 0, 5, 3},
         "Gather along the last axis, from the end");
  expect(!apply("Gather", {&x, &last}, {}, &made) && made.tensor.shape == Integers{3} && integers(made) == Integers{3, 4, 5},
         "Gather by a scalar drops the axis");
  expect(bool(apply("Gather", {&x, &scalar}, {{"axis", 1}}, &made)), "Gather beyond the end");
  expect(bool(apply("Gather", {&x, &last}, {{"axis", 2}}, &made)), "Gather along an axis that is not there");
  expect(!apply("ReduceSum", {&x, &column}, {{"keepdims", 1}}, &made) && made.tensor.shape == Integers{2, 1} && integers(made) == Integers{3, 12},
         "ReduceSum keeps the dimension");
  expect(!apply("ReduceSum", {&x, &column}, {{"keepdims", 0}}, &made) && made.tensor.shape == Integers{2}, "ReduceSum drops it");
  expect(bool(apply("ReduceSum", {&x, &wide}, {}, &made)), "ReduceSum over an axis that is not there");
  expect(!apply("Sub", {&x, &scalar}, {}, &made) && integers(made) == Integers{-3, -2, -1, 0, 1, 2}, "Sub of a scalar");
  expect(!apply("Sub", {&scalar, &x}, {}, &made) && integers(made) == Integers{3, 2, 1, 0, -1, -2}, "Sub from a scalar");
  expect(!apply("Sub", {&x, &x}, {}, &made) && integers(made) == Integers(6, 0), "Sub of equal shapes");
  expect(bool(apply("Sub", {&x, &indices}, {}, &made)), "Sub of shapes that do not fit");
  Integers pair = {10, 20};
  const Tensor of_rows = tensor(ort::kInt64, {2, 1}, pair);
  expect(!apply("Add", {&x, &of_rows}, {}, &made) && integers(made) == Integers{10, 11, 12, 23, 24, 25}, "Add of one a row");
  Integers four = {4}, eleven = {11}, two = {2};
  const Tensor from = tensor(ort::kInt64, {}, four), to = tensor(ort::kInt64, {}, eleven), by = tensor(ort::kInt64, {}, two);
  expect(!apply("Range", {&from, &to, &by}, {}, &made) && integers(made) == Integers{4, 6, 8, 10}, "Range");
  expect(!apply("Range", {&to, &from, &by}, {}, &made) && integers(made).empty(), "Range of nothing");
  expect(bool(apply("Range", {&from, &to, &last}, {}, &made)) && bool(apply("Range", {&from, &x, &by}, {}, &made)) &&
             bool(apply("Range", {&from, &wide, &by}, {}, &made)),
         "Range downwards, to several, to where there is no memory for it");
  expect(!apply("Add", {&x, &scalar}, {}, &made) && integers(made) == Integers{3, 4, 5, 6, 7, 8}, "Add of a scalar");
  expect(bool(apply("Add", {&x, &indices}, {}, &made)), "Add of shapes that do not fit");
  expect(!apply("Expand", {&column, &indices_2}, {}, &made) && made.tensor.shape == Integers{2, 1} && integers(made) == Integers{1, 1}, "Expand of one");
  expect(bool(apply("Expand", {&x, &indices_2}, {}, &made)) && bool(apply("Expand", {&column, &indices}, {}, &made)) &&
             bool(apply("Expand", {&column, &wide_2}, {}, &made)),
         "Expand of several, to a negative shape, to more than there is memory for");
  expect(!apply("Squeeze", {&column, &zeroth}, {}, &made) && made.tensor.shape.empty() && integers(made) == Integers{1}, "Squeeze to a scalar");
  expect(bool(apply("Squeeze", {&x, &zeroth}, {}, &made)) && bool(apply("Squeeze", {&column, &column}, {}, &made)), "Squeeze of what is longer, or not there");
  expect(!apply("Cast", {&x}, {{"to", 6}}, &made) && made.tensor.element == ort::kInt32 && integers(made) == grid, "Cast to 32 bits");
  expect(bool(apply("Cast", {&x}, {{"to", 1}}, &made)), "Cast to what is not known");
  expect(!apply("Shape", {&x}, {}, &made) && integers(made) == Integers{2, 3}, "Shape");
  expect(!apply("Shape", {&x}, {{"start", -1}}, &made) && integers(made) == Integers{3}, "Shape from the last dimension on");
  expect(!apply("Shape", {&x}, {{"start", 2}, {"end", -9}}, &made) && made.tensor.shape == Integers{0}, "Shape of nothing");
  expect(bool(apply("Sub", {&x}, {}, &made)) && bool(apply("Cast", {}, {}, &made)), "inputs that are missing");
}

using Numbers = std::vector<float>;

Numbers numbers(const Tensor& made) {
  std::size_t count = 0;
  count_elements(made.shape, &count);
  return Numbers(made.as<const float>(), made.as<const float>() + count);
}

Numbers random_numbers(Random& random, std::size_t count, double scale = 1) {
  Numbers all(count);
  for (float& one : all) one = float(scale * (double(random.below(20001)) / 10000 - 1));
  return all;
}

void operators_that_lay_tensors_out() {
  Random random(3);
  Numbers grid = random_numbers(random, 24);
  const Tensor x = tensor(ort::kFloat, {2, 3, 4}, grid);
  Made made, parts;
  expect(!apply("Identity", {&x}, {}, &made) && made.tensor.shape == x.shape && numbers(made.tensor) == grid, "Identity");
  const auto reshaped = [&](Integers wanted, Integers shape, int64_t allow = 0) {
    const Tensor to = tensor(ort::kInt64, {int64_t(wanted.size())}, wanted);
    const Fault wrong = apply("Reshape", {&x, &to}, {{"allowzero", allow}}, &made);
    return shape.empty() ? bool(wrong) : !wrong && made.tensor.shape == shape && numbers(made.tensor) == grid;
  };
  expect(reshaped({0, -1}, {2, 12}) && reshaped({0, 0, 2, -1}, {2, 3, 2, 2}) && reshaped({24}, {24}), "Reshape");
  expect(reshaped({5, -1}, {}) && reshaped({-1, -1}, {}) && reshaped({-2, 12}, {}) && reshaped({2, 3, 4, 0}, {}) &&
             reshaped({0, -1}, {}, 1) && reshaped({int64_t{1} << 40, int64_t{1} << 40}, {}),
         "Reshape to what has other entries");
  for (const int threads : {1, 3})
    for (const int64_t axis : {0, 1, 2, -1}) {
      const auto at = std::size_t(axis < 0 ? axis + 3 : axis);
      Integers sizes = {x.shape[at] - 1, 0, 1};
      const Tensor of_sizes = tensor(ort::kInt64, {3}, sizes);
      expect(!apply("Split", {&x, &of_sizes}, {{"axis", axis}}, &parts, 3, threads), "Split");
      expect(parts.tensor.shape[at] == sizes[0] && parts.others[1].tensor.shape[at] == 0, "Split by sizes");
      expect(!apply("Concat", {&parts.tensor, &parts.others[1].tensor, &parts.others[2].tensor}, {{"axis", axis}}, &made, 1, threads) &&
                 made.tensor.shape == x.shape && numbers(made.tensor) == grid,
             "Concat of what was split");
    }
  expect(!apply("Split", {&x}, {{"axis", 1}}, &parts, 2) && parts.tensor.shape == Integers{2, 2, 4} &&
             parts.others[1].tensor.shape == Integers{2, 1, 4} && numbers(parts.others[1].tensor)[0] == grid[8],
         "Split evenly, the last part shorter");
  Integers more = {2, 2}, less = {-1, 4}, odd = {1, 1};
  for (Integers* sizes : {&more, &less, &odd}) {
    const Tensor of_sizes = tensor(ort::kInt64, {2}, *sizes);
    expect(bool(apply("Split", {&x, &of_sizes}, {{"axis", 1}}, &parts, 2)), "Split by sizes that do not add up");
    expect(bool(apply("Split", {&x, &of_sizes}, {{"axis", 1}}, &parts, 3)), "Split into more than there are sizes");
  }
  expect(bool(apply("Split", {&x}, {{"axis", 3}}, &parts, 2)) && bool(apply("Concat", {&x, &x}, {{"axis", -4}}, &made)), "no such axis");
  const Tensor flat = tensor(ort::kFloat, {24}, grid);
  expect(bool(apply("Concat", {&x, &flat}, {{"axis", 0}}, &made)) && bool(apply("Concat", {&x, nullptr}, {{"axis", 0}}, &made)),
         "Concat of what does not fit, or is not there");
}

void functions_of_entries() {
  Random random(4);
  Numbers many = random_numbers(random, 5 * 7000, 3), row = random_numbers(random, 7000), column = random_numbers(random, 5), lone = {2.5f};
  for (Numbers* divisors : {&many, &row, &column})
    for (float& one : *divisors) one += one < 0 ? -0.5f : 0.5f;
  const Tensor x = tensor(ort::kFloat, {5, 1, 7000}, many), of_row = tensor(ort::kFloat, {7000}, row);
  const Tensor of_column = tensor(ort::kFloat, {5, 1, 1}, column), single = tensor(ort::kFloat, {}, lone);
  struct Two {
    const char* name;
    double (*f)(double, double);
  };
  const Two twos[] = {{"Add", [](double a, double b) { return a + b; }}, {"Sub", [](double a, double b) { return a - b; }},
                      {"Mul", [](double a, double b) { return a * b; }}, {"Div", [](double a, double b) { return a / b; }},
                      {"Max", [](double a, double b) { return a > b ? a : b; }}};
  struct With {
    const Tensor* b;
    std::size_t row_step, column_step;
  };
  Made made;
  for (const int threads : {1, 3})
    for (const Two& two : twos)
      for (const With& with : {With{&x, 7000, 1}, With{&of_row, 0, 1}, With{&of_column, 1, 0}, With{&single, 0, 0}})
        for (const bool swapped : {false, true}) {
          const Fault wrong = swapped ? apply(two.name, {with.b, &x}, {}, &made, 1, threads) : apply(two.name, {&x, with.b}, {}, &made, 1, threads);
          double worst = 0;
          for (std::size_t r = 0; r < 5; ++r)
            for (std::size_t i = 0; i < 7000; ++i) {
              const double a = double(many[r * 7000 + i]), b = double(with.b->as<const float>()[r * with.row_step + i * with.column_step]);
              const double expected = swapped ? two.f(b, a) : two.f(a, b);
              worst = std::max(worst, std::fabs(expected - double(made.tensor.as<const float>()[r * 7000 + i])) / (1 + std::fabs(expected)));
            }
          expect(!wrong && made.tensor.shape == x.shape && worst < 1e-6, std::string(two.name) + ", off by " + std::to_string(worst));
        }
  Numbers few = {1, 2, 3}, two_by_one = {10, 20};
  const Tensor across = tensor(ort::kFloat, {1, 3}, few), down = tensor(ort::kFloat, {2, 1}, two_by_one);
  expect(!apply("Add", {&across, &down}, {}, &made) && made.tensor.shape == Integers{2, 3} && numbers(made.tensor) == Numbers{11, 12, 13, 21, 22, 23},
         "shapes that spread over each other");
  expect(bool(apply("Mul", {&x, &across}, {}, &made)) && bool(apply("Mul", {&x}, {}, &made)), "shapes that do not fit, and no operand");

  Numbers wide = random_numbers(random, 40003, 12);
  wide[0] = 0, wide[1] = 1e-6f, wide[2] = -100, wide[3] = 100;
  const Tensor of_wide = tensor(ort::kFloat, {40003}, wide);
  struct One {
    const char* name;
    int64_t by_tanh;
    double (*f)(double);
    double allowed;
  };
  const One ones[] = {
      {"Relu", 0, [](double v) { return v > 0 ? v : 0; }, 0},
      {"Sigmoid", 0, [](double v) { return 1 / (1 + std::exp(-v)); }, 3e-7},
      {"Tanh", 0, [](double v) { return std::tanh(v); }, 3e-7},
      {"Gelu", 0, [](double v) { return 0.5 * v * (1 + std::erf(v / std::sqrt(2.0))); }, 1e-6},
      {"Gelu", 1, [](double v) { return 0.5 * v * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v))); }, 1e-6},
  };
  for (const One& one : ones) {
    const Fault wrong = apply(one.name, {&of_wide}, {{"approximate", one.by_tanh}}, &made, 1, 3);
    double worst = 0;
    for (std::size_t i = 0; i < wide.size(); ++i)
      worst = std::max(worst, std::fabs(one.f(double(wide[i])) - double(made.tensor.as<const float>()[i])));
    expect(!wrong && worst <= one.allowed, std::string(one.name) + ", off by " + std::to_string(1e6 * worst) + "e-6");
  }
}

// Rows of `width` of x brought to one size, in double.
std::vector<double> normed(const std::vector<double>& x, std::size_t width, const Numbers& weight, const Numbers& bias, bool centered,
                           double epsilon) {
  std::vector<double> y(x.size());
  for (std::size_t row = 0; row < x.size(); row += width) {
    double mean = 0, square = 0;
    for (std::size_t i = 0; centered && i < width; ++i) mean += x[row + i] / double(width);
    for (std::size_t i = 0; i < width; ++i) square += (x[row + i] - mean) * (x[row + i] - mean) / double(width);
    for (std::size_t i = 0; i < width; ++i)
      y[row + i] = (x[row + i] - mean) / std::sqrt(square + epsilon) * double(weight[i]) + (bias.empty() ? 0 : double(bias[i]));
  }
  return y;
}

double farthest(const std::vector<double>& expected, const Tensor& found) {
  double worst = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) worst = std::max(worst, std::fabs(expected[i] - double(found.as<const float>()[i])));
  return worst;
}

void norms_of_rows() {
  Random random(6);
  for (const std::size_t width : {1, 15, 64, 1003}) {
    const auto size = int64_t(width);
    Numbers x = random_numbers(random, 6 * width), skip = random_numbers(random, 3 * width), weight = random_numbers(random, width),
            bias = random_numbers(random, width), more = random_numbers(random, width);
    for (float& one : x) one += 3;  // a mean to take off
    const Tensor of_x = tensor(ort::kFloat, {2, 3, size}, x), of_skip = tensor(ort::kFloat, {3, size}, skip);
    const Tensor of_weight = tensor(ort::kFloat, {size}, weight), of_bias = tensor(ort::kFloat, {size}, bias), of_more = tensor(ort::kFloat, {size}, more);
    const std::vector<double> plain(x.begin(), x.end());
    std::vector<double> sum = plain, sum_more = plain;
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += double(skip[i % (3 * width)]), sum_more[i] = sum[i] + double(more[i % width]);
    Made made;
    expect(!apply("RMSNormalization", {&of_x, &of_weight}, {{"axis", -1}, {"epsilon", 2}}, &made, 1, 3) &&
               farthest(normed(plain, width, weight, {}, false, 2e-5), made.tensor) < 1e-5,
           "RMSNormalization");
    expect(!apply("LayerNormalization", {&of_x, &of_weight, &of_bias}, {}, &made, 1, 3) &&
               farthest(normed(plain, width, weight, bias, true, 1e-5), made.tensor) < 3e-5,
           "LayerNormalization with its usual epsilon");
    expect(!apply("LayerNormalization", {&of_x, &of_weight}, {{"epsilon", 100}}, &made) &&
               farthest(normed(plain, width, weight, {}, true, 1e-3), made.tensor) < 3e-5,
           "LayerNormalization without a bias");
    expect(!apply("SkipSimplifiedLayerNormalization", {&of_x, &of_skip, &of_weight}, {{"epsilon", 1}}, &made, 4, 3) &&
               farthest(normed(sum, width, weight, {}, false, 1e-5), made.tensor) < 1e-5 && farthest(sum, made.others[3].tensor) < 1e-6,
           "SkipSimplifiedLayerNormalization, and the sum");
    expect(!apply("SkipLayerNormalization", {&of_x, &of_skip, &of_weight, &of_bias, &of_more}, {{"epsilon", 100}}, &made, 4) &&
               farthest(normed(sum_more, width, weight, bias, true, 1e-3), made.tensor) < 3e-5 && farthest(sum_more, made.others[3].tensor) < 1e-6,
           "SkipLayerNormalization with both biases");
    if (width == 1) continue;
    Numbers short_one(width - 1);
    const Tensor of_short = tensor(ort::kFloat, {size - 1}, short_one);
    expect(bool(apply("RMSNormalization", {&of_x, &of_short}, {}, &made)) && bool(apply("LayerNormalization", {&of_x, &of_weight, &of_short}, {}, &made)) &&
               bool(apply("SkipLayerNormalization", {&of_x, &of_short, &of_weight}, {}, &made, 4)) &&
               bool(apply("SkipLayerNormalization", {&of_skip, &of_x, &of_weight}, {}, &made, 4)) &&
               bool(apply("RMSNormalization", {&of_x, &of_weight}, {{"axis", 1}}, &made)) && bool(apply("RMSNormalization", {&of_x}, {}, &made)),
           "weights, skips and axes that do not fit");
  }
}

// ---- graphs

std::string refusal(const std::string& model, std::map<std::string, Bytes> files, bool operators = true) {
  Program program;
  Fault wrong = program.file().read(bytes_of(model), std::move(files));
  if (!wrong) wrong = program.make(1, operators);
  return wrong.text;
}

void small_graph() {
  Random random(7);
  const SmallGraph small(random);
  Program program;
  const std::string model = small.graph.text();
  Fault wrong = program.file().read(bytes_of(model), small.files());
  if (!wrong) wrong = program.make(2, true);
  expect(!wrong, std::string("a small graph loads: ") + wrong.text);
  if (wrong) return;
  for (const int64_t tokens : {1, 3, 9}) {
    Integers ids, mask(std::size_t(tokens + 2), 1);
    for (int64_t i = 0; i < tokens; ++i) ids.push_back(random.below(SmallGraph::kVocabulary));
    Tensor id_tensor = tensor(ort::kInt64, {1, tokens}, ids), mask_tensor = tensor(ort::kInt64, {1, tokens + 2}, mask);
    std::vector<Program::Named> outputs = {{"logits", nullptr}, {"lengths", nullptr}, {"total", nullptr}};
    const std::atomic<bool> on{false};
    wrong = program.run({{"ids", &id_tensor}, {"mask", &mask_tensor}}, &outputs, on);
    expect(!wrong, std::string("a small graph runs: ") + wrong.text);
    if (wrong) return;
    double worst = 0;
    for (int64_t n = 0; n < SmallGraph::kOutputs; ++n) {
      double sum = 0;
      for (int64_t k = 0; k < SmallGraph::kWidth; ++k)
        sum += small.embedding.weights[std::size_t(ids.back() * SmallGraph::kWidth + k)] * small.head.weights[std::size_t(n * SmallGraph::kWidth + k)];
      worst = std::max(worst, std::fabs(sum - double(outputs[0].tensor->as<float>()[n])));
    }
    expect(worst < 1e-5, "logits of the last position, off by " + std::to_string(worst));
    expect(outputs[1].tensor->as<int32_t>()[0] == tokens + 1 && outputs[2].tensor->as<int64_t>()[0] == tokens + 2, "sums over the mask");
    for (const Program::Named& output : outputs) delete output.tensor;
    std::vector<Program::Named> total = {{"total", nullptr}};
    wrong = program.run({{"ids", &id_tensor}, {"mask", &mask_tensor}}, &total, on);
    expect(!wrong && total[0].tensor->as<int64_t>()[0] == tokens + 2, "one output alone");
    delete total[0].tensor;
    ids[0] = SmallGraph::kVocabulary;
    expect(!program.run({{"ids", &id_tensor}, {"mask", &mask_tensor}}, &(total = {{"total", nullptr}}), on),
           "what it does not need is not run: a token that is none stays unseen");
    delete total[0].tensor;
    std::vector<Program::Named> logits = {{"logits", nullptr}};
    expect(bool(program.run({{"ids", &id_tensor}, {"mask", &mask_tensor}}, &logits, on)), "which else is refused");
    const std::atomic<bool> off{true};
    std::vector<Program::Named> none;
    expect(std::string(program.run({{"ids", &id_tensor}, {"mask", &mask_tensor}}, &none, off).text) == "stopped", "a run that is told to stop");
    expect(bool(program.run({{"ids", &id_tensor}}, &none, on)), "a run without one of its inputs");
    expect(bool(program.run({{"ids", &id_tensor}, {"mask", &id_tensor}, {"none", &id_tensor}}, &(none = {{"none", nullptr}}), on)),
           "a run for an output that is not there");
  }
}

void standard_operators_run_in_a_graph() {
  Random random(9);
  SmallGraph small(random);
  small.add_standard();
  Program program;
  const std::string model = small.graph.text();
  Fault wrong = program.file().read(bytes_of(model), small.files());
  if (!wrong) wrong = program.make(2, true);
  Integers ids = {1, 2, 3}, mask = {1, 1, 1};
  Tensor id_tensor = tensor(ort::kInt64, {1, 3}, ids), mask_tensor = tensor(ort::kInt64, {1, 3}, mask);
  std::vector<Program::Named> outputs = {{"normed", nullptr}, {"steps", nullptr}};
  const std::atomic<bool> on{false};
  if (!wrong) wrong = program.run({{"ids", &id_tensor}, {"mask", &mask_tensor}}, &outputs, on);
  expect(!wrong, std::string("a graph of standard operators: ") + wrong.text);
  if (wrong) return;
  expect(outputs[0].tensor->shape == Integers{1, 3, SmallGraph::kWidth} && outputs[1].tensor->shape == Integers{5}, "their shapes");
  const Numbers normed_rows = numbers(*outputs[0].tensor);
  double worst = 0;
  for (std::size_t row = 0; row < 3; ++row) {
    double sum = 0;  // weight and bias are 1.25: the mean of a row is its bias
    for (std::size_t i = 0; i < std::size_t(SmallGraph::kWidth); ++i) sum += double(normed_rows[row * std::size_t(SmallGraph::kWidth) + i]);
    worst = std::max(worst, std::fabs(sum / double(SmallGraph::kWidth) - 1.25));
  }
  expect(worst < 1e-5, "the mean of each row");
  for (const Program::Named& output : outputs) delete output.tensor;
}

// ---- token reduction

using Outputs = std::vector<Program::Named>;

// Runs a small graph with reduction on `tokens` tokens; the outputs are the caller's.
Fault reduce(SmallGraph& small, int64_t tokens, Outputs* outputs) {
  Program program;
  const std::string model = small.graph.text();
  Fault wrong = program.file().read(bytes_of(model), small.files());
  if (!wrong) wrong = program.make(2, true);
  Integers ids, mask(std::size_t(tokens), 1);
  for (int64_t i = 0; i < tokens; ++i) ids.push_back(i * i % SmallGraph::kVocabulary);
  Tensor id_tensor = tensor(ort::kInt64, {1, tokens}, ids), mask_tensor = tensor(ort::kInt64, {1, tokens}, mask);
  const std::atomic<bool> on{false};
  return wrong ? wrong : program.run({{"ids", &id_tensor}, {"mask", &mask_tensor}}, outputs, on);
}

void steps_of_every_method_leave_as_many_tokens_as_planned() {
  for (const char* method : {"utrc", "evit", "pumer", "ltmp", "random", "truncate", "official-code"}) {
    Random random(5);
    SmallGraph small(random);
    small.add_reduction(9, method);
    Outputs outputs = {{"left", nullptr}, {"summed", nullptr}, {"left_too", nullptr}, {"summed_too", nullptr}};
    const Fault wrong = reduce(small, 9, &outputs);
    expect(!wrong, std::string(method) + ": " + wrong.text);
    if (wrong) continue;
    const Integers shapes[] = {{1, 6}, {1, 6, SmallGraph::kWidth}, {1, 8}, {1, 8, SmallGraph::kWidth}};  // 9 - 3, 9 - 1
    for (int i = 0; i < 4; ++i) expect(outputs[std::size_t(i)].tensor->shape == shapes[i], std::string(method) + ": a shape");
    const int64_t* left = outputs[0].tensor->as<const int64_t>();
    expect(std::is_sorted(left, left + 6) && left[5] == 8, std::string(method) + ": positions ascend, the last one is protected");
    for (const Program::Named& output : outputs) delete output.tensor;
  }
}

void the_least_important_tokens_go() {
  Random random(5);
  SmallGraph small(random);
  small.add_reduction(9, "evit");
  Outputs outputs = {{"left", nullptr}, {"summed", nullptr}};
  const Fault wrong = reduce(small, 9, &outputs);
  expect(!wrong, wrong.text);
  if (wrong) return;
  const auto entry = [&](int64_t n, int64_t i) { return double(small.embedding.weights[std::size_t(n * n % SmallGraph::kVocabulary * SmallGraph::kWidth + i)]); };
  std::vector<std::pair<double, int64_t>> ranked;
  for (int64_t n = 0; n < 8; ++n) {
    double sum = 0;
    for (int64_t i = 0; i < SmallGraph::kWidth; ++i) sum += std::max(0.0, entry(n, i));
    ranked.push_back({sum, n});
  }
  std::sort(ranked.begin(), ranked.end());
  Integers left = {8};
  for (std::size_t i = 3; i < ranked.size(); ++i) left.push_back(ranked[i].second);
  std::sort(left.begin(), left.end());
  double worst = 0;
  for (std::size_t k = 0; k < left.size(); ++k) {
    expect(outputs[0].tensor->as<const int64_t>()[k] == left[k], "the position of a token left");
    for (int64_t i = 0; i < SmallGraph::kWidth; ++i)
      worst = std::max(worst, std::fabs(2 * entry(left[k], i) - double(outputs[1].tensor->as<const float>()[int64_t(k) * SmallGraph::kWidth + i])));
  }
  expect(worst < 1e-6, "rows of the tokens left are the sum of both branches");
  for (const Program::Named& output : outputs) delete output.tensor;
}

void reductions_that_cannot_be_are_refused() {
  const auto refused = [&](const char* with, auto change) {
    Random random(5);
    SmallGraph small(random);
    small.add_reduction(9, "utrc");
    const std::size_t plan = small.graph.nodes.size() - 3;
    change(small.graph, small.graph.nodes[plan], small.graph.nodes[plan + 1], small.graph.nodes[plan + 2]);
    Outputs outputs = {{"left", nullptr}, {"left_too", nullptr}};
    const std::string said = reduce(small, 9, &outputs).text;
    expect(said.find(with) != std::string::npos, std::string("reduction, ") + with + ": " + said);
    for (const Program::Named& output : outputs) delete output.tensor;
  };
  using Node = tests::NodeSpec;
  refused("attribute method", [](GraphSpec&, Node&, Node& step, Node&) { step.attributes.push_back(attribute("method", std::string("guess"))); });
  refused("no entry for this step", [](GraphSpec&, Node&, Node& step, Node&) { step.attributes.push_back(attribute("step", int64_t{2})); });
  refused("cannot be removed", [](GraphSpec&, Node&, Node& step, Node&) { step.attributes.push_back(attribute("protect_last", int64_t{5})); });
  refused("one entry a token", [](GraphSpec&, Node&, Node& step, Node&) { step.inputs[3] = "removed"; });
  refused("y must have one row", [](GraphSpec&, Node&, Node& step, Node&) { step.inputs[4] = ""; });
  refused("needs a residual", [](GraphSpec&, Node&, Node& step, Node&) { step.inputs[1] = ""; });
  refused("widths that the heads say", [](GraphSpec&, Node&, Node&, Node& step) { step.attributes.push_back(attribute("head_size", int64_t{5})); });
  refused("keys of these tokens", [](GraphSpec&, Node&, Node&, Node& step) { step.inputs[7] = "angles"; });
  refused("half a head wide", [](GraphSpec&, Node&, Node&, Node& step) { step.inputs[8] = "keys"; });
  refused("another type", [](GraphSpec&, Node&, Node&, Node& step) { step.inputs[2] = "x"; });
  refused("ratios must be", [](GraphSpec& g, Node&, Node&, Node&) {
    const int64_t ratios[] = {-1, 2};
    for (tests::TensorSpec& t : g.initializers)
      if (t.name == "ratios") t.raw = SmallGraph::raw(ratios, sizeof ratios);
  });
  refused("must count the tokens before", [](GraphSpec& g, Node& plan, Node&, Node&) {
    plan.inputs.push_back("short");
    g.initializers.push_back({"short", 7, {1, 1}, std::string(8, '\1'), "", 0, 0});
  });
}

void refusals() {
  Random random(3);
  const SmallGraph whole(random);
  const auto refused = [&](const char* what, const char* with, auto change) {
    SmallGraph small = whole;
    change(small.graph);
    const std::string said = refusal(small.graph.text(), small.files());
    expect(said.find(with) != std::string::npos, std::string(what) + ": " + said);
  };
  expect(refusal(whole.graph.text(), whole.files()).empty(), "the graph as it is");
  SmallGraph bent = whole;
  bent.graph.nodes[1].attributes.push_back(attribute("function", std::string("gelu_tanh")));
  expect(refusal(bent.graph.text(), bent.files()).empty(), "a function of x");
  expect(refusal(whole.graph.text(), whole.files(), false).find("only ONNX Runtime") != std::string::npos, "operators that are not wanted");
  refused("another operator", "only ONNX Runtime", [](GraphSpec& g) { g.nodes[2].op = "Softmax"; });
  refused("another domain", "only ONNX Runtime", [](GraphSpec& g) { g.nodes[1].domain = "com.microsoft"; });
  refused("an old operator set", "older than 13", [](GraphSpec& g) { g.opset = 12; });
  refused("an input that nothing makes", "nothing makes", [](GraphSpec& g) { g.nodes[1].inputs[0] = "nobody"; });
  refused("nodes in another order", "nothing makes", [](GraphSpec& g) { std::swap(g.nodes[0], g.nodes[1]); });
  refused("an output made twice", "made twice", [](GraphSpec& g) { g.nodes[2].outputs[0] = "y"; });
  refused("an output that nothing makes", "no operator makes", [](GraphSpec& g) { g.outputs[0].name = "ids"; });
  refused("too many inputs", "number of inputs", [](GraphSpec& g) { g.nodes[5].inputs.push_back("ids"); });
  refused("weights beyond the file", "beyond the end", [](GraphSpec& g) { g.initializers[0].offset = 1 << 30; });
  refused("weights that wrap around", "no number", [](GraphSpec& g) { g.initializers[0].offset = -64; });
  refused("weights of another length", "should have", [](GraphSpec& g) { g.initializers[0].length -= 4; });
  refused("weights outside the folder", "outside", [](GraphSpec& g) { g.initializers[0].location = "../weights"; });
  refused("weights in no file", "missing", [](GraphSpec& g) { g.initializers[0].location = "other"; });
  refused("a shape that overflows", "damaged", [](GraphSpec& g) { g.initializers[0].shape = {int64_t{1} << 40, int64_t{1} << 40}; });
  refused("a negative dimension", "damaged", [](GraphSpec& g) { g.initializers[0].shape = {-4}; });
  refused("a type that is not known", "damaged", [](GraphSpec& g) { g.initializers[0].element = 11; });
  refused("an unknown function", "function must be", [](GraphSpec& g) { g.nodes[1].attributes.push_back(attribute("function", std::string("gelu_new"))); });
  refused("a long unknown function", "function must be", [](GraphSpec& g) { g.nodes[1].attributes.push_back(attribute("function", std::string(99, 'x'))); });
  refused("weights that do not fit the operator", "values", [](GraphSpec& g) { g.nodes[0].attributes[1] = attribute("n", int64_t{1} << 20); });
  const std::string text = whole.graph.text();
  bool all = true;
  for (std::size_t size = 0; size < text.size(); ++size) {
    const std::string cut = text.substr(0, size);
    all = (size == 0 || !refusal(std::string(cut.begin(), cut.end()), whole.files()).empty()) && all;
  }
  expect(all, "a graph cut off anywhere");
}

}  // namespace

int main() {
  every_piece_is_done_once();
  what_is_coming_is_asked_for_piece_by_piece();
  pieces_follow_each_other_and_taper_toward_where_threads_meet();
  callers_do_not_wait_for_each_other();
  memory_stays_for_the_next_run_that_uses_it();
  standard_operators();
  operators_that_lay_tensors_out();
  functions_of_entries();
  norms_of_rows();
  standard_operators_run_in_a_graph();
  small_graph();
  steps_of_every_method_leave_as_many_tokens_as_planned();
  the_least_important_tokens_go();
  reductions_that_cannot_be_are_refused();
  refusals();
  std::printf("%lld passed, %lld failed\n", (long long)passed, (long long)failed);
  return failed ? 1 : 0;
}
