// What a GPU thread computes with: numbers for cell.h, storage types, shared memory. The only file with intrinsics; where
// FASTLSTM_EMULATION is set, the kernels run on the CPU and what is special has a twin here.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../cell_options.h"
#include "../philox.h"

#if defined(FASTLSTM_EMULATION)
#include "emulation.h"
#endif

namespace fastlstm::gpu {

// One thread's number is a vector of one lane.
template <class V>
using Elem = V;
template <class V>
using Bits = std::conditional_t<sizeof(V) == 2, uint16_t, std::conditional_t<sizeof(V) == 4, uint32_t, uint64_t>>;

template <class V>
DEVICE inline Bits<V> bits_of(V x) {
  Bits<V> bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
template <class V>
DEVICE inline V from_bits(Bits<V> bits) {
  V x;
  memcpy(static_cast<void*>(&x), &bits, sizeof x);
  return x;
}
template <class V>
DEVICE inline V broadcast(V x) {
  return x;
}
DEVICE inline float fma(float a, float b, float c) { return fmaf(a, b, c); }
DEVICE inline double fma(double a, double b, double c) { return ::fma(a, b, c); }
DEVICE inline float square_root(float x) { return sqrtf(x); }
DEVICE inline double square_root(double x) { return ::sqrt(x); }

// x is returned when it is NaN, as on the CPU.
template <class V>
DEVICE inline V min(V limit, V x) {
  return limit < x ? limit : x;
}
template <class V>
DEVICE inline V max(V limit, V x) {
  return limit > x ? limit : x;
}

// clang-format off
#include "../activations.h"
#include "../activation_kinds.h"
#include "../cell.h"
// clang-format on

// What numbers of a storage type are computed and summed in.
template <class T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ inline float widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
__device__ inline float widen(__half x) { return __half2float(x); }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ inline T narrow(Wide<T> x) {
  if constexpr (std::is_same_v<T, __half>)
    return __float2half_rn(x);
  else if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __float2bfloat16_rn(x);
  else
    return x;
}

// Neighbours in memory, which one access moves.
template <class T, int N>
struct alignas(N * sizeof(T)) Vector {
  T at[N];
};
template <class T>
using Quad = Vector<T, 4>;

// a[i], or its i-th row, of an array in registers. Those have no index: a loop that the compiler does not unroll would put the
// array into memory; a selection does not.
template <class T, int N>
__device__ inline T element(const T (&a)[N], int i) {
  T found = a[0];
#pragma unroll
  for (int k = 1; k < N; ++k) found = i == k ? a[k] : found;
  return found;
}
template <class T, int N, int COLUMNS>
__device__ inline Vector<T, COLUMNS> row_of(const T (&a)[N][COLUMNS], int i) {
  Vector<T, COLUMNS> row;
#pragma unroll
  for (int j = 0; j < COLUMNS; ++j) {
    row.at[j] = a[0][j];
#pragma unroll
    for (int k = 1; k < N; ++k) row.at[j] = i == k ? a[k][j] : row.at[j];
  }
  return row;
}

// All shared memory is dynamic: static arrays of template kernels would be one for all blocks in emulation.
template <class T>
__device__ inline T* shared_memory() {
#if defined(FASTLSTM_EMULATION)
  return static_cast<T*>(emulation::shared_memory());
#else
  extern __shared__ __align__(128) unsigned char memory[];
  return reinterpret_cast<T*>(memory);
#endif
}

// A seeded fault of the mutation tests; never true outside them.
__device__ inline bool mutated([[maybe_unused]] const char* name) {
#if defined(FASTLSTM_EMULATION)
  return emulation::mutated(name);
#else
  return false;
#endif
}

// A value as it lies in memory. On its way from there, nobody waits for it until it is taken for what it is.
template <class V>
class Brought {
 public:
  using Word = std::conditional_t<sizeof(V) % 4 == 0, uint32_t, uint16_t>;
  static constexpr int kWords = sizeof(V) / sizeof(Word);
  Vector<Word, kWords> words;

  Brought() = default;
  __device__ explicit Brought(const V* from) : words(*reinterpret_cast<const Vector<Word, kWords>*>(from)) {}
  __device__ operator V() const {
    V value;
    memcpy(static_cast<void*>(&value), words.at, sizeof value);
    return value;
  }
};

// To shared memory, in one access, which the compiler does not always find.
template <class T, int N>
__device__ inline void store_shared(T* to, const Brought<Vector<T, N>>& values) {
#if defined(__CUDACC__)
  if constexpr (N * sizeof(T) == 16) {
    const auto& w = values.words.at;
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(unsigned(__cvta_generic_to_shared(to))), "r"(w[0]),
                 "r"(w[1]), "r"(w[2]), "r"(w[3])
                 : "memory");
    return;
  }
#endif
  *reinterpret_cast<Vector<T, N>*>(to) = values;
}

// Neighbours that other blocks read and write at the same time: each of them is whole, and nothing else is ordered. One access,
// past this processor's own cache, in words of a number's own size, since PTX promises no more than whole words. What is not
// wanted stays as it is.
template <class T, int N>
__device__ inline void load_relaxed(Brought<Vector<T, N>>& to, const T* from, unsigned wanted = 1) {
  constexpr size_t kBytes = N * sizeof(T);
  static_assert(kBytes == 2 || kBytes == 4 || kBytes == 8 || kBytes == 16);
  [[maybe_unused]] auto& w = to.words.at;
#if defined(FASTLSTM_EMULATION)
  if (wanted) emulation::relaxed_load(w, from, sizeof(T), N);
#elif defined(__CUDACC__)
#define WHERE(wanted, load) "{\n.reg .pred p;\nsetp.ne.u32 p, " wanted ", 0;\n@p ld.relaxed.gpu.global." load ";\n}"
  const size_t at = __cvta_generic_to_global(from);
  if constexpr (sizeof(T) == 8) {
    uint64_t d[N];
    memcpy(d, w, kBytes);
    if constexpr (N == 1)
      asm volatile(WHERE("%2", "b64 %0, [%1]") : "+l"(d[0]) : "l"(at), "r"(wanted));
    else
      asm volatile(WHERE("%3", "v2.b64 {%0, %1}, [%2]") : "+l"(d[0]), "+l"(d[1]) : "l"(at), "r"(wanted));
    memcpy(w, d, kBytes);
  } else if constexpr (kBytes == 2)
    asm volatile(WHERE("%2", "b16 %0, [%1]") : "+h"(w[0]) : "l"(at), "r"(wanted));
  else if constexpr (kBytes == 4)
    asm volatile(WHERE("%2", "b32 %0, [%1]") : "+r"(w[0]) : "l"(at), "r"(wanted));
  else if constexpr (kBytes == 8)
    asm volatile(WHERE("%3", "v2.b32 {%0, %1}, [%2]") : "+r"(w[0]), "+r"(w[1]) : "l"(at), "r"(wanted));
  else
    asm volatile(WHERE("%5", "v4.b32 {%0, %1, %2, %3}, [%4]")
                 : "+r"(w[0]), "+r"(w[1]), "+r"(w[2]), "+r"(w[3])
                 : "l"(at), "r"(wanted));
#undef WHERE
#endif
}

template <int N, class T>
__device__ inline void store_relaxed(T* to, const Vector<T, N>& values) {
  constexpr size_t kBytes = N * sizeof(T);
  static_assert(kBytes == 2 || kBytes == 4 || kBytes == 8 || kBytes == 16);
#if defined(FASTLSTM_EMULATION)
  emulation::relaxed_store(to, &values, sizeof(T), N);
#elif defined(__CUDACC__)
  const size_t at = __cvta_generic_to_global(to);
  if constexpr (sizeof(T) == 8) {
    uint64_t d[N];
    memcpy(d, &values, kBytes);
    if constexpr (N == 1)
      asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(at), "l"(d[0]) : "memory");
    else
      asm volatile("st.relaxed.gpu.global.v2.b64 [%0], {%1, %2};" ::"l"(at), "l"(d[0]), "l"(d[1]) : "memory");
  } else if constexpr (kBytes == 2) {
    uint16_t w;
    memcpy(&w, &values, kBytes);
    asm volatile("st.relaxed.gpu.global.b16 [%0], %1;" ::"l"(at), "h"(w) : "memory");
  } else if constexpr (kBytes == 4) {
    uint32_t w;
    memcpy(&w, &values, kBytes);
    asm volatile("st.relaxed.gpu.global.b32 [%0], %1;" ::"l"(at), "r"(w) : "memory");
  } else if constexpr (kBytes == 8) {
    uint2 w;
    memcpy(&w, &values, kBytes);
    asm volatile("st.relaxed.gpu.global.v2.b32 [%0], {%1, %2};" ::"l"(at), "r"(w.x), "r"(w.y) : "memory");
  } else {
    uint4 w;
    memcpy(&w, &values, kBytes);
    asm volatile("st.relaxed.gpu.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(w.x), "r"(w.y), "r"(w.z),
                 "r"(w.w)
                 : "memory");
  }
#endif
}

// For the host, which may look at any time; many may say the same.
__device__ inline void tell_host(unsigned* to, unsigned value) {
#if defined(FASTLSTM_EMULATION)
  emulation::relaxed_store(to, &value, sizeof value, 1);
#else
  *static_cast<volatile unsigned*>(to) = value;
#endif
}

// Into the cache of all processors; nobody waits for it.
__device__ inline void prefetch([[maybe_unused]] const void* from) {
#if defined(__CUDACC__)
  asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(from)));
#endif
}

// s, of which the compiler has forgotten what it knew: what is computed from it is computed anew, not kept in registers.
__device__ inline int64_t anew(int64_t s) {
#if defined(__CUDACC__)
  asm volatile("" : "+l"(s));
#endif
  return s;
}

// What a thread does before it reads again what was not there.
__device__ inline void read_in_vain() {
#if defined(FASTLSTM_EMULATION)
  emulation::wait_for_others();
#endif
}

}  // namespace fastlstm::gpu
