// How the random numbers of a layer and direction are asked for: one row of units at one place. The twin is dropout.py.
#pragma once
#include "../philox.h"
#include "kernels.h"

namespace fastlstm {

// to [n] = `kept` with probability 1 - p, else `dropped`. place: the step, the gate or the row of weights; b: the caller's row.
template <class T>
struct RowDraw {
  const Kernels<T>& kernels;
  const Draws& draws;
  Drawn kind;
  double p;
  T kept, dropped;

  // Dropout, and what is kept grows by 1 / (1 - p).
  static RowDraw scales(const Kernels<T>& kernels, const Draws& draws, Drawn kind, double p) {
    return {kernels, draws, kind, p, p < 1 ? T(1) / T(1 - p) : T(0), T(0)};
  }

  // first: the unit of to[0], a multiple of 4.
  void operator()(uint32_t place, int64_t b, int64_t first, int64_t n, T* to) const {
    const uint64_t seed = seed_of(kind, draws.seed);
    Draw<T> draw{};
    draw.key[0] = uint32_t(seed), draw.key[1] = uint32_t(seed >> 32);
    draw.counter[0] = place_of(draws.layer, draws.direction, first / 4);
    draw.counter[1] = place;
    draw.counter[2] = uint32_t(b);
    draw.counter[3] = draws.call;
    draw.threshold = threshold_of(p);
    draw.kept = kept, draw.dropped = dropped;
    draw.n = n;
    draw.to = to;
    kernels.draw(draw);
  }
};

// What weight_drop multiplies row `row` of U [4H,n] by.
template <class T>
void weight_scales(const Kernels<T>& kernels, const CellOptions& cell, const Draws& draws, int64_t row, int64_t n,
                   T* to) {
  RowDraw<T>::scales(kernels, draws, Drawn::kWeights, cell.weight_drop)(uint32_t(row), 0, 0, n, to);
}

}  // namespace fastlstm
