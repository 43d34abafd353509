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
  LayerTape(const Layout& layout, int64_t T_, int64_t B)
      : operands(size_product(T_ + 1, B, layout.operand_stride)),
        c(size_product(T_ + 1, B, layout.units)),
        gates(size_product(T_, B, layout.columns)) {}

  Buffer<T> operands;  // [T+1,B,operand_stride] rows [x_s | h_{s-1}]: exactly what the product saw
  Buffer<T> c;         // [T+1,blocks,B,lanes] before step s
  Buffer<T> gates;     // [T,blocks,B,4,lanes] i f g o
  int64_t bytes() const { return operands.bytes() + c.bytes() + gates.bytes(); }
};

// Fills args.y, h_n, c_n and cells, and the tape where one is given.
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

// Never writes the tape.
template <class T>
void layer_backward(const Panels<T>& panels, const LayerTape<T>& tape, const BackwardArgs<T>& args, int threads,
                    Interrupt& interrupt);

}  // namespace fastlstm
