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
  Clock(size_t block, size_t threads, size_t blocks) : first_(block * threads), all_(blocks * threads), own_(threads) {}

  uint32_t of(size_t thread) const {
    if (thread - first_ < own_.size()) return own_[thread - first_];
    return others_.empty() ? 0 : others_[thread];
  }
  void set_own(size_t thread, uint32_t epoch) { own_[thread - first_] = epoch; }

  void join(const Clock& other) {
    if (other.first_ == first_) {
      raise(own_.data(), other.own_.data(), own_.size());
    } else {
      others_.resize(all_);
      raise(others_.data() + other.first_, other.own_.data(), own_.size());
    }
    if (other.others_.empty()) return;
    others_.resize(all_);
    raise(others_.data(), other.others_.data(), all_);
    raise(own_.data(), other.others_.data() + first_, own_.size());
  }

 private:
  static void raise(uint32_t* to, const uint32_t* from, size_t n) {
    for (size_t i = 0; i < n; ++i) to[i] = std::max(to[i], from[i]);
  }

  size_t first_, all_;            // thread of the block; threads of the grid
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
