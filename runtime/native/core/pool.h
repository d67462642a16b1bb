// Work shared out over whatever threads the caller has: an inference session's own pool, or none.
#pragma once

#include <cstddef>
#include <cstdint>

namespace edgeslim {

struct Pool {
  using Task = void (*)(void* data, std::size_t index);

  void* owner = nullptr;
  void (*run)(void* owner, Task task, std::size_t count, void* data) = nullptr;
  int64_t threads = 0;  // that take pieces from both ends, the caller from the front; 0: in any order

  // Calls f(i) for every i in [0, count), in any order, and returns when all are done.
  template <class F>
  void each(int64_t count, const F& f) const {
    if (count > 1 && run) {
      run(owner, [](void* data, std::size_t index) { (*static_cast<const F*>(data))(int64_t(index)); }, std::size_t(count),
          const_cast<F*>(&f));
      return;
    }
    for (int64_t i = 0; i < count; ++i) f(i);
  }
};

}  // namespace edgeslim
