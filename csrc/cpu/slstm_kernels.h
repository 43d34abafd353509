// What one instruction set offers to the sLSTM's time loop: one step of some rows of one head, a layer of its own in all that
// follows. Included by kernels.h.
#pragma once

namespace fastlstm {

template <class T>
struct Product;

// The places of a head's states: blocks of `lanes` units, block_stride apart, rows `lanes` apart.
template <class T>
struct SlstmStates {
  T *c, *n, *m;  // [blocks][rows][lanes]
};

template <class T>
struct SlstmForward {
  void (*product)(const Product<T>&);
  const Product<T>* gates;  // of h, started from the pre-activations: rows, K, a, panels, start are read
  int64_t blocks, hidden;   // of the head
  SlstmStates<const T> before;
  SlstmStates<T> after;  // may be `before`
  int64_t block_stride;
  T* h_next;  // [rows, blocks * lanes], h_next_stride apart
  int64_t h_next_stride;
  T* saved;  // [blocks][rows][4][lanes], blocks saved_block_stride apart; null in inference
  int64_t saved_block_stride;
  T* y;  // [rows, hidden] of the caller at this step
  int64_t y_stride;
  const uint8_t *flags, *flags_next;  // [rows] StepFlag of this step and the next; null: none
  bool repeat;
};

template <class T>
struct SlstmBackward {
  int64_t rows, blocks, hidden;
  const T *c_prev, *n_prev, *c, *n;  // [blocks][rows][lanes]
  int64_t block_stride;
  const T* saved;  // as in SlstmForward
  int64_t saved_block_stride;
  const T* dy;  // [rows, hidden] of the caller at this step; null: zero
  int64_t dy_stride;
  T* dh;  // [rows, blocks * lanes], dh_stride apart: in, the recurrent gradient; out, what a held row passes on
  int64_t dh_stride;
  T *dc, *dn, *scale;  // [blocks][rows][lanes], blocks block_stride apart, in and out
  T* d_pre;            // [rows, blocks][4][lanes], rows d_pre_stride apart
  int64_t d_pre_stride;
  const uint8_t *flags, *flags_after;  // [rows] of this step and the next one; null: none
  bool repeat;
};

template <class T>
struct SlstmKernels {
  void (*forward)(const SlstmForward<T>&);
  void (*backward)(const SlstmBackward<T>&);
};

}  // namespace fastlstm
