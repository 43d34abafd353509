// How the random numbers of a layer and direction are asked for: rows of units at one place. The twin is dropout.py.
#pragma once
#include "../philox.h"
#include "kernels.h"

namespace fastlstm {

// to [rows, n] = `kept` with probability 1 - p, else `dropped`. place: the step, the gate or the row of weights.
template <class T>
struct RowsDraw {
  const Kernels<T>& kernels;
  const Draws& draws;
  Drawn kind;
  double p;
  T kept, dropped;

  // Dropout, and what is kept grows by 1 / (1 - p).
  static RowsDraw scales(const Kernels<T>& kernels, const Draws& draws, Drawn kind, double p) {
    return {kernels, draws, kind, p, p < 1 ? T(1) / T(1 - p) : T(0), T(0)};
  }

  // b [rows]: the caller's numbers of the rows; first: the unit of to[0], a multiple of 4.
  void operator()(uint32_t place, int64_t rows, const int64_t* b, int64_t first, int64_t n, T* to,
                  int64_t stride) const {
    const uint64_t seed = seed_of(kind, draws.seed);
    Draw<T> draw{};
    draw.key[0] = uint32_t(seed), draw.key[1] = uint32_t(seed >> 32);
    draw.counter[0] = place_of(draws.layer, draws.direction, first / 4);
    draw.counter[1] = place;
    draw.call = draws.call;
    draw.rows = rows;
    draw.row_words = b;
    draw.threshold = threshold_of(p);
    draw.kept = kept, draw.dropped = dropped;
    draw.n = n;
    draw.to = to;
    draw.stride = stride;
    kernels.draw(draw);
  }
};

// What weight_drop multiplies row `row` of U [4H,n] by.
template <class T>
void weight_scales(const Kernels<T>& kernels, const CellOptions& cell, const Draws& draws, int64_t row, int64_t n,
                   T* to) {
  const int64_t b = 0;
  RowsDraw<T>::scales(kernels, draws, Drawn::kWeights, cell.weight_drop)(uint32_t(row), 1, &b, 0, n, to, n);
}

}  // namespace fastlstm
