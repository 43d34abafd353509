// A step backward: from the gradients of h and c to those of the pre-activations and of c before.
// Included by kernels.cpp inside the namespace of one instruction set.

template <class T, class Cell>
void load_d_gates(const StepBackward<T>& s, int64_t row, int64_t unit, Cell& cell, int lanes) {
  const T* from = s.variant.d_gates + s.order[row] * s.variant.d_gates_stride + unit;
  for (int gate = 0; gate < 4; ++gate) cell.d_gates[gate] = load(from + gate * s.hidden, lanes);
}

// The gradients that reach the cell of some units of one row, and the parts of them that zoneout leads past it.
template <class V>
struct Incoming {
  V dh, dc, dh_kept, dc_kept;
};

template <class T, bool FLAGGED, CellKind KIND>
FASTLSTM_INLINE inline Incoming<Vec<T>> incoming(const StepBackward<T>& s, int64_t row, int64_t block, int lanes,
                                                 bool held) {
  using V = Vec<T>;
  const int64_t unit = block * kLanes<T>;
  V dh = load(s.dh + row * s.dh_stride + unit), dc = load(s.dc + block * s.dc_block_stride + row * kLanes<T>);
  V dh_kept{}, dc_kept{};
  if (FLAGGED && s.flags_after && (s.flags_after[row] & kCut)) {
    dc = V{};
    if (!s.m) dh = V{};  // with projection dh has been cut, and dy added, where h is
  }
  if (s.dy && !(held && !s.repeat)) dh += load(s.dy + s.order[row] * s.dy_stride + unit, lanes);
  if (s.dcells) dc += load(s.dcells + s.order[row] * s.dcells_stride + unit, lanes);
  if constexpr (KIND != kPlain) {
    const int64_t keep = row * s.variant.keep_stride + unit;
    if (s.variant.keep_h && !held) dh -= dh_kept = dh * load(s.variant.keep_h + keep);
    if (s.variant.keep_c && !held) dc -= dc_kept = dc * load(s.variant.keep_c + keep);
  }
  return {dh, dc, dh_kept, dc_kept};
}

// c of the rows of one block, anew, as layer normalisation saw it.
template <class T>
void recover_c(const StepBackward<T>& s, int64_t block) {
  constexpr int64_t L = kLanes<T>;
  const auto cell = cell_of<T, kAnyActivations>(s.variant, block);
  const T *gates = s.saved + block * s.saved_block_stride, *c_prev = s.c_prev + block * s.c_block_stride;
  for (int64_t row = 0; row < s.rows; ++row, gates += 4 * L, c_prev += L) {
    const bool cut = s.flags && (s.flags[row] & kCut);
    const Vec<T> c = cut ? Vec<T>{} : load(c_prev);
    store(s.norm.c + (row * s.block_end + block) * L,
          cell.clip(load(gates + L) * c + load(gates) * load(gates + 2 * L)));
  }
}

// What one block adds to the sums over all units that the normalisation of c takes in backward.
template <class T, bool FLAGGED>
void add_moments(const StepBackward<T>& s, int64_t block) {
  using V = Vec<T>;
  constexpr int64_t L = kLanes<T>;
  auto cell = cell_of<T, kAnyActivations>(s.variant, block);
  const int lanes = lanes_of_block<T>(s.hidden, block);
  for (int64_t row = 0; row < s.rows; ++row) {
    if (FLAGGED && s.flags && (s.flags[row] & kHeld)) continue;
    cell.norm = cell_norm(s.norm, block, row);
    const V c = load(s.norm.c + (row * s.block_end + block) * L);
    const V o = load(s.saved + block * s.saved_block_stride + (row * 4 + 3) * L);
    const auto in = incoming<T, FLAGGED, kAnyActivations>(s, row, block, lanes, false);
    const V d = cell.d_output(in.dh * o, cell.output(c)) * cell.norm.gain;
    store(s.norm.d + (row * s.block_end + block) * L, d);
    T* moments = s.norm.moments + row * 4;
    moments[2] += sum_of<T>(d) / T(s.hidden);
    moments[3] += sum_of<T>(d * cell.norm.normalised(c)) / T(s.hidden);
  }
}

template <class T>
__attribute__((noinline)) void find_moments(const StepBackward<T>& s) {
  const int64_t units = s.block_end * kLanes<T>;
  for (int64_t block = 0; block < s.block_end; ++block) recover_c(s, block);
  for (int64_t row = 0; row < s.rows; ++row) {
    T* moments = s.norm.moments + row * 4;
    row_moments<T, 1>(s.norm.c + row * units, s.hidden, moments, moments + 1);
    moments[2] = moments[3] = 0;
  }
  const auto add = s.flags || s.flags_after ? add_moments<T, true> : add_moments<T, false>;
  for (int64_t block = 0; block < s.block_end; ++block) add(s, block);
}

template <class T, bool FLAGGED, CellKind KIND>
void cell_rows_backward(const StepBackward<T>& s, int64_t block) {
  using V = Vec<T>;
  constexpr int L = kLanes<T>;
  auto cell = cell_of<T, KIND>(s.variant, block);
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
    T* d_pre = s.d_pre + row * s.d_pre_stride + (KIND != kPlain ? block * s.variant.d_block : unit * 4);
    const int64_t gate = KIND != kPlain ? s.variant.d_gate : L;
    const uint8_t flags = FLAGGED && s.flags ? s.flags[row] : 0;
    const bool held = flags & kHeld;
    const auto [dh, dc, dh_kept, dc_kept] = incoming<T, FLAGGED, KIND>(s, row, block, lanes, held);

    CellGradient<V> d{{}, dc, {}};
    [[maybe_unused]] V d_peep_i{}, d_peep_f{}, d_peep_o{}, d_gain{}, d_bias{};
    if (!held) {
      const V c_in = flags & kCut ? V{} : load(c_prev + row * L);
      const Gates<V> gates{load(saved), load(saved + L), load(saved + 2 * L), load(saved + 3 * L)};
      V c_new = load(c + row * L);
      if constexpr (KIND != kPlain) {
        if (s.variant.d_gates) load_d_gates(s, row, unit, cell, lanes);
        c_new = gates.f * c_in + gates.i * gates.g;
        if (s.norm.gains) {
          cell.norm = cell_norm(s.norm, block, row);
          cell.norm.d = load(s.norm.d + (row * s.block_end + block) * L);
          const V c_seen = cell.clip(c_new);
          d_bias = cell.d_output(dh * gates.o, value(cell.output(c_seen)));
          d_gain = d_bias * cell.norm.normalised(c_seen);
        }
      }
      d = cell_backward<V>(cell, gates, c_in, c_new, dh, dc);
      if constexpr (KIND != kPlain) {
        d.dc_prev += dc_kept;
        d_peep_i = d.d_pre.i * c_in, d_peep_f = d.d_pre.f * c_in, d_peep_o = d.d_pre.o * cell.clip(c_new);
      }
    }
    store(d_pre, d.d_pre.i), store(d_pre + gate, d.d_pre.f), store(d_pre + 2 * gate, d.d_pre.g),
        store(d_pre + 3 * gate, d.d_pre.o);
    store(dc_block + row * L, d.dc_prev);
    if (s.m) store(s.m + row * s.m_stride + unit, d.m);
    if (FLAGGED || (KIND != kPlain && s.variant.keep_h)) store(dh_at, held ? dh : dh_kept);
    if constexpr (KIND != kPlain) {
      if (s.variant.d_peepholes) {
        T* to = s.variant.d_peepholes + row * s.variant.terms_stride + unit * 3;
        store(to, d_peep_i), store(to + L, d_peep_f), store(to + 2 * L, d_peep_o);
      }
      if (s.norm.gains) {
        T* to = s.norm.d_output + row * s.variant.terms_stride + unit * 2;
        store(to, d_gain), store(to + L, d_bias);
      }
    }
  }
}

template <class T>
void step_backward(const StepBackward<T>& s) {
  using CellRowsBackward = void (*)(const StepBackward<T>&, int64_t block);
  const auto cell_rows = with_kind(kind_of(s.variant), [&](auto kind) {
    return with_flags(
        [](auto flagged) -> CellRowsBackward { return cell_rows_backward<T, flagged, decltype(kind)::value>; },
        s.flags || s.flags_after);
  });
  if (s.norm.gains) find_moments(s);
  for (int64_t block = s.block_begin; block < s.block_end; ++block) cell_rows(s, block);
  for (int64_t row = 0; row < s.rows && s.norm.gains; ++row) normalise_backward(s, row);
}
