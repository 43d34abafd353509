// The whole loop over time in one launch, for small H: a block owns some rows and has all of U in its shared memory, so that no
// block ever waits for another. Sums are those of the step kernels, term by term, and so are the results, to the last bit.
#pragma once
#include <algorithm>

#include "step_backward.cuh"

namespace fastlstm::gpu {

// Of a block, so that registers suffice.
constexpr int most_resident_threads(size_t bytes_of_number, CellKind kind) {
  return bytes_of_number == 8 || kind != kPlain ? 256 : 512;
}

// A block: groups of threads, each with one for every unit. They take the slices of the block's rows in turn, then the rows.
struct ResidentShape {
  int unit_threads, groups, rows;
  int depth;  // of the product, with zeros up to a multiple of four
  DEVICE int slices() const { return depth < kSlices * kDepth ? (depth + kDepth - 1) / kDepth : kSlices; }
  int threads() const { return unit_threads * groups; }
};

// Few rows go to as many blocks as there are processors; more rows of a thread share what it reads of U.
inline ResidentShape resident_shape(int64_t H, int64_t B, bool backward, int thread_rows, int processors,
                                    int most_threads) {
  ResidentShape shape{int((H + 31) / 32 * 32), 0, 0, int(backward ? 4 * H : (H + 3) / 4 * 4)};
  const int groups = std::max(1, most_threads / shape.unit_threads);
  const int64_t wanted = (B + processors * thread_rows - 1) / (processors * thread_rows);
  const int tiles = int(std::clamp<int64_t>(wanted, 1, std::max(1, groups / shape.slices())));
  shape.rows = thread_rows * tiles;
  shape.groups = std::min(groups, shape.slices() * tiles);
  return shape;
}

// What is in shared memory, in this order: the operand, which is h forward and d_pre backward; the slices of its product; U.
template <class T>
struct ResidentMemory {
  using W = Wide<T>;
  W* a;      // [rows][depth]
  W* found;  // [slices][rows][columns]
  T* u;      // [depth][columns]

  __device__ ResidentMemory(const ResidentShape& shape, int columns)
      : a(shared_memory<W>()),
        found(a + shape.rows * shape.depth),
        u(reinterpret_cast<T*>(found + shape.slices() * shape.rows * columns)) {}
};

template <class T>
size_t resident_bytes(const ResidentShape& shape, int64_t columns) {
  const int64_t numbers = shape.rows * (shape.depth + shape.slices() * columns);
  return size_t(numbers) * sizeof(Wide<T>) + size_t(shape.depth * columns) * sizeof(T);
}

// u [shape.depth][columns] from panels [..][depth][kPanel]; the operand from `before` [rows][depth], which may be null. Zeros
// beyond them.
template <class T>
__device__ void begin_resident(const T* panels, int depth, int columns, const T* before, int rows,
                               const ResidentShape& shape, const ResidentMemory<T>& memory) {
  for (int i = int(threadIdx.x); i < shape.depth * columns; i += int(blockDim.x)) {
    const int k = i / columns, column = i % columns;
    memory.u[i] = k < depth ? panels[(int64_t(column / kPanel) * depth + k) * kPanel + column % kPanel] : T(0.0f);
  }
  for (int i = int(threadIdx.x); i < shape.rows * shape.depth; i += int(blockDim.x)) {
    const int row = i / shape.depth, k = i % shape.depth;
    const bool there = before && row < rows && k < depth;
    memory.a[i] = there ? widen(before[row * depth + k]) : Wide<T>(0);
  }
}

// The slices of the sums of COLUMNS neighbouring columns a unit, for all rows of the block, between two barriers.
template <class T, int ROWS, int COLUMNS>
__device__ void resident_product(const ResidentShape& shape, int units, const ResidentMemory<T>& memory) {
  using W = Wide<T>;
  const int group = int(threadIdx.x) / shape.unit_threads, unit = int(threadIdx.x) % shape.unit_threads;
  const int slices = shape.slices();
  const auto* const u = reinterpret_cast<const Vector<T, COLUMNS>*>(memory.u);
  auto* const found = reinterpret_cast<Vector<W, COLUMNS>*>(memory.found);
  if (!mutated("resident_product: first barrier")) __syncthreads();  // the operand is whole
  for (int item = group; item < slices * shape.rows / ROWS && unit < units; item += shape.groups) {
    const int slice = item % slices, row = item / slices * ROWS;
    W sum[ROWS][COLUMNS] = {};
    for (int begin = slice * kDepth; begin < shape.depth; begin += kSlices * kDepth) {
      W part[ROWS][COLUMNS] = {};
      const int end = shape.depth - begin < kDepth ? shape.depth : begin + kDepth;
#pragma unroll(ROWS == 1 ? 4 : 1)
      for (int k = begin; k < end; k += 4) {
        Quad<W> of_a[ROWS];
#pragma unroll
        for (int i = 0; i < ROWS; ++i)
          of_a[i] = *reinterpret_cast<const Quad<W>*>(memory.a + (row + i) * shape.depth + k);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const Vector<T, COLUMNS> of_u = u[(k + j) * units + unit];
#pragma unroll
          for (int i = 0; i < ROWS; ++i)
#pragma unroll
            for (int n = 0; n < COLUMNS; ++n) part[i][n] = fma(of_a[i].at[j], widen(of_u.at[n]), part[i][n]);
        }
      }
#pragma unroll
      for (int i = 0; i < ROWS; ++i)
#pragma unroll
        for (int n = 0; n < COLUMNS; ++n) sum[i][n] += part[i][n];
    }
#pragma unroll
    for (int i = 0; i < ROWS; ++i) found[(slice * shape.rows + row + i) * units + unit] = row_of(sum, i);
  }
  if (!mutated("resident_product: second barrier")) __syncthreads();
}

// Calls each(row of the block, unit, sum) for all of them, some by each thread.
template <class T, int COLUMNS, class Each>
__device__ void each_resident_sum(const ResidentShape& shape, int units, int rows, const ResidentMemory<T>& memory,
                                  Each each) {
  const int unit = int(threadIdx.x) % shape.unit_threads;
  const auto* const found = reinterpret_cast<const Vector<Wide<T>, COLUMNS>*>(memory.found);
  for (int row = int(threadIdx.x) / shape.unit_threads; row < rows && unit < units; row += shape.groups) {
    Vector<Wide<T>, COLUMNS> sum{};
    for (int slice = 0; slice < shape.slices(); ++slice) {
      const auto add = found[(slice * shape.rows + row) * units + unit];
#pragma unroll
      for (int n = 0; n < COLUMNS; ++n) sum.at[n] += add.at[n];
    }
    each(row, unit, sum);
  }
}

template <class T, int ROWS, CellKind KIND>
__global__ void __launch_bounds__(most_resident_threads(sizeof(T), KIND), 1)
    resident_forward(const LayerForward<T> layer, const ResidentShape shape) {
  const int H = int(layer.shape.H), first = int(blockIdx.x) * shape.rows;
  const int rows = int(layer.shape.B) - first < shape.rows ? int(layer.shape.B) - first : shape.rows;
  const ResidentMemory<T> memory(shape, 4 * H);

  begin_resident<T>(layer.recurrent, H, 4 * H, layer.h_before(0) + int64_t(first) * H, rows, shape, memory);
  for (int64_t s = 0; s < layer.shape.T; ++s) {
    const StepForward<T> step = layer.step(s);
    resident_product<T, ROWS, 4>(shape, H, memory);
    each_resident_sum<T, 4>(shape, H, rows, memory, [&](int row, int unit, const Quad<Wide<T>>& sum) {
      memory.a[row * shape.depth + unit] = widen(unit_forward<T, KIND>(step, first + row, unit, sum));
    });
  }
}

template <class T, int ROWS, CellKind KIND>
__global__ void __launch_bounds__(most_resident_threads(sizeof(T), KIND), 1)
    resident_backward(const LayerBackward<T> layer, const ResidentShape shape) {
  using W = Wide<T>;
  const Shape& of = layer.forward.shape;
  const int H = int(of.H), first = int(blockIdx.x) * shape.rows;
  const int rows = int(of.B) - first < shape.rows ? int(of.B) - first : shape.rows;
  const ResidentMemory<T> memory(shape, H);

  begin_resident<T>(layer.recurrent, 4 * H, H, nullptr, rows, shape, memory);
  for (int64_t s = of.T - 1; s >= -1; --s) {
    const StepBackward<T> step = s >= 0 ? layer.step(s) : layer.before_first();
    resident_product<T, ROWS, 1>(shape, H, memory);
    each_resident_sum<T, 1>(shape, H, rows, memory, [&](int row, int unit, const Vector<W, 1>& sum) {
      const W dh = reaching_h(step, first + row, unit, sum.at[0]);
      if (s < 0) {
        step.dh[int64_t(first + row) * H + unit] += dh;
        return;
      }
      const Quad<T> d_pre = unit_backward<T, KIND>(step, first + row, unit, dh);
      Quad<W> wide;
      for (int gate = 0; gate < 4; ++gate) wide.at[gate] = widen(d_pre.at[gate]);
      reinterpret_cast<Quad<W>*>(memory.a)[row * H + unit] = wide;
    });
  }
}

}  // namespace fastlstm::gpu
