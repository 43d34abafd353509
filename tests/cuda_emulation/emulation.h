// What kernels and tests see of the emulated GPU beside CUDA's own names: its settings, what it found, and the few
// things that CUDA says in PTX. One host thread at a time launches.
#pragma once
#include <cuda_runtime_api.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace emulation {

// What a kernel did wrong. Thrown by the launch.
struct Failure : std::runtime_error {
  Failure(std::string kind, std::string kernel, uint3 block, uint3 thread, const std::string& what);
  std::string kind;    // "deadlock", "divergence", "livelock", "race", "stack overflow", ...
  std::string kernel;  // its name, or its type where its file is stripped
  uint3 block, thread;
};

struct Device {
  int multiprocessors = 4;
  int blocks_per_multiprocessor = 1;  // what the occupancy calculator answers
  int shared_bytes = 227 << 10;       // most that a block can ask for
  int compute_capability = 90;
};

struct Statistics {
  uint64_t launches, blocks, threads;
  uint64_t switches;  // of threads
  uint64_t points;    // at which another thread could have been chosen
  uint64_t accesses;  // to memory, that were checked for races
};

void set_seed(uint64_t seed);  // the next launch's; later ones go on from it
void set_device(const Device& device);
const Device& device();
void set_livelock_limit(uint64_t idle_points);  // so many points without progress are a livelock
Statistics statistics();

// On from the beginning; without effect on kernels that were compiled without -fsanitize=thread.
void set_race_check(bool on);

// Mutations: faults that kernels seed into themselves where mutated(name) is true. The first name is the environment's
// FASTLSTM_MUTATE; "" is none.
void set_mutation(const std::string& name);
std::vector<std::string> mutations_reached();  // the names that kernels have asked about
bool mutated(const char* name);

// Where in the source a barrier or a warp-wide operation stands: threads that meet must be at the same one.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

// What a thread knows of itself; set at each switch.
struct Builtins {
  uint3 thread{}, block{};
  dim3 block_dim, grid_dim;
  void* shared = nullptr;
  size_t shared_bytes = 0;
};
inline Builtins builtins;

// New memory is NaN in every format, and not all ones, which is what kernels may fill memory with themselves.
void poison(void* memory, size_t bytes);

// The dynamic shared memory of the block.
inline void* shared_memory() { return builtins.shared; }

// A place at which the scheduler may choose another thread.
void scheduling_point();
// The same, for a thread that can do nothing but wait for others: it is a livelock if nobody can do more.
void wait_for_others();

// Waits for all threads of the block; returns how many came with a true condition. `name` is what messages call it.
int block_barrier(const char* name, Site site, bool condition);

// Waits for the lanes of the mask. The last of them calls `complete` for all, with what each brought (null: not in the
// mask), before any goes on.
using Complete = void (*)(void* const (&brought)[32], unsigned mask);
void warp_collective(const char* name, Site site, unsigned mask, void* brought, Complete complete);

void warp_barrier(Site site, unsigned mask);

uint64_t atomic_load(const void* at, size_t bytes, std::memory_order order);
void atomic_store(void* at, size_t bytes, uint64_t value, std::memory_order order);
uint64_t atomic_update(void* at, size_t bytes, uint64_t (*update)(uint64_t old, uint64_t operand), uint64_t operand,
                       std::memory_order order);  // returns what was there before
// Relaxed accesses to neighbours, each of so many bytes whole, in any order.
void relaxed_load(void* to, const void* from, size_t bytes, int count);
void relaxed_store(void* to, const void* from, size_t bytes, int count);
void device_fence();

// cp.async of the calling thread: copies bytes (4, 8 or 16), of which those beyond from_bytes become zero. Committed
// copies are a group; wait_copies waits for all groups but the last few.
void copy_async(void* to, const void* from, size_t bytes, size_t from_bytes);
inline void copy_async(void* to, const void* from, size_t bytes) { copy_async(to, from, bytes, bytes); }
void commit_copies();
void wait_copies(unsigned groups_left);

[[noreturn]] void fail(const std::string& kind, const std::string& what);  // ends the launch, from one of its threads
unsigned layout_seed();                                                    // of what lies where in a wmma fragment

unsigned lane();
long long clock();  // in scheduling points

// A launch, as the template cudaLaunchKernelEx knows it.
struct Launch {
  const void* kernel;
  const char* signature;  // mangled type of the kernel
  dim3 grid, block;
  size_t shared_bytes;
  bool cooperative;  // all blocks at once
  void (*run)(const void* parameters);
  const void* parameters;
};
cudaError_t launch(const cudaLaunchConfig_t& config, Launch launch);  // throws Failure
std::string kernel_name(const Launch& launch);

}  // namespace emulation
