// The packed matrix product: register tiles of up to MR rows by NV vectors. Each output is a sum of chains of fused
// multiply-adds with k ascending; where a chain ends depends on the sizes of the layer alone, never on the tile, the thread
// or the batch. That is what makes every split of the work bitwise the same.
// Included by kernels.cpp inside the namespace of one instruction set.

#define FASTLSTM_INLINE __attribute__((always_inline))

// The sums of one register tile. Only compile-time indices touch it, so that it lives in registers.
template <class T, int ROWS, int NV>
struct Tile {
  Vec<T> sum[ROWS][NV];

  template <class F>  // f(row, vector) for each
  static FASTLSTM_INLINE void each(F f) {
    unrolled<ROWS>([&](auto r) FASTLSTM_INLINE { unrolled<NV>([&](auto j) FASTLSTM_INLINE { f(r, j); }); });
  }
};

// sum[j] += *a * b[j] for one row of a tile.
template <class T, int NV>
FASTLSTM_INLINE inline void fma_row(Vec<T> (&sum)[NV], const T* a, const Vec<T> (&b)[NV]) {
#if FASTLSTM_TILE_ASM
  // Left to itself gcc 12 spills or reloads once k is unrolled, which costs a quarter of the speed.
  if constexpr (NV == 2 && sizeof(T) == 4) {
    Vec<T> x;
    asm volatile("vbroadcastss %3, %2\n\tvfmadd231ps %4, %2, %0\n\tvfmadd231ps %5, %2, %1"
                 : "+x"(sum[0]), "+x"(sum[1]), "=&x"(x)
                 : "m"(*a), "x"(b[0]), "x"(b[1]));
    return;
  }
  if constexpr (NV == 2 && sizeof(T) == 8) {
    Vec<T> x;
    asm volatile("vbroadcastsd %3, %2\n\tvfmadd231pd %4, %2, %0\n\tvfmadd231pd %5, %2, %1"
                 : "+x"(sum[0]), "+x"(sum[1]), "=&x"(x)
                 : "m"(*a), "x"(b[0]), "x"(b[1]));
    return;
  }
#endif
  const Vec<T> x = broadcast<Vec<T>>(*a);
  unrolled<NV>([&](auto j) FASTLSTM_INLINE { sum[j] = fma(x, b[j], sum[j]); });
}

// One k of a tile: its rows' elements lie at a[r], its vectors at b + j / NR * panel_stride + j % NR * lanes.
template <class T, class W, int ROWS, int NV>
FASTLSTM_INLINE inline void tile_step(Tile<T, ROWS, NV>& tile, const T* const (&a)[ROWS], int64_t k, const W* b,
                                      int64_t panel_stride) {
  Vec<T> bv[NV];
  const auto at = [&](int j) FASTLSTM_INLINE { return b + j / NR * panel_stride + j % NR * kLanes<T>; };
  if constexpr (sizeof(W) == sizeof(T))
    unrolled<NV>([&](auto j) FASTLSTM_INLINE { bv[j] = load(at(j)); });
  else
    unrolled<NV / 2>([&](auto i) FASTLSTM_INLINE {
      const VectorPair<T> pair = load_pair<T>(at(2 * i));
      bv[2 * i] = pair.first;
      bv[2 * i + 1] = pair.second;
    });
  unrolled<ROWS>([&](auto r) FASTLSTM_INLINE { fma_row<T, NV>(tile.sum[r], a[r] + k, bv); });
}

constexpr int kUnroll = FASTLSTM_TILE_ASM ? 4 : 1;

// Each tile asks for one of every four lines of the next panel, so that four tiles of rows fetch it whole: what the hardware
// fetches by itself ends with every page. Worth an instruction only where a round of the loop reads four lines for many rows.
constexpr int64_t kLine = 64;
template <class T, class W, int ROWS>
constexpr bool kPrefetches = ROWS > 3 && kPanel<T>* int64_t(sizeof(W)) * kUnroll >= 4 * kLine;

// tile += a . b over K. Row r of a starts at a[r]; a and b are left behind the last k. What lies `ahead` of b is prefetched.
template <class T, class W, int ROWS, int NV>
FASTLSTM_INLINE inline void tile_run(Tile<T, ROWS, NV>& tile, int64_t K, const T* (&a)[ROWS], const W*& b,
                                     int64_t panel_stride, int64_t ahead) {
  const auto advance = [&](int64_t steps) FASTLSTM_INLINE {
    b += steps * kPanel<T>;
    unrolled<ROWS>([&](auto r) FASTLSTM_INLINE {
      a[r] += steps;
      asm("" : "+r"(a[r]));  // keeps one register a row: gcc would invent many more, and spill them
    });
  };
  int64_t k = 0;
  if (kUnroll > 1) {
    for (; k + kUnroll <= K; k += kUnroll) {
      if (kPrefetches<T, W, ROWS>) __builtin_prefetch(b + ahead, 0, 2);
      unrolled<kUnroll>([&](auto u) FASTLSTM_INLINE { tile_step(tile, a, u, b + u * kPanel<T>, panel_stride); });
      advance(kUnroll);
    }
  }
#pragma GCC unroll 1
  for (; k < K; ++k) {
    if (kPrefetches<T, W, ROWS> && kUnroll == 1) __builtin_prefetch(b + ahead, 0, 2);
    tile_step(tile, a, 0, b, panel_stride);
    advance(1);
  }
}

// ROWS rows by the first NV vectors of the panels from `panel` on. What the chains before have summed waits in c.
template <class T, class W, int ROWS, int NV>
__attribute__((noinline)) void product_tile(const Product<T>& p, int64_t row, int64_t panel) {
  using Sums = Tile<T, ROWS, NV>;
  const int64_t column = panel * kPanel<T>;
  Sums tile;
  const T* before = p.start ? p.start + row * p.start_stride + column : nullptr;
  int64_t before_stride = p.start_stride;
  if (before && !p.start_last) {
    Sums::each([&](auto r, auto j)
                   FASTLSTM_INLINE { tile.sum[r][j] = load(before + r * before_stride + j * kLanes<T>); });
    before = nullptr;
  } else {
    Sums::each([&](auto r, auto j) FASTLSTM_INLINE { tile.sum[r][j] = Vec<T>{}; });
  }
  const T* a[ROWS];
  unrolled<ROWS>([&](auto r) FASTLSTM_INLINE { a[r] = p.a + (row + r) * p.a_stride; });
  const W* b = static_cast<const W*>(p.panels) + panel * p.panel_stride;
  T* const c = p.c + row * p.c_stride + column;
  constexpr int64_t kLineElements = kLine / int64_t(sizeof(W));
  const int64_t next = p.descending ? -p.panel_stride : p.panel_stride;
  const int64_t ahead = p.prefetch ? next + row / (MR - 1) % 4 * kLineElements : 0;
  int64_t left = p.K, chain = p.K_first > 0 ? p.K_first : p.K;
  for (;;) {
    const int64_t K = chain < left ? chain : left;
    tile_run(tile, K, a, b, p.panel_stride, ahead);
    if (before)
      Sums::each([&](auto r, auto j)
                     FASTLSTM_INLINE { tile.sum[r][j] += load(before + r * before_stride + j * kLanes<T>); });
    Sums::each([&](auto r, auto j) FASTLSTM_INLINE { store(c + r * p.c_stride + j * kLanes<T>, tile.sum[r][j]); });
    if ((left -= K) == 0) return;
    Sums::each([&](auto r, auto j) FASTLSTM_INLINE { tile.sum[r][j] = Vec<T>{}; });
    before = c;
    before_stride = p.c_stride;
    chain = p.K_chain;
  }
}

// The same on whole numbers, with a start: each chain of at most 128 terms is exact, then scaled and added to what is before.
template <int ROWS, int NV>
__attribute__((noinline)) void product_tile_int8(const Product<float>& p, int64_t row, int64_t panel) {
  constexpr int L = kLanes<float>;
  const int64_t column = panel * kPanel<float>;
  const float* before = p.start + row * p.start_stride + column;
  int64_t before_stride = p.start_stride;
  const int16_t* a = p.levels + row * p.levels_stride;
  const int8_t* b = static_cast<const int8_t*>(p.panels) + panel * p.panel_stride;
  float* const c = p.c + row * p.c_stride + column;
  for (int64_t left = p.K; left > 0; left -= p.K_chain) {
    Integers sum[ROWS][NV] = {};
    const int64_t pairs = ((left < p.K_chain ? left : p.K_chain) + 1) / 2;
#pragma GCC unroll 1
    for (int64_t k = 0; k < pairs; ++k, a += 2, b += 2 * kPanel<float>)
      unrolled<NV>([&](auto j) FASTLSTM_INLINE {
        const int8_t* w = b + j / NR * p.panel_stride + j % NR * 2 * L;
        unrolled<ROWS>([&](auto r)
                           FASTLSTM_INLINE { sum[r][j] = add_products(sum[r][j], w, a + r * p.levels_stride); });
      });
    Tile<float, ROWS, NV>::each([&](auto r, auto j) FASTLSTM_INLINE {
      const Vec<float> scale = load(p.scales + column + j * L) * broadcast<Vec<float>>(p.level_scales[row + r]);
      const Vec<float> chain = __builtin_convertvector(sum[r][j], Vec<float>);
      store(c + r * p.c_stride + j * L, fma(chain, scale, load(before + r * before_stride + j * L)));
    });
    before = c;
    before_stride = p.c_stride;
  }
}

// The rows of a as whole numbers up to 32767, and what one of them is worth. A row that is not finite is worth NaN.
inline void find_levels(const Product<float>& p) {
  constexpr int L = kLanes<float>;
  for (int64_t row = 0; row < p.rows; ++row) {
    const float* a = p.a + row * p.a_stride;
    int16_t* levels = p.levels + row * p.levels_stride;
    Integers most = {};  // of magnitudes as bits, whose order is the same, and NaN's the largest
    for (int64_t k = 0; k < p.K; k += L) {
      const Integers bits = (Integers)load(a + k, p.K - k < L ? int(p.K - k) : L) & 0x7fffffff;
      most = bits > most ? bits : most;
    }
    int32_t largest = 0;
    for (int lane = 0; lane < L; ++lane) largest = most[lane] > largest ? most[lane] : largest;
    float magnitude;
    __builtin_memcpy(&magnitude, &largest, 4);
    const bool finite = largest < 0x7f800000;
    const float per_level = finite && magnitude >= 1e-30f ? 32767 / magnitude : 0;
    p.level_scales[row] = finite ? magnitude * (1 / 32767.0f) : __builtin_nanf("");
    constexpr float kRound = 0x1.8p23f;  // adding it rounds to the nearest whole number, ties to even
    for (int64_t k = 0; k < p.K; k += L) {
      const int lanes = p.K - k < L ? int(p.K - k) : L;
      const Vec<float> x = load(a + k, lanes) * broadcast<Vec<float>>(per_level);
      const Integers rounded = (Integers)(x + broadcast<Vec<float>>(kRound)) - 0x4b400000;
      for (int lane = 0; lane < lanes; ++lane) levels[k + lane] = finite ? int16_t(rounded[lane]) : 0;
    }
    if (p.K % 2) levels[p.K] = 0;
  }
}

template <class T, class W, int ROWS, int NV>
FASTLSTM_INLINE inline void any_tile(const Product<T>& p, int64_t row, int64_t panel) {
  if constexpr (sizeof(W) == 1)
    product_tile_int8<ROWS, NV>(p, row, panel);
  else
    product_tile<T, W, ROWS, NV>(p, row, panel);
}

template <class T, class W, int NV>
inline void product_rows(const Product<T>& p, int rows, int64_t row, int64_t panel) {
  unrolled<MR>([&](auto r) FASTLSTM_INLINE {
    if (rows == r + 1) any_tile<T, W, r + 1, NV>(p, row, panel);
  });
}

// All rows of one panel, in an even split: 13 rows are 5 + 4 + 4, not 6 + 6 + 1.
template <class T, class W, int NV>
inline void product_panel(const Product<T>& p, int64_t panel) {
  const int64_t tiles = (p.rows + MR - 1) / MR;
  int64_t row = 0;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int rows = int((p.rows - row + tiles - tile - 1) / (tiles - tile));
    product_rows<T, W, NV>(p, rows, row, panel);
    row += rows;
  }
}

// Few rows leave few chains: then several panels side by side keep the multipliers busy (8 or more sums in flight).
template <class T, class W>
void product_block(const Product<T>& p) {
  constexpr int WIDE_1 = 8 / NR, WIDE_2 = NR < 4 ? 4 / NR : 1;
  const int64_t end = p.panel_end - (p.tail_vectors > 0);
  int64_t first = p.panel_begin;
  // function(panel) for as many groups of neighbouring panels as are left.
  const auto each = [&](int64_t width, auto function) FASTLSTM_INLINE {
    const int64_t groups = end > first ? (end - first) / width : 0;
    for (int64_t i = 0; i < groups; ++i) function(first + (p.descending ? groups - 1 - i : i) * width);
    first += groups * width;
  };
  if (p.rows == 1) each(WIDE_1, [&](int64_t panel) FASTLSTM_INLINE { any_tile<T, W, 1, WIDE_1 * NR>(p, 0, panel); });
  if (p.rows == 2) each(WIDE_2, [&](int64_t panel) FASTLSTM_INLINE { any_tile<T, W, 2, WIDE_2 * NR>(p, 0, panel); });
  if constexpr (sizeof(W) != 2)  // the mask of Bfloat16 takes the register that three rows leave
    if (p.rows == 3) each(WIDE_2, [&](int64_t panel) FASTLSTM_INLINE { any_tile<T, W, 3, WIDE_2 * NR>(p, 0, panel); });
  each(1, [&](int64_t panel) FASTLSTM_INLINE { product_panel<T, W, NR>(p, panel); });
  if constexpr (sizeof(W) == sizeof(T))
    unrolled<NR - 1>([&](auto v) FASTLSTM_INLINE {
      if (p.tail_vectors == v + 1) product_panel<T, W, v + 1>(p, end);
    });
}

// Long products go block by block, so that the rows of a stay in the second cache while all panels pass. A block ends where
// a chain does.
template <class T, class W>
void product_of(const Product<T>& whole) {
  constexpr int64_t BLOCK = 512;
  Product<T> p = whole;
  int64_t block = whole.K_first + BLOCK;
  for (int64_t left = whole.K;; block = BLOCK) {
    p.K = block < left && whole.K_first > 0 ? block : left;
    product_block<T, W>(p);
    left -= p.K;
    if (left == 0) return;
    p.a += p.K;
    p.panels = static_cast<const W*>(p.panels) + p.K * kPanel<T>;
    p.K_first = p.K_chain;
    p.start = p.c;
    p.start_stride = p.c_stride;
    p.start_last = true;
  }
}

template <class T>
void product(const Product<T>& p) {
  if constexpr (sizeof(T) == 4) {
    if (p.storage == Storage::kBfloat16) return product_of<T, Bfloat16>(p);
    if (p.storage == Storage::kInt8) {
      if (!p.levels_known) find_levels(p);
      return product_block<T, int8_t>(p);
    }
  }
  product_of<T, T>(p);
}

// MR columns of a by one panel of b: the rows are the long k of this product. Its chain starts at zero and is added to the
// sum at its end, so that T * B terms become a sum of sums, which is more exact than one chain. The next tile's columns,
// next_a further on, and its sums are on their way meanwhile.
template <class T>
__attribute__((noinline)) void outer_tile(int64_t rows, const T* a, const T* b, T* sum, int64_t next_a, bool fresh) {
  using Sums = Tile<T, MR, NR>;
  Sums tile;
  for (int64_t i = MR * kPanel<T>; i < 2 * MR * kPanel<T>; i += kLine / int64_t(sizeof(T)))
    __builtin_prefetch(sum + i, 1, 3);
  Sums::each([&](auto r, auto j) FASTLSTM_INLINE { tile.sum[r][j] = Vec<T>{}; });
  for (int64_t row = 0; row < rows; ++row, a += MR, b += kPanel<T>) {
    const T* at[MR];
    unrolled<MR>([&](auto r) FASTLSTM_INLINE { at[r] = a + r; });
    __builtin_prefetch(a + next_a, 0, 3);
    tile_step(tile, at, 0, b, 0);
  }
  Sums::each([&](auto r, auto j) FASTLSTM_INLINE {
    T* at = sum + r * kPanel<T> + j * kLanes<T>;
    store(at, fresh ? tile.sum[r][j] : load(at) + tile.sum[r][j]);
  });
}

// The rows of one panel of b move to a buffer in the first cache, since every tile of columns of a reads them all again,
// and where they come from each lies on a page of its own.
template <class T>
void outer_sum(const OuterSum<T>& s) {
  constexpr int64_t ROWS = 128;  // of one chain: 8 KiB of b on AVX2
  alignas(64) T b[ROWS * kPanel<T>];
  const int64_t tiles = (s.columns_a + MR - 1) / MR;
  for (int64_t first = 0; first < s.rows; first += ROWS) {
    const int64_t rows = s.rows - first < ROWS ? s.rows - first : ROWS;
    const bool fresh = s.fresh && first == 0;
    for (int64_t panel = s.panel_begin; panel < s.panel_end; ++panel) {
      const int64_t column = panel * kPanel<T>;
      Vec<T> total[NR] = {};
      for (int64_t row = 0; row < rows; ++row)
        unrolled<NR>([&](auto j) FASTLSTM_INLINE {
          const Vec<T> v = load(s.b + (first + row) * s.b_stride + column + j * kLanes<T>);
          store(b + row * kPanel<T> + j * kLanes<T>, v);
          total[j] += v;
        });
      for (int64_t tile = 0; tile < tiles; ++tile)
        outer_tile(rows, s.a + (tile * s.a_rows + first) * MR, b, s.sum + (panel * tiles + tile) * MR * kPanel<T>,
                   s.a_rows * MR, fresh);
      if (!s.column_sum) continue;
      unrolled<NR>([&](auto j) FASTLSTM_INLINE {
        T* at = s.column_sum + column + j * kLanes<T>;
        store(at, fresh ? total[j] : load(at) + total[j]);
      });
    }
  }
}

template <class T, int NV>
FASTLSTM_INLINE inline void outer_vectors(const OuterRows<T>& s, int64_t column, int64_t k) {
  Vec<T> sum[NV] = {};
  for (int64_t row = 0; row < s.rows; ++row) {
    const Vec<T> b = broadcast<Vec<T>>(s.b[row * s.b_stride + column]);
    unrolled<NV>([&](auto j)
                     FASTLSTM_INLINE { sum[j] = fma(b, load(s.a + row * s.a_stride + k + j * kLanes<T>), sum[j]); });
  }
  T* to = s.to + column * s.columns_a + k;
  const int64_t left = s.columns_a - k;
  if (NV == 1 && left < kLanes<T>)
    store(to, sum[0], int(left));
  else
    unrolled<NV>([&](auto j) FASTLSTM_INLINE { store(to + j * kLanes<T>, sum[j]); });
}

template <class T>
void outer_rows(const OuterRows<T>& s) {
  constexpr int NV = 4;
  for (int64_t column = 0; column < s.columns_b; ++column) {
    int64_t k = 0;
    for (; k + NV * kLanes<T> <= s.columns_a; k += NV * kLanes<T>) outer_vectors<T, NV>(s, column, k);
    for (; k < s.columns_a; k += kLanes<T>) outer_vectors<T, 1>(s, column, k);
  }
}

// to [columns / MR][to_rows][MR], the a of outer_sum, from rows of `columns`; to_rows counts the rows of the whole.
template <class T>
void pack_columns(const T* from, int64_t from_stride, int64_t rows, int64_t columns, T* to, int64_t to_rows) {
  for (int64_t column = 0; column < columns; column += MR, to += to_rows * MR) {
    if (columns - column >= MR) {
      for (int64_t row = 0; row < rows; ++row)
        __builtin_memcpy(to + row * MR, from + row * from_stride + column, MR * sizeof(T));
      continue;
    }
    const int count = int(columns - column);
    for (int64_t row = 0; row < rows; ++row)
      for (int r = 0; r < MR; ++r) to[row * MR + r] = r < count ? from[row * from_stride + column + r] : T(0);
  }
}
