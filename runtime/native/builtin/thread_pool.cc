#include "builtin/thread_pool.h"

#include <algorithm>
#include <chrono>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace edgeslim::builtin {
namespace {

// word: job (24 bits), count (20 bits), next (20 bits). `next` goes beyond `count` by at most one for each thread.
constexpr int kBits = 20;
constexpr uint64_t kMask = (uint64_t{1} << kBits) - 1;
constexpr std::size_t kMostPieces = std::size_t{1} << (kBits - 1);
constexpr int kMostThreads = 1024;
constexpr auto kSpin = std::chrono::microseconds(200);  // a few times what lies between two pieces of one token
constexpr int kPausesBetweenLooks = 64;

uint64_t next_of(uint64_t word) { return word & kMask; }
uint64_t count_of(uint64_t word) { return (word >> kBits) & kMask; }
bool has_work(uint64_t word) { return next_of(word) < count_of(word); }

void pause() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int count_threads(int threads) {
  if (threads <= 0) threads = int(std::thread::hardware_concurrency());
  return std::clamp(threads, 1, kMostThreads);
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  for (int i = 1; i < count_threads(threads); ++i) workers_.emplace_back([this] { work(); });
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(Pool::Task task, std::size_t count, void* data) {
  std::unique_lock<std::mutex> mine(busy_, std::try_to_lock);
  if (workers_.empty() || count < 2 || count > kMostPieces || !mine.owns_lock()) {
    for (std::size_t i = 0; i < count; ++i) task(data, i);
    return;
  }
  publish(task, count, data);
  while (has_work(word_.load(std::memory_order_relaxed))) {
    const uint64_t word = word_.fetch_add(1, std::memory_order_acquire);
    if (!has_work(word)) break;
    task(data, std::size_t(next_of(word)));
    done_.fetch_add(1, std::memory_order_release);
  }
  for (int looks = 0; done_.load(std::memory_order_acquire) != count; ++looks) {
    pause();
    if (looks > 10000) std::this_thread::yield();  // the thread that has the last piece was put aside
  }
}

void ThreadPool::publish(Pool::Task task, std::size_t count, void* data) {
  task_.store(task, std::memory_order_relaxed);
  data_.store(data, std::memory_order_relaxed);
  done_.store(0, std::memory_order_relaxed);
  const uint64_t job = (word_.load(std::memory_order_relaxed) >> (2 * kBits)) + 1;
  word_.store(job << (2 * kBits) | uint64_t(count) << kBits, std::memory_order_seq_cst);
  if (asleep_.load(std::memory_order_seq_cst) == 0) return;
  { const std::lock_guard<std::mutex> lock(mutex_); }
  wake_.notify_all();
}

void ThreadPool::work() {
  while (wait_for_work()) {
    const uint64_t word = word_.fetch_add(1, std::memory_order_acquire);
    if (!has_work(word)) continue;
    task_.load(std::memory_order_relaxed)(data_.load(std::memory_order_relaxed), std::size_t(next_of(word)));
    done_.fetch_add(1, std::memory_order_release);
  }
}

// Whether there seems to be work; false where the pool ends.
bool ThreadPool::wait_for_work() {
  const auto until = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < kPausesBetweenLooks; ++i) {
      if (has_work(word_.load(std::memory_order_relaxed))) return true;
      pause();
    }
    if (stop_.load(std::memory_order_relaxed)) return false;
  } while (std::chrono::steady_clock::now() < until);
  std::unique_lock<std::mutex> lock(mutex_);
  asleep_.fetch_add(1, std::memory_order_seq_cst);
  wake_.wait(lock, [this] { return stop_ || has_work(word_.load(std::memory_order_seq_cst)); });
  asleep_.fetch_sub(1, std::memory_order_seq_cst);
  return !stop_;
}

}  // namespace edgeslim::builtin
