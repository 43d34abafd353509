// What one instruction set offers to the time loop: plain functions over one thread's share of one step.
// kernels.cpp fills this table once per instruction set; dispatch.cpp chooses one.
// "Blocked" columns: the 4H gate columns in the order [H/lanes][4][lanes], the units padded to whole vectors.
#pragma once
#include "../cell_options.h"
#include "../layer.h"
#include "profile.h"
#include "slstm_kernels.h"

namespace fastlstm {

// What the elements of a panel are. Only float32 has others than its own, and only forward.
enum class Storage : uint8_t {
  kWhole,     // the element type itself
  kBfloat16,  // [K][panel / (2 lanes)][lanes][2]: an element of one vector, then of the next
  kInt8,      // [K / 2][panel][2], times Product::scales
};

// c [rows, columns of the panels] = start + a [rows, K] . panels, as a sum of chains of fused multiply-adds with k ascending:
// one of K_first terms, then of K_chain each. Short chains are more exact; which terms share one never depends on the split
// of the work.
template <class T>
struct Product {
  int64_t rows, K;
  int64_t K_first, K_chain;  // both 0: one chain
  const T* a;                // [rows, K], rows a_stride apart
  int64_t a_stride;
  Storage storage;
  const void* panels;  // [panel_end][K][panel] of what storage says, panels panel_stride elements apart
  int64_t panel_stride;
  // kInt8 alone: a is rounded to 16 bits, and a chain has at most 128 terms, so that it is exact.
  const T* scales;  // [columns] what a weight of 1 stands for
  int16_t* levels;  // [rows, K to even] scratch: a as whole numbers, rows levels_stride apart
  T* level_scales;  // [rows] scratch: what a level of 1 stands for
  int64_t levels_stride;
  bool levels_known;               // by an earlier product of the same a
  int64_t panel_begin, panel_end;  // columns panel * panel_begin onwards are computed
  int tail_vectors;                // vectors of the last panel that are wanted; 0: all. Others than 0 with kWhole alone
  bool prefetch;                   // the panels do not come from a cache of this core
  bool descending;  // the last panel first: what a product before this one read last may still be in a cache
  const T* start;   // [rows, columns], rows start_stride apart (0: one row for all); null: zero; may be c
  int64_t start_stride;
  bool start_last;  // start is added to the first chain instead of beginning it
  T* c;             // [rows, columns], rows c_stride apart
  int64_t c_stride;
};

// What a step needs beyond the plain cell's. "rows" are those of the step.
template <class T>
struct CellVariant {
  const CellOptions* options;  // null: the plain cell, and nothing else here is read
  const T* peepholes;          // [blocks][3][lanes] of i f o; null: none
  const T *keep_h, *keep_c;    // [rows, blocks * lanes] what zoneout keeps, keep_stride apart; null: nothing
  int64_t keep_stride;         // 0: one row for all
  const T* d_gates;            // backward: [*, 4 hidden] at this step; null: zero
  int64_t d_gates_stride;      // between the caller's rows
  int64_t d_block, d_gate;     // backward: as in Layout
  T* d_peepholes;              // backward: [rows, blocks][3][lanes] out, terms_stride apart; null: none
  int64_t terms_stride;
};

// Layer normalisation of a step, which then has all units of its rows. x . W and h . U are normalised apart, then times a gain
// each: pre = x * gains[0] + h * gains[1] + bias. "Inverse" is one over a deviation.
template <class T>
struct StepNorm {
  const T* gains;   // [2][columns]; null: no normalisation, and nothing else here is read
  const T* bias;    // [columns]
  const T* output;  // [blocks][2][lanes] gain and bias of c
  T* sums;          // [rows, 2, columns] of x and of h; out in forward: normalised
  T* inverses;      // [rows, 2] of them; out in forward
  T* pre;           // [rows, columns] scratch of forward
  T *c, *d;         // [rows, blocks * lanes] scratch; d of backward alone
  T* moments;       // [rows, 4] scratch: mean and inverse of c, then the means of CellNorm in backward
  T *d_x, *d_h;     // backward: [rows, ...] out, strides as d_pre's: gradients of x . W and h . U
  T* d_gains;       // backward: [rows][3][columns], terms_stride apart, out: terms of both gains and of the bias
  T* d_output;      // backward: [rows, blocks][2][lanes], terms_stride apart, out: terms of gain and bias of c
};

// One step of some rows and some blocks of units: all four gates in one product, then the cell.
template <class T>
struct StepForward {
  Product<T> inputs;  // of x with W, into the kernel's own stash, where `gates` goes on; K = 0: none
  Product<T> gates;   // of h, or of x and h in one: rows, K, a, panels, start are read
  int64_t hidden, block_begin, block_end;
  const T* c_prev;  // [blocks][rows][lanes], blocks c_block_stride apart
  T* c;             // the same; may be c_prev
  int64_t c_block_stride;
  const T* h_prev;  // [rows, hidden], a_stride apart: the carried h, for rows that are held
  T* h_next;        // [rows, blocks * lanes], h_next_stride apart: the carried h; null with projection
  int64_t h_next_stride;
  T* m;  // [rows, blocks * lanes]: o * tanh(c) before projection; null without
  int64_t m_stride;
  T* saved;  // [blocks][rows][4][lanes], blocks saved_block_stride apart: the gates; null: not wanted
  int64_t saved_block_stride;
  T* y;                               // [*, hidden] at this step; null with projection
  T* cells;                           // [*, hidden] at this step; null: not wanted
  int64_t y_stride, cells_stride;     // between the caller's rows
  const int64_t* order;               // [rows] the caller's index of each row
  const uint8_t *flags, *flags_next;  // [rows] of this step and the next; both null: none
  bool repeat;
  Profile* profile;  // null: none is taken
  int64_t
      gate_stride;  // how far apart are the four copies of the rows of `a` in both products, one for each gate; 0: one for all
  CellVariant<T> variant;
  StepNorm<T> norm;
};

template <class T>
struct StepBackward {
  int64_t rows, hidden, block_begin, block_end;
  const T* saved;  // as in StepForward
  int64_t saved_block_stride;
  int64_t saved_next, c_next, dy_next;  // how far from saved, c_prev and dy the next call reads; 0: no further
  const T *c_prev, *c;                  // [blocks][rows][lanes]
  int64_t c_block_stride;
  const T* dy;      // [*, hidden] at this step; null: zero, or already in dh
  const T* dcells;  // [*, hidden] at this step; null: zero
  int64_t dy_stride, dcells_stride;
  const int64_t* order;  // [rows]
  T* dh;  // [rows, blocks * lanes], dh_stride apart: in, the recurrent gradient; out, what a held row passes on
  int64_t dh_stride;
  T* dc;  // [blocks][rows][lanes], blocks dc_block_stride apart, in and out
  int64_t dc_block_stride;
  T* d_pre;  // [rows, blocks][4][lanes] (a variant's: as in Layout), rows d_pre_stride apart
  int64_t d_pre_stride;
  T* m;  // [rows, blocks * lanes] out: o * tanh(c); null: not wanted
  int64_t m_stride;
  const uint8_t *flags, *flags_after;  // [rows] of this step and the one after it in time of processing; may be null
  bool repeat;
  CellVariant<T> variant;
  StepNorm<T> norm;
};

// sum (+)= a^T . b [columns_a, columns of b] over rows, columns panel * panel_begin .. panel * panel_end of b.
template <class T>
struct OuterSum {
  int64_t rows;
  const T* a;  // [columns_a / tile_rows, a_rows, tile_rows], see pack_columns
  int64_t columns_a, a_rows;
  const T* b;  // [rows, panels * panel], rows b_stride apart
  int64_t b_stride, panel_begin, panel_end;
  T* sum;  // [panels][columns_a rounded up to tile_rows][panel]: a tile is one stretch, which the next one follows
  T* column_sum;  // [panels * panel] (+)= sum of b over rows; null: not wanted
  bool fresh;     // what lies in the sums is not added to; needs rows
};

// to [columns_b, columns_a] = b^T . a over few rows, which start at zero and ascend as in OuterSum.
template <class T>
struct OuterRows {
  int64_t rows;
  const T* a;  // [rows, columns_a], rows a_stride apart; may be read up to a vector further
  int64_t columns_a, a_stride;
  const T* b;  // [rows, columns_b], rows b_stride apart
  int64_t columns_b, b_stride;
  T* to;
};

// to [rows, n] = `kept` where the random word of a unit reaches the threshold, else `dropped`. The words of units
// 4 q .. 4 q + 3 are philox's of a counter whose first word is q further, and whose third is that of the row.
template <class T>
struct Draw {
  uint32_t counter[2], call, key[2];
  uint64_t threshold;
  T kept, dropped;
  int64_t rows, n;
  const int64_t* row_words;  // [rows]
  T* to;
  int64_t stride;
};

template <class T>
struct Kernels {
  int lanes, panel, tile_rows;
  void (*product)(const Product<T>&);
  void (*step_forward)(StepForward<T>&);
  void (*step_backward)(const StepBackward<T>&);
  void (*outer_sum)(const OuterSum<T>&);
  void (*outer_rows)(const OuterRows<T>&);
  void (*draw)(const Draw<T>&);
  void (*pack_columns)(const T* from, int64_t from_stride, int64_t rows, int64_t columns, T* to, int64_t to_rows);
  void (*transpose)(const T* from, int64_t from_stride, int64_t rows, int64_t columns, T* to, int64_t to_stride);
  // y = the activation of x, or (slope) its derivative where its value is x; for the accuracy sweeps of the tests.
  void (*sweep)(const ActivationOptions&, bool slope, const T* x, T* y, int64_t n);
  const SlstmKernels<T>* slstm;
};

}  // namespace fastlstm
