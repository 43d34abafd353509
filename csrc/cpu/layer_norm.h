// Layer normalisation (Ba, Kiros & Hinton 2016) inside a step: of both products over the 4H gate columns, and of c over the H
// units. The twins are layer_norm and layer_norm_backward in cells.py.
// Included by kernels.cpp inside the namespace of one instruction set.

template <class T>
inline T sum_of(Vec<T> v) {
  T a[kLanes<T>];
  store(a, v);
  for (int half = kLanes<T> / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) a[lane] += a[lane + half];
  return a[0];
}

// All lanes of a vector, or the first of them and zeros.
template <class T>
struct All {
  Vec<T> operator()(Vec<T> v) const { return v; }
};
template <class T>
struct First {
  int lanes;
  Vec<T> operator()(Vec<T> v) const {
    T a[kLanes<T>];
    store(a, v);
    return load(a, lanes);
  }
};

// function(offset, existing) for each vector of a row [blocks][PARTS][lanes], in one order wherever it runs; existing(v): v
// with zeros beyond the last unit.
template <class T, int PARTS, class F>
FASTLSTM_INLINE inline void each_vector(int64_t hidden, F function) {
  const int64_t whole = hidden / kLanes<T> * PARTS * kLanes<T>;
  for (int64_t at = 0; at < whole; at += kLanes<T>) function(at, All<T>{});
  const First<T> first{int(hidden % kLanes<T>)};
  for (int64_t part = 0; part < PARTS && first.lanes > 0; ++part) function(whole + part * kLanes<T>, first);
}

// The mean of a row, and one over its deviation.
template <class T, int PARTS>
void row_moments(const T* a, int64_t hidden, T* mean, T* inverse) {
  const T scale = 1 / T(PARTS * hidden);
  Vec<T> sum{}, squares{};
  each_vector<T, PARTS>(hidden, [&](int64_t at, auto existing) FASTLSTM_INLINE { sum += existing(load(a + at)); });
  *mean = sum_of<T>(sum) * scale;
  const Vec<T> middle = broadcast<Vec<T>>(*mean);
  each_vector<T, PARTS>(hidden, [&](int64_t at, auto existing) FASTLSTM_INLINE {
    const Vec<T> d = existing(load(a + at) - middle);
    squares = fma(d, d, squares);
  });
  *inverse = 1 / T(__builtin_sqrt(sum_of<T>(squares) * scale + T(kNormEpsilon)));
}

// Both sums of each row, normalised in place, and pre.
template <class T>
void normalise_sums(const StepNorm<T>& norm, int64_t rows, int64_t hidden, int64_t columns) {
  for (int64_t row = 0; row < rows; ++row) {
    T* sums = norm.sums + row * 2 * columns;
    for (int part = 0; part < 2; ++part) {
      T *a = sums + part * columns, mean;
      row_moments<T, 4>(a, hidden, &mean, norm.inverses + row * 2 + part);
      const Vec<T> middle = broadcast<Vec<T>>(mean), inverse = broadcast<Vec<T>>(norm.inverses[row * 2 + part]);
      for (int64_t i = 0; i < columns; i += kLanes<T>) store(a + i, (load(a + i) - middle) * inverse);
    }
    for (int64_t i = 0; i < columns; i += kLanes<T>)
      store(norm.pre + row * columns + i,
            fma(load(sums + i), load(norm.gains + i),
                fma(load(sums + columns + i), load(norm.gains + columns + i), load(norm.bias + i))));
  }
}

template <class T>
CellNorm<Vec<T>> cell_norm(const StepNorm<T>& norm, int64_t block, int64_t row) {
  using V = Vec<T>;
  const T *output = norm.output + block * 2 * kLanes<T>, *moments = norm.moments + row * 4;
  return {true,
          load(output),
          load(output + kLanes<T>),
          broadcast<V>(moments[0]),
          broadcast<V>(moments[1]),
          broadcast<V>(moments[2]),
          broadcast<V>(moments[3]),
          V{}};
}

// Gradients of the two sums of a row from that of pre, and the terms of the gains and the bias.
template <class T>
void normalise_backward(const StepBackward<T>& s, int64_t row) {
  using V = Vec<T>;
  const StepNorm<T>& norm = s.norm;
  const int64_t H = s.hidden, L = kLanes<T>, columns = s.block_end * 4 * L;
  const T scale = 1 / T(4 * H), *d_pre = s.d_pre + row * s.d_pre_stride;
  T* terms = norm.d_gains + row * s.variant.terms_stride;
  const auto place = [&](int64_t at) { return at / (4 * L) * s.variant.d_block + at / L % 4 * s.variant.d_gate; };
  for (int part = 0; part < 2; ++part) {
    const T *a = norm.sums + (row * 2 + part) * columns, *gains = norm.gains + part * columns;
    T* d_sum = (part == 0 ? norm.d_x : norm.d_h) + row * s.d_pre_stride;
    V sum{}, along{};
    each_vector<T, 4>(H, [&](int64_t at, auto) FASTLSTM_INLINE {
      const V d = load(d_pre + place(at)) * load(gains + at);  // zero beyond the last unit, as the gains are
      sum += d;
      along = fma(d, load(a + at), along);
      store(terms + part * columns + at, load(d_pre + place(at)) * load(a + at));
      if (part == 0) store(terms + 2 * columns + at, load(d_pre + place(at)));
    });
    const V mean = broadcast<V>(sum_of<T>(sum) * scale), mean_along = broadcast<V>(sum_of<T>(along) * scale);
    const V inverse = broadcast<V>(norm.inverses[row * 2 + part]);
    each_vector<T, 4>(H, [&](int64_t at, auto existing) FASTLSTM_INLINE {
      const V d = load(d_pre + place(at)) * load(gains + at);
      store(d_sum + place(at), existing((d - mean - load(a + at) * mean_along) * inverse));
    });
  }
}
