// What a part of the runtime says to the next: a code of edgeslim.h and one line of text.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <string>

#include "include/edgeslim.h"

namespace edgeslim {

struct Status {
  int32_t code = EDGESLIM_OK;
  std::string text;

  bool failed() const { return code != EDGESLIM_OK; }
};

#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
inline Status failure(int32_t code, const char* format, ...) {
  char text[sizeof(edgeslim_error::message)];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  return {code, text};
}

}  // namespace edgeslim
