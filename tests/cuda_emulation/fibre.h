// Fibres: stacks that code leaves in its middle and comes back to. One is a CUDA thread; the scheduler alone switches.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(EMULATION_ASSEMBLY_SWITCH)  // as the build says
#elif defined(__x86_64__)
#define EMULATION_ASSEMBLY_SWITCH 1
#else
#define EMULATION_ASSEMBLY_SWITCH 0
#endif
#if !EMULATION_ASSEMBLY_SWITCH
#include <ucontext.h>  // a system call a switch
#endif

#if defined(__SANITIZE_ADDRESS__)
#define EMULATION_ADDRESS_SANITIZER 1
#else
#define EMULATION_ADDRESS_SANITIZER 0
#endif

namespace emulation {

// AddressSanitizer puts red zones around each variable: frames get longer.
constexpr size_t kStackBytes = EMULATION_ADDRESS_SANITIZER ? 256 << 10 : 64 << 10;
constexpr size_t kMostFibres = 1 << 16;

struct Fibre {
  void* stack_pointer = nullptr;
  char* bottom = nullptr;  // of its stack: the lowest address
  size_t bytes = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
#if !EMULATION_ASSEMBLY_SWITCH
  ucontext_t context;
#endif
};

// Prepares fibre `number` to call entry when it is switched to; entry never returns. What ran on its stack before is
// forgotten.
void prepare(Fibre& fibre, size_t number, void (*entry)());

// Goes on at `to`; returns when something switches to `from`.
void switch_fibre(Fibre& from, Fibre& to);

// The first thing that entry calls, with the fibre that it was switched to from.
void entered(Fibre& from);

bool overflowed(const Fibre& fibre);

// All stacks lie in one range.
bool on_fibre_stack(const void* address);

}  // namespace emulation
