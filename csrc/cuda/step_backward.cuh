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

// What comes back to h through U at a thread's places; recurrent dropout has its part in it.
template <class T, int ROWS>
__device__ void product_through_u(const StepBackward<T>& s, const Tile& tile, Wide<T> (&sum)[kPlaces<ROWS, 1>]) {
  const CellVariant<T>& variant = s.variant;
  const bool scaled = variant.h_scales;
  Operand<T> operand = s.recurrent;
  for (int gate = 0; gate < (scaled ? variant.scale_gates : 1); ++gate) {
    if (variant.per_gate()) operand.only = gate;
    product<T, ROWS>(operand, tile);
    const T* const scales = variant.h_scales + int64_t(gate) * s.rows * s.output;
#pragma unroll
    for (int i = 0; i < kPlaces<ROWS, 1>; ++i) {
      const Place place = place_of_thread<ROWS, 1>(tile, i);
      const Wide<T> found = sum_of_tile<T, ROWS, 1>(i).at[0];
      if (!scaled)
        sum[i] = found;
      else if (place.there && place.column < s.output)
        sum[i] += found * widen(scales[int64_t(place.row) * s.output + place.column]);
    }
  }
}

// dh of a step: with projection before each step, and before the first one for the initial state's.
template <class T, int ROWS>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<T>) gradient_of_h(const StepBackward<T> s) {
  using W = Wide<T>;
  const Tile tile = tile_of_block<ROWS>(s.rows);
  W sum[kPlaces<ROWS, 1>] = {};
  product_through_u<T, ROWS>(s, tile, sum);
#pragma unroll
  for (int i = 0; i < kPlaces<ROWS, 1>; ++i) {
    const Place place = place_of_thread<ROWS, 1>(tile, i);
    const int row = place.row, unit = place.column;
    if (!place.there || unit >= s.output) continue;
    const W dh = reaching_h(s, row, unit, sum[i]);
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
  return reinterpret_cast<Quad<T>*>(s.d_pre)[at] = {narrow<T>(d.d_pre.i), narrow<T>(d.d_pre.f), narrow<T>(d.d_pre.g),
                                                    narrow<T>(d.d_pre.o)};
}

// What comes back to the cells of a thread's places: to o * tanh(c) through the projection, or to h through U.
template <class T, int ROWS>
__device__ void sums_of_step(const StepBackward<T>& s, const Tile& tile, Wide<T> (&sum)[kPlaces<ROWS, 1>]) {
  if (!s.dh_out) return product_through_u<T, ROWS>(s, tile, sum);
  product<T, ROWS>(s.projected, tile);
#pragma unroll
  for (int i = 0; i < kPlaces<ROWS, 1>; ++i) sum[i] = sum_of_tile<T, ROWS, 1>(i).at[0];
}

// Blocks: tiles of columns, which are units, by tiles of rows.
template <class T, int ROWS, CellKind KIND>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<T>) step_backward(const StepBackward<T> s) {
  using W = Wide<T>;
  const Tile tile = tile_of_block<ROWS>(s.rows);
  W sum[kPlaces<ROWS, 1>] = {};
  sums_of_step<T, ROWS>(s, tile, sum);
#pragma unroll
  for (int i = 0; i < kPlaces<ROWS, 1>; ++i) {
    const Place place = place_of_thread<ROWS, 1>(tile, i);
    if (!place.there || place.column >= s.hidden) continue;
    unit_backward<T, KIND>(s, place.row, place.column,
                           s.dh_out ? sum[i] : reaching_h(s, place.row, place.column, sum[i]));
  }
}

}  // namespace fastlstm::gpu
