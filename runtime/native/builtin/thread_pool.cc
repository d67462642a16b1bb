#include "builtin/thread_pool.h"

#include <algorithm>
#include <chrono>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace edgeslim::builtin {
namespace {

// word: count, back, front, of 21 bits each. Front and back go beyond `count` by at most one for each thread.
constexpr int kBits = 21;
constexpr uint64_t kMask = (uint64_t{1} << kBits) - 1, kOneAtBack = uint64_t{1} << kBits;
constexpr std::size_t kMostPieces = std::size_t{1} << (kBits - 1);
constexpr int kMostThreads = 1024;
constexpr auto kSpin = std::chrono::microseconds(200);  // a few times what lies between two pieces of one token
constexpr int kPausesBetweenLooks = 64;
constexpr std::size_t kMostAsked = 128 << 10;  // bytes for each thread: a share of its own cache

uint64_t front_of(uint64_t word) { return word & kMask; }
uint64_t back_of(uint64_t word) { return (word >> kBits) & kMask; }
uint64_t count_of(uint64_t word) { return word >> (2 * kBits); }
bool has_work(uint64_t word) { return front_of(word) + back_of(word) < count_of(word); }

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

// Asks for what is expected, piece after piece in the order in which a thread takes pieces: the caller's from the front,
// those of workers from the back.
class ThreadPool::Asker {
 public:
  Asker(const std::atomic<const Coming*>& expected, int threads, int64_t first, int64_t stride)
      : expected_(expected), pieces_(Pieces::tapering(kLevels, threads)), first_(first), stride_(stride) {}

  void ask() {
    const Coming* coming = expected_.load(std::memory_order_acquire);
    if (coming != coming_) {
      coming_ = coming;
      piece_ = first_;
      at_ = asked_ = 0;
    }
    if (!coming || piece_ < 0 || piece_ >= pieces_.count() || asked_ >= kMostAsked) return;
    const std::size_t now = coming->ask(pieces_, piece_, at_);
    asked_ += now - at_;
    if (now == at_) piece_ += stride_;
    at_ = now == at_ ? 0 : now;
  }

 private:
  const std::atomic<const Coming*>& expected_;
  const Pieces pieces_;
  const int64_t first_, stride_;
  const Coming* coming_ = nullptr;
  int64_t piece_ = 0;
  std::size_t at_ = 0, asked_ = 0;
};

ThreadPool::ThreadPool(int threads) : count_(count_threads(threads)) {
  for (int i = 1; i < count_; ++i) workers_.emplace_back([this, i] { work(i); });
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
    task(data, std::size_t(front_of(word)));
    done_.fetch_add(1, std::memory_order_release);
  }
  Asker asker(coming_, count_, 0, 1);
  for (int looks = 0; done_.load(std::memory_order_acquire) != count; ++looks) {
    asker.ask();
    pause();
    if (looks > 10000) std::this_thread::yield();  // the thread that has the last piece was put aside
  }
}

void ThreadPool::publish(Pool::Task task, std::size_t count, void* data) {
  task_.store(task, std::memory_order_relaxed);
  data_.store(data, std::memory_order_relaxed);
  done_.store(0, std::memory_order_relaxed);
  coming_.store(after_.load(std::memory_order_relaxed), std::memory_order_release);
  word_.store(uint64_t(count) << (2 * kBits), std::memory_order_seq_cst);
  if (asleep_.load(std::memory_order_seq_cst) == 0) return;
  { const std::lock_guard<std::mutex> lock(mutex_); }
  wake_.notify_all();
}

void ThreadPool::expect(const Coming* next, const Coming* after) {
  coming_.store(next, std::memory_order_release);
  after_.store(after, std::memory_order_relaxed);
}

void ThreadPool::work(int worker) {
  Asker asker(coming_, count_, kLevels * count_ - worker, 1 - count_);
  while (wait_for_work(&asker)) {
    const uint64_t word = word_.fetch_add(kOneAtBack, std::memory_order_acquire);
    if (!has_work(word)) continue;
    const auto piece = std::size_t(count_of(word) - 1 - back_of(word));
    task_.load(std::memory_order_relaxed)(data_.load(std::memory_order_relaxed), piece);
    done_.fetch_add(1, std::memory_order_release);
  }
}

// Whether there seems to be work; false where the pool ends.
bool ThreadPool::wait_for_work(Asker* asker) {
  const auto until = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < kPausesBetweenLooks; ++i) {
      if (has_work(word_.load(std::memory_order_relaxed))) return true;
      asker->ask();
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
