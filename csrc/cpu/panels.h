// The weights of one layer in one direction, packed for the kernels of one instruction set, and the sizes that follow from it.
#pragma once
#include <mutex>

#include "../cell_options.h"
#include "kernels.h"
#include "workspace.h"

namespace fastlstm {

// Sizes of the arrays inside a layer; "blocked" as in kernels.h.
struct Layout {
  Layout(Shape shape, const CellOptions& cell, int lanes, int panel, int64_t element_bytes);

  int64_t lanes, panel;
  int64_t blocks;                       // of `lanes` units
  int64_t units;                        // blocks * lanes
  int64_t columns;                      // 4 * units: the blocked gate columns
  int64_t depth;                        // I + output: rows of the gate panels
  int64_t inputs_even, depth_even;      // the same with x and h rounded up to pairs of rows, for kInt8
  int64_t output_padded, input_padded;  // to whole panels
  // A row of operands is [gap | x | h], h aligned.
  int64_t h_offset, x_offset, operand_stride;
  // A row of d_pre: blocked, as the gate columns; or, where each gate's inputs are dropped apart, a gate after the other.
  int64_t d_block, d_gate;  // from a block of units to the next, and from a gate to the next
  int64_t d_columns, d_pre_stride;

  // Vectors that n columns take of their last panel; 0: all of them.
  int tail_vectors(int64_t n) const { return int((n % panel + lanes - 1) / lanes % (panel / lanes)); }
};

template <class T>
struct RawWeights {
  const T *w_x, *w_h;                             // [4H,I], [4H,output]
  const T *b_ih, *b_hh;                           // [4H]; both null without bias
  const T* w_p;                                   // [P,H]; null without projection
  const T* peephole;                              // [3H] of i f o; null: none
  const T *gamma_x, *gamma_h, *gamma_c, *beta_c;  // [4H], [4H], [H], [H] of layer normalisation; all null: none
};

template <class T>
class Panels {
 public:
  // Other storage than kWhole: for inference alone, without what backward needs.
  Panels(const Kernels<T>& kernels, Shape shape, const CellOptions& cell, const RawWeights<T>& raw, Storage storage,
         int threads);
  // A copy in which weights of U are dropped.
  Panels(const Panels& whole, const Draws& draws);

  const Kernels<T>& kernels;
  const Shape shape;  // T and B are zero
  const CellOptions cell;
  const Layout layout;
  const Storage storage;
  Buffer<T> bias;        // [columns]
  Buffer<T> scales[2];   // [columns] of the rows of x and of h; empty unless kInt8
  Buffer<T> projection;  // [output_padded / panel][H][panel]
  Buffer<T> peepholes;   // [blocks][3][lanes] of i f o; empty without
  // Of layer normalisation, empty without: [2][columns], the gains of x . W and h . U; [blocks][2][lanes], gain and bias of c.
  Buffer<T> norm_gains, norm_output;

  bool normalised() const { return norm_gains.size() > 0; }
  bool plain_cell() const { return cell.plain() && peepholes.size() == 0 && !normalised(); }
  // What it has of the weights.
  StepNorm<T> step_norm() const {
    StepNorm<T> norm{};
    norm.gains = norm_gains.data(), norm.output = norm_output.data(), norm.bias = bias.data();
    return norm;
  }

  struct Transposed {
    Buffer<T> dh;  // [output_padded / panel][columns][panel], the columns in the order of d_pre
    Buffer<T> dx;  // [input_padded / panel][columns][panel]
    Buffer<T> dm;  // [units to whole panels / panel][P][panel]; empty without projection
  };
  // What backward needs, made at the first call.
  const Transposed& transposed(int threads) const;
  // product() with the panels of `count` rows from `first` on that transposed() has, made while they are read. p.panels is not set.
  void product_transposed(const Product<T>& p, int64_t first, int64_t count) const;

  // The gate panels [columns / panel][rows][panel]: of x first, then of h.
  const void* input_gates() const { return gates(0); }
  const void* recurrent_gates() const { return gates(storage == Storage::kInt8 ? layout.inputs_even : shape.I); }
  int64_t gates_stride() const { return (storage == Storage::kInt8 ? layout.depth_even : layout.depth) * layout.panel; }

  int64_t bytes() const {
    return whole_.bytes() + compressed_.bytes() + bias.bytes() + scales[0].bytes() + scales[1].bytes() +
           projection.bytes() + peepholes.bytes() + norm_gains.bytes() + norm_output.bytes();
  }

 private:
  const void* gates(int64_t row) const;
  void to_bfloat16();
  void to_int8();
  void pack_blocks(const RawWeights<T>& raw, int64_t begin, int64_t end);
  int team(int threads) const;
  Buffer<T> transposed_rows(int64_t first, int64_t count, int64_t padded, int threads) const;

  Buffer<T> whole_;             // the gate panels; kept only if storage is kWhole
  Buffer<uint8_t> compressed_;  // else they are here
  mutable std::once_flag once_;
  mutable Transposed transposed_;
};

}  // namespace fastlstm
