// What dropout multiplies x and h by on their way into the products of one layer and direction: the same in all steps of a
// training call, for all gates (Gal & Ghahramani 2016) or for each of them apart (Keras).
#pragma once
#include "drawing.h"
#include "panels.h"
#include "plan.h"

namespace fastlstm {

template <class T>
class InputScales {
 public:
  InputScales(const Panels<T>& panels, const Draws& draws, const Timeline& timeline, int64_t B)
      : layout_(panels.layout), I_(panels.shape.I), n_(panels.shape.output()), B_(B) {
    const CellOptions& cell = panels.cell;
    if (!draws.training || !cell.drops_inputs()) return;
    kinds_ = cell.dropout_per_gate ? 4 : 1;
    scales_ = Buffer<T>(size_product(kinds_, B, layout_.depth));
    const auto draw = [&](Drawn kind, double p, int gate, int64_t n, T* to) {
      if (p > 0)
        return RowsDraw<T>::scales(panels.kernels, draws, kind, p)(uint32_t(gate), B, timeline.order, 0, n, to,
                                                                   layout_.depth);
      for (int64_t row = 0; row < B; ++row) std::fill_n(to + row * layout_.depth, n, T(1));
    };
    for (int gate = 0; gate < kinds_; ++gate) {
      draw(Drawn::kInput, cell.input_dropout, gate, I_, at(gate, 0));
      draw(Drawn::kRecurrent, cell.recurrent_dropout, gate, n_, at(gate, 0) + I_);
    }
  }

  explicit operator bool() const { return kinds_ > 0; }
  int kinds() const { return kinds_; }  // 1, or 4: one for each gate; 0: nothing is dropped
  const T* of_x(int gate, int64_t row) const { return at(gate, row); }
  const T* of_h(int gate, int64_t row) const { return at(gate, row) + I_; }

  // Rows of operands, whole rows operand_stride apart, times the scales of a gate. from and to: where the first row begins.
  void scale(int gate, Range rows, const T* from, T* to) const {
    for (int64_t row = rows.begin; row < rows.end;
         ++row, from += layout_.operand_stride, to += layout_.operand_stride) {
      const T* scales = at(gate, row);
      for (int64_t i = 0; i < layout_.depth; ++i) to[layout_.x_offset + i] = from[layout_.x_offset + i] * scales[i];
    }
  }

 private:
  T* at(int gate, int64_t row) const { return scales_.data() + (gate * B_ + row) * layout_.depth; }

  const Layout& layout_;
  const int64_t I_, n_, B_;
  int kinds_ = 0;
  Buffer<T> scales_;  // [kinds,B,depth] of [x | h], rows as sorted
};

}  // namespace fastlstm
