// Stands in for the CUDA toolkit's header of this name where kernels are compiled for the CPU: NVIDIA's own types and
// declarations of the host API, and an emulation of what only nvcc knows.
#pragma once
#include <cuda_runtime_api.h>
#include <vector_functions.h>

#include <cmath>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <typeinfo>
#include <utility>

#include "emulation.h"
#include "warp.h"

#define __launch_bounds__(...)

inline constexpr const uint3& threadIdx = emulation::builtins.thread;
inline constexpr const uint3& blockIdx = emulation::builtins.block;
inline constexpr const dim3& blockDim = emulation::builtins.block_dim;
inline constexpr const dim3& gridDim = emulation::builtins.grid_dim;
inline constexpr int warpSize = 32;

inline void __syncthreads(emulation::Site site = emulation::Site::here()) {
  emulation::block_barrier("__syncthreads", site, false);
}
inline int __syncthreads_or(int condition, emulation::Site site = emulation::Site::here()) {
  return emulation::block_barrier("__syncthreads_or", site, condition != 0) > 0;
}
inline int __syncthreads_and(int condition, emulation::Site site = emulation::Site::here()) {
  return emulation::block_barrier("__syncthreads_and", site, condition == 0) == 0;
}
inline int __syncthreads_count(int condition, emulation::Site site = emulation::Site::here()) {
  return emulation::block_barrier("__syncthreads_count", site, condition != 0);
}

inline void __threadfence() { emulation::device_fence(); }
inline void __threadfence_block() { emulation::scheduling_point(); }
inline void __nanosleep(unsigned) { emulation::wait_for_others(); }
inline long long clock64() { return emulation::clock(); }

template <class T>
inline T __ldg(const T* from) {
  return *from;
}
template <class T>
inline T __ldcg(const T* from) {
  emulation::scheduling_point();
  return *from;
}
template <class T>
inline void __stcg(T* to, T value) {
  emulation::scheduling_point();
  *to = value;
}

namespace emulation {
template <class To, class From>
inline To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
}  // namespace emulation

inline int __float_as_int(float x) { return emulation::same_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return emulation::same_bits<unsigned>(x); }
inline float __int_as_float(int x) { return emulation::same_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return emulation::same_bits<float>(x); }
inline long long __double_as_longlong(double x) { return emulation::same_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emulation::same_bits<double>(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
using std::fma, std::fmaf;

// The parameters are copied when the kernel is launched, and once more for each thread.
template <class... Parameters, class... Arguments>
inline cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                                      Arguments&&... arguments) {
  using Call = std::pair<void (*)(Parameters...), std::tuple<std::remove_cv_t<Parameters>...>>;
  const Call call(kernel, {std::forward<Arguments>(arguments)...});
  const auto run = [](const void* of) {
    const Call& call = *static_cast<const Call*>(of);
    std::apply(call.first, call.second);
  };
  return emulation::launch(*config, {reinterpret_cast<const void*>(kernel), typeid(kernel).name(), config->gridDim,
                                     config->blockDim, config->dynamicSmemBytes, false, run, &call});
}

template <class T>
inline cudaError_t cudaMalloc(T** memory, size_t bytes) {
  return cudaMalloc(reinterpret_cast<void**>(memory), bytes);
}
template <class Kernel>
inline cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
template <class Kernel>
inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel* kernel, int block_threads,
                                                                 size_t shared_bytes) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, reinterpret_cast<const void*>(kernel), block_threads,
                                                       shared_bytes);
}
