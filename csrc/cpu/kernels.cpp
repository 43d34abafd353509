// The kernels of one instruction set. Compiled once per row of the table in CMakeLists.txt, which sets FASTLSTM_ISA,
// FASTLSTM_VECTOR_BYTES, FASTLSTM_TILE_VECTORS and FASTLSTM_TILE_ASM. All of it, headers included, lies in a namespace of that
// name and anonymous inside: a template shared between two such objects would be one weak symbol, and the linker could keep
// the clone that this machine cannot run.
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
// clang-format off
#include "../activations.h"
#include "../activation_kinds.h"
#include "../cell.h"
#include "gemm.h"
#include "random.h"
// clang-format on

template <class T>
inline int lanes_of_block(int64_t hidden, int64_t block) {
  const int64_t left = hidden - block * kLanes<T>;
  return left < kLanes<T> ? int(left) : kLanes<T>;
}

// The cell of one block of units, by its kind.
template <class T, bool VARIANT>
inline auto cell_of(const CellVariant<T>& variant, int64_t block) {
  if constexpr (VARIANT) {
    VariantCell<Vec<T>> cell(*variant.options);
    cell.has_peepholes = variant.peepholes;
    for (int gate = 0; gate < 3 && variant.peepholes; ++gate)
      cell.p[gate] = load(variant.peepholes + (block * 3 + gate) * kLanes<T>);
    return cell;
  } else {
    return PlainCell<Vec<T>>{};
  }
}

// Calls function(flag, ...) with each flag as a compile-time constant.
template <class F>
auto with_flags(F function) {
  return function();
}
template <class F, class... Flags>
auto with_flags(F function, bool first, Flags... rest) {
  const auto others = [&](auto flag) {
    return with_flags([&](auto... more) { return function(flag, more...); }, rest...);
  };
  return first ? others(std::true_type{}) : others(std::false_type{});
}

template <class T>
void store_gates(const StepForward<T>& s, int64_t row, int64_t unit, const Gates<Vec<T>>& gates, int lanes) {
  T* to = s.variant.gates + s.order[row] * s.variant.gates_stride + unit;
  store(to, gates.i, lanes), store(to + s.hidden, gates.f, lanes);
  store(to + 2 * s.hidden, gates.g, lanes), store(to + 3 * s.hidden, gates.o, lanes);
}

// The cell for all rows of one block of units; `stash` holds the pre-activations, [rows][4][lanes].
template <class T, bool TRAINING, bool FLAGGED, bool VARIANT>
void cell_rows_forward(const StepForward<T>& s, int64_t block, const T* stash, int64_t stash_stride) {
  using V = Vec<T>;
  constexpr int L = kLanes<T>;
  const auto cell = cell_of<T, VARIANT>(s.variant, block);
  const int64_t unit = block * L;
  const int lanes = lanes_of_block<T>(s.hidden, block);
  const T* c_prev = s.c_prev + block * s.c_block_stride;
  T* c = s.c + block * s.c_block_stride;
  T* saved_block = TRAINING ? s.saved + block * s.saved_block_stride : nullptr;

  for (int64_t row = 0; row < s.gates.rows; ++row) {
    const T* pre = stash + row * stash_stride;
    const bool held = FLAGGED && (s.flags[row] & kHeld);
    V c_in = load(c_prev + row * L);
    if (FLAGGED && (s.flags[row] & kCut)) c_in = V{};

    Gates<V> saved;
    CellState<V> now =
        cell_forward<V>(cell, {load(pre), load(pre + L), load(pre + 2 * L), load(pre + 3 * L)}, c_in, saved);
    if constexpr (VARIANT) {
      const int64_t keep = row * s.variant.keep_stride + unit;
      if (s.variant.keep_c) now.c = zoneout(load(s.variant.keep_c + keep), c_in, now.c);
      if (s.variant.keep_h)
        now.h = zoneout(load(s.variant.keep_h + keep), load(s.h_prev + row * s.gates.a_stride + unit), now.h);
      if (s.variant.gates) store_gates(s, row, unit, held ? Gates<V>{} : saved, lanes);
    }
    if (held) now = {s.m ? V{} : load(s.h_prev + row * s.gates.a_stride + unit), c_in};
    store(c + row * L, now.c);
    if (TRAINING) {
      T* out = saved_block + row * 4 * L;
      store(out, saved.i), store(out + L, saved.f), store(out + 2 * L, saved.g), store(out + 3 * L, saved.o);
    }
    if (s.cells) store(s.cells + s.order[row] * s.cells_stride + unit, now.c, lanes);
    if (s.m) {
      store(s.m + row * s.m_stride + unit, now.h);
    } else {
      const bool dropped = FLAGGED && s.flags_next && (s.flags_next[row] & kCut);
      store(s.h_next + row * s.h_next_stride + unit, dropped ? V{} : now.h);
      store(s.y + s.order[row] * s.y_stride + unit, held && !s.repeat ? V{} : now.h, lanes);
    }
  }
}

template <class T>
using CellRowsForward = void (*)(const StepForward<T>&, int64_t block, const T* stash, int64_t stash_stride);

template <class T>
void step_forward(StepForward<T>& s) {
  constexpr int64_t PANELS = 4 / NR;  // of one block of units
  constexpr int MAX_ROWS = 96;
  alignas(64) T stash[MAX_ROWS * 4 * kLanes<T>];
  const auto cell_rows =
      with_flags([](auto training, auto flagged,
                    auto variant) -> CellRowsForward<T> { return cell_rows_forward<T, training, flagged, variant>; },
                 s.saved, s.flags || s.flags_next, s.variant.options);
  // A single row runs two blocks of units at once, see product().
  const int64_t group = s.gates.rows == 1 ? 2 : 1;
  const int64_t groups = (s.block_end - s.block_begin + group - 1) / group;
  for (int64_t i = 0; i < groups; ++i) {
    const int64_t block = s.block_begin + (s.gates.descending ? groups - 1 - i : i) * group;
    const int64_t blocks = s.block_end - block < group ? s.block_end - block : group;
    const auto into_stash = [&](Product<T> p) {
      p.panel_begin = block * PANELS;
      p.panel_end = (block + blocks) * PANELS;
      p.c_stride = blocks * 4 * kLanes<T>;
      p.c = stash - p.panel_begin * kPanel<T>;
      return p;
    };
    Product<T> gates = into_stash(s.gates);
    if (s.inputs.K > 0) {
      const ::fastlstm::Timed timed(s.profile, kProject);
      product(into_stash(s.inputs));
      s.inputs.levels_known = true;
      gates.start = gates.c;
      gates.start_stride = gates.c_stride;
      gates.start_last = true;
    }
    {
      const ::fastlstm::Timed timed(s.profile, kRecur);
      product(gates);
    }
    s.gates.levels_known = true;
    const ::fastlstm::Timed timed(s.profile, kCell);
    for (int64_t b = 0; b < blocks; ++b) cell_rows(s, block + b, stash + b * 4 * kLanes<T>, gates.c_stride);
  }
}

template <class T, class Cell>
void load_d_gates(const StepBackward<T>& s, int64_t row, int64_t unit, Cell& cell, int lanes) {
  const T* from = s.variant.d_gates + s.order[row] * s.variant.gates_stride + unit;
  for (int gate = 0; gate < 4; ++gate) cell.d_gates[gate] = load(from + gate * s.hidden, lanes);
}

template <class T, bool FLAGGED, bool VARIANT>
void cell_rows_backward(const StepBackward<T>& s, int64_t block) {
  using V = Vec<T>;
  constexpr int L = kLanes<T>;
  auto cell = cell_of<T, VARIANT>(s.variant, block);
  const int64_t unit = block * L;
  const int lanes = lanes_of_block<T>(s.hidden, block);
  const T* saved = s.saved + block * s.saved_block_stride;
  const T* c_prev = s.c_prev + block * s.c_block_stride;
  const T* c = s.c + block * s.c_block_stride;
  T* dc_block = s.dc + block * s.dc_block_stride;

  for (int64_t row = 0; row < s.rows; ++row, saved += 4 * L) {
    T* dh_at = s.dh + row * s.dh_stride + unit;
    if (s.saved_next) {  // from memory, while the products run
      unrolled<4>([&](auto gate) FASTLSTM_INLINE { __builtin_prefetch(saved + s.saved_next + gate * L, 0, 2); });
      __builtin_prefetch(c_prev + s.c_next + row * L, 0, 2);
      if (s.dy) __builtin_prefetch(s.dy + s.dy_next + s.order[row] * s.dy_stride + unit, 0, 2);
    }
    T* d_pre = s.d_pre + row * s.d_pre_stride + unit * 4;
    const uint8_t flags = FLAGGED && s.flags ? s.flags[row] : 0;
    const bool held = flags & kHeld;
    V dh = load(dh_at), dc = load(dc_block + row * L);
    if (FLAGGED && s.flags_after && (s.flags_after[row] & kCut)) {
      dc = V{};
      if (!s.m) dh = V{};  // with projection dh has been cut, and dy added, where h is
    }
    if (s.dy && !(held && !s.repeat)) dh += load(s.dy + s.order[row] * s.dy_stride + unit, lanes);
    if (s.dcells) dc += load(s.dcells + s.order[row] * s.dcells_stride + unit, lanes);

    CellGradient<V> d{{}, dc, {}};
    [[maybe_unused]] V dh_kept{}, dc_kept{}, d_peep_i{}, d_peep_f{}, d_peep_o{};
    if (!held) {
      const V c_in = flags & kCut ? V{} : load(c_prev + row * L);
      const Gates<V> gates{load(saved), load(saved + L), load(saved + 2 * L), load(saved + 3 * L)};
      V c_new = load(c + row * L);
      if constexpr (VARIANT) {
        const int64_t keep = row * s.variant.keep_stride + unit;
        if (s.variant.keep_h) dh -= dh_kept = dh * load(s.variant.keep_h + keep);
        if (s.variant.keep_c) dc -= dc_kept = dc * load(s.variant.keep_c + keep);
        if (s.variant.d_gates) load_d_gates(s, row, unit, cell, lanes);
        c_new = gates.f * c_in + gates.i * gates.g;
      }
      d = cell_backward<V>(cell, gates, c_in, c_new, dh, dc);
      if constexpr (VARIANT) {
        d.dc_prev += dc_kept;
        d_peep_i = d.d_pre.i * c_in, d_peep_f = d.d_pre.f * c_in, d_peep_o = d.d_pre.o * cell.clip(c_new);
      }
    }
    store(d_pre, d.d_pre.i), store(d_pre + L, d.d_pre.f), store(d_pre + 2 * L, d.d_pre.g),
        store(d_pre + 3 * L, d.d_pre.o);
    store(dc_block + row * L, d.dc_prev);
    if (s.m) store(s.m + row * s.m_stride + unit, d.m);
    if (FLAGGED || (VARIANT && s.variant.keep_h)) store(dh_at, held ? dh : dh_kept);
    if constexpr (VARIANT)
      if (s.variant.d_peepholes) {
        T* to = s.variant.d_peepholes + row * s.variant.d_peepholes_stride + unit * 3;
        store(to, d_peep_i), store(to + L, d_peep_f), store(to + 2 * L, d_peep_o);
      }
  }
}

template <class T>
void step_backward(const StepBackward<T>& s) {
  using CellRowsBackward = void (*)(const StepBackward<T>&, int64_t block);
  const auto cell_rows =
      with_flags([](auto flagged, auto variant) -> CellRowsBackward { return cell_rows_backward<T, flagged, variant>; },
                 s.flags || s.flags_after, s.variant.options);
  for (int64_t block = s.block_begin; block < s.block_end; ++block) cell_rows(s, block);
}

// Rows a and b, SIZE apart, swap a's odd stretches of SIZE elements for b's even ones; the new a, or (SECOND) the new b. Most
// sizes take one instruction.
template <int SIZE, bool SECOND, class V, int... I>
[[gnu::always_inline]] inline V exchange(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int L = sizeof...(I);
  return __builtin_shufflevector(a, b, (SECOND ? (I & SIZE ? L + I : I + SIZE) : (I & SIZE ? L + I - SIZE : I))...);
}

// L rows of L: blocks of L / 2, L / 4, .. 1 change places across the diagonal. Inlined, its rows would be spilled.
template <class T>
__attribute__((noinline)) void transpose_square(const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  constexpr int L = kLanes<T>;
  constexpr auto ALL = std::make_integer_sequence<int, L>{};
  Vec<T> rows[L];
  unrolled<L>([&](auto r) FASTLSTM_INLINE { rows[r] = load(from + r * from_stride); });
  unrolled<__builtin_ctz(L)>([&](auto round) FASTLSTM_INLINE {
    constexpr int SIZE = L >> (round + 1);
    unrolled<L>([&](auto r) FASTLSTM_INLINE {
      if constexpr ((r & SIZE) == 0) {
        const Vec<T> a = rows[r], b = rows[r + SIZE];
        rows[r] = exchange<SIZE, false>(a, b, ALL);
        rows[r + SIZE] = exchange<SIZE, true>(a, b, ALL);
      }
    });
  });
  unrolled<L>([&](auto r) FASTLSTM_INLINE { store(to + r * to_stride, rows[r]); });
}

// to [columns, rows] = from [rows, columns].
template <class T>
void transpose(const T* from, int64_t from_stride, int64_t rows, int64_t columns, T* to, int64_t to_stride) {
  constexpr int64_t L = kLanes<T>;
  for (int64_t row = 0; row < rows; row += L)
    for (int64_t column = 0; column < columns; column += L) {
      const T* in = from + row * from_stride + column;
      T* out = to + column * to_stride + row;
      if (rows - row >= L && columns - column >= L) {
        transpose_square<T>(in, from_stride, out, to_stride);
        continue;
      }
      for (int64_t c = 0; c < L && column + c < columns; ++c)
        for (int64_t r = 0; r < L && row + r < rows; ++r) out[c * to_stride + r] = in[r * from_stride + c];
    }
}

template <class T>
void sweep(const ActivationOptions& options, bool slope, const T* x, T* y, int64_t n) {
  using V = Vec<T>;
  const auto function = slope ? activation_slope<V> : activate<V>;
  const V alpha = broadcast<V>(T(options.alpha)), beta = broadcast<V>(T(options.beta));
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    const int lanes = n - i < kLanes<T> ? int(n - i) : kLanes<T>;
    store(y + i, function(options.kind, load(x + i, lanes), alpha, beta), lanes);
  }
}

template <class T>
constexpr Kernels<T> kTable = {kLanes<T>,    kPanel<T>,     MR,      product<T>,      step_forward<T>, step_backward<T>,
                               outer_sum<T>, outer_rows<T>, draw<T>, pack_columns<T>, transpose<T>,    sweep<T>};

}  // namespace

extern const Kernels<float> kernels_float32;
extern const Kernels<double> kernels_float64;
const Kernels<float> kernels_float32 = kTable<float>;
const Kernels<double> kernels_float64 = kTable<double>;

}  // namespace fastlstm::FASTLSTM_ISA
