// The whole loop over time in one cooperative launch: each block has some columns of U in its shared memory, for all rows, and
// all blocks meet after every step. Sums are those of the step kernels, term by term, and so are the results, to the last bit.
#pragma once
#include <algorithm>

#include "step_backward.cuh"

namespace fastlstm::gpu {

constexpr int kPersistentThreads = 256;

// How a launch is cut: blocks of `quads` times four columns; tiles of rows; so much depth of the operand in shared memory at once.
struct PersistentShape {
  int blocks, quads, row_threads, rows;  // rows of a tile: those of a thread, times the threads along the rows
  int depth_at_once;                     // a multiple of kDepth
  size_t shared_bytes;
};

// The part of a block that one thread computes: four columns of some rows, row_threads apart.
struct PersistentPlace {
  int quad, row, row_threads;
  bool idle;
};

__device__ inline PersistentPlace place_of_thread(const PersistentShape& shape) {
  const int row = int(threadIdx.x) / shape.quads;
  return {int(threadIdx.x) % shape.quads, row, shape.row_threads, row >= shape.row_threads};
}

// w [depth][4 quads] in shared memory: the columns of this block, from panels.
template <class T>
__device__ void load_columns(const T* panels, int depth, int columns, int quads, T* w) {
  const int first = int(blockIdx.x) * 4 * quads;
  for (int i = int(threadIdx.x); i < depth * 4 * quads; i += kPersistentThreads) {
    const int k = i / (4 * quads), column = first + i % (4 * quads);
    w[i] = column < columns ? panels[(int64_t(column / kPanel) * depth + k) * kPanel + column % kPanel] : T(0.0f);
  }
}

// sum[i] = four columns of the rows of this thread. The operand is what all blocks have written before they met.
template <class T, int ROWS>
__device__ void persistent_product(const Operand<T>& operand, const PersistentShape& shape,
                                   const PersistentPlace& place, int first_row, int rows, const T* w, T* tile,
                                   Wide<T> (&sum)[ROWS][4]) {
  using W = Wide<T>;
  for (int i = 0; i < ROWS; ++i)
    for (int j = 0; j < 4; ++j) sum[i][j] = 0;
  for (int begin = 0; begin < operand.depth; begin += shape.depth_at_once) {
    const int depth = operand.depth - begin < shape.depth_at_once ? operand.depth - begin : shape.depth_at_once;
    if (!mutated("persistent_product: first barrier")) __syncthreads();  // all have read the tile before
    for (int i = int(threadIdx.x); i < shape.rows * depth; i += kPersistentThreads) {
      const int row = i / depth, k = i % depth;
      tile[row * shape.depth_at_once + k] =
          first_row + row < rows ? load_shared_by_grid(operand.a + int64_t(first_row + row) * operand.depth + begin + k)
                                 : T(0.0f);
    }
    if (!mutated("persistent_product: second barrier")) __syncthreads();
    if (place.idle) continue;
    for (int part_begin = 0; part_begin < depth; part_begin += kDepth) {
      const int end = depth - part_begin < kDepth ? depth : part_begin + kDepth;
      W part[ROWS][4] = {};
      for (int k = part_begin; k < end; ++k) {
        const Quad<T> of_w = reinterpret_cast<const Quad<T>*>(w)[int64_t(begin + k) * shape.quads + place.quad];
        for (int i = 0; i < ROWS; ++i) {
          const W of_a = widen(tile[(place.row + i * place.row_threads) * shape.depth_at_once + k]);
          for (int j = 0; j < 4; ++j) part[i][j] = fma(of_a, widen(of_w.at[j]), part[i][j]);
        }
      }
      for (int i = 0; i < ROWS; ++i)
        for (int j = 0; j < 4; ++j) sum[i][j] += part[i][j];
    }
  }
}

template <class T, int ROWS, CellKind KIND>
__global__ void __launch_bounds__(kPersistentThreads)
    persistent_forward(const LayerForward<T> layer, const PersistentShape shape, const GridBarrier::Words words) {
  const int H = int(layer.shape.H), B = int(layer.shape.B);
  const PersistentPlace place = place_of_thread(shape);
  T* const u = shared_memory<T>();
  T* const tile = u + H * 4 * shape.quads;
  const int unit = int(blockIdx.x) * shape.quads + place.quad;
  GridBarrier barrier(words);

  load_columns(layer.recurrent, H, 4 * H, shape.quads, u);
  for (int64_t s = 0; s < layer.shape.T; ++s) {
    const StepForward<T> step = layer.step(s);
    for (int first = 0; first < B; first += shape.rows) {
      Wide<T> sum[ROWS][4];
      persistent_product<T, ROWS>(step.recurrent, shape, place, first, B, u, tile, sum);
      for (int i = 0; i < ROWS; ++i) {
        const int row = first + place.row + i * place.row_threads;
        if (!place.idle && row < B && unit < H) unit_forward<T, KIND>(step, row, unit, sum[i]);
      }
    }
    if (!mutated("persistent_forward: grid barrier") && !barrier.wait()) return;
  }
}

template <class T, int ROWS, CellKind KIND>
__global__ void __launch_bounds__(kPersistentThreads)
    persistent_backward(const LayerBackward<T> layer, const PersistentShape shape, const GridBarrier::Words words) {
  const Shape& of = layer.forward.shape;
  const int H = int(of.H), B = int(of.B);
  const PersistentPlace place = place_of_thread(shape);
  T* const u = shared_memory<T>();
  T* const tile = u + 4 * H * 4 * shape.quads;
  GridBarrier barrier(words);

  load_columns(layer.recurrent, 4 * H, H, shape.quads, u);
  for (int64_t s = of.T - 1; s >= -1; --s) {
    const StepBackward<T> step = s >= 0 ? layer.step(s) : layer.before_first();
    for (int first = 0; first < B; first += shape.rows) {
      Wide<T> sum[ROWS][4];
      persistent_product<T, ROWS>(step.recurrent, shape, place, first, B, u, tile, sum);
      for (int i = 0; i < ROWS && !place.idle; ++i)
        for (int j = 0; j < 4; ++j) {
          const int row = first + place.row + i * place.row_threads;
          const int unit = (int(blockIdx.x) * shape.quads + place.quad) * 4 + j;
          if (row >= B || unit >= H) continue;
          const Wide<T> dh = reaching_h(step, row, unit, sum[i][j]);
          if (s < 0)
            step.dh[int64_t(row) * H + unit] += dh;
          else
            unit_backward<T, KIND>(step, row, unit, dh);
        }
    }
    if (s >= 0 && !mutated("persistent_backward: grid barrier") && !barrier.wait()) return;
  }
}

}  // namespace fastlstm::gpu
