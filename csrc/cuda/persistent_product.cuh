// The product of a step in the persistent kernels, whose columns of U stay in the shared memory of the block: by fused
// multiply-adds, in the order of the step kernels; or by tensor cores, which sum in float. Included by persistent.cuh.
#pragma once
#include <mma.h>

#include "step_backward.cuh"

namespace fastlstm::gpu {

constexpr int kPersistentThreads = 256;
constexpr int kWarps = kPersistentThreads / 32;
constexpr int kMmaEdge = 16;   // rows, and columns, of what a warp computes on tensor cores at once
constexpr int kMmaDepth = 16;  // to a multiple of which depths are filled with zeros

// What tensor cores take of the storage type.
template <class T>
struct MmaFactor {
  using type = T;
  static constexpr int kDepth = 16;
};
template <>
struct MmaFactor<float> {
  using type = nvcuda::wmma::precision::tf32;
  static constexpr int kDepth = 8;
};

// What one access moves at most, and the skew of rows in shared memory, by which neighbours start in different banks.
template <class T>
constexpr int kVector = 16 / int(sizeof(T));

// How a launch is cut: blocks of `quads` times four columns; tiles of rows; so much depth of the operand at once.
struct PersistentShape {
  int quads, rows;    // of a block; of a tile
  int row_threads;    // without tensor cores: along the rows of a tile, each with some
  int depth_at_once;  // a multiple of kDepth
  int w_stride;       // of w in shared memory: [depth][w_stride], or for tensor cores [4 quads][w_stride]
  bool tensor_cores;
  DEVICE int columns() const { return 4 * quads; }
};

// A number as the product takes it. What is left of a float that nobody rounded is cut off by tensor cores.
template <bool TENSOR, class T>
__device__ T as_factor(T x) {
  if constexpr (TENSOR && std::is_same_v<T, float>)
    return mutated("as_factor: not rounded") ? x : nvcuda::wmma::__float_to_tf32(x);
  else
    return x;
}

// The columns of this block, from panels.
template <class T, bool TENSOR>
__device__ void load_columns(const T* panels, int depth, int columns, const PersistentShape& shape, T* w) {
  const int first = int(blockIdx.x) * shape.columns();
  const int stored = TENSOR ? (depth + kMmaDepth - 1) / kMmaDepth * kMmaDepth : depth;
  for (int i = int(threadIdx.x); i < stored * shape.columns(); i += kPersistentThreads) {
    const int k = i / shape.columns(), own = i % shape.columns(), column = first + own;
    const bool there = k < depth && column < columns;
    const T value = there ? panels[(int64_t(column / kPanel) * depth + k) * kPanel + column % kPanel] : T(0.0f);
    w[TENSOR ? own * shape.w_stride + k : k * shape.w_stride + own] = as_factor<TENSOR>(value);
  }
}

// tile [shape.rows][depth_at_once + kVector] = the operand's rows from first_row on, its columns from begin on, as soon as other
// blocks have written them. Zeros fill it up to the rows and the depth.
template <class T, bool TENSOR, int VECTOR>
__device__ void load_tile(const Operand<T>& operand, const PersistentShape& shape, int first_row, int rows, int begin,
                          int depth, T* tile, Patience& patience) {
  const int stride = shape.depth_at_once + kVector<T>;
  for (int row = int(threadIdx.x) / 32; row < shape.rows; row += kWarps) {
    const T* const from = operand.a + int64_t(first_row + row) * operand.depth + begin;
    for (int k = int(threadIdx.x) % 32 * VECTOR; k < depth; k += 32 * VECTOR) {
      const bool there = first_row + row < rows && begin + k < operand.depth;
      Vector<T, VECTOR> values;
      for (int i = 0; i < VECTOR; ++i) values.at[i] = T(0.0f);
      if (there) {
        values = load_relaxed<VECTOR>(from + k);
        for (unsigned reads = 1; !all_written(values) && !mutated("load_tile: not waited for"); ++reads) {
          if (!patience.is_left(reads)) break;
          values = load_relaxed<VECTOR>(from + k);
        }
      }
      for (int i = 0; i < VECTOR; ++i) values.at[i] = as_factor<TENSOR>(values.at[i]);
      *reinterpret_cast<Vector<T, VECTOR>*>(tile + row * stride + k) = values;
    }
  }
}

// The same between two barriers. Returns the depth that it loaded, a multiple of kMmaDepth for tensor cores.
template <class T, bool TENSOR>
__device__ int next_tile(const Operand<T>& operand, const PersistentShape& shape, int first_row, int rows, int begin,
                         T* tile, Patience& patience) {
  int depth = operand.depth - begin < shape.depth_at_once ? operand.depth - begin : shape.depth_at_once;
  if (TENSOR) depth = (depth + kMmaDepth - 1) / kMmaDepth * kMmaDepth;
  if (!mutated("next_tile: first barrier")) __syncthreads();  // all have read the tile before
  if (operand.depth % kVector<T> == 0)
    load_tile<T, TENSOR, kVector<T>>(operand, shape, first_row, rows, begin, depth, tile, patience);
  else
    load_tile<T, TENSOR, 1>(operand, shape, first_row, rows, begin, depth, tile, patience);
  if (!mutated("next_tile: second barrier")) __syncthreads();
  return depth;
}

// Calls each(row, quad, sum) for all rows of the tile and all quads of the block, some by each thread.
template <class T, int ROWS, class Each>
__device__ void fma_product(const Operand<T>& operand, const PersistentShape& shape, int first_row, int rows,
                            const T* w, T* tile, Patience& patience, Each each) {
  using W = Wide<T>;
  const int quad = int(threadIdx.x) % shape.quads, first = int(threadIdx.x) / shape.quads;
  const int stride = shape.depth_at_once + kVector<T>;
  const bool idle = first >= shape.row_threads;
  W sum[ROWS][4];
  for (int i = 0; i < ROWS; ++i)
    for (int j = 0; j < 4; ++j) sum[i][j] = 0;
  for (int begin = 0; begin < operand.depth; begin += shape.depth_at_once) {
    const int depth = next_tile<T, false>(operand, shape, first_row, rows, begin, tile, patience);
    for (int part_begin = 0; part_begin < depth && !idle; part_begin += kDepth) {
      const int end = depth - part_begin < kDepth ? depth : part_begin + kDepth;
      W part[ROWS][4] = {};
      for (int k = part_begin; k < end; ++k) {
        const Quad<T> of_w = *reinterpret_cast<const Quad<T>*>(w + int64_t(begin + k) * shape.w_stride + 4 * quad);
        for (int i = 0; i < ROWS; ++i) {
          const W of_a = widen(tile[(first + i * shape.row_threads) * stride + k]);
          for (int j = 0; j < 4; ++j) part[i][j] = fma(of_a, widen(of_w.at[j]), part[i][j]);
        }
      }
      for (int i = 0; i < ROWS; ++i)
        for (int j = 0; j < 4; ++j) sum[i][j] += part[i][j];
    }
  }
  for (int i = 0; i < ROWS && !idle; ++i) each(first + i * shape.row_threads, quad, row_of(sum, i));
}

// The same on tensor cores. A warp has 16 columns and each `splits`-th part of the depth, whatever the rows are, so that no row's
// sums depend on others; what the warps have found is then summed in order.
template <class T, int ROWS, class Each>
__device__ void mma_product(const Operand<T>& operand, const PersistentShape& shape, int first_row, int rows,
                            const T* w, T* tile, Patience& patience, Each each) {
  namespace wmma = nvcuda::wmma;
  using Factor = typename MmaFactor<T>::type;
  constexpr int K = MmaFactor<T>::kDepth, kElements = kMmaEdge * kMmaEdge;
  const int warp = int(threadIdx.x) / 32, splits = kWarps / (shape.columns() / kMmaEdge);
  const int column = warp / splits * kMmaEdge, split = warp % splits, stride = shape.depth_at_once + kVector<T>;
  const bool idle = column >= shape.columns();
  wmma::fragment<wmma::accumulator, kMmaEdge, kMmaEdge, K, float> sum[ROWS];
#pragma unroll
  for (int i = 0; i < ROWS; ++i) wmma::fill_fragment(sum[i], 0.0f);

  for (int begin = 0; begin < operand.depth; begin += shape.depth_at_once) {
    const int depth = next_tile<T, true>(operand, shape, first_row, rows, begin, tile, patience);
    const int first = (split + splits - begin / K % splits) % splits * K;
    for (int k = first; k < depth && !idle; k += splits * K) {
      wmma::fragment<wmma::matrix_b, kMmaEdge, kMmaEdge, K, Factor, wmma::col_major> of_w;
      wmma::load_matrix_sync(of_w, w + column * shape.w_stride + begin + k, unsigned(shape.w_stride));
#pragma unroll
      for (int i = 0; i < ROWS; ++i) {
        if (first_row + i * kMmaEdge >= rows) continue;
        wmma::fragment<wmma::matrix_a, kMmaEdge, kMmaEdge, K, Factor, wmma::row_major> of_a;
        wmma::load_matrix_sync(of_a, tile + i * kMmaEdge * stride + k, unsigned(stride));
        wmma::mma_sync(sum[i], of_a, of_w, sum[i]);
      }
    }
  }
  float* const found = reinterpret_cast<float*>(tile);  // [warps][ROWS][16][16], in the place of the tile
  if (!mutated("mma_product: third barrier")) __syncthreads();
#pragma unroll
  for (int i = 0; i < ROWS; ++i)
    if (!idle)
      wmma::store_matrix_sync(found + (warp * ROWS + i) * kElements, sum[i], unsigned(kMmaEdge), wmma::mem_row_major);
  if (!mutated("mma_product: fourth barrier")) __syncthreads();
  for (int i = int(threadIdx.x); i < ROWS * kMmaEdge * shape.quads; i += kPersistentThreads) {
    const int row = i / shape.quads, quad = i % shape.quads;
    Quad<float> total{};
    for (int part = 0; part < splits; ++part) {
      const int tile_of_warp = (quad * 4 / kMmaEdge * splits + part) * ROWS + row / kMmaEdge;
      const Quad<float> add = *reinterpret_cast<const Quad<float>*>(found + tile_of_warp * kElements +
                                                                    row % kMmaEdge * kMmaEdge + quad * 4 % kMmaEdge);
      for (int j = 0; j < 4; ++j) total.at[j] += add.at[j];
    }
    each(row, quad, total);
  }
}

}  // namespace fastlstm::gpu
