// The vector of one instruction set and the four operations that the kernels need beside + - * /.
// Included by kernels.cpp inside the namespace of that instruction set; opens no namespace, includes nothing.

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(FASTLSTM_VECTOR_BYTES)));
  typedef T unaligned __attribute__((vector_size(FASTLSTM_VECTOR_BYTES), aligned(alignof(T)), may_alias));
};

template <class T>
using Vec = typename VectorOf<T>::type;

template <class V>
struct ElementOf {
  typedef __typeof__(V{}[0] + V{}[0]) type;
};

template <class V>
using Elem = typename ElementOf<V>::type;

template <class T>
constexpr int kLanes = FASTLSTM_VECTOR_BYTES / int(sizeof(T));

// NR vectors make one packed panel; MR rows by NR vectors make one register tile.
constexpr int NR = FASTLSTM_TILE_VECTORS;
constexpr int MR = 6;

template <class T>
constexpr int kPanel = NR * kLanes<T>;

// The integers of which a vector's bits can be seen as.
template <class V>
using Bits = decltype(V{} < V{});

template <class V>
[[gnu::always_inline]] inline Bits<V> bits_of(V x) {
  return (Bits<V>)x;
}

template <class V>
[[gnu::always_inline]] inline V from_bits(Bits<V> bits) {
  return (V)bits;
}

// f(0), f(1), ... with compile-time indices: an array indexed by them stays in registers, which a loop does not promise.
template <int I>
struct Constant {
  constexpr operator int() const { return I; }
};

template <int... I, class F>
[[gnu::always_inline]] inline void unrolled_over(std::integer_sequence<int, I...>, F f) {
  (f(Constant<I>{}), ...);
}

template <int N, class F>
[[gnu::always_inline]] inline void unrolled(F f) {
  unrolled_over(std::make_integer_sequence<int, N>{}, f);
}

// x - 0 rather than 0 + x: the sum would keep an addition (because of -0), the difference folds into the broadcast.
template <class V>
[[gnu::always_inline]] inline V broadcast(Elem<V> x) {
  return x - V{};
}

template <class V>
[[gnu::always_inline]] inline V fma(V a, V b, V c) {
  return a * b + c;  // one rounding where the instruction set has it, by -ffp-contract=fast
}

// x is returned when it is NaN: clamping must not swallow one.
template <class V>
[[gnu::always_inline]] inline V min(V limit, V x) {
  return limit < x ? limit : x;
}

template <class V>
[[gnu::always_inline]] inline V max(V limit, V x) {
  return limit > x ? limit : x;
}

#if FASTLSTM_VECTOR_BYTES == 32 && defined(__AVX__)
template <>
inline Vec<float> min(Vec<float> limit, Vec<float> x) {
  return _mm256_min_ps(limit, x);
}
template <>
inline Vec<float> max(Vec<float> limit, Vec<float> x) {
  return _mm256_max_ps(limit, x);
}
template <>
inline Vec<double> min(Vec<double> limit, Vec<double> x) {
  return _mm256_min_pd(limit, x);
}
template <>
inline Vec<double> max(Vec<double> limit, Vec<double> x) {
  return _mm256_max_pd(limit, x);
}
#endif

template <class T>
[[gnu::always_inline]] inline Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename VectorOf<T>::unaligned*>(p);
}

// The upper half of a float32. Two vectors lie interleaved: an element of the first, then one of the second.
struct Bfloat16 {
  uint16_t bits;
};

typedef int32_t Integers __attribute__((vector_size(FASTLSTM_VECTOR_BYTES)));

// Two interleaved vectors of Bfloat16.
template <class T>
struct VectorPair {
  Vec<T> first, second;
};

template <class T>
[[gnu::always_inline]] inline VectorPair<T> load_pair(const Bfloat16* p) {
  typedef int32_t Pairs __attribute__((vector_size(FASTLSTM_VECTOR_BYTES), aligned(2), may_alias));
  Integers pairs = *reinterpret_cast<const Pairs*>(p);
#if defined(__AVX512F__)
  asm("" : "+v"(pairs));  // else each half loads it; with 64 bytes there is one load a cycle, on AVX2 there are two
#endif
  return {(Vec<T>)(pairs << 16), (Vec<T>)(pairs & int32_t(0xffff0000u))};
}

// sum += for each lane w[2 lane] * a[0] + w[2 lane + 1] * a[1], exactly.
[[gnu::always_inline]] inline Integers add_products(Integers sum, const int8_t* w, const int16_t* a) {
  int32_t pair;
  __builtin_memcpy(&pair, a, 4);
#if FASTLSTM_VECTOR_BYTES == 64 && defined(__AVX512BW__)
  const __m512i wide = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)w));
  return sum + (Integers)_mm512_madd_epi16(wide, _mm512_set1_epi32(pair));
#elif FASTLSTM_VECTOR_BYTES == 32 && defined(__AVX2__)
  const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)w));
  return sum + (Integers)_mm256_madd_epi16(wide, _mm256_set1_epi32(pair));
#elif FASTLSTM_VECTOR_BYTES == 16 && defined(__SSE4_1__)
  const __m128i wide = _mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i*)w));
  return sum + (Integers)_mm_madd_epi16(wide, _mm_set1_epi32(pair));
#else
  for (unsigned lane = 0; lane < FASTLSTM_VECTOR_BYTES / 4; ++lane)
    sum[lane] += w[2 * lane] * a[0] + w[2 * lane + 1] * a[1];
  return sum;
#endif
}

template <class T>
[[gnu::always_inline]] inline void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename VectorOf<T>::unaligned*>(p) = v;
}

// The first n lanes only: a row of the caller's array ends where it ends.
template <class T>
inline void store(T* p, Vec<T> v, int n) {
  if (n == kLanes<T>)
    store(p, v);
  else
    for (int lane = 0; lane < n; ++lane) p[lane] = v[lane];
}

template <class T>
inline Vec<T> load(const T* p, int n) {
  if (n == kLanes<T>) return load(p);
  Vec<T> v{};
  for (int lane = 0; lane < n; ++lane) v[lane] = p[lane];
  return v;
}

// The units of a block that exist.
template <class T>
inline int lanes_of_block(int64_t hidden, int64_t block) {
  const int64_t left = hidden - block * kLanes<T>;
  return left < kLanes<T> ? int(left) : kLanes<T>;
}
