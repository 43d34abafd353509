// Finds accesses to the same memory by two threads that no barrier, atomic or fence orders, whatever order they ran in.
// Inside the emulation only.
#pragma once
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "clocks.h"
#include "scheduler.h"

namespace emulation {

enum class Access { kRead, kWrite, kAtomicRead, kAtomicWrite };

class RaceCheck {
 public:
  bool wanted = true;
  bool active() const { return active_; }

  void begin(size_t blocks, size_t threads_per_block);
  void end() { active_ = false; }
  // Memory that is new: what was there before, does not count.
  void forget(const void* memory, size_t bytes);

  void access(const void* at, size_t bytes, Access access) {
    if (active_ && scheduler.current()) check_range(at, bytes, access);
  }

  // All of them know afterwards what each knew before.
  void joined(const std::vector<Thread*>& threads);
  void loaded(const void* at, bool acquire);
  void stored(const void* at, bool release);
  void updated(const void* at, bool acquire, bool release);
  void fence();

 private:
  // Who did something, when. The epoch 0 never is: nobody.
  struct Mark {
    uint32_t thread : 31, atomic : 1;
    uint32_t epoch;
  };
  // Of a unit of memory: the last write, and some of the reads since.
  struct Cell {
    Mark write, reads[3];
  };
  static constexpr uintptr_t kPageBytes = 4096;
  // Units are words until something smaller is touched.
  struct Page {
    uint64_t launch = 0;
    bool by_words = true;
    std::vector<Cell> cells;

    size_t unit_bytes() const { return by_words ? 4 : 1; }
    Cell& cell(uintptr_t address) { return cells[address % kPageBytes >> (by_words ? 2 : 0)]; }
  };
  static constexpr size_t kMostPages = 2048;  // that a launch takes over from others, whose shared memory lay elsewhere

  Page& page_of(uintptr_t address);
  void check_range(const void* at, size_t bytes, Access access);
  void check(Cell& cell, uintptr_t address, size_t bytes, Access access);
  bool ordered(const Mark& mark, size_t thread, const Knowledge& knowledge) const;
  [[noreturn]] void report(const Mark& other, bool other_writes, uintptr_t address, size_t bytes, Access access);

  Knowledge& current() { return threads_[scheduler.current()->number]; }
  void acquire(Knowledge& knowledge, const SharedClock& from);
  SharedClock publish(Knowledge& knowledge);

  bool active_ = false;
  uint64_t launch_ = 0;
  size_t threads_per_block_ = 1;
  std::vector<Knowledge> threads_;
  std::unordered_map<const void*, SharedClock> released_;  // by atomic variable: what an acquire of it learns
  std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages_;
  struct Recent {
    uintptr_t number;
    Page* page;
  };
  Recent recent_[64] = {};
};

extern RaceCheck race_check;
extern bool kernels_are_instrumented;  // their start-up code tells, before constructors run

}  // namespace emulation
