// How kernels are launched, and how what is known at run time becomes a constant of a kernel. Included by the .cu files.
#pragma once
#include <string>
#include <type_traits>

#include "check.h"
#include "step_forward.cuh"

namespace fastlstm::gpu {

inline int64_t round_up_divide(int64_t n, int64_t by) { return (n + by - 1) / by; }

// How a kernel is launched.
struct Launch {
  const char* name;
  dim3 blocks;
  int threads;
  size_t shared_bytes;
  cudaStream_t stream;
  bool cooperative = false;  // all blocks at once, so that they may wait for one another
};

// The one way in which kernels are launched; an error names kernel and shape.
template <class... Parameters, class... Arguments>
void launch(const Launch& how, void (*kernel)(Parameters...), const Arguments&... arguments) {
  if (how.blocks.x == 0 || how.blocks.y == 0) return;
  cudaLaunchConfig_t config{};
  config.gridDim = how.blocks;
  config.blockDim = dim3(unsigned(how.threads));
  config.dynamicSmemBytes = how.shared_bytes;
  config.stream = how.stream;
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  if (how.cooperative) config.attrs = &cooperative, config.numAttrs = 1;
  constexpr size_t kUsual = 48 * 1024;
  cudaError_t error = cudaSuccess;
  if (how.shared_bytes > kUsual)
    error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 int(how.shared_bytes));
  if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
  if (error != cudaSuccess)
    fail(error, std::string(how.name) + " of " + std::to_string(how.blocks.x) + " x " + std::to_string(how.blocks.y) +
                    " blocks with " + std::to_string(how.shared_bytes) + " bytes of shared memory");
}

// Kernels that do the same to every element: so many threads a block, a thread an element.
constexpr int kStateThreads = 256;

inline Launch for_elements(const char* name, int64_t elements, cudaStream_t stream) {
  return {name, dim3(unsigned(round_up_divide(elements, kStateThreads))), kStateThreads, 0, stream};
}

// Kernels that begin with `product`: a block for each tile.
template <class T, int ROWS>
Launch for_tiles(const char* name, int64_t columns, int64_t rows, cudaStream_t stream) {
  const dim3 blocks(unsigned(round_up_divide(columns, kTileColumns<ROWS>)), unsigned(round_up_divide(rows, kTileRows)));
  return {name, blocks, kThreads, kProductBytes<T, ROWS>, stream};
}

// Calls function with the number of rows of a thread, which is 1 or 4, as a constant.
template <class Function>
void with_rows(int rows, Function function) {
  if (rows == 1)
    function(std::integral_constant<int, 1>{});
  else
    function(std::integral_constant<int, 4>{});
}

// Calls function with the kind of cell as a constant.
template <class Function>
void with_kind(CellKind kind, Function function) {
  if (kind == kPlain) return function(std::integral_constant<CellKind, kPlain>{});
  if (kind == kTextbookActivations) return function(std::integral_constant<CellKind, kTextbookActivations>{});
  return function(std::integral_constant<CellKind, kAnyActivations>{});
}

// What blocks of the next launch hand to one another through this memory is not there yet.
template <class T>
void fill_unwritten(T* memory, int64_t elements, cudaStream_t stream) {
  if (elements == 0) return;
  check(cudaMemsetAsync(memory, kUnwrittenByte, size_t(elements) * sizeof(T), stream), "cudaMemsetAsync");
}

// For the host of an algorithm whose blocks wait for one another.
Failure failure_of(uint32_t* failed);

}  // namespace fastlstm::gpu
