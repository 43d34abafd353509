// The product that each step begins with, for a tile of rows and one panel of columns. Included by the kernels.
#pragma once
#include "exchange.cuh"
#include "kernels.cuh"

namespace fastlstm::gpu {

// Threads of a block: kQuads along the columns, kRowThreads along the rows, each of which has ROWS rows, kRowThreads apart.
constexpr int kRowThreads = 8;
constexpr int kThreads = kQuads * kRowThreads;
constexpr int kDepth = 32;                // of a part that lies in shared memory
constexpr int kSlices = 8;                // which the parts of the depth go to by turns
constexpr int kDepthStride = kDepth + 4;  // rows start in different banks

template <class T, int ROWS>
constexpr size_t kProductBytes = (kRowThreads * ROWS * kDepthStride + kDepth * kPanel) * sizeof(Wide<T>);

__device__ inline int quad_of_thread() { return int(threadIdx.x) % kQuads; }
__device__ inline int row_of_thread(int i) { return int(threadIdx.x) / kQuads + i * kRowThreads; }

// sum[i] = the four columns of this thread, of row first_row + row_of_thread(i). Terms are summed in parts of kDepth, whatever
// the rows are: short chains are more exact, and no row's result depends on others.
template <class T, int ROWS>
__device__ void product(const Operand<T>& operand, int panel, int first_row, int rows, Wide<T> (&sum)[ROWS][4]) {
  using W = Wide<T>;
  W* const a = shared_memory<W>();
  W* const b = a + kRowThreads * ROWS * kDepthStride;
  const T* panels = operand.panels + int64_t(panel) * operand.depth * kPanel;
  for (int i = 0; i < ROWS; ++i)
    for (int j = 0; j < 4; ++j) sum[i][j] = 0;

  for (int begin = 0; begin < operand.depth; begin += kDepth) {
    const int depth = operand.depth - begin < kDepth ? operand.depth - begin : kDepth;
    if (!mutated("product: first barrier")) __syncthreads();  // all have read the part before
    for (int i = threadIdx.x; i < kRowThreads * ROWS * kDepth; i += kThreads) {
      const int row = i / kDepth, k = i % kDepth;
      const int64_t at = int64_t(first_row + row) * operand.depth + begin + k;
      const bool there = first_row + row < rows && k < depth && (operand.only < 0 || (begin + k) % 4 == operand.only);
      const W scale = there && operand.scales ? widen(operand.scales[at]) : W(1);
      a[row * kDepthStride + k] = there ? widen(operand.a[at]) * scale : W(0);
    }
    for (int i = threadIdx.x; i < depth * kQuads; i += kThreads) {
      const Quad<T> from = reinterpret_cast<const Quad<T>*>(panels)[int64_t(begin) * kQuads + i];
      for (int j = 0; j < 4; ++j) b[i * 4 + j] = widen(from.at[j]);
    }
    if (!mutated("product: second barrier")) __syncthreads();

    W part[ROWS][4] = {};
    for (int k = 0; k < depth; ++k) {
      const Quad<W> of_b = *reinterpret_cast<const Quad<W>*>(b + k * kPanel + quad_of_thread() * 4);
#pragma unroll
      for (int i = 0; i < ROWS; ++i) {
        const W of_a = a[row_of_thread(i) * kDepthStride + k];
#pragma unroll
        for (int j = 0; j < 4; ++j) part[i][j] = fma(of_a, of_b.at[j], part[i][j]);
      }
    }
    for (int i = 0; i < ROWS; ++i)
      for (int j = 0; j < 4; ++j) sum[i][j] += part[i][j];
  }
}

// Whether any row of the tile counts at this step: where none does, the product is not needed.
template <int ROWS>
__device__ bool any_counts(const uint8_t* flags, int first_row, int rows) {
  if (!flags) return true;
  bool counts = false;
  for (int i = 0; i < ROWS; ++i) {
    const int row = first_row + row_of_thread(i);
    counts = counts || (row < rows && !(flags[row] & kHeld));
  }
  return __syncthreads_or(counts);
}

}  // namespace fastlstm::gpu
