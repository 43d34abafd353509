// The activations of ONNX's LSTM by kind, and the derivative of each in terms of its value, which is all that a tape has.
// Included after activations.h, as that is; it must not include anything or open a namespace. The twins are activate and activation_slope in activations.py.

// e^y - 1. Valid for y <= 0, minus infinity too; NaN gives NaN. Max error 1.2 ulp.
template <class V>
DEVICE [[gnu::always_inline]] inline V expm1_of_negative(V y) {
  const Exponential<V> e = exponential(max(broadcast<V>(-Constants<Elem<V>>::zero_limit), y));
  return fma(e.scale, e.rest, e.scale - broadcast<V>(1));
}

// log(1 + e^x) = max(0, x) + log(1 + e^-|x|). Valid for every x, infinities too; NaN gives NaN. Max error 2.9 ulp for
// x >= -87.3 (float), -708.3 (double); below, where the truth is a denormal, 0 or the smallest number that is none.
template <class V>
DEVICE [[gnu::always_inline]] inline V softplus(V x) {
  using K = Constants<Elem<V>>;
  const V one = broadcast<V>(1);
  const Exponential<V> a = exponential(max(broadcast<V>(-K::zero_limit), min(-x, x)));
  const V e = a.scale * (one + a.rest);  // an fma would lose scale * rest where that is a denormal, but the sum is none
  // log(1 + e) = 2 atanh(s / 2). Halved only inside, s is as large as e and is no denormal either.
  const V s = e / fma(broadcast<V>(0.5), e, one);
  const V t = s * s;
  return max(V{}, x) + fma(s * t, K::atanh(t), s);
}

// x / (1 + |x|), limited where that is +-1 already, for the sake of infinities; NaN gives NaN. Max error 1.5 ulp.
template <class V>
DEVICE [[gnu::always_inline]] inline V softsign(V x) {
  const V limit = broadcast<V>(0x1p60);
  x = max(-limit, min(limit, x));
  return x / (broadcast<V>(1) + max(-x, x));
}

// One kind for all lanes. Valid for every x, infinities too where the formula is not 0 * infinity; NaN gives NaN. Max
// error, beside those above and in activations.h:
// elu                   2.5 ulp
// scaled tanh           5.5 ulp (float; without FMA 6.5), 4.5 ulp (double), where beta * x is no denormal
// hard sigmoid, affine  0.5 ulp (without FMA 1) of |alpha * x| + |beta|
// the others            0.5 ulp
// A call, not inlined: five copies of it would fill the cell's loop with spilled constants.
template <class V>
DEVICE [[gnu::noinline]] V activate(Activation kind, V x, V alpha, V beta) {
  const V one = broadcast<V>(1);
  switch (kind) {
    case Activation::kSigmoid:
      return value(sigmoid(x));
    case Activation::kTanh:
      return value(tanh(x));
    case Activation::kRelu:
      return max(V{}, x);
    case Activation::kHardSigmoid:
      return max(V{}, min(one, fma(alpha, x, beta)));
    case Activation::kAffine:
      return fma(alpha, x, beta);
    case Activation::kLeakyRelu:
      return x >= V{} ? x : alpha * x;
    case Activation::kElu:
      return x >= V{} ? x : alpha * expm1_of_negative(x);
    case Activation::kSoftsign:
      return softsign(x);
    case Activation::kSoftplus:
      return softplus(x);
    case Activation::kScaledTanh:
      return alpha * value(tanh(beta * x));
    case Activation::kThresholdedRelu:
      return x < alpha ? V{} : x;
  }
  __builtin_unreachable();
}

// The derivative at x where y = activate(kind, x, alpha, beta). NaN gives NaN. At a kink, the slope on its left.
// alpha of the leaky relu and of the elu is not negative, else y would not say where x lay. Max error 1.5 eps of
// max(1, |alpha|) max(1, |beta|); softsign 1.5 eps and softplus 1.2 ulp, both relative.
template <class V>
DEVICE [[gnu::noinline]] V activation_slope(Activation kind, V y, V alpha, V beta) {
  const V one = broadcast<V>(1);
  V slope{};  // of the kinds that compare, where a NaN gets lost
  switch (kind) {
    case Activation::kSigmoid:
      return y * (one - y);
    case Activation::kTanh:
      return fma(-y, y, one);
    case Activation::kSoftsign: {
      const V rest = one - max(-y, y);
      return rest * rest;
    }
    case Activation::kSoftplus:
      return -expm1_of_negative(-y);
    case Activation::kRelu:
      slope = y > V{} ? one : V{};
      break;
    case Activation::kHardSigmoid:
      slope = y > V{} ? (y < one ? alpha : V{}) : V{};
      break;
    case Activation::kAffine:
      slope = alpha;
      break;
    case Activation::kLeakyRelu:
      slope = y > V{} ? one : alpha;
      break;
    case Activation::kElu:
      slope = y > V{} ? one : y + alpha;
      break;
    case Activation::kScaledTanh:
      slope = alpha == V{} ? V{} : beta * fma(-y, y / alpha, alpha);
      break;
    case Activation::kThresholdedRelu:
      slope = y == V{} ? V{} : one;
      break;
  }
  return y == y ? slope : y;
}
