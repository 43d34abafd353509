// THE equations of one sLSTM cell (Beck et al. 2024), forward and backward, for one number type V. The twin of slstm_cell_* in
// python/fastlstm/slstm_reference.py. Included by the kernels inside their own namespace, after activations.h.

// Before the activation in `pre`, after it elsewhere.
template <class V>
struct SlstmGates {
  V i, f, z, o;
};

template <class V>
struct SlstmState {
  V h, c, n, m;
};

// What backward needs of a step, beside c and n before and after it.
template <class V>
struct SlstmSaved {
  V smaller;  // of the gates i and f; the larger one is 1
  V f_slope;  // 1 - sigmoid of f's pre-activation; its sign is set, of a zero too, where i is the larger one
  V z, o;
};

// e^x. Valid for x <= 0, minus infinity too; NaN gives NaN. Max error 1.2 ulp, and 0 for a denormal.
template <class V>
[[gnu::always_inline]] inline V exp_of_negative(V x) {
  const Exponential<V> e = exponential(max(broadcast<V>(-Constants<Elem<V>>::zero_limit), x));
  return e.scale * (broadcast<V>(1) + e.rest);  // an fma would lose scale * rest where that is a denormal
}

// log(1 / (1 + e^-x)) = min(0, x) - log(1 + e^-|x|), and its derivative 1 / (1 + e^x). Valid for every x, infinities too; NaN
// gives NaN. Max error of both 4 ulp.
template <class V>
[[gnu::always_inline]] inline V log_sigmoid(V x, V& slope) {
  const V one = broadcast<V>(1), e = exp_of_negative(min(-x, x));
  slope = (x > V{} ? e : one) / (one + e);
  const V s = e / fma(broadcast<V>(0.5), e, one);  // log(1 + e) = 2 atanh(s / 2)
  const V t = s * s;
  return min(V{}, x) - fma(s * t, Constants<Elem<V>>::atanh(t), s);
}

// A unit without a past, n = 0, takes m = i. Of the gates' exponents, i - m and kept - m, one is zero.
template <class V>
[[gnu::always_inline]] inline SlstmState<V> slstm_cell_forward(const SlstmGates<V>& pre, V c, V n, V m,
                                                               SlstmSaved<V>& saved) {
  const V one = broadcast<V>(1);
  V f_slope;
  const V kept = m + log_sigmoid(pre.f, f_slope);
  const V lead = pre.i - kept;
  const auto follows_i = (n == V{}) | (lead >= V{});
  m = follows_i ? pre.i : kept;
  const V smaller = exp_of_negative(min(V{}, follows_i ? -lead : lead));
  const V i = follows_i ? one : smaller, f = follows_i ? smaller : one;

  const V z = value(tanh(pre.z));
  const auto o = sigmoid(pre.o);
  c = fma(f, c, i * z);
  n = fma(f, n, i);
  saved = {smaller, follows_i ? -f_slope : f_slope, z, value(o)};
  return {o.p * c / (o.q * n), c, n, m};
}

template <class V>
struct SlstmGradient {
  SlstmGates<V> d_pre;
  V dc_prev, dn_prev, scale_prev;
};

// dh, dc, dn are the gradients of h, c, n; scale is dm - dc c - dn n, and 0 where the loss sees h alone.
template <class V>
[[gnu::always_inline]] inline SlstmGradient<V> slstm_cell_backward(const SlstmSaved<V>& saved, V c_prev, V n_prev, V c,
                                                                   V n, V dh, V dc, V dn, V scale) {
  using Bits = __typeof__(V{} < V{});
  const V one = broadcast<V>(1), z = saved.z, o = saved.o;
  const Bits follows_i = (Bits)saved.f_slope < Bits{};
  const V i = follows_i ? one : saved.smaller, f = follows_i ? saved.smaller : one;
  const V f_slope = follows_i ? -saved.f_slope : saved.f_slope;

  const V inverse_n = one / n;
  const V d_o = dh * (c * inverse_n);
  dc = fma(dh * o, inverse_n, dc);
  dn = fma(-d_o * o, inverse_n, dn);
  const V through_i = fma(dc, z, dn) * i;  // gradients of the exponents, m standing still
  const V through_f = fma(dc, c_prev, dn * n_prev) * f;
  const auto limited = (n_prev == V{}) & (f == one);  // an f without a past that m does not divide
  const V past_f = limited ? V{} : through_f;
  const V d_i = follows_i ? through_i + scale : through_i;
  const V d_f = follows_i ? past_f : past_f + scale;
  return {{d_i, d_f * f_slope, dc * i * (one - z * z), d_o * o * (one - o)},
          dc * f,
          dn * f,
          follows_i ? past_f - through_f : scale};
}
