// What threads of a block or a warp do together, and the failures that end a launch.
#include <cstdio>
#include <cstring>
#include <map>
#include <utility>

#include "race_check.h"
#include "scheduler.h"

namespace emulation {
namespace {

// One literal may stand at two addresses.
bool same(const char* a, const char* b) { return a == b || !strcmp(a, b); }

bool same(const Meeting& a, const Meeting& b) {
  return a.site.line == b.site.line && a.mask == b.mask && same(a.name, b.name) && same(a.site.file, b.site.file);
}

std::string text(uint3 index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

std::string hexadecimal(unsigned mask) {
  char text[11];
  snprintf(text, sizeof text, "%#x", mask);
  return text;
}

}  // namespace

std::string describe(const Meeting& meeting) {
  const char* const slash = strrchr(meeting.site.file, '/');
  std::string where = slash ? slash + 1 : meeting.site.file;
  where = std::string(meeting.name) + " in " + where + ":" + std::to_string(meeting.site.line);
  return meeting.mask ? where + " with mask " + hexadecimal(meeting.mask) : where;
}

Failure::Failure(std::string kind, std::string kernel, uint3 block, uint3 thread, const std::string& what)
    : std::runtime_error(kind + " in " + kernel + ", block " + text(block) + ", thread " + text(thread) + ": " + what),
      kind(std::move(kind)),
      kernel(std::move(kernel)),
      block(block),
      thread(thread) {}

void Scheduler::fail(const std::string& kind, const std::string& what) {
  failure_ = std::make_unique<Failure>(kind, kernel_name(*launch_), current_->block->index, current_->index, what);
  leave_to_main();
  __builtin_unreachable();
}

// Nobody can run: which threads wait where.
Failure Scheduler::stuck() const {
  std::map<std::string, size_t> waiting;
  const Thread* one = nullptr;
  for (size_t i = 0; i < slots_.size(); ++i)
    for (const Thread& thread : slots_[i]->threads)
      if (slots_[i]->alive && !thread.finished) ++waiting[describe(thread.waits_at)], one = &thread;
  std::string what;
  for (const auto& [where, count] : waiting)
    what += (what.empty() ? "" : ", ") + std::to_string(count) + " threads wait at " + where;
  return Failure("deadlock", kernel_name(*launch_), one->block->index, one->index, what);
}

int Scheduler::block_barrier(const char* name, Site site, bool condition) {
  Thread& thread = *current_;
  Block& block = *thread.block;
  thread.waits_at = {name, site, 0};
  if (block.finished)
    fail("divergence", "waits at " + describe(thread.waits_at) + ", but others of its block have returned");
  if (block.arrived && !same(block.barrier, thread.waits_at))
    fail("divergence",
         "waits at " + describe(thread.waits_at) + ", but others of its block wait at " + describe(block.barrier));
  block.barrier = thread.waits_at;
  block.conditions += condition;
  if (++block.arrived == block.threads.size())
    release(block);
  else
    thread.warp->ready &= ~(1u << thread.lane);
  run_another();
  return int(block.result);  // the next barrier cannot be complete before all have read this one's
}

void Scheduler::release(Block& block) {
  block.result = block.conditions;
  block.arrived = block.conditions = 0;
  for (Warp& warp : block.warps) make_ready(warp, warp.all);
  if (race_check.active()) {
    std::vector<Thread*> threads;
    for (Thread& thread : block.threads) threads.push_back(&thread);
    race_check.joined(threads);
  }
  progress();
}

void Scheduler::warp_collective(const char* name, Site site, unsigned mask, void* brought, Complete complete) {
  Thread& thread = *current_;
  Warp& warp = *thread.warp;
  thread.waits_at = {name, site, mask};
  thread.brought = brought;
  if (!(mask >> thread.lane & 1)) fail("divergence", "is not in the mask of " + describe(thread.waits_at));
  if (mask & ~warp.all) fail("divergence", "waits for lanes that do not exist at " + describe(thread.waits_at));
  void* all_brought[kLanes] = {};
  bool all_here = true;
  for (unsigned rest = mask; rest; rest &= rest - 1) {
    const Thread& other = warp.lanes[__builtin_ctz(rest)];
    if (other.finished) fail("divergence", "waits at " + describe(thread.waits_at) + " for a lane that has returned");
    const bool waits = &other == &thread || !(warp.ready >> other.lane & 1);
    if (waits && !same(other.waits_at, thread.waits_at))
      fail("divergence", "waits at " + describe(thread.waits_at) + ", but lane " + std::to_string(other.lane) +
                             " waits at " + describe(other.waits_at));
    all_here = all_here && waits;
    all_brought[other.lane] = other.brought;
  }
  if (all_here) {
    complete(all_brought, mask);
    make_ready(warp, mask);
    progress();
  } else {
    warp.ready &= ~(1u << thread.lane);
  }
  run_another();
}

void fail(const std::string& kind, const std::string& what) { scheduler.fail(kind, what); }
void scheduling_point() { scheduler.point(); }
void wait_for_others() { scheduler.wait(); }
int block_barrier(const char* name, Site site, bool condition) {
  return scheduler.block_barrier(name, site, condition);
}
void warp_collective(const char* name, Site site, unsigned mask, void* brought, Complete complete) {
  scheduler.warp_collective(name, site, mask, brought, complete);
}

// Brought: the lanes' threads, of which the last to come tells the race check.
void warp_barrier(Site site, unsigned mask) {
  scheduler.warp_collective("__syncwarp", site, mask, scheduler.current(), [](void* const(&brought)[32], unsigned) {
    std::vector<Thread*> threads;
    for (void* const thread : brought)
      if (thread) threads.push_back(static_cast<Thread*>(thread));
    race_check.joined(threads);
  });
}

unsigned lane() { return scheduler.current()->lane; }

}  // namespace emulation
