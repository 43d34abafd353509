// How many blocks of a kernel a multiprocessor runs at once, by NVIDIA's own calculator: a line of numbers in, a number out.
#include <cuda_occupancy.h>

#include <cstdio>

int main() {
  int capability, registers, threads, most_threads;
  unsigned long shared, shared_of_block, shared_of_processor;
  while (std::scanf("%d %d %d %lu %d %lu %lu", &capability, &registers, &threads, &shared, &most_threads,
                    &shared_of_block, &shared_of_processor) == 7) {
    cudaOccDeviceProp device{};
    device.computeMajor = capability / 10, device.computeMinor = capability % 10;
    device.maxThreadsPerBlock = 1024, device.maxThreadsPerMultiprocessor = most_threads;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.warpSize = 32;
    device.sharedMemPerBlock = 48 * 1024;
    device.sharedMemPerMultiprocessor = shared_of_processor;
    device.sharedMemPerBlockOptin = shared_of_block;
    device.reservedSharedMemPerBlock = 1024;
    device.numSms = 1;
    cudaOccFuncAttributes kernel{};
    kernel.maxThreadsPerBlock = 1024;
    kernel.numRegs = registers;
    kernel.maxDynamicSharedSizeBytes = int(shared_of_block);
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    const cudaOccDeviceState state{};
    cudaOccResult result{};
    const cudaOccError error =
        cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, shared);
    std::printf("%d\n", error == CUDA_OCC_SUCCESS ? result.activeBlocksPerMultiprocessor : -int(error));
  }
}
