// The switch itself, and the memory of the stacks.
#include "fibre.h"

#include <sys/mman.h>

#include <cstring>
#include <new>

#if EMULATION_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if EMULATION_ASSEMBLY_SWITCH
// Saves what a called function must preserve, and leaves the stack pointer in *from. The floating-point control words
// are the same in all fibres. An indirect jump instead of ret: the processor's stack of return addresses knows
// nothing of fibres.
asm(R"(
.text
.p2align 4
.hidden emulation_switch_stack
.globl emulation_switch_stack
.type emulation_switch_stack, @function
emulation_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmp *%rcx
.size emulation_switch_stack, .-emulation_switch_stack
)");
extern "C" void emulation_switch_stack(void** from, void* to);
#endif

namespace emulation {
namespace {

constexpr uint64_t kCanary = 0x5afe57ac5afe57acULL;

// The pages come into being when they are touched.
char* stacks() {
  static char* const memory = [] {
    void* const got = mmap(nullptr, kStackBytes * kMostFibres, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (got == MAP_FAILED) throw std::bad_alloc();
    return static_cast<char*>(got);
  }();
  return memory;
}

void leave([[maybe_unused]] Fibre& from, [[maybe_unused]] const Fibre& to) {
#if EMULATION_ADDRESS_SANITIZER
  __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.bytes);
#endif
}

void come_back([[maybe_unused]] Fibre& to) {
#if EMULATION_ADDRESS_SANITIZER
  __sanitizer_finish_switch_fiber(to.fake_stack, nullptr, nullptr);
#endif
}

}  // namespace

void prepare(Fibre& fibre, size_t number, void (*entry)()) {
  if (number >= kMostFibres) throw std::bad_alloc();
  fibre.bottom = stacks() + number * kStackBytes;
  fibre.bytes = kStackBytes;
  fibre.fake_stack = nullptr;
#if EMULATION_ADDRESS_SANITIZER
  ASAN_UNPOISON_MEMORY_REGION(fibre.bottom, fibre.bytes);  // frames that were never left
#endif
  memcpy(fibre.bottom, &kCanary, sizeof kCanary);
#if EMULATION_ASSEMBLY_SWITCH
  // Stacks that begin at the same offset of a page would fight for the same lines of the cache.
  char* const top = fibre.bottom + kStackBytes - number % 32 * 128;
  void** const frame = reinterpret_cast<void**>(top) - 8;  // six registers, where to go on, entry's return address
  memset(frame, 0, 8 * sizeof(void*));
  frame[6] = reinterpret_cast<void*>(entry);
  fibre.stack_pointer = frame;
#else
  getcontext(&fibre.context);
  fibre.context.uc_stack.ss_sp = fibre.bottom;
  fibre.context.uc_stack.ss_size = fibre.bytes;
  fibre.context.uc_link = nullptr;
  makecontext(&fibre.context, entry, 0);
#endif
}

void switch_fibre(Fibre& from, Fibre& to) {
  leave(from, to);
#if EMULATION_ASSEMBLY_SWITCH
  emulation_switch_stack(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.context, &to.context);
#endif
  come_back(from);
}

void entered([[maybe_unused]] Fibre& from) {
#if EMULATION_ADDRESS_SANITIZER
  const void* bottom;
  size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  from.bottom = static_cast<char*>(const_cast<void*>(bottom));
  from.bytes = bytes;
#endif
}

bool overflowed(const Fibre& fibre) { return memcmp(fibre.bottom, &kCanary, sizeof kCanary) != 0; }

bool on_fibre_stack(const void* address) {
  static char* const first = stacks();
  return size_t(static_cast<const char*>(address) - first) < kStackBytes * kMostFibres;
}

}  // namespace emulation
