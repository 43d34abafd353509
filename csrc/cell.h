// THE equations of one LSTM cell (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000), forward and
// backward, for one number type V: a SIMD vector on the CPU, a thread's float on a GPU. The twin of lstm_cell_* in reference.py.
// Included by the kernels inside their own namespace, after activations.h.

// Before the activation in `pre`, after it in `gates`; the order i f g o is that of torch and cuDNN.
template <class V>
struct Gates {
  V i, f, g, o;
};

template <class V>
struct CellState {
  V h, c;
};

// Quotients stay undivided until a term is complete: c and h cost three divisions instead of five.
// `saved` receives the gates themselves; training asks for them, inference lets the compiler drop their divisions.
template <class V>
inline CellState<V> cell_forward(const Gates<V>& pre, V c, Gates<V>& saved) {
  const auto i = sigmoid(pre.i);
  const auto f = sigmoid(pre.f);
  const auto g = tanh(pre.g);
  const auto o = sigmoid(pre.o);
  saved = {value(i), value(f), value(g), value(o)};

  c = f * c + i * g;
  const V h = value(o * tanh(c));
  return {h, c};
}

template <class V>
struct CellGradient {
  Gates<V> d_pre;
  V dc_prev;
  V m;  // o * tanh(c): what the projection saw
};

// d(sigmoid) = s (1 - s), d(tanh) = 1 - t^2, from the saved gates; dh and dc are the gradients of h_t and c_t.
template <class V>
inline CellGradient<V> cell_backward(const Gates<V>& gates, V c_prev, V c, V dh, V dc) {
  const V i = gates.i, f = gates.f, g = gates.g, o = gates.o;
  const V tanh_c = value(tanh(c));
  const V d_o = dh * tanh_c;
  dc = fma(dh * o, V(1 - tanh_c * tanh_c), dc);
  const V d_i = dc * g;
  const V d_g = dc * i;
  const V d_f = dc * c_prev;
  return {{d_i * i * (1 - i), d_f * f * (1 - f), d_g * (1 - g * g), d_o * o * (1 - o)}, dc * f, o * tanh_c};
}
