// Matrices turned by squares of vectors.
// Included by kernels.cpp inside the namespace of one instruction set.

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
