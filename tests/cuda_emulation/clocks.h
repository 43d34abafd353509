// Vector clocks: up to which epoch of each other thread a thread has seen what that did. For the race check.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace emulation {

// Of a thread of one block. Most threads know of no other block: those epochs are there only after the first acquire.
class Clock {
 public:
  Clock(size_t block, size_t threads, size_t blocks)
      : block_(block), threads_(threads), blocks_(blocks), own_(threads) {}

  uint32_t of(size_t thread) const {
    if (thread / threads_ == block_) return own_[thread % threads_];
    return others_.empty() ? 0 : others_[thread];
  }
  void set_own(size_t thread, uint32_t epoch) { own_[thread % threads_] = epoch; }

  void join(const Clock& other) {
    if (other.block_ == block_) {
      raise(own_.data(), other.own_.data(), threads_);
    } else {
      others_.resize(threads_ * blocks_);
      raise(others_.data() + other.block_ * threads_, other.own_.data(), threads_);
    }
    if (other.others_.empty()) return;
    others_.resize(threads_ * blocks_);
    raise(others_.data(), other.others_.data(), others_.size());
    raise(own_.data(), other.others_.data() + block_ * threads_, threads_);
  }

 private:
  static void raise(uint32_t* to, const uint32_t* from, size_t n) {
    for (size_t i = 0; i < n; ++i) to[i] = std::max(to[i], from[i]);
  }

  size_t block_, threads_, blocks_;
  std::vector<uint32_t> own_;     // by thread of the block
  std::vector<uint32_t> others_;  // by thread of the grid, or empty; those of the own block stand in own_
};

// Shared by all threads that know the same, and never changed then.
using SharedClock = std::shared_ptr<const Clock>;

// What the race check knows of a thread.
struct Knowledge {
  SharedClock clock;
  uint32_t epoch = 1;         // of what it does now
  SharedClock acquired;       // the last that was joined: spinning joins it again and again
  SharedClock before_fence;   // what a relaxed store after a fence publishes
  SharedClock after_relaxed;  // what a fence after a relaxed load acquires
};

}  // namespace emulation
