// THE equations of one LSTM cell (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000), forward and
// backward, for one number type V: a SIMD vector on the CPU, a thread's number on a GPU. The twin of cell_* in cells.py.
// Included by the kernels inside their own namespace, after activations.h.

// Before the activation in `pre`, after it in `gates`; the order i f g o is that of torch and cuDNN.
template <class V>
struct Gates {
  V i, f, g, o;
};

// A number stands for itself where others are Fractions.
template <class V>
DEVICE inline V value(V x) {
  return x;
}

enum Gate { kI, kF, kG, kO };
enum Peephole { kPeepI, kPeepF, kPeepO };

template <class V>
struct CellState {
  V h, c;
};

// Quotients stay undivided until a term is complete: c and h of the plain cell cost three divisions instead of five.
// `saved` receives the gates themselves; training asks for them, inference lets the compiler drop their divisions.
template <class V, class Cell>
DEVICE inline CellState<V> cell_forward(const Cell& cell, const Gates<V>& pre, V c, Gates<V>& saved) {
  const auto i = cell.gate(cell.peep(kPeepI, pre.i, c));
  const auto g = cell.squash(pre.g);
  const auto f = cell.forget(i, cell.peep(kPeepF, pre.f, c));

  c = cell.clip(f * c + i * g);
  const auto o = cell.gate(cell.peep(kPeepO, pre.o, c));
  const V h = value(o * cell.output(c));
  saved = {value(i), value(f), value(g), value(o)};
  return {h, c};
}

template <class V>
struct CellGradient {
  Gates<V> d_pre;
  V dc_prev;
  V m;  // o * output(c): what the projection saw
};

// From the saved gates, by derivatives that outputs express: d(sigmoid) = s (1 - s), d(tanh) = 1 - t^2. dh and dc are the
// gradients of h and c; c is the cell's before `clip`.
template <class V, class Cell>
DEVICE inline CellGradient<V> cell_backward(const Cell& cell, const Gates<V>& gates, V c_prev, V c, V dh, V dc) {
  const V i = gates.i, f = gates.f, g = gates.g, o = gates.o;
  const V y = value(cell.output(cell.clip(c)));
  const V d_pre_o = cell.d_gate(cell.given(kO, dh * y), o);
  dc = cell.through_output(dh * o, y, cell.clip(c), dc);
  dc = cell.d_clip(cell.d_peep(kPeepO, dc, d_pre_o), c);

  V d_i = cell.given(kI, dc * g), d_f = cell.given(kF, dc * c_prev);
  const V d_g = cell.given(kG, dc * i);
  cell.d_forget(d_i, d_f);
  const V d_pre_i = cell.d_gate(d_i, i), d_pre_f = cell.d_gate(d_f, f);
  const V dc_prev = cell.d_peep(kPeepI, cell.d_peep(kPeepF, dc * f, d_pre_f), d_pre_i);
  return {{d_pre_i, d_pre_f, cell.d_squash(d_g, g), d_pre_o}, dc_prev, o * y};
}

// The textbook's choices. What others have beyond them is empty here and leaves no instruction.
template <class V>
struct PlainCell {
  DEVICE static auto gate(V x) { return sigmoid(x); }
  template <class G>
  DEVICE static auto forget(G, V x) {
    return sigmoid(x);
  }
  DEVICE static auto squash(V x) { return tanh(x); }
  DEVICE static auto output(V c) { return tanh(c); }
  DEVICE static V d_gate(V dy, V y) { return dy * y * (1 - y); }
  DEVICE static V d_squash(V dy, V y) { return dy * (1 - y * y); }
  DEVICE static V through_output(V dy, V y, V, V dc) { return fma(dy, 1 - y * y, dc); }  // the gradient of c
  DEVICE static void d_forget(V&, V&) {}
  DEVICE static V peep(Peephole, V pre, V) { return pre; }
  DEVICE static V d_peep(Peephole, V dc, V) { return dc; }
  DEVICE static V clip(V c) { return c; }
  DEVICE static V d_clip(V dc, V) { return dc; }
  DEVICE static V given(Gate, V d) { return d; }
};

// Layer normalisation (Ba et al. 2016) of c, for one unit: (c - mean) * inverse is what gain and bias see. In backward also
// the means over the units of what comes back, and of that times what was normalised.
template <class V>
struct CellNorm {
  bool on = false;
  V gain{}, bias{}, mean{}, inverse{}, d_mean{}, d_along{};
  V d{};  // what comes back, times the gain: rounded as in its mean, so that of one unit nothing is left

  DEVICE V normalised(V c) const { return (c - mean) * inverse; }
  DEVICE V operator()(V c) const { return fma(normalised(c), gain, bias); }
  DEVICE V d_c(V c) const { return inverse * (d - d_mean - normalised(c) * d_along); }
};

// The choices of a CellOptions: switches that are the same for all units. TEXTBOOK: of the activations, which then stay
// undivided where they can.
template <class V, bool TEXTBOOK>
struct VariantCell {
  struct Function {
    Activation kind;
    V alpha, beta;
    V low{}, high{};  // what comes out where the input was clipped; of no use where none is

    DEVICE Function(const ActivationOptions& options, double limit)
        : kind(options.kind), alpha(broadcast<V>(Elem<V>(options.alpha))), beta(broadcast<V>(Elem<V>(options.beta))) {
      const V most = broadcast<V>(Elem<V>(limit));
      if (limit < kNoLimit) low = (*this)(-most), high = (*this)(most);
    }
    DEVICE V operator()(V x) const {
      if (kind == Activation::kSigmoid) return value(sigmoid(x));  // the two that most cells have, without a call
      if (kind == Activation::kTanh) return value(tanh(x));
      return activate(kind, x, alpha, beta);
    }
    DEVICE V slope(V y) const {
      if (kind == Activation::kSigmoid) return y * (1 - y);
      if (kind == Activation::kTanh) return 1 - y * y;
      return activation_slope(kind, y, alpha, beta);
    }
    DEVICE V clipped_slope(V y) const { return (y == low) | (y == high) ? V{} : slope(y); }
  };

  Function gate_, squash_, output_;
  bool coupled, gates_clipped, cells_clipped, has_peepholes = false;
  V gate_limit, cell_limit;
  V p[3]{};        // peepholes of i f o
  V d_gates[4]{};  // gradients of the gates themselves, of i f g o
  CellNorm<V> norm;

  DEVICE explicit VariantCell(const CellOptions& options)
      : gate_(options.gate, options.gate_clip),
        squash_(options.squash, options.gate_clip),
        output_(options.output, kNoLimit),
        coupled(options.coupled_input_forget),
        gates_clipped(options.clips_gates()),
        cells_clipped(options.clips_cells()),
        gate_limit(broadcast<V>(Elem<V>(options.gate_clip))),
        cell_limit(broadcast<V>(Elem<V>(options.cell_clip))) {}

  // Where saved gates are rounded to fewer bits, the values that tell a clipped one are, too.
  template <class Round>
  DEVICE void round_limits(Round round) {
    for (Function* function : {&gate_, &squash_})
      function->low = round(function->low), function->high = round(function->high);
  }

  DEVICE static V within(V limit, V x) { return max(-limit, min(limit, x)); }

  DEVICE auto gate(V x) const {
    x = within(gate_limit, x);
    if constexpr (TEXTBOOK)
      return sigmoid(x);
    else
      return gate_(x);
  }
  template <class G>
  DEVICE G forget(G i, V x) const {
    return coupled ? 1 - i : gate(x);
  }
  DEVICE auto squash(V x) const {
    x = within(gate_limit, x);
    if constexpr (TEXTBOOK)
      return tanh(x);
    else
      return squash_(x);
  }
  DEVICE auto output(V c) const {
    if (norm.on) c = norm(c);
    if constexpr (TEXTBOOK)
      return tanh(c);
    else
      return output_(c);
  }
  DEVICE V d_gate(V dy, V y) const { return dy * (gates_clipped ? gate_.clipped_slope(y) : gate_.slope(y)); }
  DEVICE V d_squash(V dy, V y) const { return dy * (gates_clipped ? squash_.clipped_slope(y) : squash_.slope(y)); }
  DEVICE V d_output(V dy, V y) const { return dy * output_.slope(y); }  // the gradient of what the output function saw
  DEVICE V through_output(V dy, V y, V c, V dc) const { return dc + (norm.on ? norm.d_c(c) : d_output(dy, y)); }
  DEVICE void d_forget(V& d_i, V& d_f) const {
    if (coupled) d_i -= d_f, d_f = V{};
  }
  DEVICE V peep(Peephole gate, V pre, V c) const { return has_peepholes ? fma(p[gate], c, pre) : pre; }
  DEVICE V d_peep(Peephole gate, V dc, V d_pre) const { return has_peepholes ? fma(p[gate], d_pre, dc) : dc; }
  DEVICE V clip(V c) const { return within(cell_limit, c); }
  DEVICE V d_clip(V dc, V c) const {
    if (!cells_clipped) return dc;
    return (c < cell_limit) & (-c < cell_limit) ? dc : V{};
  }
  DEVICE V given(Gate gate, V d) const { return d + d_gates[gate]; }
};

// What becomes of a state that keeps its old value in the part, or with probability, `keep` (Krueger et al. 2017).
template <class V>
DEVICE inline V zoneout(V keep, V before, V after) {
  return keep == V{} ? after : keep * before + (1 - keep) * after;
}
