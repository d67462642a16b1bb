// Threads that wait for work by spinning, so that the many short pieces of a token's way through a model follow each
// other without a system call; after a while without work they sleep.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "builtin/coming.h"
#include "core/pool.h"

namespace edgeslim::builtin {

class ThreadPool {
 public:
  // Of `threads` threads in all, the caller of `run` being one; 0: as many as there are processors.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int count() const { return count_; }

  // This pool as kernels and operators know one. It must live longer.
  Pool view() {
    return {this, [](void* owner, Pool::Task task, std::size_t count, void* data) { static_cast<ThreadPool*>(owner)->run(task, count, data); },
            count_};
  }

  // Calls task(data, i) for every i in [0, count) and returns when all are done. A second caller, and a task that calls
  // this, do their work alone.
  void run(Pool::Task task, std::size_t count, void* data);

  // What the next run's pieces will read, and what those of the run after it: threads that wait ask for it. Both must
  // stay while the pool does.
  void expect(const Coming* next, const Coming* after);

 private:
  class Asker;

  void publish(Pool::Task task, std::size_t count, void* data);
  void work(int worker);
  bool wait_for_work(Asker* asker);

  const int count_;

  // How many pieces the job has, and how many are taken from its front, by the caller, and from its back, by workers, in
  // one word: who adds 1 to either owns a piece if there was one left before, and until that piece is done the job's other
  // fields stay. Each thread so reads on where it was, and knows what it will read.
  std::atomic<uint64_t> word_{0};
  std::atomic<Pool::Task> task_{nullptr};
  std::atomic<void*> data_{nullptr};
  std::atomic<const Coming*> coming_{nullptr}, after_{nullptr};
  alignas(64) std::atomic<std::size_t> done_{0};
  std::mutex busy_;

  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<int> asleep_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

}  // namespace edgeslim::builtin
