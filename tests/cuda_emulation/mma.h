// Stands in for the CUDA toolkit's header of this name: nvcuda::wmma, the products of tensor cores. Which element of
// a matrix a lane holds where is scrambled by the seed, as it is nobody's business. (On a GPU, lanes may hold an
// element twice.)
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda_runtime.h"

namespace nvcuda::wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };
namespace precision {
struct tf32 {};
}  // namespace precision

inline float __float_to_tf32(float x) {
  const uint32_t bits = emulation::same_bits<uint32_t>(x);
  return emulation::same_bits<float>((bits + 0x1000u) & 0xffffe000u);  // to the nearest, ties away from zero
}

namespace detail {

// In memory and in registers
template <class T>
using Stored = std::conditional_t<std::is_same_v<T, precision::tf32>, float, T>;

// What the product makes of it: a tf32 whose last bits nobody rounded is cut off.
template <class T>
float factor(Stored<T> x) {
  if constexpr (std::is_same_v<T, precision::tf32>)
    return emulation::same_bits<float>(emulation::same_bits<uint32_t>(x) & 0xffffe000u);
  else
    return float(x);
}

template <class T, int M, int N, int K>
constexpr bool kExists =
    (std::is_same_v<T, precision::tf32> && M == 16 && N == 16 && K == 8) ||
    ((std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>) && M == 16 && N == 16 && K == 16);

}  // namespace detail

template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment {
  static constexpr bool kSum = std::is_same_v<Use, accumulator>;
  static_assert(kSum ? std::is_same_v<T, float> && (K == 8 || K == 16) : detail::kExists<T, M, N, K>);
  static constexpr int kRows = std::is_same_v<Use, matrix_b> ? K : M, kColumns = std::is_same_v<Use, matrix_a> ? K : N;
  static constexpr int num_elements = kRows * kColumns / 32;
  using element_type = T;
  using storage_element_type = detail::Stored<T>;

  fragment() { memset(static_cast<void*>(x), 0xff, sizeof x); }

  // row * kColumns + column of this lane's i-th element
  static int place(unsigned lane, int i) {
    const unsigned seed = emulation::layout_seed() + unsigned(2 * kRows + kColumns);
    return int(((lane * num_elements + unsigned(i)) * (2 * seed + 1) + seed / 7) % (kRows * kColumns));
  }

  storage_element_type x[num_elements];
};

template <class Use, int M, int N, int K, class T, class Layout, class Value>
inline void fill_fragment(fragment<Use, M, N, K, T, Layout>& a, const Value& value) {
  for (auto& x : a.x) x = typename fragment<Use, M, N, K, T, Layout>::storage_element_type(value);
}

namespace detail {

// All lanes must be there, and mean the same matrix.
struct Matrix {
  const void* memory;
  unsigned stride;
};

inline void meet(const char* name, emulation::Site site, Matrix matrix, size_t element_bytes) {
  if (reinterpret_cast<uintptr_t>(matrix.memory) % 32 || matrix.stride * element_bytes % 16)
    emulation::fail("misalignment", std::string(name) + " of a matrix that is not aligned to 32 bytes, its rows to 16");
  emulation::warp_collective(name, site, ~0u, &matrix, [](void* const(&brought)[32], unsigned) {
    for (const void* const other : brought)
      if (memcmp(other, brought[0], sizeof(void*) + sizeof(unsigned)) != 0)
        emulation::fail("divergence", "lanes of a warp load or store different matrices");
  });
}

template <class Fragment, class Function>
void for_each(unsigned stride, layout_t layout, Function function) {
  for (int i = 0; i < Fragment::num_elements; ++i) {
    const unsigned place = unsigned(Fragment::place(emulation::lane(), i));
    const unsigned row = place / Fragment::kColumns, column = place % Fragment::kColumns;
    function(i, layout == mem_row_major ? size_t(row) * stride + column : size_t(column) * stride + row);
  }
}

template <class Fragment, class T>
void load(Fragment& to, const T* from, unsigned stride, layout_t layout, emulation::Site site) {
  static_assert(std::is_same_v<T, typename Fragment::storage_element_type>);
  meet("load_matrix_sync", site, {from, stride}, sizeof(T));
  for_each<Fragment>(stride, layout, [&](int i, size_t at) { to.x[i] = from[at]; });
}

}  // namespace detail

template <class Use, int M, int N, int K, class T, class Layout>
inline void load_matrix_sync(fragment<Use, M, N, K, T, Layout>& to, const detail::Stored<T>* from, unsigned stride,
                             emulation::Site site = emulation::Site::here()) {
  static_assert(!std::is_same_v<Use, accumulator>);
  detail::load(to, from, stride, std::is_same_v<Layout, row_major> ? mem_row_major : mem_col_major, site);
}

template <int M, int N, int K>
inline void load_matrix_sync(fragment<accumulator, M, N, K, float>& to, const float* from, unsigned stride,
                             layout_t layout, emulation::Site site = emulation::Site::here()) {
  detail::load(to, from, stride, layout, site);
}

template <int M, int N, int K>
inline void store_matrix_sync(float* to, const fragment<accumulator, M, N, K, float>& from, unsigned stride,
                              layout_t layout, emulation::Site site = emulation::Site::here()) {
  using Fragment = fragment<accumulator, M, N, K, float>;
  detail::meet("store_matrix_sync", site, {to, stride}, sizeof(float));
  detail::for_each<Fragment>(stride, layout, [&](int i, size_t at) { to[at] = from.x[i]; });
}

// d = a . b + c; d may be c
template <int M, int N, int K, class T, class LayoutA, class LayoutB>
inline void mma_sync(fragment<accumulator, M, N, K, float>& d, const fragment<matrix_a, M, N, K, T, LayoutA>& a,
                     const fragment<matrix_b, M, N, K, T, LayoutB>& b, const fragment<accumulator, M, N, K, float>& c,
                     emulation::Site site = emulation::Site::here()) {
  using A = fragment<matrix_a, M, N, K, T, LayoutA>;
  using B = fragment<matrix_b, M, N, K, T, LayoutB>;
  using C = fragment<accumulator, M, N, K, float>;
  struct Call {
    C* d;
    const A* a;
    const B* b;
    const C* c;
  } call{&d, &a, &b, &c};
  emulation::warp_collective("mma_sync", site, ~0u, &call, [](void* const(&brought)[32], unsigned) {
    float of_a[M * K], of_b[K * N], sum[M * N];
    for (unsigned lane = 0; lane < 32; ++lane) {
      const Call& one = *static_cast<const Call*>(brought[lane]);
      for (int i = 0; i < A::num_elements; ++i) of_a[A::place(lane, i)] = detail::factor<T>(one.a->x[i]);
      for (int i = 0; i < B::num_elements; ++i) of_b[B::place(lane, i)] = detail::factor<T>(one.b->x[i]);
      for (int i = 0; i < C::num_elements; ++i) sum[C::place(lane, i)] = one.c->x[i];
    }
    for (int m = 0; m < M; ++m)
      for (int k = 0; k < K; ++k)
        for (int n = 0; n < N; ++n) sum[m * N + n] += of_a[m * K + k] * of_b[k * N + n];
    for (unsigned lane = 0; lane < 32; ++lane)
      for (int i = 0; i < C::num_elements; ++i)
        static_cast<const Call*>(brought[lane])->d->x[i] = sum[C::place(lane, i)];
  });
}

}  // namespace nvcuda::wmma
