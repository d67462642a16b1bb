// A short message in place: faults cross every boundary of this library as text, never as exceptions.
#pragma once

#include <cstdarg>
#include <cstdio>

namespace edgeslim {

struct Fault {
  char text[240] = {0};

  explicit operator bool() const { return text[0] != 0; }
};

#if defined(__GNUC__)
__attribute__((format(printf, 1, 2)))
#endif
static inline Fault fault(const char* format, ...) {
  Fault result;
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(result.text, sizeof result.text, format, arguments);
  va_end(arguments);
  return result;
}

}  // namespace edgeslim
