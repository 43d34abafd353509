// A step forward: the products of some units' gates, a block at a time, and the cell on what they give.
// Included by kernels.cpp inside the namespace of one instruction set.

// The cell for all rows of one block of units; `stash` holds the pre-activations, [rows][4][lanes].
template <class T, bool TRAINING, bool FLAGGED, CellKind KIND>
void cell_rows_forward(const StepForward<T>& s, int64_t block, const T* stash, int64_t stash_stride) {
  using V = Vec<T>;
  constexpr int L = kLanes<T>;
  auto cell = cell_of<T, KIND>(s.variant, block);
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

    const Gates<V> in{load(pre), load(pre + L), load(pre + 2 * L), load(pre + 3 * L)};
    Gates<V> saved;
    const auto run = [&]() FASTLSTM_INLINE {
      if constexpr (KIND != kPlain)
        if (s.norm.gains) {  // c had to be whole before: what is left is h
          saved = in;
          cell.norm = cell_norm(s.norm, block, row);
          const V whole = load(s.norm.c + (row * s.block_end + block) * L);
          return CellState<V>{value(cell.output(whole)) * in.o, whole};
        }
      return cell_forward<V>(cell, in, c_in, saved);
    };
    CellState<V> now = run();
    if constexpr (KIND != kPlain) {
      const int64_t keep = row * s.variant.keep_stride + unit;
      if (s.variant.keep_c) now.c = zoneout(load(s.variant.keep_c + keep), c_in, now.c);
      if (s.variant.keep_h)
        now.h = zoneout(load(s.variant.keep_h + keep), load(s.h_prev + row * s.gates.a_stride + unit), now.h);
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

constexpr int64_t kPanelsOfBlock = 4 / NR;  // a block of units has four vectors of columns

// The product of some blocks of units. gate_stride: each gate has a copy of the rows of its own, so far apart; 0: one for all.
template <class T>
void gates_product(Product<T> p, int64_t block, int64_t blocks, int64_t gate_stride) {
  p.panel_begin = block * kPanelsOfBlock;
  p.panel_end = (block + blocks) * kPanelsOfBlock;
  if (gate_stride == 0) return product(p);
  p.tail_vectors = 1;
  p.prefetch = false;
  for (int64_t vector = block * 4; vector < (block + blocks) * 4; ++vector) {  // one of a panel at a time
    Product<T> one = p;
    const int64_t shift = vector % NR * kLanes<T>;
    one.a += vector % 4 * gate_stride;
    one.panels = static_cast<const T*>(p.panels) + shift;
    one.c += shift;
    if (one.start) one.start += shift;
    one.panel_begin = vector / NR;
    one.panel_end = one.panel_begin + 1;
    product(one);
  }
}

// Both products of all blocks come first, since whole rows are normalised; then all gates, in the place of pre, and c; then h.
template <class T>
__attribute__((noinline)) void step_forward_normalised(const StepForward<T>& s, CellRowsForward<T> cell_rows) {
  using V = Vec<T>;
  constexpr int64_t L = kLanes<T>;
  const StepNorm<T>& norm = s.norm;
  const int64_t rows = s.gates.rows, units = s.block_end * L, columns = 4 * units;
  for (int64_t part = 0; part < 2; ++part) {
    Product<T> p = part == 0 ? s.inputs : s.gates;
    p.c = norm.sums + part * columns;
    p.c_stride = 2 * columns;
    gates_product(p, 0, s.block_end, s.gate_stride);
  }
  normalise_sums(norm, rows, s.hidden, columns);
  for (int64_t block = 0; block < s.block_end; ++block) {
    const auto cell = cell_of<T, kAnyActivations>(s.variant, block);
    for (int64_t row = 0; row < rows; ++row) {
      T* pre = norm.pre + row * columns + block * 4 * L;
      const bool cut = s.flags && (s.flags[row] & kCut);
      Gates<V> saved;
      const V c = cut ? V{} : load(s.c_prev + block * s.c_block_stride + row * L);
      store(norm.c + row * units + block * L,
            cell_forward<V>(cell, {load(pre), load(pre + L), load(pre + 2 * L), load(pre + 3 * L)}, c, saved).c);
      store(pre, saved.i), store(pre + L, saved.f), store(pre + 2 * L, saved.g), store(pre + 3 * L, saved.o);
    }
  }
  for (int64_t row = 0; row < rows; ++row)
    row_moments<T, 1>(norm.c + row * units, s.hidden, norm.moments + row * 4, norm.moments + row * 4 + 1);
  for (int64_t block = 0; block < s.block_end; ++block) cell_rows(s, block, norm.pre + block * 4 * L, columns);
}

template <class T>
void step_forward(StepForward<T>& s) {
  constexpr int MAX_ROWS = 96;
  alignas(64) T stash[MAX_ROWS * 4 * kLanes<T>];
  const auto cell_rows = with_kind(kind_of(s.variant), [&](auto kind) {
    return with_flags(
        [](auto training, auto flagged) -> CellRowsForward<T> {
          return cell_rows_forward<T, training, flagged, decltype(kind)::value>;
        },
        s.saved, s.flags || s.flags_next);
  });
  if (s.norm.gains) return step_forward_normalised(s, cell_rows);
  // A single row runs two blocks of units at once, see product().
  const int64_t group = s.gates.rows == 1 ? 2 : 1;
  const int64_t groups = (s.block_end - s.block_begin + group - 1) / group;
  for (int64_t i = 0; i < groups; ++i) {
    const int64_t block = s.block_begin + (s.gates.descending ? groups - 1 - i : i) * group;
    const int64_t blocks = s.block_end - block < group ? s.block_end - block : group;
    const auto into_stash = [&](Product<T> p) {
      p.c_stride = blocks * 4 * kLanes<T>;
      p.c = stash - block * 4 * kLanes<T>;
      return p;
    };
    Product<T> gates = into_stash(s.gates);
    if (s.inputs.K > 0) {
      const ::fastlstm::Timed timed(s.profile, kProject);
      gates_product(into_stash(s.inputs), block, blocks, s.gate_stride);
      s.inputs.levels_known = true;
      gates.start = gates.c;
      gates.start_stride = gates.c_stride;
      gates.start_last = true;
    }
    {
      const ::fastlstm::Timed timed(s.profile, kRecur);
      gates_product(gates, block, blocks, s.gate_stride);
    }
    s.gates.levels_known = true;
    const ::fastlstm::Timed timed(s.profile, kCell);
    for (int64_t b = 0; b < blocks; ++b) cell_rows(s, block + b, stash + b * 4 * kLanes<T>, gates.c_stride);
  }
}
