// The weights of one layer in one direction, packed for the kernels of one instruction set, and the sizes that follow from it.
#pragma once
#include <mutex>

#include "kernels.h"
#include "workspace.h"

namespace fastlstm {

// Sizes of the arrays inside a layer; "blocked" as in kernels.h.
struct Layout {
  Layout(Shape shape, int lanes, int panel, int64_t element_bytes);

  int64_t lanes, panel;
  int64_t blocks;                       // of `lanes` units
  int64_t units;                        // blocks * lanes
  int64_t columns;                      // 4 * units: the blocked gate columns
  int64_t depth;                        // I + output: rows of the gate panels
  int64_t output_padded, input_padded;  // to whole panels
  // A row of operands is [gap | x | h], h aligned.
  int64_t h_offset, x_offset, operand_stride;
  int64_t d_pre_stride;
};

template <class T>
struct RawWeights {
  const T *w_x, *w_h;    // [4H,I], [4H,output]
  const T *b_ih, *b_hh;  // [4H]; both null without bias
  const T* w_p;          // [P,H]; null without projection
};

template <class T>
class Panels {
 public:
  Panels(const Kernels<T>& kernels, Shape shape, const RawWeights<T>& raw);

  const Kernels<T>& kernels;
  const Shape shape;  // T and B are zero
  const Layout layout;
  Buffer<T> gates;       // [columns / panel][depth][panel]: rows of x first, then of h
  Buffer<T> bias;        // [columns]
  Buffer<T> projection;  // [output_padded / panel][H][panel]

  struct Transposed {
    Buffer<T> dh;  // [output_padded / panel][columns][panel]
    Buffer<T> dx;  // [input_padded / panel][columns][panel]
    Buffer<T> dm;  // [units to whole panels / panel][P][panel]; empty without projection
  };
  // What backward needs, made at the first call.
  const Transposed& transposed() const;

  int64_t bytes() const { return gates.bytes() + bias.bytes() + projection.bytes(); }

 private:
  Buffer<T> transposed_rows(int64_t first, int64_t count, int64_t padded) const;

  mutable std::once_flag once_;
  mutable Transposed transposed_;
};

}  // namespace fastlstm
