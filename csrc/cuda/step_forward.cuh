// A step forward: the product of all four gates of some units, then their cell. The twin of cpu/step_forward.h.
#pragma once
#include "product.cuh"

namespace fastlstm::gpu {

// Which cell a kernel is compiled for.
enum CellKind { kPlain, kTextbookActivations, kAnyActivations };

template <class T>
inline CellKind kind_of(const CellVariant<T>& variant) {
  if (variant.options.plain() && !variant.peepholes && !variant.per_gate()) return kPlain;
  return variant.options.textbook_activations() ? kTextbookActivations : kAnyActivations;
}

// The cell of one unit.
template <class T, CellKind KIND>
__device__ auto cell_of(const CellVariant<T>& variant, int hidden, int unit) {
  using W = Wide<T>;
  if constexpr (KIND == kPlain) {
    return PlainCell<W>{};
  } else {
    VariantCell<W, KIND == kTextbookActivations> cell(variant.options);
    cell.has_peepholes = variant.peepholes;
    cell.round_limits([](W limit) { return widen(narrow<T>(limit)); });
    for (int gate = 0; gate < 3 && variant.peepholes; ++gate)
      cell.p[gate] = widen(variant.peepholes[gate * hidden + unit]);
    return cell;
  }
}

// What zoneout keeps of the state of a unit at time t: random zeros and ones in training, the expectation in inference.
template <class W>
__device__ W kept(const Draws& draws, Drawn kind, double p, int64_t t, int64_t row, int unit) {
  if (p == 0 || !draws.training) return W(p);
  const uint64_t seed = seed_of(kind, draws.seed);
  const Philox words = philox(
      {{place_of(draws.layer, draws.direction, unit / 4), draws.first_step + uint32_t(t), uint32_t(row), draws.call}},
      uint32_t(seed), uint32_t(seed >> 32));
  return element(words.word, unit % 4) >= threshold_of(p) ? W(0) : W(1);
}

__device__ inline bool is_set(const uint8_t* flags, int row, StepFlag flag) { return flags && (flags[row] & flag); }

// What flags say of a row.
struct RowFlags {
  uint8_t now, next;  // StepFlag of this step and of the one processed next
  __device__ bool held() const { return now & kHeld; }
  __device__ bool cut() const { return now & kCut; }
  __device__ bool cut_next() const { return next & kCut; }
};

__device__ inline RowFlags row_flags(const uint8_t* now, const uint8_t* next, int row) {
  return {now ? now[row] : uint8_t(0), next ? next[row] : uint8_t(0)};
}

// What a cell needs beside the recurrent sums, of which it does not have to wait for any.
template <class T>
struct CellInputs {
  RowFlags flags;
  Brought<Quad<T>> pre;
  Brought<Wide<T>> c;
  Brought<T> h;  // before the step; a plain cell needs it only where rows may be held
};

template <class T, CellKind KIND>
__device__ CellInputs<T> cell_inputs(const StepForward<T>& s, int row, int unit) {
  const int64_t at = int64_t(row) * s.hidden + unit;
  CellInputs<T> inputs{};
  inputs.flags = row_flags(s.flags, s.cut_next, row);
  inputs.pre = Brought<Quad<T>>(reinterpret_cast<const Quad<T>*>(s.pre) + at);
  inputs.c = Brought<Wide<T>>((mutated("entering_c: c of another step") ? s.c : s.c_prev) + at);
  if (!s.m && (s.flags || KIND != kPlain)) inputs.h = Brought<T>(s.h_prev + at);
  return inputs;
}

// Of those, the ones that have long been in memory when the step comes.
template <class T>
__device__ void prefetch_inputs(const StepForward<T>& s, int row, int unit) {
  prefetch(s.pre + (int64_t(row) * s.hidden + unit) * 4);
}

// h of one output, complete: to the next step, then to the caller. Returns what the next step reads.
template <class T>
__device__ T deliver(const StepForward<T>& s, int row, int unit, int output, const RowFlags& flags, T h_prev,
                     Wide<T> h) {
  const bool held = flags.held();
  const T narrowed = held ? h_prev : narrow<T>(h);
  const T next = flags.cut_next() && !mutated("deliver: h survives a cut") ? T(0.0f) : narrowed;
  publish(s.h_next + int64_t(row) * output + unit, next);
  if (s.y && !mutated("deliver: y forgotten")) s.y.row(s.t, row)[unit] = held && !s.repeat ? T(0.0f) : narrowed;
  return next;
}

// c of one unit as its cell gets it.
template <class T>
__device__ Wide<T> entering_c(const CellInputs<T>& inputs) {
  return inputs.flags.cut() && !mutated("entering_c: c survives a cut") ? Wide<T>(0) : inputs.c;
}

// The gates of one unit before their activation, from the recurrent sums.
template <class T>
__device__ Gates<Wide<T>> entering_gates(const CellInputs<T>& inputs, const Quad<Wide<T>>& sum) {
  Quad<T> pre = inputs.pre;
  if (mutated("entering_gates: i and f change places")) pre = {pre.at[1], pre.at[0], pre.at[2], pre.at[3]};
  return {widen(pre.at[0]) + sum.at[0], widen(pre.at[1]) + sum.at[1], widen(pre.at[2]) + sum.at[2],
          widen(pre.at[3]) + sum.at[3]};
}

// The cell of one unit of one row, from the recurrent sums of its gates on. Returns h as the next step reads it, which is what
// others wait for: it goes out first.
template <class T, CellKind KIND>
__device__ T unit_forward(const StepForward<T>& s, int row, int unit, const Quad<Wide<T>>& sum,
                          const CellInputs<T>& inputs, [[maybe_unused]] const CellNorm<Wide<T>>& norm = {}) {
  using W = Wide<T>;
  const int64_t at = int64_t(row) * s.hidden + unit;
  const bool held = inputs.flags.held() && !mutated("unit_forward: every step counts");
  const W c_in = entering_c(inputs);
  auto cell = cell_of<T, KIND>(s.variant, s.hidden, unit);
  if constexpr (KIND != kPlain) cell.norm = norm;

  Gates<W> gates;
  CellState<W> now = cell_forward<W>(cell, entering_gates(inputs, sum), c_in, gates);
  if constexpr (KIND != kPlain) {
    const CellOptions& options = s.variant.options;
    const Draws& draws = s.variant.draws;
    now.c = zoneout(kept<W>(draws, Drawn::kZoneoutC, options.zoneout_c, s.t, row, unit), c_in, now.c);
    if (!s.m)
      now.h = zoneout(kept<W>(draws, Drawn::kZoneoutH, options.zoneout_h, s.t, row, unit), widen(inputs.h), now.h);
  }
  if (held) now.c = c_in;
  const T h = s.m ? s.m[at] = held ? T(0.0f) : narrow<T>(now.h)
                  : deliver<T>(s, row, unit, s.hidden, inputs.flags, inputs.h, now.h);
  s.c[at] = now.c;
  if (s.saved)
    reinterpret_cast<Quad<T>*>(s.saved)[at] = {narrow<T>(gates.i), narrow<T>(gates.f), narrow<T>(gates.g),
                                               narrow<T>(gates.o)};
  if (s.cells) s.cells.row(s.t, row)[unit] = narrow<T>(now.c);
  if (s.gates) {
    T* const to = s.gates.row(s.t, row) + unit;
    const W each[4] = {gates.i, gates.f, gates.g, gates.o};
    for (int gate = 0; gate < 4; ++gate) to[gate * s.hidden] = held ? T(0.0f) : narrow<T>(each[gate]);
  }
  return h;
}
template <class T, CellKind KIND>
__device__ T unit_forward(const StepForward<T>& s, int row, int unit, const Quad<Wide<T>>& sum) {
  return unit_forward<T, KIND>(s, row, unit, sum, cell_inputs<T, KIND>(s, row, unit));
}

// The sums of a thread's places, which are units; none counts where all rows of the tile are held.
template <class T, int ROWS, CellKind KIND>
__device__ Quad<Wide<T>> sums_of_step(const StepForward<T>& s, const Tile& tile) {
  if (!any_counts(s.flags, tile)) return {};
  Operand<T> operand = s.recurrent;
  Quad<Wide<T>> sum{};
  const int products = KIND != kPlain && s.variant.per_gate() ? 4 : 1;  // 4: each gate has h with a mask of its own
  for (int gate = 0; gate < products; ++gate) {
    if (gate > 0) operand.scales += int64_t(s.rows) * operand.depth;
    product<T, ROWS>(operand, tile);
    const Quad<Wide<T>> of_all = sum_of_tile<T, ROWS, 4>(0);
#pragma unroll
    for (int j = 0; j < 4; ++j) sum.at[j] = products == 1 || j == gate ? of_all.at[j] : sum.at[j];
  }
  return sum;
}

// Blocks: tiles of columns, which are gates, by tiles of rows.
template <class T, int ROWS, CellKind KIND>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<T>) step_forward(const StepForward<T> s) {
  static_assert(kPlaces<ROWS, 4> == 1);
  const Tile tile = tile_of_block<ROWS>(s.rows);
  const Place place = place_of_thread<ROWS, 4>(tile, 0);
  const int unit = place.column / 4;
  const bool there = place.there && unit < s.hidden;
  constexpr bool kEarly = KIND == kPlain;  // others have no registers left for it
  CellInputs<T> inputs{};
  if (there && kEarly) inputs = cell_inputs<T, KIND>(s, place.row, unit);
  const Quad<Wide<T>> sum = sums_of_step<T, ROWS, KIND>(s, tile);
  if (there && !kEarly) inputs = cell_inputs<T, KIND>(s, place.row, unit);
  if (there) unit_forward<T, KIND>(s, place.row, unit, sum, inputs);
}

// h = m . w_p^T
template <class T, int ROWS>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<T>)
    project_forward(const StepForward<T> s, const Operand<T> m, const int output) {
  using W = Wide<T>;
  const Tile tile = tile_of_block<ROWS>(s.rows);
  product<T, ROWS>(m, tile);
#pragma unroll
  for (int i = 0; i < kPlaces<ROWS, 1>; ++i) {
    const Place place = place_of_thread<ROWS, 1>(tile, i);
    const int row = place.row, unit = place.column;
    if (!place.there || unit >= output) continue;
    const W h = sum_of_tile<T, ROWS, 1>(i).at[0];
    const W keep = kept<W>(s.variant.draws, Drawn::kZoneoutH, s.variant.options.zoneout_h, s.t, row, unit);
    const T h_prev = s.h_prev[int64_t(row) * output + unit];
    deliver(s, row, unit, output, row_flags(s.flags, s.cut_next, row), h_prev, zoneout(keep, widen(h_prev), h));
  }
}

}  // namespace fastlstm::gpu
