// What comes before the first step and after the last: states, and which steps count.
#pragma once
#include "layer.h"

namespace fastlstm::gpu {

__device__ inline int64_t thread_index() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }

// The initial state: h as the first step reads it, c as it is, since the step itself drops it.
template <class T>
__global__ void begin_forward(const LayerForward<T> layer) {
  const Shape& shape = layer.shape;
  const int64_t i = thread_index(), outputs = shape.B * shape.output(), units = shape.B * shape.H;
  if (i < outputs) {
    const uint8_t* flags = layer.flags_of(0);
    const bool cut = flags && (flags[i / shape.output()] & kCut);
    layer.h_before(0)[i] = layer.h0 && !cut ? writable(layer.h0[i]) : T(0.0f);
  }
  if (i < units) layer.c_before(0)[i] = layer.c0 ? widen(layer.c0[i]) : Wide<T>(0);
}

template <class T>
__global__ void end_forward(const LayerForward<T> layer) {
  const Shape& shape = layer.shape;
  const int64_t i = thread_index();
  if (i < shape.B * shape.output()) layer.h_n[i] = layer.h_before(shape.T)[i];
  if (i < shape.B * shape.H) layer.c_n[i] = narrow<T>(layer.c_before(shape.T)[i]);
}

template <class T>
__global__ void begin_backward(const LayerBackward<T> layer) {
  const Shape& shape = layer.forward.shape;
  const int64_t i = thread_index();
  if (i < shape.B * shape.output()) layer.dh[i] = layer.dh_n ? widen(layer.dh_n[i]) : Wide<T>(0);
  if (i < shape.B * shape.H) layer.dc[i] = layer.dc_n ? widen(layer.dc_n[i]) : Wide<T>(0);
}

template <class T>
__global__ void end_backward(const LayerBackward<T> layer) {
  const Shape& shape = layer.forward.shape;
  const int64_t i = thread_index();
  const uint8_t* flags = layer.forward.flags_of(0);
  if (i < shape.B * shape.output()) layer.dh0[i] = narrow<T>(layer.dh[i]);
  if (i < shape.B * shape.H) layer.dc0[i] = flags && (flags[i / shape.H] & kCut) ? T(0.0f) : narrow<T>(layer.dc[i]);
}

// y [T,B,n] of one direction, times the mask of the dropout between layers and 1 / (1 - p).
template <class T>
__global__ void drop_outputs(const Sequence<T> y, const int64_t steps, const int64_t batch, const int64_t n,
                             const Dropout dropout, const int64_t layer, const int64_t direction) {
  const int64_t quads = (n + 3) / 4, i = thread_index();
  if (i >= steps * batch * quads) return;
  const int64_t quad = i % quads, b = i / quads % batch, t = i / quads / batch;
  const Philox random = dropout.words(layer, direction, t, b, quad);
  const Wide<T> scale = dropout.p < 1 ? Wide<T>(1) / Wide<T>(1 - dropout.p) : Wide<T>(0);
  for (int64_t unit = 4 * quad; unit < 4 * quad + 4 && unit < n; ++unit) {
    T& at = y.row(t, b)[unit];
    at = element(random.word, int(unit % 4)) >= dropout.threshold() ? narrow<T>(widen(at) * scale) : T(0.0f);
  }
}

// to [places,rows,n] = 0 with probability p, else 1 / (1 - p). place: the gate, or the row of the weights.
template <class T>
__global__ void draw_scales(T* const to, const int64_t places, const int64_t rows, const int64_t n, const Drawn kind,
                            const double p, const Draws draws) {
  const int64_t i = thread_index();
  if (i >= places * rows * n) return;
  const int64_t unit = i % n, row = i / n % rows, place = i / n / rows;
  const uint64_t seed = seed_of(kind, draws.seed);
  const Philox random =
      philox({{place_of(draws.layer, draws.direction, unit / 4), uint32_t(place), uint32_t(row), draws.call}},
             uint32_t(seed), uint32_t(seed >> 32));
  const bool dropped = element(random.word, int(unit % 4)) < threshold_of(p);
  to[i] = dropped ? T(0.0f) : narrow<T>(Wide<T>(1) / Wide<T>(1 - p));
}

template <class Flag>  // a template, so that each file may have it
__global__ void set_flags(const StepMarks marks, Flag* const flags) {
  const int64_t i = thread_index();
  if (i >= marks.T * marks.B) return;
  const int64_t t = i / marks.B, b = i % marks.B;
  // Lengths on the GPU come unchecked.
  const int64_t end = marks.lengths && marks.lengths[b] < marks.T ? marks.lengths[b] : marks.T;
  const bool counts = t < end && (!marks.mask || *marks.mask.row(t, b));
  // The cut of episode t lies before step t: in reverse that is before the step t - 1 is processed.
  const int64_t begins = marks.reverse ? t + 1 : t;
  const bool cut = marks.reset && begins < end && *marks.reset.row(begins, b);
  flags[i] = Flag((counts ? 0 : kHeld) | (cut ? kCut : 0));
}

}  // namespace fastlstm::gpu
