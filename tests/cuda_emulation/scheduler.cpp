// Chooses who runs: random blocks, warps and lanes, for stretches of random length, with whole warps frozen now and
// then.
#include "scheduler.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "race_check.h"

namespace emulation {

Scheduler scheduler;

namespace {

// Shared memory is exactly as long as was asked for, so that AddressSanitizer sees the end.
std::unique_ptr<char, void (*)(void*)> poisoned(size_t bytes) {
  void* memory = nullptr;
  if (bytes && posix_memalign(&memory, 128, bytes)) throw std::bad_alloc();
  poison(memory, bytes);
  return {static_cast<char*>(memory), free};
}

uint3 index_of(size_t i, dim3 extent) {
  return {unsigned(i % extent.x), unsigned(i / extent.x % extent.y), unsigned(i / extent.x / extent.y)};
}

template <class T>
void shuffle(std::vector<T>& items, Random& random) {
  for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[random.below(unsigned(i))]);
}

}  // namespace

void Scheduler::launch(const Launch& launch) {
  begin(launch);
  run_all();
  end();
  if (failure_) throw Failure(*std::exchange(failure_, nullptr));
}

void Scheduler::begin(const Launch& launch) {
  launch_ = &launch;
  habits_ = Habits::draw(random_);
  runnable_.clear(), frozen_.clear(), pending_.clear();
  next_thaw_ = UINT64_MAX, idle_ = 0;
  builtins.block_dim = launch.block, builtins.grid_dim = launch.grid;
  builtins.shared_bytes = launch.shared_bytes;
  const size_t blocks = size_t(launch.grid.x) * launch.grid.y * launch.grid.z;
  for (size_t i = 0; i < blocks; ++i) pending_.push_back(i);
  shuffle(pending_, random_);
  race_check.begin(blocks, size_t(launch.block.x) * launch.block.y * launch.block.z);
  const unsigned most = unsigned(device().multiprocessors * device().blocks_per_multiprocessor);
  const size_t resident = launch.cooperative ? blocks : std::min(blocks, size_t(1 + random_.below(most)));
  while (slots_.size() < resident) slots_.push_back(std::make_unique<Block>());
  for (size_t i = 0; i < resident; ++i) admit(i);
  unfinished_ = blocks;
  ++statistics.launches, statistics.blocks += blocks;
  statistics.threads += blocks * launch.block.x * launch.block.y * launch.block.z;
}

// The next block begins in a slot.
void Scheduler::admit(size_t slot) {
  Block& block = *slots_[slot];
  const size_t threads = size_t(launch_->block.x) * launch_->block.y * launch_->block.z;
  block.slot = slot;
  block.alive = true;
  block.number = pending_.back();
  block.index = index_of(block.number, launch_->grid);
  pending_.pop_back();
  block.arrived = block.conditions = block.finished = 0;
  block.listed = false;
  block.shared = poisoned(launch_->shared_bytes);
  race_check.forget(block.shared.get(), launch_->shared_bytes);
  block.runnable.clear();
  block.threads.resize(threads);
  block.warps.assign((threads + kLanes - 1) / kLanes, Warp{});
  for (size_t i = 0; i < threads; ++i) {
    Thread& thread = block.threads[i];
    thread = Thread{};
    thread.index = index_of(i, launch_->block);
    thread.block = &block, thread.warp = &block.warps[i / kLanes], thread.lane = unsigned(i % kLanes);
    thread.number = block.number * threads + i;
    prepare(thread.fibre, slot * threads + i, thread_main);
    thread.warp->all |= 1u << thread.lane;
  }
  for (size_t i = 0; i < block.warps.size(); ++i) {
    block.warps[i].block = &block, block.warps[i].lanes = &block.threads[i * kLanes];
    make_ready(block.warps[i], block.warps[i].all);
  }
  warp_ = nullptr, block_ = nullptr;
  progress();
}

// Threads hand over to each other; this stack is come back to when a block has finished, or something has failed.
void Scheduler::run_all() {
  while (unfinished_ && !failure_) {
    finished_block_ = nullptr;
    if (Thread* const next = pick())
      resume(*next);
    else
      failure_ = std::make_unique<Failure>(stuck());
    current_ = nullptr;
    if (!finished_block_) continue;
    finished_block_->alive = false;
    finished_block_->shared.reset();
    --unfinished_;
    if (!pending_.empty()) admit(finished_block_->slot);
  }
}

void Scheduler::end() {
  for (const auto& block : slots_) block->alive = false, block->shared.reset();
  race_check.end();
  builtins = Builtins{};
  warp_ = nullptr, block_ = nullptr, launch_ = nullptr;
}

void Scheduler::thread_main() {
  entered(*scheduler.left_);
  scheduler.launch_->run(scheduler.launch_->parameters);
  scheduler.finish_current();
}

void Scheduler::finish_current() {
  Thread& thread = *current_;
  Block& block = *thread.block;
  if (overflowed(thread.fibre)) fail("stack overflow", "used more than " + std::to_string(kStackBytes) + " bytes");
  if (block.arrived) fail("divergence", "returns, while others of its block wait at " + describe(block.barrier));
  for (unsigned waiting = thread.warp->all & ~thread.warp->ready; waiting; waiting &= waiting - 1) {
    const Thread& other = thread.warp->lanes[__builtin_ctz(waiting)];
    if (!other.finished && other.waits_at.mask >> thread.lane & 1)
      fail("divergence", "returns, while others of its warp wait for it at " + describe(other.waits_at));
  }
  thread.finished = true;
  thread.warp->ready &= ~(1u << thread.lane);
  progress();
  if (++block.finished == block.threads.size()) {
    finished_block_ = &block;
    leave_to_main();
  }
  run_another();
  __builtin_unreachable();
}

void Scheduler::leave_to_main() {
  left_ = &current_->fibre;
  switch_fibre(current_->fibre, main_);
}

void Scheduler::resume(Thread& thread) {
  thread_stretch_ = stretch(habits_.thread_stretch, random_);
  if (&thread == current_) return;
  ++statistics.switches;
  Fibre& from = current_ ? current_->fibre : main_;
  left_ = &from;
  current_ = &thread;
  builtins.thread = thread.index;
  builtins.block = thread.block->index;
  builtins.shared = thread.block->shared.get();
  switch_fibre(from, thread.fibre);
}

void Scheduler::run_another() {
  Thread* const next = pick();
  if (!next) {
    failure_ = std::make_unique<Failure>(stuck());
    leave_to_main();
  }
  resume(*next);
}

void Scheduler::point() {
  if (!current_) return;
  ++statistics.points;
  if (thread_stretch_ > 0)
    --thread_stretch_;
  else
    run_another();
}

// Who only waits would be chosen again and again by a habit of long stretches.
void Scheduler::wait() {
  if (!current_) return;
  ++statistics.points;
  if (++idle_ > livelock_limit) fail("livelock", "waits in a loop, and no thread does anything else");
  warp_stretch_ = block_stretch_ = 0;
  run_another();
}

Thread* Scheduler::pick() {
  if (++choices_ >= next_thaw_) thaw(false);
  if (warp_ && warp_stretch_ > 0 && warp_->ready) {
    --warp_stretch_;
  } else {
    warp_ = pick_warp();
    if (!warp_) return nullptr;
    warp_stretch_ = stretch(habits_.warp_stretch, random_);
  }
  return &pick_lane(*warp_);
}

Warp* Scheduler::pick_warp() {
  for (;;) {
    if (runnable_.empty()) {
      if (frozen_.empty()) return nullptr;
      thaw(true);
      continue;
    }
    if (block_ && block_->listed && block_stretch_ > 0) {
      --block_stretch_;
    } else {
      const unsigned i = random_.below(unsigned(runnable_.size()));
      std::swap(runnable_[i], runnable_.back());
      block_ = runnable_.back();
      block_stretch_ = stretch(habits_.block_stretch, random_);
    }
    std::vector<Warp*>& warps = block_->runnable;
    while (!warps.empty()) {
      std::swap(warps[random_.below(unsigned(warps.size()))], warps.back());
      Warp& warp = *warps.back();
      if (warp.ready && !freeze(warp)) return &warp;
      warps.pop_back();
      warp.listed = false;
    }
    strike_off(*block_);
  }
}

// The block has no warp that can run.
void Scheduler::strike_off(Block& block) {
  for (size_t i = runnable_.size(); i-- > 0;)  // it is the last, unless others were listed since
    if (runnable_[i] == &block) {
      runnable_.erase(runnable_.begin() + std::ptrdiff_t(i));
      break;
    }
  block.listed = false;
}

// Spinning lanes must not keep others of their warp from running: the orders go round.
Thread& Scheduler::pick_lane(Warp& warp) {
  unsigned from = 0;
  if (habits_.lanes == Habits::kRandom)
    from = unsigned(random_.next() >> 59);
  else if (habits_.lanes == Habits::kUp)
    from = (warp.last_lane + 1) % kLanes;
  if (habits_.lanes == Habits::kDown) {
    const unsigned below = warp.ready & ((1u << warp.last_lane) - 1);
    warp.last_lane = 31 - unsigned(__builtin_clz(below ? below : warp.ready));
  } else {
    const unsigned above = warp.ready & (~0u << from);
    warp.last_lane = unsigned(__builtin_ctz(above ? above : warp.ready));
  }
  return warp.lanes[warp.last_lane];
}

// Sometimes a warp does not run for a long time, though it could. Not if it is the only one.
bool Scheduler::freeze(Warp& warp) {
  if (!habits_.freezes || random_.below(habits_.freezes)) return false;
  if (runnable_.size() == 1 && warp.block->runnable.size() == 1) return false;
  warp.frozen = true;
  warp.thaws_at = choices_ + (uint64_t(1) << random_.below(habits_.longest_freeze));
  if (warp.thaws_at < next_thaw_) next_thaw_ = warp.thaws_at;
  frozen_.push_back(&warp);
  return true;
}

void Scheduler::thaw(bool at_least_one) {
  const size_t lucky = at_least_one ? random_.below(unsigned(frozen_.size())) : SIZE_MAX;
  std::vector<Warp*> stay;
  next_thaw_ = UINT64_MAX;
  for (size_t i = 0; i < frozen_.size(); ++i) {
    Warp& warp = *frozen_[i];
    if (i != lucky && warp.thaws_at > choices_) {
      stay.push_back(&warp);
      if (warp.thaws_at < next_thaw_) next_thaw_ = warp.thaws_at;
    } else {
      warp.frozen = false;
      make_ready(warp, 0);
    }
  }
  frozen_.swap(stay);
}

void Scheduler::make_ready(Warp& warp, unsigned lanes) {
  warp.ready |= lanes;
  if (warp.frozen || warp.listed || !warp.ready) return;
  warp.listed = true;
  warp.block->runnable.push_back(&warp);
  if (warp.block->listed) return;
  warp.block->listed = true;
  runnable_.push_back(warp.block);
}

}  // namespace emulation
