// edgeslim::PackedGather, version 1: rows of a packed matrix, as an embedding is read.
//
// y [..., k] = W[ids [...]]
// Inputs      ids (int64), values, scales?, masks?, offsets?
// Attributes  layout, n, k, bits, group, pattern_n, pattern_m: see packed_linear/layout.h
#include "core/half.h"
#include "ort/op.h"
#include "ort/packed_input.h"
#include "packed_gather/gather.h"

namespace edgeslim::ort {
namespace {

struct PackedGather {
  static constexpr const char* kName = "PackedGather";
  static constexpr std::size_t kInputCount = 5, kOutputCount = 1;
  static ElementType input_type(std::size_t index) {
    static constexpr ElementType types[] = {kInt64, kUndefined, kUndefined, kUint8, kInt64};
    return types[index];
  }
  static bool optional(std::size_t index) { return index > 1; }
  static ElementType output_type(std::size_t) { return kFloat; }

  PackedGather(const Api* api, const KernelInfo* info, Fault* wrong) : runtime(api) {
    *wrong = read_packed(runtime, info, 1, &w);
  }

  Fault compute(KernelContext* context) const {
    Fault wrong;
    const Tensor ids = runtime.input(context, 0, &wrong);
    if (wrong) return wrong;
    const int64_t count = ids.count();
    for (int64_t i = 0; i < count; ++i)
      if (const int64_t id = ids.as<int64_t>()[i]; id < 0 || id >= w.n)
        return fault("ids must be in [0, %lld), got %lld", (long long)w.n, (long long)id);
    std::vector<int64_t> shape = ids.shape;
    shape.push_back(w.k);
    const Tensor y = runtime.output(context, 0, shape, &wrong);
    if (wrong) return wrong;
    Runtime::Threads threads{&runtime, context};
    Runtime::pool(&threads).each(count, [&](int64_t i) {
      unpack_row(w, ids.as<int64_t>()[i], y.as<float>() + i * w.k);
    });
    return {};
  }

  Runtime runtime;
  Packed w;
};

}  // namespace

const CustomOp* packed_gather() { return op<PackedGather>(); }

}  // namespace edgeslim::ort
