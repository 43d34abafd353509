// The adversarial scheduler: which CUDA thread runs, and who waits for whom. Inside the emulation only.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "emulation.h"
#include "fibre.h"
#include "random.h"

namespace emulation {

constexpr unsigned kLanes = 32;

struct Block;
struct Warp;

// A barrier or warp-wide operation that a thread waits at; no name: none.
struct Meeting {
  const char* name = nullptr;
  Site site{};
  unsigned mask = 0;
};

std::string describe(const Meeting& meeting);

// A cp.async under way
struct Copy {
  void* to;
  const void* from;
  size_t bytes, from_bytes;
  unsigned group;
};

struct Thread {
  Fibre fibre;
  uint3 index{};
  Block* block = nullptr;
  Warp* warp = nullptr;
  unsigned lane = 0;
  size_t number = 0;  // in the grid
  bool finished = false;
  Meeting waits_at;
  void* brought = nullptr;
  // The last atomic load: the same answer again means that it spins.
  const void* polled = nullptr;
  uint64_t poll_answer = 0;
  std::vector<Copy> copies;
  unsigned copy_groups = 0;  // committed
};

struct Warp {
  Block* block = nullptr;
  Thread* lanes = nullptr;
  unsigned all = 0;    // lanes that exist
  unsigned ready = 0;  // lanes that can run
  bool listed = false, frozen = false;
  unsigned last_lane = 0;
  uint64_t thaws_at = 0;
};

struct Block {
  size_t number = 0;  // in the grid
  size_t slot = 0;
  bool alive = false;
  uint3 index{};
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<Warp*> runnable;  // those not frozen with ready lanes, and some without that nobody has struck off yet
  bool listed = false;
  unsigned arrived = 0, conditions = 0, result = 0, finished = 0;
  Meeting barrier;
  std::unique_ptr<char, void (*)(void*)> shared{nullptr, nullptr};
};

class Scheduler {
 public:
  void launch(const Launch& launch);  // throws Failure

  void point();
  void wait();  // a point of a thread that only waits
  int block_barrier(const char* name, Site site, bool condition);
  void warp_collective(const char* name, Site site, unsigned mask, void* brought, Complete complete);
  void progress() { idle_ = 0; }

  // Ends the launch, from one of its threads.
  [[noreturn]] void fail(const std::string& kind, const std::string& what);

  Thread* current() { return current_; }
  Random& random() { return random_; }

  uint64_t livelock_limit = 1 << 20;
  unsigned layout_seed = 0;
  Statistics statistics{};

 private:
  void begin(const Launch& launch);
  void admit(size_t slot);
  void run_all();
  void end();
  static void thread_main();
  void finish_current();

  void resume(Thread& thread);  // returns when the caller is resumed
  void run_another();
  void leave_to_main();

  Thread* pick();
  Warp* pick_warp();
  Thread& pick_lane(Warp& warp);
  void strike_off(Block& block);
  bool freeze(Warp& warp);
  void thaw(bool at_least_one);
  void make_ready(Warp& warp, unsigned lanes);

  void release(Block& block);
  Failure stuck() const;

  const Launch* launch_ = nullptr;
  std::unique_ptr<Failure> failure_;
  std::vector<std::unique_ptr<Block>> slots_;
  std::vector<size_t> pending_;  // blocks that have not begun, in random order
  std::vector<Block*> runnable_;
  std::vector<Warp*> frozen_;
  Fibre main_;
  Fibre* left_ = nullptr;
  Thread* current_ = nullptr;
  Block* finished_block_ = nullptr;
  size_t unfinished_ = 0;

  Random random_;
  Habits habits_;
  Warp* warp_ = nullptr;
  Block* block_ = nullptr;
  uint64_t thread_stretch_ = 0, warp_stretch_ = 0, block_stretch_ = 0;
  uint64_t choices_ = 0, next_thaw_ = UINT64_MAX, idle_ = 0;
};

extern Scheduler scheduler;

}  // namespace emulation
