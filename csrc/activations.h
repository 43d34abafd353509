// Sigmoid and tanh of a SIMD vector or of a GPU thread's number, for cell.h, as fractions whose division the cell merges with
// its own. Included by cpu/kernels.cpp inside its per-instruction-set anonymous namespace and by cuda/device.cuh, after their
// Elem, Bits, broadcast, fma, min, max, bits_of and from_bits; it must not include anything or open a namespace. Needs
// round-to-nearest; flush-to-zero does no harm.

// p / q, divided as late as possible: c = f * c + i * g divides twice and h = o * tanh(c) once, not five times in all.
template <class V>
struct Fraction {
  V p, q;
};

template <class V>
DEVICE [[gnu::always_inline]] inline V value(Fraction<V> a) {
  return a.p / a.q;
}
template <class V>
DEVICE [[gnu::always_inline]] inline Fraction<V> operator*(Fraction<V> a, V b) {
  return {a.p * b, a.q};
}
template <class V>
DEVICE [[gnu::always_inline]] inline Fraction<V> operator*(Fraction<V> a, Fraction<V> b) {
  return {a.p * b.p, a.q * b.q};
}
template <class V>
DEVICE [[gnu::always_inline]] inline Fraction<V> operator-(int /* 1 */, Fraction<V> a) {
  return {a.q - a.p, a.q};
}
template <class V>
DEVICE [[gnu::always_inline]] inline V operator+(Fraction<V> a, Fraction<V> b) {
  return value(a) + value(b);
}

// Coefficients are arguments, highest power first: a GPU cannot read an array that belongs to the host.
template <class V, class... Coefficients>
DEVICE [[gnu::always_inline]] inline V polynomial(V x, Elem<V> first, Coefficients... rest) {
  V sum = broadcast<V>(first);
  ((sum = fma(sum, x, broadcast<V>(rest))), ...);
  return sum;
}

// The polynomials are minimax fits made for this file, rounded one by one, the rest refitted each time.
template <class T>
struct Constants;

template <>
struct Constants<float> {
  static constexpr int mantissa_bits = 23;
  // y + round_and_bias rounds y to an integer n and leaves n + 127, the exponent field of 2^n, in the lowest bits.
  static constexpr float round_and_bias = 0x1.8p23f + 127;
  static constexpr float log2e = 1.44269502f;
  static constexpr float ln2_high = 0x1.62e4p-1f;  // 16 bits, so that n * ln2_high is exact
  static constexpr float ln2_low = 1.42860677e-06f;
  static constexpr float sigmoid_limit = 80;  // q <= 5.6e34, which leaves room for a product with tanh's q
  static constexpr float zero_limit = 88;     // exponential(-zero_limit) has scale 0
  // 2^f for |f| <= 1/2, relative error 3.0e-9.
  template <class V>
  DEVICE [[gnu::always_inline]] static V exp2(V x) {
    return polynomial(x, 0.000153292785f, 0.00133909704f, 0.00961849932f, 0.0555035956f, 0.240226477f, 0.693147182f, 1);
  }
  // tanh(x) = (x + x^3 p(x^2)) / q(x^2) for |x| <= tanh_limit. x^9 over x^8 costs one fma less than x^13 over x^6,
  // its fit error, 1e-8, drowns in rounding too, and all terms are positive, so that nothing cancels. Chosen among
  // neighbouring roundings by the error of the whole function: exactly 1 at the limit and, with FMA, never above 1.
  static constexpr float tanh_limit = 8.2f;  // where 1 is 2.5 ulp from the truth
  template <class V>
  DEVICE [[gnu::always_inline]] static V tanh_p(V x) {
    return polynomial(x, 1.48406079e-08f, 2.16372027e-05f, 0.00355668273f, 0.134321153f);
  }
  template <class V>
  DEVICE [[gnu::always_inline]] static V tanh_q(V x) {
    return polynomial(x, 8.37058053e-07f, 0.000338643469f, 0.026108278f, 0.467654377f, 1);
  }
  // (e^f - 1 - f) / f^2 for |f| <= ln(2)/2; e^f - 1 has relative error 1.4e-8.
  template <class V>
  DEVICE [[gnu::always_inline]] static V expm1(V x) {
    return polynomial(x, 0.00138706993f, 0.00836627092f, 0.0416674353f, 0.166665465f, 0.49999997f);
  }
  // (2 atanh(s/2) - s) / s^3, in s^2, for 0 <= s <= 2/3; atanh has relative error 4.5e-9.
  template <class V>
  DEVICE [[gnu::always_inline]] static V atanh(V x) {
    return polynomial(x, 0.000546999392f, 0.00218774192f, 0.0125066983f, 0.0833330229f);
  }
};

template <>
struct Constants<double> {
  static constexpr int mantissa_bits = 52;
  static constexpr double round_and_bias = 0x1.8p52 + 1023;
  static constexpr double log2e = 1.4426950408889634;
  static constexpr double ln2_high = 0x1.62e42fefa2p-1;  // 40 bits, so that n * ln2_high is exact
  static constexpr double ln2_low = 7.371002565167799e-13;
  static constexpr double sigmoid_limit = 700;  // q <= 1.1e304; tanh's q is at most 2
  static constexpr double zero_limit = 709;
  static constexpr double tanh_limit = 20;  // tanh rounds to 1 from 19.1 on
  // (e^f - 1 - f) / f^2 for |f| <= ln(2)/2; e^f - 1 has relative error 2.4e-17.
  template <class V>
  DEVICE [[gnu::always_inline]] static V expm1(V x) {
    return polynomial(x, 2.5047667390073234e-08, 2.7622155566166577e-07, 2.755741994081653e-06, 2.480151651500139e-05,
                      0.00019841269714186236, 0.001388888892038893, 0.008333333333386912, 0.041666666666620236,
                      0.16666666666666602, 0.5);
  }
  // As for float; atanh has relative error 1.3e-18.
  template <class V>
  DEVICE [[gnu::always_inline]] static V atanh(V x) {
    return polynomial(x, 8.110882592314082e-08, 1.5916621292030705e-07, 9.235370866649245e-07, 4.0591774563742196e-06,
                      1.878240893885737e-05, 8.877804887941543e-05, 0.00043402781164801293, 0.0022321428553170024,
                      0.012500000000048672, 0.08333333333333288);
  }
};

// 2^n where biased = n + round_and_bias: the shift moves the exponent field into place and drops all above it.
template <class V>
DEVICE [[gnu::always_inline]] inline V power_of_two(V biased) {
  return from_bits<V>(bits_of(biased) << Constants<Elem<V>>::mantissa_bits);
}

// e^y = scale + scale * rest, where scale is a power of two. Valid for |y| <= 87 (float), 708 (double), and down to
// -zero_limit, where scale is 0 and e^y a denormal; NaN gives a NaN rest.
template <class V>
struct Exponential {
  V scale, rest;
};

template <class V>
DEVICE [[gnu::always_inline]] inline Exponential<V> exponential(V y) {
  using K = Constants<Elem<V>>;
  const V biased = fma(y, broadcast<V>(K::log2e), broadcast<V>(K::round_and_bias));
  const V n = biased - broadcast<V>(K::round_and_bias);
  const V f = fma(n, broadcast<V>(-K::ln2_low), fma(n, broadcast<V>(-K::ln2_high), y));
  return {power_of_two(biased), fma(f * f, K::expm1(f), f)};
}

// 1 / (1 + e^-x). p = 1; 1 <= q <= 5.6e34 (float), 1.1e304 (double). Valid for every x, infinities too; NaN gives NaN.
// Max error:
// float   8.95e-8 absolute (without FMA 9.5e-8); relative 2.4e-7 for x >= -10, 1.2e-6 for x >= -80 (6e-7, 3.8e-6)
// double  2.4 ulp, 3.2e-16 relative, for x >= -700
// Below -80 (-700) the result stays at its value there, 1.8e-35 (9.9e-305).
template <class V>
DEVICE [[gnu::always_inline]] inline Fraction<V> sigmoid(V x) {
  using K = Constants<Elem<V>>;
  const V one = broadcast<V>(1);
  // x stands second: min and max return their second operand where it is NaN.
  x = max(broadcast<V>(-K::sigmoid_limit), min(broadcast<V>(K::sigmoid_limit), x));
  if constexpr (sizeof(Elem<V>) == 4) {
    // e^-x = 2^(n + f). One fma forms f: log2e being rounded costs e^-x at most 1.1e-6 of its value, at |x| = 80.
    const V biased = fma(x, broadcast<V>(-K::log2e), broadcast<V>(K::round_and_bias));
    const V n = biased - broadcast<V>(K::round_and_bias);
    const V f = fma(x, broadcast<V>(-K::log2e), -n);
    return {one, fma(power_of_two(biased), K::exp2(f), one)};
  } else {
    const Exponential<V> e = exponential(-x);
    return {one, fma(e.scale, e.rest, e.scale + one)};
  }
}

// 1 <= q <= 271 (float), 2 (double). Odd to the bit, valid for every x, infinities too; NaN gives NaN. Max error:
// float   4.95 ulp (without FMA 6.1, and 1 + 2^-23 at a few x); 2.8 ulp for |x| < 1; exactly +-1 for |x| >= 8.2
// double  2.6 ulp; exactly +-1 for |x| >= 19.1
template <class V>
DEVICE [[gnu::always_inline]] inline Fraction<V> tanh(V x) {
  using K = Constants<Elem<V>>;
  if constexpr (sizeof(Elem<V>) == 4) {
    x = max(broadcast<V>(-K::tanh_limit), min(broadcast<V>(K::tanh_limit), x));
    const V t = x * x;
    return {fma(x * t, K::tanh_p(t), x), K::tanh_q(t)};
  } else {
    // tanh|x| = -m / (m + 2), m = e^(-2|x|) - 1 in (-1, 0]: q stays in [1, 2], and the sign of x returns exactly.
    const Bits<V> sign = ~Bits<V>{} << 63;
    const V down = from_bits<V>(bits_of(x) | sign);  // -|x|
    const V y = max(broadcast<V>(-2 * K::tanh_limit), down + down);
    const Exponential<V> e = exponential(y);
    const V m = fma(e.scale, e.rest, e.scale - broadcast<V>(1));
    return {from_bits<V>((bits_of(m) & ~sign) | (bits_of(x) & sign)), m + broadcast<V>(2)};
  }
}
