// One layer in one direction: its sizes and the arrays that go in and come out. No Python and no CUDA in here.
// Strides count elements. A null pointer means "not given" or "not wanted", as said on each.
#pragma once
#include <cstddef>
#include <cstdint>

#include "device.h"

namespace fastlstm {

struct Shape {
  int64_t T = 0, B = 0;  // steps, batch
  int64_t I = 0, H = 0;  // input size, hidden size
  int64_t P = 0;         // projection size, 0 for none
  bool given = false;    // there is no W: I is 0, and x holds x . W of the four gates

  DEVICE int64_t output() const { return P > 0 ? P : H; }  // the size of h
  DEVICE int64_t x_size() const { return given ? 4 * H : I; }
  DEVICE int64_t depth() const { return I + output(); }  // of the product [x ; h] . [W | U]^T
};

struct Range {
  int64_t begin = 0, end = 0;
  DEVICE int64_t size() const { return end - begin; }
};

// An array [T, B, n] whose rows of n are contiguous.
template <class T>
struct Sequence {
  T* data = nullptr;
  int64_t t_stride = 0, b_stride = 0;

  DEVICE T* row(int64_t t, int64_t b) const { return data + t * t_stride + b * b_stride; }
  DEVICE T* step(int64_t t) const { return data ? data + t * t_stride : nullptr; }
  DEVICE explicit operator bool() const { return data != nullptr; }
};

// What happens to row b around the step that is processed s-th, as bits of Timeline::flags.
enum StepFlag : uint8_t {
  kHeld = 1,  // the step does not count: the state passes through
  kCut = 2,   // the state is zeroed before this step
};

// The order in which a direction walks the batch. Rows are sorted by their ends, so that the active ones are a prefix.
struct Timeline {
  const int64_t* order = nullptr;   // [B] the caller's index of each sorted row
  const int64_t* active = nullptr;  // [T] rows that the s-th processed step concerns; null: all
  const int64_t* end = nullptr;     // [B] steps after which a sorted row is only held, in time; null: T
  const uint8_t* flags = nullptr;   // [T,B] StepFlag by processed step and sorted row; null: every step counts, no cuts
  bool reverse = false;
  bool repeat = false;  // y of a held step is h, not zero

  int64_t time(int64_t s, int64_t T) const { return reverse ? T - 1 - s : s; }
  Range times(Range steps, int64_t T) const { return reverse ? Range{T - steps.end, T - steps.begin} : steps; }
  int64_t rows(int64_t s, int64_t B) const { return active ? active[s] : B; }
  int64_t first_step(int64_t row, int64_t T) const { return reverse && end ? T - end[row] : 0; }
  int64_t last_step(int64_t row, int64_t T) const { return !reverse && end ? end[row] : T; }  // one past
};

// Where the random numbers of a layer and direction come from. In inference nothing is drawn.
struct Draws {
  bool training = false;
  uint64_t seed = 0;
  uint32_t call = 0;
  uint32_t first_step = 0;  // the number of the step t = 0
  int64_t layer = 0, direction = 0;
};

// Some processed steps of a layer: all, or a window, whose neighbours hand over the state. Sequences are as long as the whole,
// but only the window's steps of them are read and written.
template <class T>
struct ForwardArgs {
  Shape shape;
  Timeline timeline;
  Range steps;                           // 0 .. T: all
  Sequence<const T> x;                   // [T,B,x_size]
  const T *h0 = nullptr, *c0 = nullptr;  // [B,output], [B,H]; null: zero
  const T* from = nullptr;               // [B,state] what the window before left; null for the first one
  T* to = nullptr;                       // [B,state] for the window after; null: none follows
  Sequence<T> y;                         // [T,B,output]
  T *h_n = nullptr, *c_n = nullptr;      // [B,output], [B,H]; both null: neither they nor y of ended rows are wanted
  Sequence<T> cells;                     // [T,B,H]; null: not wanted
  Sequence<T> gates;                     // [T,B,4H] after their activations; null: not wanted
  Draws draws;
};

template <class T>
struct BackwardArgs {
  Shape shape;
  Timeline timeline;
  Sequence<const T> dy;                          // [T,B,output]; null: zero
  const T *dh_n = nullptr, *dc_n = nullptr;      // [B,output], [B,H]; null: zero
  int64_t truncate = 0;                          // no gradient of the state crosses times that it divides; 0: all do
  Sequence<const T> dcells;                      // [T,B,H]; null: zero
  Sequence<const T> dgates;                      // [T,B,4H]; null: zero
  Draws draws;                                   // forward's
  Sequence<T> dx;                                // [T,B,x_size]; null: not wanted
  bool add_to_dx = false;                        // the second direction adds to what the first wrote
  T *dh0 = nullptr, *dc0 = nullptr;              // [B,output], [B,H]
  T *dw_x = nullptr, *dw_h = nullptr;            // [4H,I], null without W; [4H,output]
  T* db = nullptr;                               // [4H]; null: not wanted
  T* dw_p = nullptr;                             // [P,H]; null without projection
  T* d_peephole = nullptr;                       // [3H]; null without peepholes
  T *d_gamma_x = nullptr, *d_gamma_h = nullptr;  // [4H], [4H]
  T *d_gamma_c = nullptr, *d_beta_c = nullptr;   // [H], [H]; all four null without layer normalisation
};

}  // namespace fastlstm
