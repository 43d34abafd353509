// How the blocks of a persistent kernel wait for one another.
#pragma once
#include <cuda/atomic>

#include "device.cuh"

namespace fastlstm::gpu {

// Where all blocks of a cooperative launch meet. `arrived` starts at zero; nobody waits for longer than some seconds, so that a
// fault ends in an error, not in a hang.
class GridBarrier {
 public:
  struct Words {
    unsigned *arrived, *failed;  // of this launch, in device memory
    unsigned* host_failed;       // of all launches, in memory of the host
  };

  __device__ explicit GridBarrier(const Words& words) : words_(words) {}

  // False: a block has given up, and all should end. Everything that any block wrote before is there after.
  __device__ bool wait() {
    __syncthreads();
    unsigned failed = 0;
    if (threadIdx.x == 0) {
      target_ += gridDim.x * gridDim.y;
      const Counter arrived(*words_.arrived), failure(*words_.failed);
      if (!mutated("grid barrier: arrival")) arrived.fetch_add(1, cuda::memory_order_release);
      unsigned polls = 0;
      while (arrived.load(mutated("grid barrier: relaxed") ? cuda::memory_order_relaxed : cuda::memory_order_acquire) <
                 target_ &&
             !mutated("grid barrier: wait")) {
        if (++polls == kMostPolls) {
          failure.store(1, cuda::memory_order_relaxed);
          *static_cast<volatile unsigned*>(words_.host_failed) = 1;
        }
        if (polls % 1024 == 0 && (failed = failure.load(cuda::memory_order_relaxed))) break;
      }
    }
    return !__syncthreads_or(failed);
  }

 private:
  using Counter = cuda::atomic_ref<unsigned, cuda::thread_scope_device>;
  static constexpr unsigned kMostPolls = 1u << 26;  // each takes a few hundred cycles

  const Words words_;
  unsigned target_ = 0;
};

}  // namespace fastlstm::gpu
