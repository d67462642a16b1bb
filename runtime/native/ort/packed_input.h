// The packed matrix among an operator's inputs and attributes, checked.
#pragma once

#include "ort/kernel.h"
#include "packed_linear/layout.h"

namespace edgeslim::ort {

// Inputs first … first + 3 are values, scales, masks and offsets; those given must be constant.
inline Fault read_packed(const Runtime& runtime, const KernelInfo* info, std::size_t first, Packed* w) {
  Fault wrong;
  w->layout = runtime.says(info, "layout", "bitmap") ? Layout::bitmap
              : runtime.says(info, "layout", "nm")   ? Layout::nm
                                                     : Layout::dense;
  if (w->layout == Layout::dense && !runtime.says(info, "layout", "dense"))
    return fault("layout must be dense, bitmap or nm");
  w->n = runtime.integer(info, "n", 0);
  w->k = runtime.integer(info, "k", 0);
  w->bits = runtime.integer(info, "bits", 8);
  w->group = runtime.integer(info, "group", 0);
  w->pattern_n = runtime.integer(info, "pattern_n", 0);
  w->pattern_m = runtime.integer(info, "pattern_m", 0);
  const Tensor values = runtime.constant(info, first, &wrong), scales = runtime.constant(info, first + 1, &wrong);
  const Tensor masks = runtime.constant(info, first + 2, &wrong), offsets = runtime.constant(info, first + 3, &wrong);
  if (wrong) return wrong;
  const ElementType expected = w->bits == 32 ? kFloat : w->bits == 16 ? kFloat16 : kUint8;
  if (!values || values.type != expected)
    return fault("values must be a constant tensor: uint8 for 3, 4 and 8 bits, float16 for 16, float for 32");
  if (scales && scales.type != kFloat && scales.type != kFloat16) return fault("scales must be float or float16");
  if (masks && masks.type != kUint8) return fault("masks must be uint8");
  if (offsets && offsets.type != kInt64) return fault("offsets must be int64");
  w->values = values.as<const uint8_t>();
  w->scales = scales.data;
  w->scale_type = !scales || !scales.count() ? ScaleType::none
                  : scales.type == kFloat    ? ScaleType::single
                                             : ScaleType::half;
  w->masks = masks.as<const uint8_t>();
  w->offsets = offsets.as<const int64_t>();
  const auto count = [](const Tensor& t) { return t ? t.count() : 0; };
  const int64_t value_bytes = count(values) * (values.type == kFloat ? 4 : values.type == kFloat16 ? 2 : 1);
  return check(*w, {value_bytes, count(masks), count(offsets), count(scales)});
}

}  // namespace edgeslim::ort
