// A step backward: what comes back through U from the step processed after this one, then the cell of some units. The twin of
// cpu/step_backward.h.
#pragma once
#include "step_forward.cuh"

namespace fastlstm::gpu {

// The gradient of one output of h at this step, from what came back through U; s.dh takes the part that passes by the cell.
template <class T>
__device__ Wide<T> reaching_h(const StepBackward<T>& s, int row, int unit, Wide<T> through_u) {
  using W = Wide<T>;
  W* const past = s.dh + int64_t(row) * s.output + unit;
  const bool held = is_set(s.flags, row, kHeld);
  const bool cut = s.cuts_all || (is_set(s.cut_after, row, kCut) && !mutated("reaching_h: dh survives a cut"));
  W total = cut ? W(0) : through_u + *past;
  if (s.dy && (!(held && !s.repeat) || mutated("reaching_h: dy of masked steps")))
    total += widen(s.dy.row(s.t, row)[unit]);
  const W keep = held ? W(1) : kept<W>(s.variant.draws, Drawn::kZoneoutH, s.variant.options.zoneout_h, s.t, row, unit);
  const W passing = keep == W(0) ? W(0) : total * keep;
  *past = passing;
  return total - passing;
}

// What comes back to h through U; recurrent dropout has its part in it.
template <class T, int ROWS>
__device__ void product_through_u(const StepBackward<T>& s, int panel, int first_row, Wide<T> (&sum)[ROWS][4]) {
  const CellVariant<T>& variant = s.variant;
  if (!variant.h_scales) return product<T, ROWS>(s.recurrent, panel, first_row, s.rows, sum);
  for (int i = 0; i < ROWS; ++i)
    for (int j = 0; j < 4; ++j) sum[i][j] = 0;
  Operand<T> operand = s.recurrent;
  for (int gate = 0; gate < variant.scale_gates; ++gate) {
    if (variant.per_gate()) operand.only = gate;
    Wide<T> part[ROWS][4];
    product<T, ROWS>(operand, panel, first_row, s.rows, part);
    const T* scales = variant.h_scales + int64_t(gate) * s.rows * s.output;
#pragma unroll
    for (int i = 0; i < ROWS; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int row = first_row + row_of_thread(i), unit = panel * kPanel + quad_of_thread() * 4 + j;
        if (row < s.rows && unit < s.output) sum[i][j] += part[i][j] * widen(scales[int64_t(row) * s.output + unit]);
      }
  }
}

// dh of a step: with projection before each step, and before the first one for the initial state's.
template <class T, int ROWS>
__global__ void __launch_bounds__(kThreads, 2) gradient_of_h(const StepBackward<T> s) {
  using W = Wide<T>;
  const int panel = int(blockIdx.x), first_row = int(blockIdx.y) * kRowThreads * ROWS;
  W sum[ROWS][4];
  product_through_u<T, ROWS>(s, panel, first_row, sum);
  for (int i = 0; i < ROWS; ++i)
    for (int j = 0; j < 4; ++j) {
      const int row = first_row + row_of_thread(i), unit = panel * kPanel + quad_of_thread() * 4 + j;
      if (row >= s.rows || unit >= s.output) continue;
      const W dh = reaching_h(s, row, unit, element(row_of(sum, i).at, j));
      if (s.dh_out)
        s.dh_out[int64_t(row) * s.output + unit] = narrow<T>(dh);
      else
        s.dh[int64_t(row) * s.output + unit] += dh;
    }
}

// c of one unit as its cell got it in forward.
template <class T>
__device__ Wide<T> entering_c(const StepBackward<T>& s, int row, int unit) {
  const bool cut = is_set(s.flags, row, kCut) && !mutated("entering_c: c before a cut");
  return cut ? Wide<T>(0) : s.c_prev[int64_t(row) * s.hidden + unit];
}

// c of one unit as its cell made it, before it was clipped and zoneout kept a part of what was there.
template <class T>
__device__ Wide<T> recovered_c(const StepBackward<T>& s, int row, int unit) {
  const Quad<T> saved = reinterpret_cast<const Quad<T>*>(s.saved)[int64_t(row) * s.hidden + unit];
  return widen(saved.at[kF]) * entering_c(s, row, unit) + widen(saved.at[kI]) * widen(saved.at[kG]);
}

// The cell of one unit of one row; dh is the gradient of its h, or with projection of o * tanh(c). Returns d_pre.
template <class T, CellKind KIND>
__device__ Quad<T> unit_backward(const StepBackward<T>& s, int row, int unit, Wide<T> dh,
                                 [[maybe_unused]] const CellNorm<Wide<T>>& norm = {}) {
  using W = Wide<T>;
  const int64_t at = int64_t(row) * s.hidden + unit;
  const bool held = is_set(s.flags, row, kHeld) && !mutated("unit_backward: every step counts");
  const bool cut = s.cuts_all || (is_set(s.cut_after, row, kCut) && !mutated("unit_backward: dc survives a cut"));
  W dc = cut ? W(0) : s.dc[at];
  if (s.dcells) dc += widen(s.dcells.row(s.t, row)[unit]);

  CellGradient<W> d{{}, dc, {}};
  if (!held) {
    const W c_in = entering_c(s, row, unit);
    const Quad<T> saved = reinterpret_cast<const Quad<T>*>(s.saved)[at];
    const Gates<W> gates{widen(saved.at[0]), widen(saved.at[1]), widen(saved.at[2]), widen(saved.at[3])};
    auto cell = cell_of<T, KIND>(s.variant, s.hidden, unit);
    W c = s.c[at], dc_kept = 0;
    if constexpr (KIND != kPlain) {
      const W keep = kept<W>(s.variant.draws, Drawn::kZoneoutC, s.variant.options.zoneout_c, s.t, row, unit);
      if (keep != W(0)) dc -= dc_kept = dc * keep;
      for (int gate = 0; gate < 4 && s.dgates; ++gate)
        cell.d_gates[gate] = widen(s.dgates.row(s.t, row)[gate * s.hidden + unit]);
      c = recovered_c(s, row, unit);
      cell.norm = norm;
    }
    d = cell_backward<W>(cell, gates, c_in, c, dh, dc);
    d.dc_prev += dc_kept;
    if constexpr (KIND != kPlain) {
      W* const terms = s.d_peepholes + at * 3;
      if (s.d_peepholes)
        terms[0] += d.d_pre.i * c_in, terms[1] += d.d_pre.f * c_in, terms[2] += d.d_pre.o * cell.clip(c);
    }
  }
  s.dc[at] = d.dc_prev;
  if (s.m) s.m[at] = narrow<T>(d.m);
  const Quad<T> d_pre{narrow<T>(d.d_pre.i), narrow<T>(d.d_pre.f), narrow<T>(d.d_pre.g), narrow<T>(d.d_pre.o)};
  publish(s.d_pre + at * 4, d_pre);
  return d_pre;
}

// What comes back to the cells of a tile: to o * tanh(c) through the projection, or to h through U.
template <class T, int ROWS>
__device__ void sums_of_step(const StepBackward<T>& s, int panel, int first_row, Wide<T> (&sum)[ROWS][4]) {
  if (s.dh_out)
    product<T, ROWS>(s.projected, panel, first_row, s.rows, sum);
  else
    product_through_u<T, ROWS>(s, panel, first_row, sum);
}

// Blocks: panels of units by tiles of rows.
template <class T, int ROWS, CellKind KIND>
__global__ void __launch_bounds__(kThreads, 2) step_backward(const StepBackward<T> s) {
  using W = Wide<T>;
  const int panel = int(blockIdx.x), first_row = int(blockIdx.y) * kRowThreads * ROWS;
  W sum[ROWS][4];
  sums_of_step<T, ROWS>(s, panel, first_row, sum);
  for (int i = 0; i < ROWS; ++i)
    for (int j = 0; j < 4; ++j) {
      const int row = first_row + row_of_thread(i), unit = panel * kPanel + quad_of_thread() * 4 + j;
      if (row >= s.rows || unit >= s.hidden) continue;
      const W through = element(row_of(sum, i).at, j), dh = s.dh_out ? through : reaching_h(s, row, unit, through);
      unit_backward<T, KIND>(s, row, unit, dh);
    }
}

}  // namespace fastlstm::gpu
