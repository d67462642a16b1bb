#include "engine/machine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <set>
#include <thread>

#include "engine/files.h"

#if defined(_WIN32)
#include <windows.h>
#include <psapi.h>
#else
#include <sys/resource.h>
#include <unistd.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

namespace edgeslim {
namespace {

std::string kernel_text(const char* path) {
  std::string text;
  read_file(path, std::size_t{16} << 20, &text);
  return text;
}

// The rest of the first line of `text` that is `key`, blanks, a colon and a value.
std::string field(const std::string& text, const char* key) {
  const std::size_t size = std::strlen(key);
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    if (!text.compare(at, size, key)) {
      std::size_t from = text.find_first_not_of(" \t", at + size);
      if (from < end && text[from] == ':') {
        from = text.find_first_not_of(" \t", from + 1);
        if (from < end) return text.substr(from, end - from);
      }
    }
    at = end + 1;
  }
  return {};
}

#if defined(__linux__)
bool may_use(int cpu) {
  cpu_set_t usable;
  return sched_getaffinity(0, sizeof usable, &usable) != 0 || (cpu < CPU_SETSIZE && CPU_ISSET(cpu, &usable));
}

int64_t status_bytes(const char* key) { return std::atoll(field(kernel_text("/proc/self/status"), key).c_str()) * 1024; }
#endif

int32_t logical_cores() {
#if defined(__linux__)
  cpu_set_t usable;
  if (sched_getaffinity(0, sizeof usable, &usable) == 0) return CPU_COUNT(&usable);
#endif
  return std::max(1, int32_t(std::thread::hardware_concurrency()));
}

struct Isa {
  const char *name, *flags[2];
};
constexpr Isa kIsas[] = {{"avx512-vnni", {"avx512f", "avx512_vnni"}}, {"avx512", {"avx512f", "avx512f"}},
                         {"avx2-vnni", {"avx2", "avx_vnni"}},         {"avx2", {"avx2", "avx2"}},
                         {"neon-i8mm", {"asimd", "i8mm"}},            {"neon-dotprod", {"asimd", "asimddp"}},
                         {"neon", {"asimd", "asimd"}}};

constexpr const char* architecture() {
#if defined(__x86_64__) || defined(_M_X64)
  return "x86_64";
#elif defined(__aarch64__) || defined(_M_ARM64)
  return "aarch64";
#else
  return "unknown";
#endif
}

}  // namespace

std::string machine_name() {
  const std::string text = kernel_text("/proc/cpuinfo");
  std::string name;
  for (const char* key : {"model name", "Model", "Hardware"})
    if (name.empty()) name = field(text, key);
  if (name.empty()) name = architecture();
  return name + ", " + std::to_string(logical_cores()) + " cores";
}

std::string machine_isa() {
  const std::string text = kernel_text("/proc/cpuinfo");
  std::string flags = field(text, "flags");
  if (flags.empty()) flags = field(text, "Features");
  flags = " " + flags + " ";
  const auto has = [&](const char* flag) { return flags.find(std::string(" ") + flag + " ") != std::string::npos; };
  for (const Isa& isa : kIsas)
    if (has(isa.flags[0]) && has(isa.flags[1])) return isa.name;
  return architecture();
}

int32_t physical_cores() {
#if defined(__linux__)
  std::set<std::string> cores;
  const int32_t most = int32_t(sysconf(_SC_NPROCESSORS_CONF));
  for (int32_t cpu = 0; cpu < most; ++cpu) {
    const std::string topology = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
    const std::string core = read_line(topology + "physical_package_id") + ":" + read_line(topology + "core_id");
    if (core.size() > 1 && may_use(cpu)) cores.insert(core);
  }
  if (!cores.empty()) return int32_t(cores.size());
#endif
  return logical_cores();
}

int64_t resident_bytes() {
#if defined(__linux__)
  return status_bytes("VmRSS");
#elif defined(_WIN32)
  PROCESS_MEMORY_COUNTERS memory;
  return GetProcessMemoryInfo(GetCurrentProcess(), &memory, sizeof memory) ? int64_t(memory.WorkingSetSize) : 0;
#else
  return 0;
#endif
}

int64_t peak_resident_bytes() {
#if defined(__linux__)
  if (const int64_t peak = status_bytes("VmHWM")) return peak;
#endif
#if defined(_WIN32)
  PROCESS_MEMORY_COUNTERS memory;
  return GetProcessMemoryInfo(GetCurrentProcess(), &memory, sizeof memory) ? int64_t(memory.PeakWorkingSetSize) : 0;
#else
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
#if defined(__APPLE__)
  return int64_t(usage.ru_maxrss);
#else
  return int64_t(usage.ru_maxrss) * 1024;
#endif
#endif
}

int64_t proportional_bytes() {
#if defined(__linux__)
  return std::atoll(field(kernel_text("/proc/self/smaps_rollup"), "Pss").c_str()) * 1024;
#else
  return 0;
#endif
}

void reset_peak() {
#if defined(__linux__)
  if (std::FILE* file = std::fopen("/proc/self/clear_refs", "w")) {
    std::fputs("5", file);
    std::fclose(file);
  }
#endif
}

double cpu_temperature() {
  for (int i = 0; i < 32; ++i) {
    const std::string zone = "/sys/class/thermal/thermal_zone" + std::to_string(i) + "/";
    const std::string type = read_line(zone + "type"), reading = read_line(zone + "temp");
    const bool is_cpu = type.find("cpu") == 0 || type == "x86_pkg_temp" || type.find("soc") == 0;
    if (is_cpu && !reading.empty()) return std::atof(reading.c_str()) / 1000;
  }
  return NAN;
}

std::string cpu_governor() { return read_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"); }

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace edgeslim
