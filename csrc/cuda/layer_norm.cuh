// Layer normalisation (Ba, Kiros & Hinton 2016) inside a step and around it: of h . U and of x . W over the 4H gate columns, and
// of c over the H units, with a block for each row. The twin of cpu/layer_norm.h.
#pragma once
#include "launch.h"
#include "step_backward.cuh"

namespace fastlstm::gpu {

constexpr int kNormThreads = 256;
constexpr int kNormParts = 16;  // of a sum over the threads
template <class T>
Launch for_rows(const char* name, int64_t rows, cudaStream_t stream) {
  return {name, dim3(unsigned(rows)), kNormThreads, (kNormThreads + kNormParts) * sizeof(Wide<T>), stream};
}

// Calls function with each index below n that is this thread's; the same thread has an index every time.
template <class Function>
__device__ void each_of_thread(int n, Function function) {
  for (int i = int(threadIdx.x); i < n; i += kNormThreads) function(i);
}

// The mean of term(i) over all i below n, in a fixed order; every thread gets it. Sums and parts have memory of their own: a
// thread that goes on to the next mean writes nothing that another still reads.
template <class W, class Term>
__device__ W mean_over(int n, Term term) {
  W *const sums = shared_memory<W>(), *const parts = sums + kNormThreads;
  W sum = 0, part = 0, total = 0;
  each_of_thread(n, [&](int i) { sum += term(i); });
  sums[threadIdx.x] = sum;
  if (!mutated("mean_over: first barrier")) __syncthreads();
  if (threadIdx.x < kNormParts) {
#pragma unroll
    for (int i = 0; i < kNormThreads; i += kNormParts) part += sums[threadIdx.x + i];
    parts[threadIdx.x] = part;
  }
  if (!mutated("mean_over: second barrier")) __syncthreads();
#pragma unroll
  for (int i = 0; i < kNormParts; ++i) total += parts[i];
  return total / W(n);
}

template <class W>
struct Moments {
  W mean, inverse;  // inverse: of the standard deviation

  __device__ W normalised(W x) const { return (x - mean) * inverse; }
};

template <class W, class Value>
__device__ Moments<W> moments_over(int n, Value value) {
  const W mean = mean_over<W>(n, value);
  const W variance = mean_over<W>(n, [&](int i) { return (value(i) - mean) * (value(i) - mean); });
  return {mean, W(1) / square_root(variance + W(kNormEpsilon))};
}

// The gradient of a row of sums, from that of what they became after normalisation and gain.
template <class T>
__device__ void sums_backward(int columns, const T* d_pre, const T* gains, const T* normalised, Wide<T> inverse,
                              T* d_sums) {
  using W = Wide<T>;
  const auto d = [&](int i) { return widen(d_pre[i]) * widen(gains[i]); };
  const W mean = mean_over<W>(columns, d);
  const W along = mean_over<W>(columns, [&](int i) { return d(i) * widen(normalised[i]); });
  each_of_thread(columns,
                 [&](int i) { d_sums[i] = narrow<T>((d(i) - mean - widen(normalised[i]) * along) * inverse); });
}

template <class T>
__device__ CellNorm<Wide<T>> cell_norm(const StepNorm<T>& norm, int hidden, int unit, const Moments<Wide<T>>& of_c) {
  CellNorm<Wide<T>> cell;
  cell.on = true;
  cell.gain = widen(norm.output[unit]), cell.bias = widen(norm.output[hidden + unit]);
  cell.mean = of_c.mean, cell.inverse = of_c.inverse;
  return cell;
}

// h . U alone. Blocks: as of step_forward.
template <class T, int ROWS>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<T>) recurrent_sums(const StepForward<T> s) {
  const Tile tile = tile_of_block<ROWS>(s.rows);
  const Quad<Wide<T>> sum = sums_of_step<T, ROWS, kTextbookActivations>(s, tile);
  const Place place = place_of_thread<ROWS, 4>(tile, 0);
  if (place.there && place.column < 4 * s.hidden)
    reinterpret_cast<Quad<Wide<T>>*>(s.norm.sums)[int64_t(place.row) * s.hidden + place.column / 4] = sum;
}

// The cells of a row. c has to be whole before any h is. Of a held row nothing is normalised, and its sums count as zero.
template <class T, CellKind KIND>
__global__ void __launch_bounds__(kNormThreads, 2) normalised_forward(const StepForward<T> s) {
  using W = Wide<T>;
  const int row = int(blockIdx.x), columns = 4 * s.hidden;
  const StepNorm<T>& norm = s.norm;
  const bool held = is_set(s.flags, row, kHeld);
  W* const sums = norm.sums + int64_t(row) * columns;
  W* const c = norm.c + int64_t(row) * s.hidden;

  Moments<W> of_sums{};
  if (!held) of_sums = moments_over<W>(columns, [&](int i) { return sums[i]; });
  each_of_thread(s.hidden, [&](int unit) {
    Quad<W>& of_unit = reinterpret_cast<Quad<W>*>(sums)[unit];
    for (int gate = 0; gate < 4; ++gate) {
      const int column = unit * 4 + gate;
      const W normalised = held ? W(0) : of_sums.normalised(of_unit.at[gate]);
      of_unit.at[gate] = normalised * widen(norm.gains[column]);
      if (norm.normalised) norm.normalised[int64_t(row) * columns + column] = narrow<T>(normalised);
    }
    Gates<W> gates;
    const auto cell = cell_of<T, KIND>(s.variant, s.hidden, unit);
    const CellInputs<T> inputs = cell_inputs<T, KIND>(s, row, unit);
    c[unit] = cell_forward<W>(cell, entering_gates(inputs, of_unit), entering_c(inputs), gates).c;
  });
  if (norm.inverses && threadIdx.x == 0) norm.inverses[row] = of_sums.inverse;

  const Moments<W> of_c = moments_over<W>(s.hidden, [&](int unit) { return c[unit]; });
  each_of_thread(s.hidden, [&](int unit) {
    unit_forward<T, KIND>(s, row, unit, reinterpret_cast<const Quad<W>*>(sums)[unit],
                          cell_inputs<T, KIND>(s, row, unit), cell_norm(norm, s.hidden, unit, of_c));
  });
}

// What comes back to the cells, before any of it is added up. Blocks: as of step_backward.
template <class T, int ROWS>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce<T>) gradient_sums(const StepBackward<T> s) {
  const Tile tile = tile_of_block<ROWS>(s.rows);
  Wide<T> sum[kPlaces<ROWS, 1>] = {};
  sums_of_step<T, ROWS>(s, tile, sum);
#pragma unroll
  for (int i = 0; i < kPlaces<ROWS, 1>; ++i) {
    const Place place = place_of_thread<ROWS, 1>(tile, i);
    if (place.there && place.column < s.hidden) s.norm.dh[int64_t(place.row) * s.hidden + place.column] = sum[i];
  }
}

// The cells of a row: first what the normalisation of c takes in from all units, then each of them, then their sums.
template <class T, CellKind KIND>
__global__ void __launch_bounds__(kNormThreads, 2) normalised_backward(const StepBackward<T> s) {
  using W = Wide<T>;
  const int row = int(blockIdx.x), columns = 4 * s.hidden;
  const GradientNorm<T>& norm = s.norm;
  const int64_t first = int64_t(row) * s.hidden;
  const bool held = is_set(s.flags, row, kHeld);
  W *const dh = norm.dh + first, *const c = norm.c + first, *const d = norm.d + first;

  each_of_thread(s.hidden, [&](int unit) {
    if (!s.dh_out) dh[unit] = reaching_h(s, row, unit, dh[unit]);
    if (!held) c[unit] = cell_of<T, KIND>(s.variant, s.hidden, unit).clip(recovered_c(gradient_inputs(s, row, unit)));
  });
  Moments<W> of_c{};
  W d_mean = 0, d_along = 0;
  if (!held) {
    of_c = moments_over<W>(s.hidden, [&](int unit) { return c[unit]; });
    each_of_thread(s.hidden, [&](int unit) {
      auto cell = cell_of<T, KIND>(s.variant, s.hidden, unit);
      cell.norm = cell_norm(norm.forward, s.hidden, unit, of_c);
      const W o = widen(s.saved[(first + unit) * 4 + kO]);
      const W d_bias = cell.d_output(dh[unit] * o, value(cell.output(c[unit])));
      norm.d_output[2 * int64_t(row) * s.hidden + unit] += d_bias * cell.norm.normalised(c[unit]);
      norm.d_output[(2 * int64_t(row) + 1) * s.hidden + unit] += d_bias;
      d[unit] = d_bias * cell.norm.gain;
    });
    d_mean = mean_over<W>(s.hidden, [&](int unit) { return d[unit]; });
    d_along = mean_over<W>(s.hidden, [&](int unit) { return d[unit] * of_c.normalised(c[unit]); });
  }
  each_of_thread(s.hidden, [&](int unit) {
    CellNorm<W> of_unit = cell_norm(norm.forward, s.hidden, unit, of_c);
    of_unit.d = d[unit], of_unit.d_mean = d_mean, of_unit.d_along = d_along;
    unit_backward<T, KIND>(s, row, unit, dh[unit], gradient_inputs(s, row, unit), of_unit);
  });
  if (!mutated("normalised_backward: barrier")) __syncthreads();  // the row of d_pre is whole
  const int64_t from = int64_t(row) * columns;
  sums_backward<T>(columns, s.d_pre + from, norm.forward.gains, norm.forward.normalised + from,
                   norm.forward.inverses[row], norm.d_sums + from);
}

// x . W of a whole sequence, a block for each row of it: sums [rows,columns] become normalised, pre what the gates get of them.
template <class T>
__global__ void __launch_bounds__(kNormThreads) normalise_rows(T* const sums, Wide<T>* const inverses, T* const pre,
                                                               const T* gains, const T* bias, const int columns) {
  const int64_t row = blockIdx.x, first = row * columns;
  const auto moments = moments_over<Wide<T>>(columns, [&](int i) { return widen(sums[first + i]); });
  each_of_thread(columns, [&](int i) {
    const Wide<T> normalised = moments.normalised(widen(sums[first + i]));
    sums[first + i] = narrow<T>(normalised);
    pre[first + i] = narrow<T>(normalised * widen(gains[i]) + (bias ? widen(bias[i]) : Wide<T>(0)));
  });
  if (threadIdx.x == 0) inverses[row] = moments.inverse;
}

template <class T>
__global__ void __launch_bounds__(kNormThreads)
    normalise_rows_backward(const T* d_pre, const T* gains, const T* normalised, const Wide<T>* inverses,
                            T* const d_sums, const int columns) {
  const int64_t row = blockIdx.x, first = row * columns;
  sums_backward<T>(columns, d_pre + first, gains, normalised + first, inverses[row], d_sums + first);
}

}  // namespace fastlstm::gpu
