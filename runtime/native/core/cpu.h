// What this processor and operating system can run, asked once.
#pragma once

namespace edgeslim {

struct Cpu {
  bool avx2 = false;    // with FMA, BMI2 and F16C
  bool avx512 = false;  // F, BW, VL, DQ, VBMI, VBMI2 and VNNI
  bool neon_dot = false;
};

const Cpu& cpu();

}  // namespace edgeslim
