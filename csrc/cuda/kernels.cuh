// What the kernels are given: one layer in one direction, and the part of it that is a step. The twin of cpu/kernels.h.
// T is the storage type; sums, cells and gates are computed in Wide<T>. Pointers are to device memory; times, not processed
// steps, index the sequences.
#pragma once
#include "../layer.h"
#include "device.cuh"

namespace fastlstm::gpu {

// A packed panel has four neighbouring columns for each of kQuads threads. The gates of a unit are such four.
constexpr int kQuads = 16;
constexpr int kPanel = 4 * kQuads;

// a [rows, depth] . panels
template <class T>
struct Operand {
  const T* a;       // [rows, depth], contiguous
  int depth;        // 0: the product is zero
  const T* panels;  // [panels][depth][kPanel], columns padded with zeros
  const T* scales;  // [rows, depth] times a; null: one
  int only = -1;    // the one of each four neighbours of a that is not taken as zero; -1: all
};

// What the variant of a cell reads. The plain cell needs none of it.
template <class T>
struct CellVariant {
  CellOptions options;
  const T* peepholes;  // [3,H] of i f o; null: none
  Draws draws;
  const T* h_scales;    // [scale_gates,B,output] what recurrent dropout multiplies h by; null: nothing
  int64_t scale_gates;  // 4: a mask a gate; else 1

  DEVICE bool per_gate() const { return h_scales && scale_gates == 4; }
};

// Layer normalisation of a step. x . W and h . U are normalised apart, then times a gain each; pre holds the former's part and b.
template <class T>
struct StepNorm {
  using W = Wide<T>;
  const T* gains;   // [hidden,4] of h . U; null: no normalisation, and nothing else here is read
  const T* output;  // [2,hidden] gain and bias of c
  W *sums, *c;      // [rows,hidden,4], [rows,hidden] scratch
  T* normalised;    // [rows,hidden,4] h . U, for backward; null: not wanted
  W* inverses;      // [rows] of its deviation; null: not wanted
};

template <class T>
struct GradientNorm {
  using W = Wide<T>;
  StepNorm<T> forward;  // what has been there
  W *dh, *c, *d;        // [rows,hidden] scratch
  W* d_output;          // [rows,2,hidden] of gain and bias of c, added to
  T* d_sums;            // [rows,hidden,4] out: the gradient of h . U
};

template <class T>
struct StepForward {
  using W = Wide<T>;
  int64_t t;
  int rows, hidden;
  Operand<T> recurrent;     // of h before the step, which is zero where the step is cut
  const T* pre;             // [rows, hidden, 4] b + x . W
  const T* h_prev;          // [rows, output]
  T* h_next;                // [rows, output]
  const W* c_prev;          // [rows, hidden]
  W* c;                     // [rows, hidden]
  T* m;                     // [rows, hidden] o * tanh(c) for the projection; null without
  T* saved;                 // [rows, hidden, 4] the gates; null: not wanted
  Sequence<T> y;            // [T,rows,output]
  Sequence<T> cells;        // [T,rows,hidden]; null: not wanted
  Sequence<T> gates;        // [T,rows,4 hidden]; null: not wanted
  const uint8_t* flags;     // [rows] StepFlag; null: none
  const uint8_t* cut_next;  // [rows] StepFlag of the step processed next; null: none
  bool repeat;              // y of a held step is h, not zero
  CellVariant<T> variant;
  StepNorm<T> norm;
};

template <class T>
struct StepBackward {
  using W = Wide<T>;
  int64_t t;
  int rows, hidden, output;
  Operand<T> recurrent;  // of the gradient of h . U, which is d_pre unless normalised, of the step processed after it
  Operand<T> projected;  // with projection, of dh: [rows, output]
  const T* saved;        // [rows, hidden, 4]
  const W *c_prev, *c;   // [rows, hidden]
  Sequence<const T> dy;  // [T,rows,output]; null: zero
  Sequence<const T> dcells;  // [T,rows,hidden]; null: zero
  Sequence<const T> dgates;  // [T,rows,4 hidden]; null: zero
  W* dh;           // [rows, output] in: what reaches h after this step beside `recurrent`; out: passes by the cell
  W* dc;           // [rows, hidden] in and out
  T* dh_out;       // [rows, output] out: what the projection's output gets; null without
  T* m;            // [rows, hidden] out: o * tanh(c); null without projection
  T* d_pre;        // [rows, hidden, 4] out
  W* d_peepholes;  // [rows, hidden, 3], added to; null: none
  const uint8_t* flags;      // [rows] StepFlag; null: none
  const uint8_t* cut_after;  // [rows] StepFlag of the step processed after this one; null: none
  bool cuts_all;             // no gradient comes from the step processed after this one
  bool repeat;
  CellVariant<T> variant;
  GradientNorm<T> norm;
};

// A layer in one direction, forward.
template <class T>
struct LayerForward {
  using W = Wide<T>;
  Shape shape;
  bool reverse, repeat;
  bool tf32;             // floats may be rounded to 11 bits in products, which tensor cores then compute
  const uint8_t* flags;  // [T,B] by time; null: every step counts, no cuts
  const T* recurrent;    // packed U: [panels][output][kPanel], columns unit * 4 + gate
  const T* projection;   // packed w_p: [panels][H][kPanel]; null without
  const T* pre;          // [T,B,H,4]
  const T *h0, *c0;      // [B,output], [B,H]; null: zero
  T* h;                  // [T+1,B,output]
  W* c;                  // [slots,B,H]
  int64_t slots;         // T + 1 for backward, else 2
  T* m;                  // [B,H] scratch; null without projection
  T* saved;              // [T,B,H,4] for backward; else null
  T *h_n, *c_n;          // [B,output], [B,H]
  Sequence<T> y, cells, gates;
  CellVariant<T> variant;
  StepNorm<T> norm;  // of the step at time 0; normalised and inverses of the others stand behind it

  DEVICE int64_t time(int64_t s) const { return reverse ? shape.T - 1 - s : s; }
  // Where h and c lie before the s-th processed step: in time's order, so that they stand beside d_pre.
  DEVICE int64_t slot(int64_t s) const { return reverse ? shape.T - s : s; }
  DEVICE T* h_before(int64_t s) const { return h + slot(s) * shape.B * shape.output(); }
  DEVICE W* c_before(int64_t s) const { return c + (slots <= shape.T ? s % 2 : slot(s)) * shape.B * shape.H; }
  DEVICE const uint8_t* flags_of(int64_t s) const { return flags && s < shape.T ? flags + time(s) * shape.B : nullptr; }

  DEVICE StepNorm<T> norm_of(int64_t t) const {
    StepNorm<T> of_step = norm;
    if (norm.normalised) of_step.normalised += t * shape.B * shape.H * 4, of_step.inverses += t * shape.B;
    return of_step;
  }

  DEVICE StepForward<T> step(int64_t s) const {
    const int64_t t = time(s), gates_of_step = shape.B * shape.H * 4;
    StepForward<T> k{};
    k.t = t;
    k.rows = int(shape.B), k.hidden = int(shape.H);
    k.recurrent = {h_before(s), int(shape.output()), recurrent, variant.h_scales};
    k.pre = pre + t * gates_of_step;
    k.h_prev = h_before(s), k.h_next = h_before(s + 1);
    k.c_prev = c_before(s), k.c = c_before(s + 1);
    k.m = m;
    k.saved = saved ? saved + t * gates_of_step : nullptr;
    k.y = y, k.cells = cells, k.gates = gates;
    k.flags = flags_of(s), k.cut_next = flags_of(s + 1);
    k.repeat = repeat;
    k.variant = variant;
    k.norm = norm_of(t);
    return k;
  }
};

// The same, backward: forward's arrays, and gradients.
template <class T>
struct LayerBackward {
  using W = Wide<T>;
  LayerForward<T> forward;
  const T* recurrent;    // packed U^T: [panels][4H][kPanel], depth unit * 4 + gate
  const T* projection;   // packed w_p^T: [panels][output][kPanel]; null without
  const T *dh_n, *dc_n;  // [B,output], [B,H]; null: zero
  Sequence<const T> dy, dcells, dgates;
  int64_t truncate;      // no gradient of the state crosses times that it divides; 0: all do
  W *dh, *dc;            // [B,output], [B,H] scratch, which start as dh_n and dc_n
  T *dh_out, *m;         // [T,B,output], [T,B,H] for the gradient of w_p; null without projection
  T* d_pre;              // [T,B,H,4] out
  T *dh0, *dc0;          // [B,output], [B,H] out
  W* d_peepholes;        // [B,H,3], zero before; null: none
  GradientNorm<T> norm;  // d_output zero before, d_sums [T,B,H,4]

  // The gradient of h . U at a time.
  DEVICE const T* d_sums(int64_t t) const {
    return (forward.norm.gains ? norm.d_sums : d_pre) + t * forward.shape.B * forward.shape.H * 4;
  }

  // What is left to do after the first step has been: the gradient of h0 into dh.
  DEVICE StepBackward<T> before_first() const {
    StepBackward<T> k{};
    k.rows = int(forward.shape.B), k.hidden = int(forward.shape.H), k.output = int(forward.shape.output());
    k.recurrent = {d_sums(forward.time(0)), int(4 * forward.shape.H), recurrent, nullptr};
    k.dh = dh;
    k.variant.h_scales = forward.variant.h_scales, k.variant.scale_gates = forward.variant.scale_gates;
    k.cut_after = forward.flags_of(0);
    return k;
  }

  // Does no gradient of the state cross from the s-th processed step to the next?
  DEVICE bool cuts_after(int64_t s) const {
    const int64_t later = forward.reverse ? forward.time(s) : forward.time(s) + 1;
    return truncate > 0 && later % truncate == 0 && s + 1 < forward.shape.T;
  }

  DEVICE StepBackward<T> step(int64_t s) const {
    const Shape& shape = forward.shape;
    const int64_t t = forward.time(s), units = shape.B * shape.H, outputs = shape.B * shape.output();
    StepBackward<T> k{};
    k.t = t;
    k.rows = int(shape.B), k.hidden = int(shape.H), k.output = int(shape.output());
    k.cuts_all = cuts_after(s);
    if (s + 1 < shape.T && !k.cuts_all)
      k.recurrent = {d_sums(forward.time(s + 1)), int(4 * shape.H), recurrent, nullptr};
    k.saved = forward.saved + t * units * 4;
    k.c_prev = forward.c_before(s), k.c = forward.c_before(s + 1);
    k.dy = dy, k.dcells = dcells, k.dgates = dgates;
    k.dh = dh, k.dc = dc;
    if (projection) {
      k.dh_out = dh_out + t * outputs;
      k.projected = {k.dh_out, int(shape.output()), projection, nullptr};
      k.m = m + t * units;
    }
    k.d_pre = d_pre + t * units * 4;
    k.d_peepholes = d_peepholes;
    k.flags = forward.flags_of(s), k.cut_after = forward.flags_of(s + 1);
    k.repeat = forward.repeat;
    k.variant = forward.variant;
    k.norm = norm;
    k.norm.forward = forward.norm_of(t);
    if (norm.d_sums) k.norm.d_sums += t * units * 4;
    return k;
  }
};

}  // namespace fastlstm::gpu
