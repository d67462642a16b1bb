# Toolchain for aarch64 Linux: Debian's cross compiler, or the one in the ziglang package where EDGESLIM_ZIG_PYTHON is a
# Python that has it. EDGESLIM_ZIG_TARGET musl makes programs that run without libraries, gnu.2.28 a library for any
# system whose C library is that old or newer.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES EDGESLIM_ZIG_PYTHON EDGESLIM_ZIG_TARGET)
if(EDGESLIM_ZIG_PYTHON)
  if(NOT EDGESLIM_ZIG_TARGET)
    set(EDGESLIM_ZIG_TARGET gnu.2.28)
  endif()
  set(CMAKE_CXX_COMPILER ${EDGESLIM_ZIG_PYTHON} -m ziglang c++ -target aarch64-linux-${EDGESLIM_ZIG_TARGET})
  set(EDGESLIM_DOT_PRODUCT -mcpu=generic+v8_2a+dotprod)
else()
  set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
endif()
