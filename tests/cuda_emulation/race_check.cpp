// Happens-before by vector clocks, and a shadow of all memory that threads touched in the present launch.
#include "race_check.h"

#include <algorithm>

namespace emulation {

RaceCheck race_check;
bool kernels_are_instrumented = false;

void RaceCheck::begin(size_t blocks, size_t threads_per_block) {
  active_ = wanted && kernels_are_instrumented;
  if (!active_) return;
  ++launch_;
  if (pages_.size() > kMostPages) pages_.clear(), std::fill(std::begin(recent_), std::end(recent_), Recent{});
  threads_per_block_ = threads_per_block;
  threads_.assign(blocks * threads_per_block, Knowledge{});
  for (size_t block = 0; block < blocks; ++block) {
    const auto clock = std::make_shared<const Clock>(block, threads_per_block, blocks);
    for (size_t i = 0; i < threads_per_block; ++i) threads_[block * threads_per_block + i].clock = clock;
  }
  released_.clear();
}

void RaceCheck::joined(const std::vector<Thread*>& threads) {
  if (!active_ || threads.empty()) return;
  const auto clock = std::make_shared<Clock>(*threads_[threads[0]->number].clock);
  const Clock* last = nullptr;
  for (const Thread* const thread : threads) {
    const Clock* const mine = threads_[thread->number].clock.get();
    if (mine != last) clock->join(*mine);
    last = mine;
  }
  for (const Thread* const thread : threads) clock->set_own(thread->number, threads_[thread->number].epoch++);
  for (const Thread* const thread : threads) threads_[thread->number].clock = clock;
}

void RaceCheck::acquire(Knowledge& knowledge, const SharedClock& from) {
  if (!from || from == knowledge.acquired) return;
  const auto clock = std::make_shared<Clock>(*knowledge.clock);
  clock->join(*from);
  knowledge.clock = clock;
  knowledge.acquired = from;
}

// All that the thread has done or learned so far.
SharedClock RaceCheck::publish(Knowledge& knowledge) {
  const auto clock = std::make_shared<Clock>(*knowledge.clock);
  clock->set_own(scheduler.current()->number, knowledge.epoch++);
  return clock;
}

void RaceCheck::loaded(const void* at, bool acquires) {
  if (!active_) return;
  const auto found = released_.find(at);
  if (found == released_.end() || !found->second) return;
  if (acquires)
    acquire(current(), found->second);
  else
    current().after_relaxed = found->second;
}

void RaceCheck::stored(const void* at, bool release) {
  if (!active_) return;
  Knowledge& knowledge = current();
  released_[at] = release ? publish(knowledge) : knowledge.before_fence;
}

// A read-modify-write goes on with the releases before it.
void RaceCheck::updated(const void* at, bool acquires, bool release) {
  if (!active_) return;
  loaded(at, acquires);
  Knowledge& knowledge = current();
  const SharedClock mine = release ? publish(knowledge) : knowledge.before_fence;
  if (!mine) return;
  SharedClock& before = released_[at];
  if (!before) {
    before = mine;
    return;
  }
  const auto both = std::make_shared<Clock>(*before);
  both->join(*mine);
  before = both;
}

void RaceCheck::fence() {
  if (!active_ || !scheduler.current()) return;
  acquire(current(), current().after_relaxed);
  current().before_fence = publish(current());
}

RaceCheck::Page& RaceCheck::page_of(uintptr_t address) {
  const uintptr_t number = address / kPageBytes;
  Recent& recent = recent_[number % 64];
  if (recent.number != number || !recent.page) {
    std::unique_ptr<Page>& page = pages_[number];
    if (!page) page = std::make_unique<Page>();
    recent = {number, page.get()};
  }
  Page& page = *recent.page;
  if (page.launch != launch_) {
    page.launch = launch_;
    page.cells.assign(kPageBytes / page.unit_bytes(), Cell{});
  }
  return page;
}

void RaceCheck::forget(const void* memory, size_t bytes) {
  if (!active_) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory), end = begin + bytes;
  for (uintptr_t address = begin; address < end;) {
    Page& page = page_of(address);
    page.cell(address) = Cell{};
    address += page.unit_bytes() - address % page.unit_bytes();
  }
}

void RaceCheck::check_range(const void* at, size_t bytes, Access access) {
  ++scheduler.statistics.accesses;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(at), end = begin + bytes;
  for (uintptr_t address = begin; address < end;) {
    Page& page = page_of(address);
    if (page.by_words && (address % 4 || end - address < 4)) {
      std::vector<Cell> cells(kPageBytes);
      for (size_t i = 0; i < cells.size(); ++i) cells[i] = page.cells[i / 4];
      page.cells.swap(cells);
      page.by_words = false;
    }
    check(page.cell(address), address, bytes, access);
    address += page.unit_bytes();
  }
}

bool RaceCheck::ordered(const Mark& mark, size_t thread, const Knowledge& knowledge) const {
  return mark.epoch == 0 || mark.thread == thread || knowledge.clock->of(mark.thread) >= mark.epoch;
}

void RaceCheck::check(Cell& cell, uintptr_t address, size_t bytes, Access access) {
  const size_t thread = scheduler.current()->number;
  const Knowledge& knowledge = threads_[thread];
  const bool atomic = access == Access::kAtomicRead || access == Access::kAtomicWrite;
  const bool writes = access == Access::kWrite || access == Access::kAtomicWrite;
  const Mark me{uint32_t(thread), atomic, knowledge.epoch};
  if (!(cell.write.atomic && atomic) && !ordered(cell.write, thread, knowledge))
    report(cell.write, true, address, bytes, access);
  if (writes) {
    for (const Mark& read : cell.reads)
      if (!(read.atomic && atomic) && !ordered(read, thread, knowledge)) report(read, false, address, bytes, access);
    cell = Cell{me, {}};
    return;
  }
  for (Mark& read : cell.reads)
    if (ordered(read, thread, knowledge)) {  // what is ordered after this read, is ordered after that one
      read = me;
      return;
    }
  cell.reads[scheduler.random().below(3)] = me;
}

void RaceCheck::report(const Mark& other, bool other_writes, uintptr_t address, size_t bytes, Access access) {
  const Thread& me = *scheduler.current();
  const uintptr_t shared = reinterpret_cast<uintptr_t>(me.block->shared.get());
  const bool is_shared = address - shared < builtins.shared_bytes;
  const bool writes = access == Access::kWrite || access == Access::kAtomicWrite;
  const std::string where = is_shared ? "byte " + std::to_string(address - shared) + " of shared memory"
                                      : "global memory at " + std::to_string(address);
  scheduler.fail("race", std::string(writes ? "writes " : "reads ") + std::to_string(bytes) + " bytes around " + where +
                             ", which " + (other_writes ? "was written" : "was read") + " by thread " +
                             std::to_string(other.thread % threads_per_block_) + " of block number " +
                             std::to_string(other.thread / threads_per_block_) + ", and nothing orders the two");
}

}  // namespace emulation
