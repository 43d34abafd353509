// The time loop of one layer in one direction, forward and backward. Direction, lengths, masks, resets and the split over
// threads live here; arithmetic lives in the kernels.
#pragma once
#include <memory>

#include "../layer.h"
#include "panels.h"
#include "threads.h"

namespace fastlstm {

// What forward leaves for backward. s counts processed steps: s = 0 is the last step in time of a reverse direction.
template <class T>
struct LayerTape {
  LayerTape() = default;
  // n: the most steps that it is to hold.
  LayerTape(const Panels<T>& panels, int64_t n, int64_t B, Lent* lent = nullptr)
      : operands(size_product(n + 1, B, panels.layout.operand_stride), lent),
        c(size_product(n + 1, B, panels.layout.units), lent),
        gates(size_product(n, B, panels.layout.columns), lent),
        sums(panels.normalised() ? size_product(n, B, 2, panels.layout.columns) : 0, lent),
        inverses(panels.normalised() ? size_product(n, B, 2) : 0, lent) {}

  Range steps;         // that it holds; [0] is the first of them
  Buffer<T> operands;  // [n+1,B,operand_stride] rows [x_s | h_{s-1}]: exactly what the product saw
  Buffer<T> c;         // [n+1,blocks,B,lanes] before step s
  Buffer<T> gates;     // [n,blocks,B,4,lanes] i f g o
  Buffer<T> sums;      // [n,B,2,columns] with layer normalisation: x . W and h . U, normalised
  Buffer<T> inverses;  // [n,B,2] of their deviations
  int64_t bytes() const { return operands.bytes() + c.bytes() + gates.bytes() + sums.bytes() + inverses.bytes(); }
};

// Fills args.to, y, h_n, c_n and cells, and the tape where one is given.
template <class T>
void layer_forward(const Panels<T>& panels, const ForwardArgs<T>& args, LayerTape<T>* tape, int threads,
                   Interrupt& interrupt);

// A layer's inference over sizes that stay the same, run again and again on what args point to by then. run() allocates nothing.
class LayerPass {
 public:
  virtual ~LayerPass() = default;
  virtual void run() = 0;
};

// panels and args must outlive the pass. h_n and c_n may be h0 and c0.
template <class T>
std::unique_ptr<LayerPass> forward_pass(const Panels<T>& panels, const ForwardArgs<T>& args, int threads,
                                        Interrupt& interrupt);

// A layer's backward, a tape after the other, from that of the last window to that of the first.
template <class T>
class LayerBackward {
 public:
  virtual ~LayerBackward() = default;
  // Of args.dy, dcells and dx only this window's steps are read and written, and dy and dx may be others each time. Never
  // writes the tape.
  virtual void run(const LayerTape<T>& tape) = 0;
};

// panels and args must outlive the pass.
template <class T>
std::unique_ptr<LayerBackward<T>> backward_pass(const Panels<T>& panels, const BackwardArgs<T>& args, int threads,
                                                Interrupt& interrupt);

}  // namespace fastlstm
