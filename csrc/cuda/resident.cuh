// The whole loop over time in one launch, for small H: a block owns some rows and has all of U in its shared memory, so that no
// block ever waits for another. Sums are those of the step kernels, term by term, and so are the results, to the last bit.
#pragma once
#include <algorithm>

#include "step_backward.cuh"

namespace fastlstm::gpu {

// Threads of a block: one for each unit along the first axis, `row_threads` along the second, each with ROWS rows.
struct ResidentShape {
  int unit_threads, row_threads;
  int threads() const { return unit_threads * row_threads; }
};

inline ResidentShape resident_shape(int64_t H) {
  const int units = int((H + 31) / 32 * 32);
  return {units, std::max(1, 256 / units)};
}

// U, and the operand of two steps for all rows of a block: h forward, d_pre backward.
template <class T>
size_t resident_bytes(int64_t H, int block_rows, bool backward) {
  const size_t operand = size_t(block_rows) * size_t(backward ? 4 * H : H);
  return size_t(4 * H * H) * sizeof(T) + 2 * operand * sizeof(Wide<T>);
}

// The thread's place: a unit, which may be none, and the first of its rows, row_threads apart.
struct Place {
  int unit, row, row_step;
};

__device__ inline Place place_of_thread(int hidden) {
  const int unit_threads = (hidden + 31) / 32 * 32;
  return {int(threadIdx.x) % unit_threads, int(threadIdx.x) / unit_threads, int(blockDim.x) / unit_threads};
}

// The sums of ROWS rows with COLUMNS neighbouring columns of w [depth][columns of a row] in shared memory.
template <class T, int ROWS, int COLUMNS>
__device__ void resident_product(const Wide<T>* a, int depth, const T* w, int w_stride, const Place& place,
                                 Wide<T> (&sum)[ROWS][COLUMNS]) {
  using W = Wide<T>;
  for (int i = 0; i < ROWS; ++i)
    for (int j = 0; j < COLUMNS; ++j) sum[i][j] = 0;
  for (int begin = 0; begin < depth; begin += kDepth) {
    W part[ROWS][COLUMNS] = {};
    const int end = depth - begin < kDepth ? depth : begin + kDepth;
    for (int k = begin; k < end; ++k)
      for (int i = 0; i < ROWS; ++i) {
        const W of_a = a[(place.row + i * place.row_step) * depth + k];
        for (int j = 0; j < COLUMNS; ++j)
          part[i][j] = fma(of_a, widen(w[int64_t(k) * w_stride + place.unit * COLUMNS + j]), part[i][j]);
      }
    for (int i = 0; i < ROWS; ++i)
      for (int j = 0; j < COLUMNS; ++j) sum[i][j] += part[i][j];
  }
}

// w [depth][columns] in shared memory, from panels.
template <class T>
__device__ void load_panels(const T* panels, int depth, int columns, T* w) {
  for (int i = int(threadIdx.x); i < depth * columns; i += int(blockDim.x)) {
    const int k = i / columns, column = i % columns;
    w[i] = panels[(int64_t(column / kPanel) * depth + k) * kPanel + column % kPanel];
  }
}

template <class T, int ROWS, CellKind KIND>
__global__ void resident_forward(const LayerForward<T> layer) {
  using W = Wide<T>;
  const int H = int(layer.shape.H), B = int(layer.shape.B);
  const Place place = place_of_thread(H);
  const int block_rows = place.row_step * ROWS, first = int(blockIdx.x) * block_rows;
  T* const u = shared_memory<T>();
  W* const h = reinterpret_cast<W*>(u + 4 * H * H);  // [2][block_rows][H]

  load_panels(layer.recurrent, H, 4 * H, u);
  for (int i = int(threadIdx.x); i < block_rows * H; i += int(blockDim.x)) {
    const bool there = first + i / H < B;
    h[i] = there ? widen(layer.h_before(0)[int64_t(first) * H + i]) : W(0);
    h[block_rows * H + i] = 0;
  }
  for (int64_t s = 0; s < layer.shape.T; ++s) {
    if (!mutated("resident_forward: barrier")) __syncthreads();
    const StepForward<T> step = layer.step(s);
    const W* const now = h + s % 2 * block_rows * H;
    W* const next = h + (s + 1) % 2 * block_rows * H;
    if (place.unit >= H) continue;
    W sum[ROWS][4];
    resident_product<T>(now, H, u, 4 * H, place, sum);
    for (int i = 0; i < ROWS; ++i) {
      const int row = place.row + i * place.row_step;
      if (first + row < B)
        next[row * H + place.unit] = widen(unit_forward<T, KIND>(step, first + row, place.unit, row_of(sum, i)));
    }
  }
}

template <class T, int ROWS, CellKind KIND>
__global__ void resident_backward(const LayerBackward<T> layer) {
  using W = Wide<T>;
  const Shape& shape = layer.forward.shape;
  const int H = int(shape.H), B = int(shape.B);
  const Place place = place_of_thread(H);
  const int block_rows = place.row_step * ROWS, first = int(blockIdx.x) * block_rows;
  T* const u = shared_memory<T>();                   // [4H][H]
  W* const d = reinterpret_cast<W*>(u + 4 * H * H);  // [2][block_rows][4H], d_pre of the step processed after

  load_panels(layer.recurrent, 4 * H, H, u);
  for (int i = int(threadIdx.x); i < 2 * block_rows * 4 * H; i += int(blockDim.x)) d[i] = 0;
  for (int64_t s = shape.T - 1; s >= -1; --s) {
    if (!mutated("resident_backward: barrier")) __syncthreads();
    const StepBackward<T> step = s >= 0 ? layer.step(s) : layer.before_first();
    const W* const after = d + (s + 1) % 2 * block_rows * 4 * H;
    W* const now = d + (s + 2) % 2 * block_rows * 4 * H;
    if (place.unit >= H) continue;
    W sum[ROWS][1];
    resident_product<T>(after, 4 * H, u, H, place, sum);
    for (int i = 0; i < ROWS; ++i) {
      const int row = place.row + i * place.row_step;
      if (first + row >= B) continue;
      const W dh = reaching_h(step, first + row, place.unit, row_of(sum, i).at[0]);
      if (s < 0) {
        step.dh[int64_t(first + row) * H + place.unit] += dh;
        continue;
      }
      const Quad<T> d_pre = unit_backward<T, KIND>(step, first + row, place.unit, dh);
      for (int gate = 0; gate < 4; ++gate) now[row * 4 * H + place.unit * 4 + gate] = widen(d_pre.at[gate]);
    }
  }
}

}  // namespace fastlstm::gpu
