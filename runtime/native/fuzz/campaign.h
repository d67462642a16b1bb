// The command line and the loop of a fuzzer that works in process: `NAME SEED COUNT [FIRST] [--seconds S]`. Execution i
// depends on SEED and i alone.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tests/packer.h"

namespace edgeslim::fuzz {

// Returns what is wrong, null where nothing is, and says whether what was damaged was accepted all the same.
using Execute = const char* (*)(tests::Random& random, bool* accepted);

inline int run_campaign(const char* name, int argc, char** argv, Execute execute) {
  int64_t numbers[3] = {0, 0, 0};
  double most = 1e9;
  for (int i = 1, place = 0; i < argc; ++i) {
    if (!std::strcmp(argv[i], "--seconds") && i + 1 < argc)
      most = std::atof(argv[++i]);
    else if (place < 3)
      numbers[place++] = std::atoll(argv[i]);
  }
  const auto [seed, count, first] = numbers;
  if (count <= 0) {
    std::fprintf(stderr, "usage: %s SEED COUNT [FIRST] [--seconds S]\n", name);
    return 2;
  }
  const auto begin = std::chrono::steady_clock::now();
  const auto passed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(); };
  int64_t done = 0, accepted = 0;
  for (; done < count && (done % 256 || passed() < most); ++done) {
    tests::Random random(uint64_t(seed) * 0x100000001b3u + uint64_t(first + done) + 1);
    bool taken = false;
    if (const char* finding = execute(random, &taken)) {
      std::printf("finding: %s; repeat it by: %s %lld 1 %lld\n", finding, name, (long long)seed, (long long)(first + done));
      return 1;
    }
    accepted += taken;
  }
  std::printf("seed %lld: %lld executions in %.0f s, %lld accepted, no finding\n", (long long)seed, (long long)done, passed(),
              (long long)accepted);
  return 0;
}

}  // namespace edgeslim::fuzz
