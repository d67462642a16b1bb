// What the machine and this process are, as far as the operating system tells.
#pragma once

#include <cstdint>
#include <string>

namespace edgeslim {

std::string machine_name();      // "AMD EPYC 9B45, 2 cores": the processor and the logical CPUs this process may use
std::string machine_isa();       // "avx512-vnni", "neon-dotprod" …, else the architecture
int32_t physical_cores();        // of those that this process may use
int64_t resident_bytes();        // 0: not known
int64_t peak_resident_bytes();   // since the start or the last reset
int64_t proportional_bytes();    // resident, pages shared with other processes in their parts; 0: not known
void reset_peak();               // where the kernel permits it
double cpu_temperature();        // in °C; NaN: not known
std::string cpu_governor();      // of the first CPU, "schedutil"; "": not known
double seconds();                // of a clock that only goes forward

}  // namespace edgeslim
