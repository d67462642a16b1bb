// A graph of operators that run without ONNX Runtime: an embedding, a product, the last position, and the small sums over
// a mask that attention wants; what else is asked for beside them. For tests of it and for what damages it.
#pragma once

#include <map>

#include "builtin/protobuf.h"
#include "tests/onnx_writer.h"
#include "tests/packer.h"

namespace edgeslim::tests {

struct SmallGraph {
  static constexpr int64_t kVocabulary = 21, kWidth = 24, kOutputs = 37;
  GraphSpec graph;
  std::string data;  // of the file "weights"
  Matrix embedding, head;

  explicit SmallGraph(Random& random)
      : embedding(Packer({0, 32}, kVocabulary, kWidth, 1, random).pack()), head(Packer({1, 4, 8}, kOutputs, kWidth, 0.5, random).pack()) {
    add("embedding", embedding);
    add("head", head);
    const int64_t last = -1, zero = 0, one = 1;
    graph.initializers.push_back({"last", 7, {}, raw(&last, 8), "", 0, 0});
    graph.initializers.push_back({"axis", 7, {1}, raw(&one, 8), "", 0, 0});
    graph.nodes = {
        {"edgeslim", "PackedGather", {"ids", "embedding.values"}, {"x"}, describe(embedding)},
        {"edgeslim", "PackedLinear", {"x", "head.values", "head.scales", "head.masks", "head.offsets"}, {"y"}, describe(head)},
        {"", "Gather", {"y", "last"}, {"logits"}, {attribute("axis", int64_t{1})}},
        {"", "Constant", {}, {"one"}, {Proto().bytes(1, "value").bytes(5, TensorSpec{"", 7, {1}, raw(&one, 8), "", 0, 0}.text()).text()}},
        {"", "ReduceSum", {"mask", "axis"}, {"count"}, {attribute("keepdims", int64_t{1})}},
        {"", "Sub", {"count", "one"}, {"before"}, {}},
        {"", "Cast", {"before"}, {"lengths"}, {attribute("to", int64_t{6})}},
        {"", "Shape", {"mask"}, {"sizes"}, {attribute("start", int64_t{-1})}},
        {"", "Gather", {"sizes", "first"}, {"total"}, {attribute("axis", int64_t{0})}},
    };
    graph.initializers.push_back({"first", 7, {}, raw(&zero, 8), "", 0, 0});
    graph.inputs = {{"ids", 7, {-1, -1}}, {"mask", 7, {-1, -1}}};
    graph.outputs = {{"logits", 1, {-1, kOutputs}}, {"lengths", 6, {-1, 1}}, {"total", 7, {}}};
  }

  // Two steps of token reduction beside the rest, for `tokens` tokens of one sequence: one looks at what a scan would
  // give, one at attention of 4 heads over one of keys. Outputs: left, summed, left_too, summed_too.
  void add_reduction(int64_t tokens, const std::string& method) {
    const int64_t ratios[] = {600000, 800000};
    const float zeros[4] = {0};
    constexpr int64_t kPositions = 16, kHead = kWidth / 6;
    std::vector<float> keys(std::size_t(tokens * kHead)), angles(std::size_t(kPositions * kHead / 2));
    for (std::size_t i = 0; i < keys.size(); ++i) keys[i] = float(i % 7) - 3;
    for (std::size_t i = 0; i < angles.size(); ++i) angles[i] = float(i % 5) / 5;
    const auto floats = [](const std::vector<float>& all) { return raw(all.data(), 4 * all.size()); };
    graph.initializers.push_back({"past", 1, {1, 4}, raw(zeros, sizeof zeros), "", 0, 0});
    graph.initializers.push_back({"ratios", 7, {2}, raw(ratios, sizeof ratios), "", 0, 0});
    graph.initializers.push_back({"keys", 1, {1, 1, tokens, kHead}, floats(keys), "", 0, 0});
    graph.initializers.push_back({"angles", 1, {kPositions, kHead / 2}, floats(angles), "", 0, 0});
    const auto step = [&](int64_t number, const char* metric) {
      return std::vector<std::string>{attribute("method", method), attribute("metric", std::string(metric)), attribute("hidden", std::string("hybrid")),
                                      attribute("residual", std::string("merge")), attribute("merge", std::string("pairwise")),
                                      attribute("q_millionths", int64_t{500000}), attribute("protect_last", int64_t{1}), attribute("step", number)};
    };
    std::vector<std::string> heads = step(1, "attention");
    for (const auto& [name, value] : {std::pair{"num_heads", int64_t{4}}, {"kv_num_heads", int64_t{1}}, {"head_size", kHead}})
      heads.push_back(attribute(name, value));
    graph.nodes.push_back({"edgeslim", "PlanReduction", {"ids", "past", "ratios"}, {"removed", "positions"}, {attribute("protected", int64_t{1})}});
    graph.nodes.push_back({"edgeslim", "ReduceTokens", {"x", "x", "removed", "positions", "x"}, {"summed", "left"}, step(0, "clip")});
    graph.nodes.push_back({"edgeslim", "ReduceTokens", {"x", "x", "removed", "positions", "x", "x", "", "keys", "angles", "angles"}, {"summed_too", "left_too"}, heads});
    for (const char* name : {"summed", "summed_too"}) graph.outputs.push_back({name, 1, {-1, -1, kWidth}});
    for (const char* name : {"left", "left_too"}) graph.outputs.push_back({name, 7, {-1, -1}});
  }

  // Attention beside the rest, after add_reduction: two heads of queries over one of keys, both normed, with two tokens
  // in the cache. `mask` then has two entries more than `ids`. Output: attended.
  void add_attention() {
    constexpr int64_t kHead = kWidth / 4, kPast = 2;
    const std::vector<float> past(std::size_t(kPast * kHead), 0.5f), norm(std::size_t(2 * kHead), 1.5f);
    const auto bytes = [](const std::vector<float>& all, int64_t count) { return raw(all.data(), 4 * std::size_t(count)); };
    graph.initializers.push_back({"cache", 1, {1, 1, kPast, kHead}, bytes(past, kPast * kHead), "", 0, 0});
    graph.initializers.push_back({"query_norm", 1, {2 * kHead}, bytes(norm, 2 * kHead), "", 0, 0});
    graph.initializers.push_back({"key_norm", 1, {kHead}, bytes(norm, kHead), "", 0, 0});
    graph.nodes.push_back({"", "Cast", {"total"}, {"slots"}, {attribute("to", int64_t{6})}});
    graph.nodes.push_back({"edgeslim", "GroupQueryAttention",
                           {"x", "", "", "cache", "cache", "lengths", "slots", "angles", "angles", "", "query_norm", "key_norm"},
                           {"attended", "present_key", "present_value"},
                           {attribute("num_heads", int64_t{2}), attribute("kv_num_heads", int64_t{1}), attribute("do_rotary", int64_t{1})}});
    graph.outputs.push_back({"attended", 1, {-1, -1, 2 * kHead}});
  }

  // Functions of entries, norms and other shapes beside the rest. Output: normed.
  void add_standard() {
    constexpr int64_t kPiece = kWidth / 4;
    const std::vector<float> weights(std::size_t(kWidth), 1.25f);
    const int64_t sizes[] = {kPiece, kWidth - kPiece}, apart[] = {0, 0, -1, kPiece}, whole[] = {0, 0, kWidth}, from = 0, to = 9, by = 2;
    const auto integers = [&](const char* name, const int64_t* all, int64_t count, std::vector<int64_t> shape) {
      graph.initializers.push_back({name, 7, std::move(shape), raw(all, 8 * std::size_t(count)), "", 0, 0});
    };
    integers("part_sizes", sizes, 2, {2});
    integers("apart", apart, 4, {4});
    integers("whole", whole, 3, {3});
    integers("from", &from, 1, {});
    integers("to", &to, 1, {});
    integers("by", &by, 1, {});
    graph.initializers.push_back({"width", 1, {kWidth}, raw(weights.data(), 4 * kWidth), "", 0, 0});
    graph.initializers.push_back({"piece", 1, {kPiece}, raw(weights.data(), 4 * kPiece), "", 0, 0});
    const std::vector<std::string> last = {attribute("axis", int64_t{-1})};
    const std::vector<NodeSpec> more = {
        {"", "Split", {"x", "part_sizes"}, {"short", "long"}, last},
        {"", "Concat", {"long", "short"}, {"joined"}, last},
        {"", "Reshape", {"joined", "apart"}, {"pieces"}, {}},
        {"", "RMSNormalization", {"pieces", "piece"}, {"of_pieces"}, last},
        {"", "Reshape", {"of_pieces", "whole"}, {"flat"}, {}},
        {"", "Sigmoid", {"flat"}, {"share"}, {}},
        {"", "Mul", {"flat", "share"}, {"gated"}, {}},
        {"", "Gelu", {"gated"}, {"bent"}, {attribute("approximate", std::string("tanh"))}},
        {"", "Div", {"bent", "width"}, {"less"}, {}},
        {"", "Max", {"less", "share"}, {"most"}, {}},
        {"", "Relu", {"most"}, {"above"}, {}},
        {"", "Tanh", {"above"}, {"bounded"}, {}},
        {"com.microsoft", "SkipLayerNormalization", {"x", "bounded", "width", "width", "width"}, {"skipped", "", "", "sum"}, {}},
        {"com.microsoft", "SkipSimplifiedLayerNormalization", {"sum", "skipped", "width"}, {"simple"}, {}},
        {"", "LayerNormalization", {"simple", "width", "width"}, {"centered"}, last},
        {"", "Identity", {"centered"}, {"normed"}, {}},
        {"", "Range", {"from", "to", "by"}, {"steps"}, {}},
    };
    graph.nodes.insert(graph.nodes.end(), more.begin(), more.end());
    graph.outputs.push_back({"normed", 1, {-1, -1, kWidth}});
    graph.outputs.push_back({"steps", 7, {-1}});
  }

  static std::string raw(const void* from, std::size_t size) { return std::string(static_cast<const char*>(from), size); }

  std::map<std::string, builtin::Bytes> files() const {
    return {{"weights", {reinterpret_cast<const uint8_t*>(data.data()), data.size()}}};
  }

 private:
  static std::vector<std::string> describe(const Matrix& m) {
    const char* const layouts[] = {"dense", "bitmap", "nm"};
    std::vector<std::string> all = {attribute("layout", std::string(layouts[m.form.layout])), attribute("n", m.n), attribute("k", m.k),
                                    attribute("bits", int64_t{m.form.bits})};
    if (m.form.group) all.push_back(attribute("group", int64_t{m.form.group}));
    all.push_back(attribute("activations", std::string("float")));
    return all;
  }

  void put(const std::string& name, int element, std::vector<int64_t> shape, const std::vector<uint8_t>& bytes) {
    data.resize((data.size() + 63) / 64 * 64);
    graph.initializers.push_back({name, element, std::move(shape), "", "weights", int64_t(data.size()), int64_t(bytes.size())});
    data.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }

  void add(const std::string& name, const Matrix& m) {
    const bool single = m.form.bits == 32;
    put(name + ".values", single ? 1 : 2, {int64_t(m.values.size()) / (single ? 4 : 1)}, m.values);
    if (!m.scales.empty()) put(name + ".scales", 1, {m.tiles, m.groups, 16}, m.scales);
    if (!m.masks.empty()) put(name + ".masks", 2, {m.tiles, m.steps, 8}, m.masks);
    if (!m.offsets.empty()) put(name + ".offsets", 7, {m.tiles + 1}, m.offsets);
  }
};

}  // namespace edgeslim::tests
