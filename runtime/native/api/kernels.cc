#include "api/kernels.h"

#include <cstdio>
#include <thread>
#include <vector>

#include "packed_gather/gather.h"
#include "packed_linear/linear.h"

namespace {

using namespace edgeslim;

int32_t say(const Fault& wrong, char* text, int64_t size) {
  if (text && size > 0) std::snprintf(text, std::size_t(size), "%s", wrong.text);
  return wrong ? 1 : 0;
}

Fault read(const edgeslim_packed& raw, Packed* w) {
  w->layout = Layout(raw.layout);
  w->scale_type = ScaleType(raw.scale_type);
  w->n = raw.n;
  w->k = raw.k;
  w->bits = raw.bits;
  w->group = raw.group;
  w->pattern_n = raw.pattern_n;
  w->pattern_m = raw.pattern_m;
  w->values = raw.values;
  w->masks = raw.masks;
  w->offsets = raw.offsets;
  w->scales = raw.scales;
  return check(*w, {raw.value_count, raw.mask_count, raw.offset_count, raw.scale_count});
}

const Kernels* find(const char* isa) {
  if (!isa) return &chosen();
  for (const Kernels* const* one = variants(); *one; ++one)
    if (!std::strcmp((*one)->isa, isa)) return (*one)->available() ? *one : nullptr;
  return nullptr;
}

// Threads started for each call: enough for tests; benchmarks run each thread on a matrix of its own.
Pool fresh_threads(int32_t* count) {
  return {count, [](void* owner, Pool::Task task, std::size_t tasks, void* data) {
            const auto threads = std::size_t(*static_cast<int32_t*>(owner));
            std::vector<std::thread> others;
            const auto share = [&](std::size_t first) {
              for (std::size_t i = first; i < tasks; i += threads) task(data, i);
            };
            for (std::size_t t = 1; t < threads; ++t) others.emplace_back(share, t);
            share(0);
            for (std::thread& other : others) other.join();
          }};
}

}  // namespace

extern "C" {

const char* edgeslim_isa(int32_t index) {
  for (const Kernels* const* one = variants(); *one; ++one)
    if (index-- == 0) return (*one)->isa;
  return nullptr;
}

int32_t edgeslim_isa_available(int32_t index) {
  for (const Kernels* const* one = variants(); *one; ++one)
    if (index-- == 0) return (*one)->available();
  return 0;
}

const char* edgeslim_isa_chosen(void) { return chosen().isa; }

int32_t edgeslim_check(const edgeslim_packed* w, char* text, int64_t size) {
  Packed packed;
  return say(read(*w, &packed), text, size);
}

int32_t edgeslim_run_linear(const edgeslim_packed* w, const edgeslim_linear* call, const char* isa, char* text,
                            int64_t size) {
  Packed packed;
  if (Fault wrong = read(*w, &packed)) return say(wrong, text, size);
  const Kernels* kernels = find(isa);
  if (!kernels) return say(fault("this processor or library does not run kernels for %s", isa), text, size);
  const Function* named = nullptr;
  if (call->function) {
    named = find_function([&](const char* name) { return !std::strcmp(name, call->function); });
    if (!named) return say(unknown_function(), text, size);
  }
  const Prologue in{call->x, call->x_stride, call->gate, call->gate_stride, call->norm, call->epsilon, applied(named, call->gate)};
  const Output out{call->y, packed.n, call->bias, call->residual, packed.n};
  int32_t threads = call->threads;
  const Pool pool = threads > 1 ? fresh_threads(&threads) : Pool{};
  const Activations activations = call->float_activations ? Activations::single : Activations::int8;
  for (int32_t i = 0; i < call->repeats; ++i)
    if (!run_linear(packed, *kernels, activations, in, call->tokens, out, pool))
      return say(fault("out of memory"), text, size);
  return say({}, text, size);
}

int32_t edgeslim_gather(const edgeslim_packed* w, const int64_t* ids, int64_t count, float* out, char* text,
                        int64_t size) {
  Packed packed;
  if (Fault wrong = read(*w, &packed)) return say(wrong, text, size);
  for (int64_t i = 0; i < count; ++i) {
    if (ids[i] < 0 || ids[i] >= packed.n) return say(fault("id %lld is out of range", (long long)ids[i]), text, size);
    unpack_row(packed, ids[i], out + i * packed.k);
  }
  return say({}, text, size);
}

uint64_t edgeslim_read(const uint8_t* data, int64_t bytes) {
  uint64_t sums[8] = {0};
  int64_t i = 0;
  for (; i + 64 <= bytes; i += 64) {
    __builtin_prefetch(data + i + 8192);  // as the kernels do: without it a core waits for memory
    for (int j = 0; j < 8; ++j) {
      uint64_t word;
      std::memcpy(&word, data + i + 8 * j, 8);
      sums[j] ^= word;
    }
  }
  for (; i < bytes; ++i) sums[0] ^= data[i];
  return sums[0] ^ sums[1] ^ sums[2] ^ sums[3] ^ sums[4] ^ sums[5] ^ sums[6] ^ sums[7];
}

}  // extern "C"
