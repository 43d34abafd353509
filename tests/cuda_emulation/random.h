// Random numbers of the scheduler, and the habits that it draws for a launch.
#pragma once
#include <cstdint>

namespace emulation {

class Random {
 public:
  explicit Random(uint64_t seed = 0) : state_(seed) {}
  // splitmix64
  uint64_t next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
  }
  unsigned below(unsigned n) { return unsigned((next() >> 32) * n >> 32); }

 private:
  uint64_t state_;
};

// How one launch is scheduled. Each fault needs another habit to show: a fair mixture of all hides most.
struct Habits {
  enum Order { kRandom, kUp, kDown };
  Order lanes;
  unsigned thread_stretch, warp_stretch, block_stretch;  // kinds of stretches, see stretch()
  unsigned freezes;                                      // one choice of a warp in so many freezes it; 0: none
  unsigned longest_freeze;                               // 2^, in choices of a thread

  static Habits draw(Random& random) {
    Habits habits{};
    habits.lanes = Order(random.below(3));
    habits.thread_stretch = random.below(5), habits.warp_stretch = random.below(5);
    habits.block_stretch = random.below(5);
    const unsigned freezes[] = {0, 4, 16, 64, 512};
    habits.freezes = freezes[random.below(5)];
    habits.longest_freeze = 6 + random.below(10);
    return habits;
  }
};

// For how many points, or choices, to stay with the same one.
inline uint64_t stretch(unsigned kind, Random& random) {
  constexpr uint64_t kUnlimited = UINT64_MAX / 2;
  constexpr uint64_t kLengths[] = {1, 4, 64, kUnlimited};
  return kLengths[kind < 4 ? kind : random.below(4)];
}

}  // namespace emulation
