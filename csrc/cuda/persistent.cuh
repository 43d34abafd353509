// The whole loop over time in one cooperative launch: each block has some columns of U in its shared memory, for all rows, and
// waits for what others make of theirs. Without tensor cores, sums are those of the step kernels, term by term, and so are the
// results, to the last bit.
#pragma once
#include "persistent_product.cuh"

namespace fastlstm::gpu {

// A cell of a tile: its row and unit in the layer, and in the tile. Threads that are neighbours have neighbouring units.
struct TileCell {
  int row, unit, tile_row, tile_unit;
  bool there;

  __device__ TileCell(int i, int tile_units, int first_row, int tile_rows, int rows, int units) {
    tile_row = i / tile_units, tile_unit = i % tile_units;
    row = first_row + tile_row, unit = int(blockIdx.x) * tile_units + tile_unit;
    there = tile_row < tile_rows && row < rows && unit < units;
  }
};

// Runs the cells of a tile, some in each thread. What they read beside the product is on its way while the product waits for
// other blocks.
template <class Place, class Inputs, class Product, class Cell>
__device__ void cells_of_tile(int cells, Place place, Inputs inputs_of, Product product, Cell cell) {
  int i = int(threadIdx.x);
  TileCell next_at = place(i);
  auto next = inputs_of(next_at);
  product();
  while (i < cells) {
    const TileCell at = next_at;
    const auto inputs = next;
    i += kPersistentThreads;
    if (i < cells) next_at = place(i), next = inputs_of(next_at);
    if (at.there) cell(at, inputs);
  }
}

template <class T, int ROWS, CellKind KIND, bool TENSOR>
__global__ void __launch_bounds__(kPersistentThreads, 1)
    persistent_forward(const LayerForward<T> layer, const PersistentShape shape, const Failure failure) {
  const int H = int(layer.shape.H), B = int(layer.shape.B);
  const PersistentMemory<T, TENSOR> memory(shape, H);
  Patience patience(failure);

  load_columns<T, TENSOR>(layer.recurrent, H, 4 * H, shape, memory.w);
  for (int64_t s = 0; s < layer.shape.T; ++s) {
    const auto step_now = [&] { return layer.step(anew(s)); };
    const Operand<T> operand = step_now().recurrent;
    for (int first = 0; first < B; first += shape.rows) {
      const TileOf<T> tile{operand, shape, first, B};
      cells_of_tile(
          shape.rows * shape.quads, [&](int i) { return TileCell(i, shape.quads, first, shape.rows, B, H); },
          [&](const TileCell& at) {
            if (!at.there) return CellInputs<T>{};
            if (s + 1 < layer.shape.T) prefetch_inputs(layer.step(s + 1), at.row, at.unit);
            return cell_inputs<T, KIND>(step_now(), at.row, at.unit);
          },
          [&] { find_sums<T, ROWS, TENSOR, 8>(tile, memory, patience); },
          [&](const TileCell& at, const CellInputs<T>& inputs) {
            const auto sum = sum_of_splits<4>(tile, memory.sums, at.tile_row, 4 * at.tile_unit);
            unit_forward<T, KIND>(step_now(), at.row, at.unit, sum, inputs);
          });
    }
  }
}

// What a thread of the backward kernel brings for a cell.
template <class T>
struct BackwardInputs {
  OutputInputs<T> output;
  GradientInputs<T> cell;
};

template <class T, int ROWS, CellKind KIND, bool TENSOR>
__global__ void __launch_bounds__(kPersistentThreads, 1)
    persistent_backward(const LayerBackward<T> layer, const PersistentShape shape, const Failure failure) {
  // A row of d_pre is four times as long as one of h; but doubles, or the sums of several tiles, leave no registers for more.
  constexpr int kTogether = sizeof(T) == 8 || (TENSOR && ROWS > 1) ? 8 : 16;
  const Shape& of = layer.forward.shape;
  const int H = int(of.H), B = int(of.B);
  const PersistentMemory<T, TENSOR> memory(shape, 4 * H);
  Patience patience(failure);

  load_columns<T, TENSOR>(layer.recurrent, 4 * H, H, shape, memory.w);
  for (int64_t s = of.T - 1; s >= -1; --s) {
    const auto step_now = [&] { return s >= 0 ? layer.step(anew(s)) : layer.before_first(); };
    const Operand<T> operand = step_now().recurrent;
    for (int first = 0; first < B; first += shape.rows) {
      const TileOf<T> tile{operand, shape, first, B};
      cells_of_tile(
          shape.rows * shape.columns(), [&](int i) { return TileCell(i, shape.columns(), first, shape.rows, B, H); },
          [&](const TileCell& at) {
            BackwardInputs<T> inputs{};
            if (!at.there) return inputs;
            const StepBackward<T> step = step_now();
            inputs.output = output_inputs(step, at.row, at.unit);
            if (s >= 0) inputs.cell = gradient_inputs(step, at.row, at.unit);
            if (s > 0) prefetch_inputs(layer.step(s - 1), at.row, at.unit);
            return inputs;
          },
          [&] { find_sums<T, ROWS, TENSOR, kTogether>(tile, memory, patience); },
          [&](const TileCell& at, const BackwardInputs<T>& inputs) {
            const StepBackward<T> step = step_now();
            const Wide<T> through_u = sum_of_splits<1>(tile, memory.sums, at.tile_row, at.tile_unit).at[0];
            const Wide<T> dh = reaching_h(step, at.row, at.unit, through_u, inputs.output);
            if (s < 0)
              step.dh[int64_t(at.row) * H + at.unit] += dh;
            else
              unit_backward<T, KIND>(step, at.row, at.unit, dh, inputs.cell);
          });
    }
  }
}

}  // namespace fastlstm::gpu
