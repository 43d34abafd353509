// A step backward: what comes back through U from the step processed after this one, then the cell of some units. The twin of
// cpu/step_backward.h.
#pragma once
#include "step_forward.cuh"

namespace fastlstm::gpu {

// What a cell needs beside the sums that come back to it, of which it does not have to wait for any.
template <class T>
struct GradientInputs {
  RowFlags flags;  // next: of the step processed after this one
  Brought<Quad<T>> saved;
  Brought<Wide<T>> c_prev, c, dc;
  Brought<T> dcells;
};

template <class T>
__device__ GradientInputs<T> gradient_inputs(const StepBackward<T>& s, int row, int unit) {
  const int64_t at = int64_t(row) * s.hidden + unit;
  GradientInputs<T> inputs{};
  inputs.flags = row_flags(s.flags, s.cut_after, row);
  inputs.saved = Brought<Quad<T>>(reinterpret_cast<const Quad<T>*>(s.saved) + at);
  inputs.c_prev = Brought<Wide<T>>(s.c_prev + at), inputs.c = Brought<Wide<T>>(s.c + at);
  inputs.dc = Brought<Wide<T>>(s.dc + at);
  if (s.dcells) inputs.dcells = Brought<T>(s.dcells.row(s.t, row) + unit);
  return inputs;
}

// The same of h, which is the cell's unless there is a projection.
template <class T>
struct OutputInputs {
  RowFlags flags;
  Brought<Wide<T>> dh;
  Brought<T> dy;
};

template <class T>
__device__ OutputInputs<T> output_inputs(const StepBackward<T>& s, int row, int unit) {
  OutputInputs<T> inputs{};
  inputs.flags = row_flags(s.flags, s.cut_after, row);
  inputs.dh = Brought<Wide<T>>(s.dh + int64_t(row) * s.output + unit);
  if (s.dy) inputs.dy = Brought<T>(s.dy.row(s.t, row) + unit);
  return inputs;
}

// Of both, the ones that have long been in memory when the step comes.
template <class T>
__device__ void prefetch_inputs(const StepBackward<T>& s, int row, int unit) {
  const int64_t at = int64_t(row) * s.hidden + unit;
  prefetch(s.saved + at * 4), prefetch(s.c_prev + at);
  if (s.dy) prefetch(s.dy.row(s.t, row) + unit);
  if (s.dcells) prefetch(s.dcells.row(s.t, row) + unit);
}

// The gradient of one output of h at this step, from what came back through U; s.dh takes the part that passes by the cell.
template <class T>
__device__ Wide<T> reaching_h(const StepBackward<T>& s, int row, int unit, Wide<T> through_u,
                              const OutputInputs<T>& inputs) {
  using W = Wide<T>;
  const bool held = inputs.flags.held();
  const bool cut = s.cuts_all || (inputs.flags.cut_next() && !mutated("reaching_h: dh survives a cut"));
  W total = cut ? W(0) : through_u + inputs.dh;
  if (s.dy && (!(held && !s.repeat) || mutated("reaching_h: dy of masked steps"))) total += widen(inputs.dy);
  const W keep = held ? W(1) : kept<W>(s.variant.draws, Drawn::kZoneoutH, s.variant.options.zoneout_h, s.t, row, unit);
  const W passing = keep == W(0) ? W(0) : total * keep;
  s.dh[int64_t(row) * s.output + unit] = passing;
  return total - passing;
}
template <class T>
__device__ Wide<T> reaching_h(const StepBackward<T>& s, int row, int unit, Wide<T> through_u) {
  return reaching_h(s, row, unit, through_u, output_inputs(s, row, unit));
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
__device__ Wide<T> entering_c(const GradientInputs<T>& inputs) {
  return inputs.flags.cut() && !mutated("entering_c: c before a cut") ? Wide<T>(0) : inputs.c_prev;
}

// c of one unit as its cell made it, before it was clipped and zoneout kept a part of what was there.
template <class T>
__device__ Wide<T> recovered_c(const GradientInputs<T>& inputs) {
  const Quad<T> saved = inputs.saved;
  return widen(saved.at[kF]) * entering_c(inputs) + widen(saved.at[kI]) * widen(saved.at[kG]);
}

// The cell of one unit of one row; dh is the gradient of its h, or with projection of o * tanh(c). Returns d_pre, which is what
// others wait for: it goes out first.
template <class T, CellKind KIND>
__device__ Quad<T> unit_backward(const StepBackward<T>& s, int row, int unit, Wide<T> dh,
                                 const GradientInputs<T>& inputs, [[maybe_unused]] const CellNorm<Wide<T>>& norm = {}) {
  using W = Wide<T>;
  const int64_t at = int64_t(row) * s.hidden + unit;
  const bool held = inputs.flags.held() && !mutated("unit_backward: every step counts");
  const bool cut = s.cuts_all || (inputs.flags.cut_next() && !mutated("unit_backward: dc survives a cut"));
  W dc = cut ? W(0) : inputs.dc;
  if (s.dcells) dc += widen(inputs.dcells);

  CellGradient<W> d{{}, dc, {}};
  if (!held) {
    const W c_in = entering_c(inputs);
    const Quad<T> saved = inputs.saved;
    const Gates<W> gates{widen(saved.at[0]), widen(saved.at[1]), widen(saved.at[2]), widen(saved.at[3])};
    auto cell = cell_of<T, KIND>(s.variant, s.hidden, unit);
    W c = inputs.c, dc_kept = 0;
    if constexpr (KIND != kPlain) {
      const W keep = kept<W>(s.variant.draws, Drawn::kZoneoutC, s.variant.options.zoneout_c, s.t, row, unit);
      if (keep != W(0)) dc -= dc_kept = dc * keep;
      for (int gate = 0; gate < 4 && s.dgates; ++gate)
        cell.d_gates[gate] = widen(s.dgates.row(s.t, row)[gate * s.hidden + unit]);
      c = recovered_c(inputs);
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
  const Quad<T> d_pre{narrow<T>(d.d_pre.i), narrow<T>(d.d_pre.f), narrow<T>(d.d_pre.g), narrow<T>(d.d_pre.o)};
  publish(s.d_pre + at * 4, d_pre);
  s.dc[at] = d.dc_prev;
  if (s.m) s.m[at] = narrow<T>(d.m);
  return d_pre;
}
template <class T, CellKind KIND>
__device__ Quad<T> unit_backward(const StepBackward<T>& s, int row, int unit, Wide<T> dh) {
  return unit_backward<T, KIND>(s, row, unit, dh, gradient_inputs(s, row, unit));
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
  constexpr bool kEarly = kPlaces<ROWS, 1> == 1;  // others have no registers left for it
  OutputInputs<T> of_output{};
  GradientInputs<T> of_cell{};
  const auto load = [&](const Place& place) {
    if (!s.dh_out) of_output = output_inputs(s, place.row, place.column);
    of_cell = gradient_inputs(s, place.row, place.column);
  };
  const Place first = place_of_thread<ROWS, 1>(tile, 0);
  if (kEarly && first.there && first.column < s.hidden) load(first);
  W sum[kPlaces<ROWS, 1>] = {};
  sums_of_step<T, ROWS>(s, tile, sum);
#pragma unroll 1
  for (int i = 0; i < kPlaces<ROWS, 1>; ++i) {
    const Place place = place_of_thread<ROWS, 1>(tile, i);
    if (!place.there || place.column >= s.hidden) continue;
    if (!kEarly) load(place);
    const W back = element(sum, i), dh = s.dh_out ? back : reaching_h(s, place.row, place.column, back, of_output);
    unit_backward<T, KIND>(s, place.row, place.column, dh, of_cell);
  }
}

}  // namespace fastlstm::gpu
