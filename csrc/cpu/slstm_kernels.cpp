// The sLSTM's cell over the rows of a step, compiled once per instruction set as kernels.cpp is, whose head says why there are
// namespaces. An object of its own, so that the LSTM's is the same instructions with and without it.
#include <utility>

#include "kernels.h"

#if defined(__x86_64__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12 warns of its own header
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace fastlstm::FASTLSTM_ISA {
namespace {

#include "simd.h"
#include "with_flags.h"
// clang-format off
#include "../activations.h"
#include "../slstm_cell.h"
// clang-format on

// The cell for all rows of one block of units; `stash` holds the pre-activations, [rows][4][lanes].
template <class T, bool TRAINING, bool FLAGGED>
void slstm_rows_forward(const SlstmForward<T>& s, int64_t block, const T* stash, int64_t stash_stride) {
  using V = Vec<T>;
  constexpr int L = kLanes<T>;
  const int64_t unit = block * L, at_block = block * s.block_stride;
  const int lanes = lanes_of_block<T>(s.hidden, block);
  T* out = TRAINING ? s.saved + block * s.saved_block_stride : nullptr;

  for (int64_t row = 0; row < s.gates->rows; ++row) {
    const T* pre = stash + row * stash_stride;
    const int64_t at = at_block + row * L;
    const uint8_t flags = FLAGGED && s.flags ? s.flags[row] : 0;
    SlstmState<V> now{{}, load(s.before.c + at), load(s.before.n + at), load(s.before.m + at)};
    if (FLAGGED && (flags & kCut)) now = SlstmState<V>{};
    if (FLAGGED && (flags & kHeld)) {
      now.h = load(s.gates->a + row * s.gates->a_stride + unit);
    } else {
      SlstmSaved<V> saved;
      now = slstm_cell_forward<V>({load(pre), load(pre + L), load(pre + 2 * L), load(pre + 3 * L)}, now.c, now.n, now.m,
                                  saved);
      if constexpr (TRAINING) {
        T* to = out + row * 4 * L;
        store(to, saved.smaller), store(to + L, saved.f_slope), store(to + 2 * L, saved.z), store(to + 3 * L, saved.o);
      }
    }
    store(s.after.c + at, now.c), store(s.after.n + at, now.n), store(s.after.m + at, now.m);
    const bool dropped = FLAGGED && s.flags_next && (s.flags_next[row] & kCut);
    store(s.h_next + row * s.h_next_stride + unit, dropped ? V{} : now.h);
    store(s.y + row * s.y_stride + unit, (flags & kHeld) && !s.repeat ? V{} : now.h, lanes);
  }
}

template <class T>
void slstm_forward(const SlstmForward<T>& s) {
  constexpr int64_t PANELS = 4 / NR;  // of one block of units
  constexpr int MAX_ROWS = 96;
  using Rows = void (*)(const SlstmForward<T>&, int64_t block, const T* stash, int64_t stash_stride);
  alignas(64) T stash[MAX_ROWS * 4 * kLanes<T>];
  const auto rows =
      with_flags([](auto training, auto flagged) -> Rows { return slstm_rows_forward<T, training, flagged>; }, s.saved,
                 s.flags || s.flags_next);
  // A single row runs two blocks of units at once, see product().
  const int64_t group = s.gates->rows == 1 ? 2 : 1;
  for (int64_t block = 0; block < s.blocks; block += group) {
    const int64_t blocks = s.blocks - block < group ? s.blocks - block : group;
    Product<T> p = *s.gates;
    p.panel_begin = block * PANELS;
    p.panel_end = (block + blocks) * PANELS;
    p.c_stride = blocks * 4 * kLanes<T>;
    p.c = stash - p.panel_begin * kPanel<T>;
    s.product(p);
    for (int64_t b = 0; b < blocks; ++b) rows(s, block + b, stash + b * 4 * kLanes<T>, p.c_stride);
  }
}

template <class T, bool FLAGGED>
void slstm_rows_backward(const SlstmBackward<T>& s, int64_t block) {
  using V = Vec<T>;
  constexpr int L = kLanes<T>;
  const int64_t unit = block * L;
  const int lanes = lanes_of_block<T>(s.hidden, block);
  const T* saved = s.saved + block * s.saved_block_stride;

  for (int64_t row = 0; row < s.rows; ++row, saved += 4 * L) {
    const int64_t at = block * s.block_stride + row * L;
    T* dh_at = s.dh + row * s.dh_stride + unit;
    T* d_pre = s.d_pre + row * s.d_pre_stride + unit * 4;
    const uint8_t flags = FLAGGED && s.flags ? s.flags[row] : 0;
    const bool held = flags & kHeld;
    V dh = load(dh_at), dc = load(s.dc + at), dn = load(s.dn + at), scale = load(s.scale + at);
    if (FLAGGED && s.flags_after && (s.flags_after[row] & kCut)) dh = dc = dn = scale = V{};
    if (s.dy && !(held && !s.repeat)) dh += load(s.dy + row * s.dy_stride + unit, lanes);
    SlstmGradient<V> d{{}, dc, dn, scale};
    if (!held) {
      V c_prev = load(s.c_prev + at), n_prev = load(s.n_prev + at);
      if (FLAGGED && (flags & kCut)) c_prev = n_prev = V{};
      d = slstm_cell_backward<V>({load(saved), load(saved + L), load(saved + 2 * L), load(saved + 3 * L)}, c_prev,
                                 n_prev, load(s.c + at), load(s.n + at), dh, dc, dn, scale);
    }
    store(d_pre, d.d_pre.i), store(d_pre + L, d.d_pre.f);
    store(d_pre + 2 * L, d.d_pre.z), store(d_pre + 3 * L, d.d_pre.o);
    store(s.dc + at, d.dc_prev), store(s.dn + at, d.dn_prev), store(s.scale + at, d.scale_prev);
    if (FLAGGED) store(dh_at, held ? dh : V{});
  }
}

template <class T>
void slstm_backward(const SlstmBackward<T>& s) {
  const auto rows = s.flags || s.flags_after ? slstm_rows_backward<T, true> : slstm_rows_backward<T, false>;
  for (int64_t block = 0; block < s.blocks; ++block) rows(s, block);
}

template <class T>
constexpr SlstmKernels<T> kTable = {slstm_forward<T>, slstm_backward<T>};

}  // namespace

extern const SlstmKernels<float> slstm_kernels_float32;
extern const SlstmKernels<double> slstm_kernels_float64;
const SlstmKernels<float> slstm_kernels_float32 = kTable<float>;
const SlstmKernels<double> slstm_kernels_float64 = kTable<double>;

}  // namespace fastlstm::FASTLSTM_ISA
