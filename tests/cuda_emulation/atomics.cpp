// Atomic operations and fences: points of the scheduler, edges of the race check.
#include <cstring>

#include "race_check.h"
#include "scheduler.h"

namespace emulation {
namespace {

bool acquires(std::memory_order order) {
  return order != std::memory_order_relaxed && order != std::memory_order_release;
}
bool releases(std::memory_order order) {
  return order != std::memory_order_relaxed && order != std::memory_order_acquire;
}

uint64_t read(const void* at, size_t bytes) {
  uint64_t value = 0;
  memcpy(&value, at, bytes);
  return value;
}

}  // namespace

// The same answer from the same place again: the thread spins, and nothing is gained by letting it go on.
uint64_t atomic_load(const void* at, size_t bytes, std::memory_order order) {
  Thread* const thread = scheduler.current();
  if (thread && thread->polled == at && thread->poll_answer == read(at, bytes))
    scheduler.wait();
  else
    scheduler.point();
  const uint64_t value = read(at, bytes);
  if (thread) {
    thread->polled = at, thread->poll_answer = value;
    race_check.access(at, bytes, Access::kAtomicRead);
    race_check.loaded(at, acquires(order));
  }
  return value;
}

void atomic_store(void* at, size_t bytes, uint64_t value, std::memory_order order) {
  scheduler.point();
  race_check.access(at, bytes, Access::kAtomicWrite);
  race_check.stored(at, releases(order));
  memcpy(at, &value, bytes);
  scheduler.progress();
  scheduler.point();
}

uint64_t atomic_update(void* at, size_t bytes, uint64_t (*update)(uint64_t old, uint64_t operand), uint64_t operand,
                       std::memory_order order) {
  scheduler.point();
  race_check.access(at, bytes, Access::kAtomicWrite);
  race_check.updated(at, acquires(order), releases(order));
  const uint64_t old = read(at, bytes), value = update(old, operand);
  memcpy(at, &value, bytes);
  scheduler.progress();
  scheduler.point();
  return old;
}

// The place at which the neighbours begin is the scheduler's random choice.
template <class Access>
void in_any_order(int count, Access access) {
  const int first = int(scheduler.random().below(unsigned(count)));
  for (int i = 0; i < count; ++i) {
    scheduler.point();
    access(size_t((first + i) % count));
  }
}

void relaxed_load(void* to, const void* from, size_t bytes, int count) {
  in_any_order(count, [&](size_t i) {
    const char* const at = static_cast<const char*>(from) + i * bytes;
    race_check.access(at, bytes, Access::kAtomicRead);
    race_check.loaded(at, false);
    memcpy(static_cast<char*>(to) + i * bytes, at, bytes);
  });
}

void relaxed_store(void* to, const void* from, size_t bytes, int count) {
  in_any_order(count, [&](size_t i) {
    char* const at = static_cast<char*>(to) + i * bytes;
    race_check.access(at, bytes, Access::kAtomicWrite);
    race_check.stored(at, false);
    memcpy(at, static_cast<const char*>(from) + i * bytes, bytes);
    scheduler.progress();
  });
  scheduler.point();
}

void device_fence() {
  scheduler.point();
  race_check.fence();
}

}  // namespace emulation
