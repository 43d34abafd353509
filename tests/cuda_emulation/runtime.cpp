// The host's side of the emulated GPU: memory, devices, events, launches. Everything has happened when a call returns.
#include <cuda_runtime.h>

#include <cstdlib>
#include <cstring>
#include <unordered_map>

#include "scheduler.h"

namespace emulation {
namespace {

constexpr size_t kDefaultSharedBytes = 48 << 10;

Device the_device;
cudaError_t last_error = cudaSuccess;
std::unordered_map<const void*, size_t> shared_limits;  // what cudaFuncSetAttribute has allowed

cudaError_t answer(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

size_t volume(dim3 extent) { return size_t(extent.x) * extent.y * extent.z; }

cudaError_t check(const cudaLaunchConfig_t& config, Launch& launch) {
  const size_t threads = volume(launch.block);
  if (threads == 0 || threads > 1024 || launch.block.z > 64) return cudaErrorInvalidConfiguration;
  if (volume(launch.grid) == 0 || launch.grid.y > 65535 || launch.grid.z > 65535) return cudaErrorInvalidConfiguration;
  const auto allowed = shared_limits.find(launch.kernel);
  if (launch.shared_bytes > (allowed == shared_limits.end() ? kDefaultSharedBytes : allowed->second))
    return cudaErrorInvalidValue;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    if (attribute.id == cudaLaunchAttributeCooperative)
      launch.cooperative = attribute.val.cooperative != 0;
    else if (attribute.id != cudaLaunchAttributeIgnore)
      return cudaErrorNotSupported;
  }
  const size_t together = size_t(the_device.multiprocessors) * size_t(the_device.blocks_per_multiprocessor);
  if (launch.cooperative && volume(launch.grid) > together) return cudaErrorCooperativeLaunchTooLarge;
  return cudaSuccess;
}

}  // namespace

void poison(void* memory, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) static_cast<unsigned char*>(memory)[i] = i % 2 ? 0xff : 0xfe;
}

void set_device(const Device& device) { the_device = device; }
const Device& device() { return the_device; }
void set_seed(uint64_t seed) {
  scheduler.random() = Random(seed);
  scheduler.layout_seed = unsigned(scheduler.random().next());
}
unsigned layout_seed() { return scheduler.layout_seed; }
void set_livelock_limit(uint64_t idle_points) { scheduler.livelock_limit = idle_points; }
Statistics statistics() { return scheduler.statistics; }
long long clock() { return (long long)scheduler.statistics.points; }

cudaError_t launch(const cudaLaunchConfig_t& config, Launch launch) {
  const cudaError_t error = check(config, launch);
  if (error != cudaSuccess) return answer(error);
  scheduler.launch(launch);
  return cudaSuccess;
}

}  // namespace emulation

using emulation::answer;

const char* cudaGetErrorName(cudaError_t error) {
#define NAME(error) \
  case error:       \
    return #error
  switch (error) {
    NAME(cudaSuccess);
    NAME(cudaErrorInvalidValue);
    NAME(cudaErrorMemoryAllocation);
    NAME(cudaErrorInvalidConfiguration);
    NAME(cudaErrorInvalidDevice);
    NAME(cudaErrorNotSupported);
    NAME(cudaErrorCooperativeLaunchTooLarge);
    default:
      return "cudaErrorUnknown";
  }
#undef NAME
}
const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "an emulated error"; }
cudaError_t cudaPeekAtLastError() { return emulation::last_error; }
cudaError_t cudaGetLastError() { return std::exchange(emulation::last_error, cudaSuccess); }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }

cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return answer(device == 0 ? cudaSuccess : cudaErrorInvalidDevice); }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return answer(cudaErrorInvalidDevice);
  const emulation::Device& of = emulation::device();
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      return *value = of.multiprocessors, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return *value = int(emulation::kDefaultSharedBytes), cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = of.shared_bytes, cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      return *value = of.compute_capability / 10, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      return *value = of.compute_capability % 10, cudaSuccess;
    case cudaDevAttrCooperativeLaunch:
      return *value = 1, cudaSuccess;
    case cudaDevAttrMaxThreadsPerBlock:
      return *value = 1024, cudaSuccess;
    case cudaDevAttrWarpSize:
      return *value = 32, cudaSuccess;
    default:
      return answer(cudaErrorNotSupported);
  }
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return answer(cudaErrorNotSupported);
  if (value < 0 || value > emulation::device().shared_bytes) return answer(cudaErrorInvalidValue);
  emulation::shared_limits[kernel] = size_t(value);
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t shared_bytes) {
  const emulation::Device& of = emulation::device();
  *blocks = shared_bytes > size_t(of.shared_bytes) ? 0 : of.blocks_per_multiprocessor;
  return cudaSuccess;
}

// A heap block of its own.
cudaError_t cudaMalloc(void** memory, size_t bytes) {
  if (posix_memalign(memory, 256, bytes)) return answer(cudaErrorMemoryAllocation);
  emulation::poison(*memory, bytes);
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) { return cudaMalloc(memory, bytes); }
cudaError_t cudaFree(void* memory) { return free(memory), cudaSuccess; }

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  if (bytes) memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}
cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  if (bytes) memset(to, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) { return cudaMemset(to, value, bytes); }

cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return *event = static_cast<cudaEvent_t>(malloc(1)), cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return free(event), cudaSuccess; }
