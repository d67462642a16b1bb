#include <cstdlib>
#include <cstring>

#include "packed_linear/kernels.h"

namespace edgeslim {

const Kernels* const* variants() {
  static const Kernels* const table[] = {
#if defined(EDGESLIM_X86)
      &kAvx512, &kAvx2,
#elif defined(EDGESLIM_NEON)
      &kNeon,
#endif
      &kScalar, nullptr};
  return table;
}

namespace {

const Kernels& choose() {
  const char* wanted = std::getenv("EDGESLIM_ISA");
  for (const Kernels* const* one = variants(); wanted && *one; ++one)
    if (!std::strcmp((*one)->isa, wanted) && (*one)->available()) return **one;
  for (const Kernels* const* one = variants(); *one; ++one)
    if ((*one)->available()) return **one;
  return kScalar;
}

}  // namespace

const Kernels& chosen() {
  static const Kernels& best = choose();
  return best;
}

}  // namespace edgeslim
