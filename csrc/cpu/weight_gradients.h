// dW, db and dw_p of one layer: sums over all rows of all steps, chunk by chunk, in the order of the chunks. Called by
// layer_backward.cpp, by all of its threads: between `pack` and `add`, and between `add` and `store`, they meet.
#pragma once
#include "input_scales.h"
#include "layer_loop.h"
#include "plan.h"

namespace fastlstm {

template <class T>
class WeightGradients {
 public:
  // any_rows: the first chunk has some, or none has. Without args.dw_h nothing here does anything.
  WeightGradients(const Panels<T>& panels, const BackwardArgs<T>& args, const Plan& plan, const InputScales<T>& scales,
                  int64_t chunk_rows, bool any_rows);

  // What each row contributes to weights that are no matrices: [peepholes 3 units | gains 2 columns | bias columns | gain and
  // bias of c 2 units], blocked, and empty where there are none.
  static int64_t terms_of_row(const Panels<T>& panels) { return gains_at(panels) + norm_terms(panels); }
  static int64_t gains_at(const Panels<T>& panels) { return panels.peepholes.size(); }
  static int64_t output_at(const Panels<T>& panels) { return gains_at(panels) + 3 * panels.layout.columns; }

  // Some rows of [x | h_{s-1}], and of m where there is a projection, as outer_sum reads them. buffer: a chunk's first row.
  void pack(int thread, const LayerTape<T>& tape, Range rows, const Chunk& chunk, int64_t buffer,
            const T* m);  // m [2 * chunk_rows, units]
  struct Terms {
    const T *d_x,
        *d_h;       // [chunk rows, d_pre_stride] gradients of x . W and of h . U: d_pre, unless they are normalised
    const T* dh;    // [chunk rows, output_padded] of a projection
    const T* rows;  // [chunk rows, terms_of_row]
  };
  // A thread's part of the terms of a chunk.
  void add(int thread, const Chunk& chunk, int64_t buffer, const Terms& terms, bool fresh);
  // A thread's part, in the shapes of the weights. tape, d_pre: of a single step.
  void store(int thread, const LayerTape<T>& tape, const T* d_pre, int64_t rows) const;

 private:
  static int64_t norm_terms(const Panels<T>& panels) {
    return panels.normalised() ? 3 * panels.layout.columns + 2 * panels.layout.units : 0;
  }
  // Some columns of [x | h]: all of them, or, where their sums are normalised apart, those of x or of h.
  struct Part {
    int64_t first, columns;
    int64_t padded;         // to whole tiles
    Buffer<T> packed, sum;  // [kinds][2][padded / tile_rows, chunk rows, tile_rows]; as OuterSum::sum
  };
  T* packed(const Part& part, int kind, int64_t buffer) const;
  void pack_rows(const T* operands, int64_t rows, int kind, const Chunk& chunk, int64_t buffer, int64_t base) const;
  void add_rows(int thread, int64_t rows, const T* terms);
  void store_sums(int thread) const;
  void store_single_step(int thread, const LayerTape<T>& tape, const T* d_pre, int64_t rows) const;

  const Panels<T>& panels_;
  const Layout& layout_;
  const BackwardArgs<T>& args_;
  const Shape& shape_;
  const int threads_;
  const bool single_step_;
  const InputScales<T>& scales_;
  const int64_t chunk_rows_;
  std::vector<Part> parts_;
  Buffer<T> packed_m_;   // [2][columns / tile_rows, chunk rows, tile_rows] of m
  Buffer<T> db_, dw_p_;  // as OuterSum::column_sum; as OuterSum::sum, of m with projection
  Buffer<T> row_terms_;  // [2][terms_of_row] the sum, and that of a chain
  Buffer<T> scaled_;     // [threads][kScaledRows, operand_stride] where inputs are dropped
  static constexpr int64_t kScaledRows = 16;
};

}  // namespace fastlstm
