// What -fsanitize=thread makes kernels call, in place of ThreadSanitizer's own library. Each access to memory is a
// point at which another thread may be chosen, and is checked for races.
#include "fibre.h"
#include "race_check.h"

namespace emulation {
namespace {

void access(const void* at, size_t bytes, Access access) {
  if (!race_check.active() || !scheduler.current() || on_fibre_stack(at)) return;
  if (size_t(static_cast<const char*>(at) - reinterpret_cast<const char*>(&builtins)) < sizeof builtins) return;
  scheduler.point();
  race_check.access(at, bytes, access);
}

}  // namespace
}  // namespace emulation

using emulation::Access, emulation::access;

#define HOOKS(bytes)                                                                 \
  void __tsan_read##bytes(void* at) { access(at, bytes, Access::kRead); }            \
  void __tsan_write##bytes(void* at) { access(at, bytes, Access::kWrite); }          \
  void __tsan_volatile_read##bytes(void* at) { access(at, bytes, Access::kRead); }   \
  void __tsan_volatile_write##bytes(void* at) { access(at, bytes, Access::kWrite); } \
  void __tsan_unaligned_read##bytes(void* at) { access(at, bytes, Access::kRead); }  \
  void __tsan_unaligned_write##bytes(void* at) { access(at, bytes, Access::kWrite); }

extern "C" {
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* at, size_t bytes) { access(at, bytes, Access::kRead); }
void __tsan_write_range(void* at, size_t bytes) { access(at, bytes, Access::kWrite); }
void __tsan_init() { emulation::kernels_are_instrumented = true; }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}

namespace emulation {
void set_race_check(bool on) { race_check.wanted = on; }
}  // namespace emulation
