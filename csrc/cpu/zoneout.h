// What zoneout keeps of h and c, for one layer and direction: random zeros and ones in training, the expectation in inference.
// Drawn anew wherever it is needed, since it is a function of the place alone.
#pragma once
#include "drawing.h"
#include "panels.h"
#include "plan.h"

namespace fastlstm {

template <class T>
class Zoneout {
 public:
  // rows: the most of one step.
  Zoneout(const Panels<T>& panels, const Draws& draws, const Timeline& timeline, int threads, int64_t rows)
      : panels_(panels), draws_(draws), timeline_(timeline), rows_(rows) {
    if (!panels.cell.zones()) return;
    const int64_t each = draws.training ? rows * width() : width();
    keep_ = Buffer<T>(size_product(draws.training ? threads : 1, 2, each));
    if (draws.training) return;
    std::fill_n(keep_.data(), width(), T(panels.cell.zoneout_h));
    std::fill_n(keep_.data() + width(), width(), T(panels.cell.zoneout_c));
  }

  // What a thread's rows keep at time t: [rows, width of the layer], stride() apart, where `units` are set. Null: nothing.
  const T* of_h(int thread, Range rows, Range units, int64_t t) const {
    return keep(Drawn::kZoneoutH, panels_.cell.zoneout_h, thread, 0, rows, units, t);
  }
  const T* of_c(int thread, Range rows, Range units, int64_t t) const {
    return keep(Drawn::kZoneoutC, panels_.cell.zoneout_c, thread, 1, rows, units, t);
  }
  int64_t stride() const { return draws_.training ? width() : 0; }

 private:
  int64_t width() const { return panels_.layout.units; }  // which the output of a projection does not exceed

  const T* keep(Drawn kind, double p, int thread, int half, Range rows, Range units, int64_t t) const {
    if (p == 0) return nullptr;
    if (!draws_.training) return keep_.data() + half * width();
    T* const to = keep_.data() + (2 * thread + half) * rows_ * width();
    const RowsDraw<T> draw{panels_.kernels, draws_, kind, p, T(0), T(1)};
    const int64_t first = units.begin / 4 * 4;
    draw(draws_.first_step + uint32_t(t), rows.size(), timeline_.order + rows.begin, first, units.end - first,
         to + first, width());
    return to;
  }

  const Panels<T>& panels_;
  const Draws draws_;
  const Timeline& timeline_;
  const int64_t rows_;
  Buffer<T> keep_;  // [threads, 2, rows, width] in training, else [2, width]
};

}  // namespace fastlstm
