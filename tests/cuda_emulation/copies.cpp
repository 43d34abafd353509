// cp.async: copies to shared memory that are complete when the thread waits for them, and until then may or may not be.
#include <cstring>

#include "race_check.h"
#include "scheduler.h"

namespace emulation {
namespace {

void complete(const Copy& copy) {
  race_check.access(copy.to, copy.bytes, Access::kWrite);
  race_check.access(copy.from, copy.from_bytes, Access::kRead);
  memcpy(copy.to, copy.from, copy.from_bytes);
  memset(static_cast<char*>(copy.to) + copy.from_bytes, 0, copy.bytes - copy.from_bytes);
}

}  // namespace

// By chance, at once, which shows what still reads the old contents; or at the wait, with NaN till then.
void copy_async(void* to, const void* from, size_t bytes, size_t from_bytes) {
  Thread& thread = *scheduler.current();
  if ((bytes != 4 && bytes != 8 && bytes != 16) || from_bytes > bytes || reinterpret_cast<uintptr_t>(to) % bytes ||
      reinterpret_cast<uintptr_t>(from) % bytes)
    fail("misalignment", "cp.async copies 4, 8 or 16 bytes that are aligned to their number");
  scheduler.point();
  const Copy copy{to, from, bytes, from_bytes, thread.copy_groups};
  if (scheduler.random().below(2)) {
    complete(copy);
  } else {
    race_check.access(to, bytes, Access::kWrite);
    memset(to, 0xff, bytes);
    thread.copies.push_back(copy);
  }
}

void commit_copies() { ++scheduler.current()->copy_groups; }

void wait_copies(unsigned groups_left) {
  Thread& thread = *scheduler.current();
  scheduler.point();
  size_t kept = 0;
  for (const Copy& copy : thread.copies)
    if (copy.group + groups_left < thread.copy_groups)
      complete(copy);
    else
      thread.copies[kept++] = copy;
  thread.copies.resize(kept);
}

}  // namespace emulation
