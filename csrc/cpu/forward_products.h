// The two products of a forward step, b + x . W and h . U: which rows they read, whether they are one, and where their sum
// starts. Called by layer_forward.cpp, by each of its threads.
#pragma once
#include <algorithm>

#include "input_scales.h"
#include "layer_loop.h"
#include "plan.h"

namespace fastlstm {

template <class T>
class ForwardProducts {
 public:
  ForwardProducts(const Panels<T>& panels, const ForwardArgs<T>& args, const Plan& plan)
      : panels_(panels),
        layout_(panels.layout),
        shape_(args.shape),
        plan_(plan),
        scales_(panels, args.draws, args.timeline, args.shape.B) {
    if (panels.storage == Storage::kInt8) {
      levels_ = Buffer<int16_t>(size_product(plan.threads(), most_rows(), layout_.depth_even));
      level_scales_ = Buffer<T>(size_product(plan.threads(), 2, most_rows()));
    }
    if (scales_)
      scaled_ = Buffer<T>(size_product(plan.threads(), scales_.kinds(), plan.row_block, layout_.operand_stride));
    if (panels.normalised()) {
      zeros_ = Buffer<T>(layout_.columns);
      std::fill_n(zeros_.data(), layout_.columns, T(0));
    }
  }

  // b + x . W of `rows` rows of operands; scratch: of which thread.
  Product<T> of_inputs(int scratch, int64_t rows, const T* operands) const {
    Product<T> p{};
    p.rows = rows;
    p.K = shape_.I;
    p.K_first = p.K_chain = kChain;
    p.a = operands + layout_.x_offset;
    p.a_stride = layout_.operand_stride;
    p.storage = panels_.storage;
    p.panels = panels_.input_gates();
    p.panel_stride = panels_.gates_stride();
    if (panels_.storage == Storage::kInt8) {
      p.scales = panels_.scales[0].data();
      p.levels = levels_.data() + scratch * most_rows() * layout_.depth_even;
      p.level_scales = level_scales_.data() + scratch * 2 * most_rows();
      p.levels_stride = layout_.inputs_even;
    }
    p.start = panels_.bias.data();
    p.prefetch = plan_.prefetch;
    return p;
  }

  // Both products of sorted rows, whose operands start at `now`, into k. pre: of these rows, where x . W is known; else null.
  void of_step(int scratch, Range rows, const T* now, const T* pre, StepForward<T>& k) const {
    const int64_t n = rows.size();
    const T* from = scales_ ? scaled(scratch, rows, now) : now;
    if (scales_.kinds() > 1) k.gate_stride = plan_.row_block * layout_.operand_stride;
    k.gates = of_h(scratch, n, from, !pre && !panels_.normalised() && joined());
    if (panels_.normalised()) {
      k.inputs = of_inputs(scratch, n, from);
      k.inputs.start = k.gates.start = zeros_.data();
    } else if (pre) {
      k.gates.start = pre;
      k.gates.start_stride = layout_.columns;
      k.gates.start_last = !chained();
    } else if (!joined()) {
      k.inputs = of_inputs(scratch, n, from);
    }
  }

  // b + x . W of a row from x . W as it comes [4H], or null for zeros, into blocked columns.
  void load_given(const T* x, T* to) const {
    const int64_t H = shape_.H, L = layout_.lanes;
    for (int64_t unit = 0; unit < H; unit += L)
      for (int64_t gate = 0; gate < 4; ++gate, to += L) {
        const int64_t units = std::min(L, H - unit);
        const T* b = panels_.bias.data() + unit * 4 + gate * L;
        std::fill_n(to, L, T(0));
        if (x) std::copy_n(x + gate * H + unit, units, to);
        for (int64_t i = 0; i < units; ++i) to[i] += b[i];
      }
  }

 private:
  // Columns of x and of h that have scales of their own are products of their own.
  bool joined() const { return shape_.I <= kJoinedInputs && panels_.storage != Storage::kInt8; }
  bool chained() const { return shape_.I <= kChainedInputs && panels_.storage != Storage::kInt8; }
  // Of one product.
  int64_t most_rows() const {
    return std::max(plan_.row_block, plan_.hoisted_steps > 1 ? plan_.hoisted_steps * shape_.B : 0);
  }

  // Start + h . U; the start is b, unless it is set.
  Product<T> of_h(int scratch, int64_t rows, const T* operands, bool with_inputs) const {
    Product<T> p = of_inputs(scratch, rows, operands);
    if (with_inputs) {
      p.K = layout_.depth;
      p.K_first = shape_.I + (chained() ? kChain : 0);
    } else {
      p.K = shape_.output();
      p.a = operands + layout_.h_offset;
      p.panels = panels_.recurrent_gates();
      if (panels_.storage == Storage::kInt8) {
        p.scales = panels_.scales[1].data();
        p.levels += rows * layout_.inputs_even;
        p.level_scales += rows;
        p.levels_stride = layout_.depth_even - layout_.inputs_even;
      }
    }
    return p;
  }

  const T* scaled(int scratch, Range rows, const T* from) const {
    const int64_t each = plan_.row_block * layout_.operand_stride;
    T* const to = scaled_.data() + scratch * scales_.kinds() * each;
    for (int gate = 0; gate < scales_.kinds(); ++gate) scales_.scale(gate, rows, from, to + gate * each);
    return to;
  }

  const Panels<T>& panels_;
  const Layout& layout_;
  const Shape& shape_;
  const Plan& plan_;
  InputScales<T> scales_;
  Buffer<int16_t> levels_;  // [threads][most_rows, depth_even]
  Buffer<T> level_scales_;  // [threads][2, most_rows] of x, then of h
  Buffer<T> scaled_;        // [threads][kinds][row_block, operand_stride]
  Buffer<T> zeros_;         // [columns] where sums start that are normalised
};

}  // namespace fastlstm
