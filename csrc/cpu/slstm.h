// The sLSTM on the CPU: packed weights, and the time loop forward and backward. Heads never see each other's h, so that threads
// take heads, rows, or both, and meet only to share x and the sums over steps.
#pragma once
#include <memory>
#include <mutex>

#include "../layer.h"
#include "panels.h"
#include "threads.h"

namespace fastlstm {

struct SlstmShape {
  int64_t I = 0, H = 0;  // input size, 0 where x holds pre-activations; hidden size
  int64_t heads = 1;

  int64_t head() const { return H / heads; }
  int64_t x_size() const { return I > 0 ? I : 4 * H; }
};

template <class T>
struct SlstmRawWeights {
  const T* w_x;   // [4H,I]; null where I is 0
  const T* w_h;   // [4H,H/heads]
  const T* bias;  // [4H]; null without
};

// The units of each head are padded to whole vectors, so that a head is a stretch of blocks, of columns and of h.
template <class T>
class SlstmPanels {
 public:
  SlstmPanels(const Kernels<T>& kernels, const SlstmShape& shape, const SlstmRawWeights<T>& raw);

  const Kernels<T>& kernels;
  const SlstmShape shape;
  const int64_t head_blocks;  // of a head
  const Layout layout;        // of all heads' padded units: rows of operands are [gap | x | h], h by head
  Buffer<T> inputs;           // [columns / panel][I][panel]
  Buffer<T> recurrent;        // [columns / panel][H/heads][panel]
  Buffer<T> bias;             // [columns]

  int64_t head_units() const { return head_blocks * layout.lanes; }
  int64_t head_columns() const { return 4 * head_units(); }
  int64_t bytes() const { return inputs.bytes() + recurrent.bytes() + bias.bytes(); }

  struct Transposed {
    Buffer<T> dh;  // [heads][H/heads to whole panels / panel][head columns][panel]
    Buffer<T> dx;  // [input_padded / panel][columns][panel]
  };
  const Transposed& transposed() const;  // what backward needs, made at the first call

  // function(gate, first unit in H, units, first column) for each gate of each block.
  template <class Function>
  void for_blocks(int64_t head, Function function) const {
    const int64_t L = layout.lanes, K = shape.head();
    for (int64_t block = 0; block < head_blocks; ++block)
      for (int64_t gate = 0; gate < 4; ++gate)
        function(gate, head * K + block * L, std::min(L, K - block * L), ((head * head_blocks + block) * 4 + gate) * L);
  }

 private:
  mutable std::once_flag once_;
  mutable Transposed transposed_;
};

// Steps that do not count, and cuts, in the caller's order of rows.
struct SlstmMarks {
  Buffer<uint8_t> flags;  // [T,B] StepFlag; empty: every step counts, no cuts
  bool repeat = false;    // y of a held step is h, not zero

  const uint8_t* at(int64_t t, int64_t row, int64_t T, int64_t B) const {
    return flags && t < T ? flags.data() + t * B + row : nullptr;
  }
};

template <class T>
struct SlstmTape {
  SlstmTape(const Layout& layout, int64_t T_, int64_t B)
      : operands(size_product(T_ + 1, B, layout.operand_stride)),
        c(size_product(T_ + 1, B, layout.units)),
        n(size_product(T_ + 1, B, layout.units)),
        gates(size_product(T_, B, layout.columns)) {}

  Buffer<T> operands;  // [T+1,B,operand_stride] rows [x_t | h_{t-1}]
  Buffer<T> c, n;      // [T+1,blocks,B,lanes] before step t
  Buffer<T> gates;     // [T,blocks,B,4,lanes] SlstmSaved
  int64_t bytes() const { return operands.bytes() + c.bytes() + n.bytes() + gates.bytes(); }
};

template <class T>
struct SlstmForwardArgs {
  int64_t T_, B;
  const SlstmMarks& marks;
  Sequence<const T> x;  // [T,B,x_size]
  const T* first[4];    // h c n m [B,H]; null: zero
  Sequence<T> y;        // [T,B,H]
  T* last[4];           // h c n m [B,H]
};

template <class T>
struct SlstmBackwardArgs {
  int64_t T_, B;
  const SlstmMarks& marks;
  Sequence<const T> dy;  // [T,B,H]; null: zero
  const T* d_last[4];    // of h c n m [B,H]; null: zero
  Sequence<T> dx;        // [T,B,x_size]
  T* d_first[4];         // of h c n m [B,H]
  T *dw_x, *dw_h, *db;   // as SlstmRawWeights; dw_x and db may be null
};

// Threads form a grid: row groups by head groups.
struct SlstmPlan {
  int row_groups = 1, head_groups = 1;
  int threads() const { return row_groups * head_groups; }
};
SlstmPlan plan_slstm(const SlstmShape& shape, int64_t T, int64_t B, int threads);

template <class T>
void slstm_forward(const SlstmPanels<T>& panels, const SlstmForwardArgs<T>& args, SlstmTape<T>* tape, int threads,
                   Interrupt& interrupt);
template <class T>
void slstm_backward(const SlstmPanels<T>& panels, const SlstmTape<T>& tape, const SlstmBackwardArgs<T>& args,
                    int threads, Interrupt& interrupt);

}  // namespace fastlstm
