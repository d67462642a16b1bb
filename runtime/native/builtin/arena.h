// Memory of intermediate tensors: blocks that one after another of them uses, within a run and in the runs after it.
#pragma once

#include <cstdlib>
#include <vector>

namespace edgeslim::builtin {

class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() {
    for (const Block& block : blocks_) std::free(block.memory);
  }

  // At least `bytes`, at a multiple of 64; null where there is no memory.
  void* take(std::size_t bytes) {
    Block* best = nullptr;
    for (Block& block : blocks_)
      if (!block.taken && block.bytes >= bytes && block.bytes <= kMostTimes * bytes + kAlignment &&
          (!best || block.bytes < best->bytes))
        best = &block;
    if (!best && !(best = add(bytes))) return nullptr;
    best->taken = best->used = true;
    return at(*best);
  }

  void give(const void* memory) {
    for (Block& block : blocks_)
      if (at(block) == memory) block.taken = false;
  }

  std::size_t bytes() const {
    std::size_t sum = 0;
    for (const Block& block : blocks_) sum += block.bytes;
    return sum;
  }

  // After a run all is given back; where that is much, what the run did not use goes back to the system: the next piece of
  // a prompt will use the same, a token little.
  void rest() {
    const bool much = bytes() > kKept;
    std::size_t kept = 0;
    for (Block& block : blocks_) {
      if (much && !block.used) {
        std::free(block.memory);
        continue;
      }
      block.taken = block.used = false;
      blocks_[kept++] = block;
    }
    blocks_.resize(kept);
  }

 private:
  static constexpr std::size_t kKept = std::size_t{1} << 20, kAlignment = 64;
  static constexpr std::size_t kMostTimes = 8;  // what is asked for: a larger block waits for a larger tensor

  struct Block {
    void* memory;
    std::size_t bytes;
    bool taken, used;  // now, in this run
  };

  static void* at(const Block& block) {
    const auto address = reinterpret_cast<std::size_t>(block.memory);
    return reinterpret_cast<void*>((address + kAlignment - 1) / kAlignment * kAlignment);
  }

  Block* add(std::size_t bytes) {
    void* memory = std::malloc(bytes + kAlignment);
    if (!memory) return nullptr;
    blocks_.push_back({memory, bytes, false, false});
    return &blocks_.back();
  }

  std::vector<Block> blocks_;
};

}  // namespace edgeslim::builtin
