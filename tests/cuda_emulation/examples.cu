// Small kernels with faults to seed, which show that the emulator finds what it says it finds, and that right kernels
// pass. Also compiled by nvcc. Run: examples <kernel> <first seed> <seeds> [mutation]; a line of output for each
// seed, then the mutations reached.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <mma.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <cuda/atomic>

#if defined(FASTLSTM_EMULATION)
#include "emulation.h"
#endif

namespace examples {

#if defined(FASTLSTM_EMULATION)
template <class T>
T* shared_memory() {
  return static_cast<T*>(emulation::shared_memory());
}
using emulation::commit_copies;
using emulation::copy_async;
using emulation::mutated;
template <int GROUPS_LEFT>
void wait_copies() {
  emulation::wait_copies(GROUPS_LEFT);
}
#else
template <class T>
__device__ T* shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return reinterpret_cast<T*>(memory);
}
__device__ constexpr bool mutated(const char*) { return false; }
__device__ void copy_async(void* to, const void* from, size_t) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(unsigned(__cvta_generic_to_shared(to))), "l"(from)
               : "memory");
}
__device__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int GROUPS_LEFT>
__device__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS_LEFT) : "memory");
}
#endif

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorName(error));
}

// Device memory with a copy of a vector in it.
template <class T>
class Buffer {
 public:
  explicit Buffer(const std::vector<T>& values) : size_(values.size()) {
    check(cudaMalloc(&memory_, size_ * sizeof(T)));
    check(cudaMemcpy(memory_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~Buffer() { cudaFree(memory_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  operator T*() const { return memory_; }
  std::vector<T> values() const {
    std::vector<T> values(size_);
    check(cudaMemcpy(values.data(), memory_, size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  T* memory_ = nullptr;
  size_t size_;
};

template <class... Parameters>
void launch(void (*kernel)(Parameters...), int blocks, int threads, size_t shared_bytes, bool cooperative,
            std::common_type_t<Parameters>... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(blocks)), config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = &attribute, config.numAttrs = cooperative;
  check(cudaLaunchKernelEx(&config, kernel, arguments...));
  check(cudaDeviceSynchronize());
}

// to[block] = the sum of the block's numbers, by a tree.
__global__ void sum_by_block(const float* from, float* to) {
  float* const part = shared_memory<float>();
  const unsigned me = threadIdx.x;
  part[me] = from[blockIdx.x * blockDim.x + me];
  if (mutated("block: row out of bounds")) part[me + 1] = 0;
  for (unsigned n = blockDim.x / 2; n > 0; n /= 2) {
    if (mutated("block: divergent barrier") && me >= n) continue;
    if (!mutated("block: no barrier")) __syncthreads();
    if (mutated("block: early return") && me >= n) return;
    if (me < n) part[me] += part[me + n];
  }
  if (me == 0) to[blockIdx.x] = part[0];
}

bool run_block() {
  constexpr int kBlocks = 5, kThreads = 128;
  std::vector<float> numbers(kBlocks * kThreads), sums(kBlocks);
  for (size_t i = 0; i < numbers.size(); ++i) sums[i / kThreads] += numbers[i] = float(i % 11);
  const Buffer<float> from(numbers), to(std::vector<float>(kBlocks, -1));
  launch(sum_by_block, kBlocks, kThreads, kThreads * sizeof(float), false, from, to);
  return to.values() == sums;
}

// Sums by shuffles within a warp, then through shared memory, where each warp keeps to its own part.
__global__ void sum_by_warp(const float* from, float* to) {
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float* const turned = shared_memory<float>() + warp * 32;
  turned[lane] = from[threadIdx.x];
  if (!mutated("warp: no __syncwarp")) __syncwarp();
  float sum = turned[31 - lane];
  for (int step = 16; step > 0; step /= 2) {
    if (mutated("warp: divergent shuffle") && lane == 3 && step == 4) continue;
    sum += __shfl_xor_sync(0xffffffffu, sum, step);
  }
  if (mutated("warp: half a mask") && lane >= 16) return;
  const bool whole = __all_sync(0xffffffffu, sum >= 0);
  if (mutated("warp: barriers cross") && threadIdx.x == 0) __syncwarp();
  if (mutated("warp: barriers cross") && threadIdx.x != 0) {
    if (warp == 0) __syncwarp(0xfffffffeu);
    __syncthreads();
  }
  if (lane == 0) to[warp] = whole ? sum : -1;
}

bool run_warp() {
  constexpr int kWarps = 3;
  std::vector<float> numbers(kWarps * 32), sums(kWarps);
  for (size_t i = 0; i < numbers.size(); ++i) sums[i / 32] += numbers[i] = float(i % 13);
  const Buffer<float> from(numbers), to(std::vector<float>(kWarps, -1));
  launch(sum_by_warp, 1, kWarps * 32, kWarps * 32 * sizeof(float), false, from, to);
  return to.values() == sums;
}

// All blocks wait for each other: a counter that only grows.
__device__ void grid_barrier(unsigned* counter, unsigned target) {
  __syncthreads();
  if (threadIdx.x == 0) {
    const cuda::atomic_ref<unsigned, cuda::thread_scope_device> count(*counter);
    const bool relaxed = mutated("grid: relaxed arrival"), hasty = mutated("grid: relaxed wait");
    count.fetch_add(1, relaxed ? cuda::memory_order_relaxed : cuda::memory_order_release);
    if (mutated("grid: wrong count")) target += 1;
    while (count.load(hasty ? cuda::memory_order_relaxed : cuda::memory_order_acquire) < target) {
    }
  }
  __syncthreads();
}

// In each step, each number becomes the sum of its neighbours, which other blocks have made.
__global__ void exchange(float* buffers, unsigned* counter, int steps) {
  const unsigned n = gridDim.x * blockDim.x, me = blockIdx.x * blockDim.x + threadIdx.x;
  for (int step = 0; step < steps; ++step) {
    const float* const from = buffers + (mutated("grid: single buffer") ? 0 : unsigned(step) % 2 * n);
    float* const to = buffers + (mutated("grid: single buffer") ? 0 : (unsigned(step) + 1) % 2 * n);
    __stcg(to + me, __ldcg(from + (me + n - 1) % n) + __ldcg(from + (me + blockDim.x) % n));
    if (!mutated("grid: no barrier")) grid_barrier(counter, unsigned(step + 1) * gridDim.x);
  }
}

bool run_grid() {
  constexpr int kBlocks = 4, kThreads = 40, kNumbers = kBlocks * kThreads, kSteps = 6;
  std::vector<float> now(2 * kNumbers), next(kNumbers);
  for (int i = 0; i < kNumbers; ++i) now[size_t(i)] = float(i % 5);
  const Buffer<float> buffers(now);
  const Buffer<unsigned> counter({0u});
  launch(exchange, kBlocks, kThreads, 0, true, buffers, counter, kSteps);
  for (int step = 0; step < kSteps; ++step) {
    for (int i = 0; i < kNumbers; ++i)
      next[size_t(i)] = now[size_t(i + kNumbers - 1) % kNumbers] + now[size_t(i + kThreads) % kNumbers];
    std::copy(next.begin(), next.end(), now.begin());
  }
  const std::vector<float> got = buffers.values();
  return std::equal(next.begin(), next.end(), got.begin());
}

// One warp: c [16,16] = a [16,depth] . b [depth,16], b stored by columns, through shared memory.
template <class Factor, class T, int K>
__global__ void product(const T* a, const T* b, float* c, int depth) {
  namespace wmma = nvcuda::wmma;
  wmma::fragment<wmma::matrix_a, 16, 16, K, Factor, wmma::row_major> of_a;
  wmma::fragment<wmma::matrix_b, 16, 16, K, Factor, wmma::col_major> of_b;
  wmma::fragment<wmma::accumulator, 16, 16, K, float> sum;
  if (!mutated("product: sum not cleared")) wmma::fill_fragment(sum, 0.0f);
  for (int k = 0; k < depth; k += K) {
    if (mutated("product: divergent") && threadIdx.x == 7 && k > 0) break;
    wmma::load_matrix_sync(of_a, a + k, unsigned(depth));
    wmma::load_matrix_sync(of_b, b + k, unsigned(depth));
    wmma::mma_sync(sum, of_a, of_b, sum);
  }
  float* const tile = shared_memory<float>();
  wmma::store_matrix_sync(tile, sum, 16, wmma::mem_row_major);
  if (!mutated("product: no __syncwarp")) __syncwarp();
  for (unsigned i = threadIdx.x; i < 256; i += 32) c[i] = tile[i];
}

template <class Factor, class T, int K>
bool run_product() {
  constexpr int kDepth = 48;
  std::vector<T> a, b;
  std::vector<float> c(256);
  for (int i = 0; i < 16 * kDepth; ++i) a.push_back(T(float(i * 7 % 17 - 8))), b.push_back(T(float(i * 5 % 13) / 4));
  for (int i = 0; i < 256; ++i)
    for (int k = 0; k < kDepth; ++k)
      c[size_t(i)] += float(a[size_t(i / 16 * kDepth + k)]) * float(b[size_t(i % 16 * kDepth + k)]);
  const Buffer<T> of_a(a), of_b(b);
  const Buffer<float> of_c(std::vector<float>(256, -1));
  launch(product<Factor, T, K>, 1, 32, 256 * sizeof(float), false, of_a, of_b, of_c, kDepth);
  return of_c.values() == c;
}

// Parts come to two buffers in shared memory, one ahead; each thread sums what another has copied.
__global__ void sum_of_copies(const float* from, float* to, int parts) {
  const unsigned n = blockDim.x, me = threadIdx.x;
  float* const buffers = shared_memory<float>();
  const auto fetch = [&](int part) {
    if (part < parts) copy_async(buffers + (unsigned(part) % 2 * n + me) * 4, from + (unsigned(part) * n + me) * 4, 16);
    commit_copies();
  };
  fetch(0);
  float sum = 0;
  for (int part = 0; part < parts; ++part) {
    fetch(part + 1);
    if (mutated("copies: too few waited for"))
      wait_copies<2>();
    else if (!mutated("copies: no wait"))
      wait_copies<1>();
    if (!mutated("copies: no barrier before")) __syncthreads();
    for (int j = 0; j < 4; ++j) sum += buffers[(unsigned(part) % 2 * n + (n - 1 - me)) * 4 + unsigned(j)];
    if (!mutated("copies: no barrier after")) __syncthreads();
  }
  to[me] = sum;
}

bool run_copies() {
  constexpr int kThreads = 64, kParts = 5;
  std::vector<float> numbers(kParts * kThreads * 4), sums(kThreads);
  for (size_t i = 0; i < numbers.size(); ++i) sums[kThreads - 1 - i / 4 % kThreads] += numbers[i] = float(i * 3 % 19);
  const Buffer<float> from(numbers), to(std::vector<float>(kThreads, -1));
  launch(sum_of_copies, 1, kThreads, 2 * kThreads * 16, false, from, to, kParts);
  return to.values() == sums;
}

template <class... Parameters>
cudaError_t result_of_launch(void (*kernel)(Parameters...), int blocks, size_t shared_bytes, bool cooperative) {
  try {
    launch(kernel, blocks, 32, shared_bytes, cooperative, Parameters()...);
  } catch (const std::runtime_error&) {
  }
  return cudaGetLastError();
}

__global__ void nothing(int) {}

// What a GPU refuses to launch.
bool run_limits() {
  int processors = 0, occupancy = 0, bytes = 0;
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0));
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&occupancy, nothing, 32, 0));
  bool right = result_of_launch(nothing, processors * occupancy, 0, true) == cudaSuccess;
  right &= result_of_launch(nothing, processors * occupancy + 1, 0, true) == cudaErrorCooperativeLaunchTooLarge;
  right &= result_of_launch(nothing, processors * occupancy + 1, 0, false) == cudaSuccess;
  right &= result_of_launch(nothing, 0, 0, false) == cudaErrorInvalidConfiguration;
  right &= result_of_launch(nothing, 1, size_t(bytes), false) == cudaErrorInvalidValue;
  check(cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  right &= result_of_launch(nothing, 1, size_t(bytes), false) == cudaSuccess;
  check(cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, 48 << 10));
  return right;
}

bool run(const std::string& kernel) {
  if (kernel == "limits") return run_limits();
  if (kernel == "block") return run_block();
  if (kernel == "warp") return run_warp();
  if (kernel == "grid") return run_grid();
  if (kernel == "product_half") return run_product<__half, __half, 16>();
  if (kernel == "product_bfloat16") return run_product<__nv_bfloat16, __nv_bfloat16, 16>();
  if (kernel == "product_tf32") return run_product<nvcuda::wmma::precision::tf32, float, 8>();
  if (kernel == "copies") return run_copies();
  throw std::invalid_argument("no kernel is called " + kernel);
}

}  // namespace examples

int main(int count, char** arguments) {
  if (count < 4) return 2;
  for (int seed = atoi(arguments[2]), end = seed + atoi(arguments[3]); seed < end; ++seed) {
#if defined(FASTLSTM_EMULATION)
    emulation::set_seed(uint64_t(seed));
    emulation::set_mutation(count > 4 ? arguments[4] : "");
#endif
    try {
      puts(examples::run(arguments[1]) ? "right" : "wrong");
    } catch (const std::runtime_error& failure) {
      puts(failure.what());
    }
  }
#if defined(FASTLSTM_EMULATION)
  for (const std::string& name : emulation::mutations_reached()) printf("reached %s\n", name.c_str());
#endif
}
