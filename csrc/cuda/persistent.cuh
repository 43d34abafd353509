// The whole loop over time in one cooperative launch: each block has some columns of U in its shared memory, for all rows,
// and waits for what others make of theirs. Without tensor cores, sums are those of the step kernels, term by term, and so are the
// results, to the last bit.
#pragma once
#include "persistent_product.cuh"

namespace fastlstm::gpu {

template <class T, int ROWS, bool TENSOR, class Each>
__device__ void persistent_product(const Operand<T>& operand, const PersistentShape& shape, int first_row, int rows,
                                   const T* w, T* tile, Patience& patience, Each each) {
  if constexpr (TENSOR)
    mma_product<T, ROWS>(operand, shape, first_row, rows, w, tile, patience, each);
  else
    fma_product<T, ROWS>(operand, shape, first_row, rows, w, tile, patience, each);
}

template <class T, int ROWS, CellKind KIND, bool TENSOR>
__global__ void __launch_bounds__(kPersistentThreads, 1)
    persistent_forward(const LayerForward<T> layer, const PersistentShape shape, const Failure failure) {
  const int H = int(layer.shape.H), B = int(layer.shape.B);
  T* const u = shared_memory<T>();
  T* const tile = u + (TENSOR ? shape.columns() : H) * shape.w_stride;
  Patience patience(failure);

  load_columns<T, TENSOR>(layer.recurrent, H, 4 * H, shape, u);
  for (int64_t s = 0; s < layer.shape.T; ++s) {
    const StepForward<T> step = layer.step(s);
    for (int first = 0; first < B; first += shape.rows)
      persistent_product<T, ROWS, TENSOR>(step.recurrent, shape, first, B, u, tile, patience,
                                          [&](int row, int quad, const Quad<Wide<T>>& sum) {
                                            const int unit = int(blockIdx.x) * shape.quads + quad;
                                            if (first + row < B && unit < H)
                                              unit_forward<T, KIND>(step, first + row, unit, sum);
                                          });
  }
}

template <class T, int ROWS, CellKind KIND, bool TENSOR>
__global__ void __launch_bounds__(kPersistentThreads, 1)
    persistent_backward(const LayerBackward<T> layer, const PersistentShape shape, const Failure failure) {
  const Shape& of = layer.forward.shape;
  const int H = int(of.H), B = int(of.B);
  T* const u = shared_memory<T>();
  T* const tile = u + (TENSOR ? shape.columns() : 4 * H) * shape.w_stride;
  Patience patience(failure);

  load_columns<T, TENSOR>(layer.recurrent, 4 * H, H, shape, u);
  for (int64_t s = of.T - 1; s >= -1; --s) {
    const StepBackward<T> step = s >= 0 ? layer.step(s) : layer.before_first();
    for (int first = 0; first < B; first += shape.rows)
      persistent_product<T, ROWS, TENSOR>(step.recurrent, shape, first, B, u, tile, patience,
                                          [&](int tile_row, int quad, const Quad<Wide<T>>& sum) {
                                            const int row = first + tile_row;
                                            for (int j = 0; j < 4 && row < B; ++j) {
                                              const int unit = (int(blockIdx.x) * shape.quads + quad) * 4 + j;
                                              if (unit >= H) break;
                                              const Wide<T> dh = reaching_h(step, row, unit, element(sum.at, j));
                                              if (s < 0)
                                                step.dh[int64_t(row) * H + unit] += dh;
                                              else
                                                unit_backward<T, KIND>(step, row, unit, dh);
                                            }
                                          });
  }
}

}  // namespace fastlstm::gpu
