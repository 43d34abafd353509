// dW, db and dw_p of one layer: sums over all rows of all steps, chunk by chunk, in the order of the chunks. Called by
// layer_backward.cpp, by all of its threads: between `pack` and `add`, and between `add` and `store`, they meet.
#pragma once
#include "layer_loop.h"
#include "plan.h"

namespace fastlstm {

template <class T>
class WeightGradients {
 public:
  // any_rows: the first chunk has some, or none has. Without args.dw_x nothing here does anything.
  WeightGradients(const Panels<T>& panels, const BackwardArgs<T>& args, const Plan& plan, int64_t chunk_rows,
                  bool any_rows);

  // Some rows of [x | h_{s-1}], and of m where there is a projection, as outer_sum reads them. buffer: a chunk's first row.
  void pack(const LayerTape<T>& tape, Range rows, const Chunk& chunk, int64_t buffer,
            const T* m);  // m [2 * chunk_rows, units]
  struct Terms {
    const T* d_pre;        // [chunk rows, d_pre_stride]
    const T* dh;           // [chunk rows, output_padded] of a projection
    const T* d_peepholes;  // [chunk rows, blocks, 3, lanes] of peepholes
  };
  // A thread's part of the terms of a chunk.
  void add(int thread, const Chunk& chunk, int64_t buffer, const Terms& terms, bool fresh);
  // A thread's part, in the shapes of the weights. tape, d_pre: of a single step.
  void store(int thread, const LayerTape<T>& tape, const T* d_pre, int64_t rows) const;

 private:
  void add_peepholes(int thread, int64_t rows, const T* d_peepholes);
  void store_sums(int thread) const;
  void store_single_step(int thread, const LayerTape<T>& tape, const T* d_pre, int64_t rows) const;

  const Panels<T>& panels_;
  const Layout& layout_;
  const BackwardArgs<T>& args_;
  const Shape& shape_;
  const int threads_;
  const bool single_step_;
  Buffer<T> operands_, packed_m_;  // [2][columns / tile_rows, chunk rows, tile_rows] of [x | h] and of m
  Buffer<T> sum_, db_, dw_p_;      // as OuterSum::sum, column_sum; of m with projection
  Buffer<T> peepholes_;            // [2][blocks][3][lanes] the sum, and that of a chain
};

}  // namespace fastlstm
