// The product of a step in the persistent kernels, whose columns of U stay in the shared memory of the block: by fused
// multiply-adds, in the order of the step kernels; or by tensor cores, which sum in float. Included by persistent.cuh.
#pragma once
#include <mma.h>

#include "step_backward.cuh"

namespace fastlstm::gpu {

constexpr int kPersistentThreads = 256;
constexpr int kWarps = kPersistentThreads / 32;
static_assert(kWarps == kSlices, "a warp sums a slice");
constexpr int kMmaEdge = 16;   // rows, and columns, of what a warp computes on tensor cores at once
constexpr int kMmaDepth = 16;  // to a multiple of which depths are filled with zeros
constexpr int kMostColumns = 128;

// What tensor cores take of the storage type.
template <class T>
struct MmaFactor {
  using type = T;
  static constexpr int kDepth = 16;
};
template <>
struct MmaFactor<float> {
  using type = nvcuda::wmma::precision::tf32;
  static constexpr int kDepth = 8;
};

// What one access moves at most, and the skew of rows in shared memory, by which neighbours start in different banks.
template <class T>
constexpr int kVector = 16 / int(sizeof(T));

// To a multiple of what the depth of w and of the tile is filled with zeros.
template <class T, bool TENSOR>
constexpr int kFilled = TENSOR ? kMmaDepth : kVector<T>;

// How a launch is cut: blocks of `quads` times four columns; tiles of rows; so much depth of the operand at once, which is all of
// it or a multiple of kSlices * kDepth.
struct PersistentShape {
  int quads, rows;  // of a block; of a tile
  int row_threads;  // without tensor cores: of a warp along the rows of a tile, each with some
  int splits;       // of the depth, each of which a warp sums for itself
  int depth_at_once;
  int w_stride;  // of w in shared memory: [depth][w_stride], or for tensor cores [4 quads][w_stride]
  bool tensor_cores;
  DEVICE int columns() const { return 4 * quads; }
};

DEVICE inline int round_up(int n, int to) { return (n + to - 1) / to * to; }

// The shared memory of a block.
template <class T, bool TENSOR>
struct PersistentMemory {
  T* w;           // this block's columns of U
  Wide<T>* sums;  // [splits][rows][columns], of a tile
  T* tile;        // [rows][depth_at_once + kVector], of the operand

  static DEVICE size_t w_size(const PersistentShape& shape, int depth) {
    return size_t(TENSOR ? shape.columns() : round_up(depth, kFilled<T, TENSOR>)) * size_t(shape.w_stride);
  }
  static DEVICE size_t sums_size(const PersistentShape& shape) {
    return size_t(shape.splits) * size_t(shape.rows * shape.columns());
  }
  static size_t bytes(const PersistentShape& shape, int depth) {
    const size_t tile_size = size_t(shape.rows) * size_t(shape.depth_at_once + kVector<T>);
    return (w_size(shape, depth) + tile_size) * sizeof(T) + sums_size(shape) * sizeof(Wide<T>);
  }
  __device__ PersistentMemory(const PersistentShape& shape, int depth)
      : w(shared_memory<T>()),
        sums(reinterpret_cast<Wide<T>*>(w + w_size(shape, depth))),
        tile(reinterpret_cast<T*>(sums + sums_size(shape))) {}
};

// A number as the product takes it. What is left of a float that nobody rounded is cut off by tensor cores.
template <bool TENSOR, class T>
__device__ T as_factor(T x) {
  if constexpr (TENSOR && std::is_same_v<T, float>)
    return mutated("as_factor: not rounded") ? x : nvcuda::wmma::__float_to_tf32(x);
  else
    return x;
}

template <bool TENSOR, class T, int N>
__device__ Brought<Vector<T, N>> as_factors(const Brought<Vector<T, N>>& numbers) {
  if constexpr (TENSOR && std::is_same_v<T, float>) {
    Vector<T, N> factors = numbers;
    for (int i = 0; i < N; ++i) factors.at[i] = as_factor<TENSOR>(factors.at[i]);
    return Brought<Vector<T, N>>(&factors);
  } else {
    return numbers;
  }
}

// The columns of this block, from panels.
template <class T, bool TENSOR>
__device__ void load_columns(const T* panels, int depth, int columns, const PersistentShape& shape, T* w) {
  const int first = int(blockIdx.x) * shape.columns(), stored = round_up(depth, kFilled<T, TENSOR>);
  for (int i = int(threadIdx.x); i < stored * shape.columns(); i += kPersistentThreads) {
    const int k = i / shape.columns(), own = i % shape.columns(), column = first + own;
    const bool there = k < depth && column < columns;
    const T value = there ? panels[(int64_t(column / kPanel) * depth + k) * kPanel + column % kPanel] : T(0.0f);
    w[TENSOR ? own * shape.w_stride + k : k * shape.w_stride + own] = as_factor<TENSOR>(value);
  }
}

// A tile of the rows of an operand, from first_row on; it has `rows` in all.
template <class T>
struct TileOf {
  const Operand<T>& operand;
  const PersistentShape& shape;
  int first_row, rows;
};

// tile = the operand's columns from begin on, as soon as other blocks have written them. Zeros fill it up to the rows and the
// depth. A warp reads pieces of 32 accesses; TOGETHER are under way at once, and what has come is not read again.
template <class T, bool TENSOR, int VECTOR, int TOGETHER>
__device__ void load_tile(const TileOf<T>& of, int begin, int depth, T* tile, Patience& patience) {
  using Piece = Brought<Vector<T, VECTOR>>;
  constexpr int kWidth = 32 * VECTOR;
  const int stride = of.shape.depth_at_once + kVector<T>, lane = int(threadIdx.x) % 32 * VECTOR;
  const int across = (depth + kWidth - 1) / kWidth;  // pieces of a row
  const int row_step = kWarps / across, piece_step = kWarps % across;
  const T* const from = of.operand.a + int64_t(of.first_row) * of.operand.depth + begin;
  int next_row = int(threadIdx.x) / 32 / across, next_piece = int(threadIdx.x) / 32 % across;
  while (next_row < of.shape.rows) {
    Piece values[TOGETHER];
    int row[TOGETHER], k[TOGETHER];
    unsigned missing = 0;
#pragma unroll
    for (int i = 0; i < TOGETHER; ++i) {
      row[i] = next_row, k[i] = next_piece * kWidth + lane;
      next_row += row_step, next_piece += piece_step;
      if (next_piece >= across) ++next_row, next_piece -= across;
      const bool there = row[i] < of.shape.rows && of.first_row + row[i] < of.rows && begin + k[i] < of.operand.depth;
      missing |= unsigned(there) << i;
      values[i] = Piece{};
    }
    for (unsigned reads = 1; missing; ++reads) {
#pragma unroll
      for (int i = 0; i < TOGETHER; ++i)
        load_relaxed(values[i], from + row[i] * of.operand.depth + k[i], missing & (1u << i));
#pragma unroll
      for (int i = 0; i < TOGETHER; ++i)
        if (all_written(values[i])) missing &= ~(1u << i);
      if (mutated("load_tile: not waited for") || (missing && !patience.is_left(reads))) break;
    }
#pragma unroll
    for (int i = 0; i < TOGETHER; ++i)
      if (row[i] < of.shape.rows && k[i] < depth)
        store_shared(tile + row[i] * stride + k[i], as_factors<TENSOR>(values[i]));
  }
}

// The same between two barriers, of which a whole operand needs but one. Returns the depth that it loaded, filled up.
template <class T, bool TENSOR, int TOGETHER>
__device__ int next_part(const TileOf<T>& of, int begin, T* tile, Patience& patience) {
  const int left = of.operand.depth - begin;
  const int depth = round_up(left < of.shape.depth_at_once ? left : of.shape.depth_at_once, kFilled<T, TENSOR>);
  if (begin > 0 && !mutated("next_part: first barrier")) __syncthreads();  // all have read the part before
  if (of.operand.depth % kVector<T> == 0)
    load_tile<T, TENSOR, kVector<T>, TOGETHER>(of, begin, depth, tile, patience);
  else
    load_tile<T, TENSOR, 1, TOGETHER>(of, begin, depth, tile, patience);
  if (!mutated("next_part: second barrier")) __syncthreads();
  return depth;
}

// A warp sums its slice, a thread some rows of a quad, parts of kDepth as `product` does.
template <class T, int ROWS>
class FmaProduct {
 public:
  __device__ explicit FmaProduct(const TileOf<T>& of)
      : shape_(of.shape), quad_(lane() % shape_.quads), row_(lane() / shape_.quads) {}

  __device__ void add(const T* tile, const T* w, int begin, int depth) {
    const int stride = shape_.depth_at_once + kVector<T>;
    for (int part = warp() * kDepth; part < depth && !idle(); part += kSlices * kDepth) {
      const int end = depth - part < kDepth ? depth : part + kDepth;
      Wide<T> sum[ROWS][4] = {};
#pragma unroll 2
      for (int k = part; k < end; k += kVector<T>) {
        Vector<T, kVector<T>> of_a[ROWS];
#pragma unroll
        for (int i = 0; i < ROWS; ++i)
          of_a[i] = *reinterpret_cast<const Vector<T, kVector<T>>*>(tile + row(i) * stride + k);
#pragma unroll
        for (int l = 0; l < kVector<T>; ++l) {
          const Quad<T> of_w =
              *reinterpret_cast<const Quad<T>*>(w + int64_t(begin + k + l) * shape_.w_stride + 4 * quad_);
#pragma unroll
          for (int i = 0; i < ROWS; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) sum[i][j] = fma(widen(of_a[i].at[l]), widen(of_w.at[j]), sum[i][j]);
        }
      }
#pragma unroll
      for (int i = 0; i < ROWS; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) slice_[i][j] += sum[i][j];
    }
  }

  __device__ void leave(Wide<T>* sums) const {
    for (int i = 0; i < ROWS && !idle(); ++i)
      *reinterpret_cast<Quad<Wide<T>>*>(sums + (warp() * shape_.rows + row(i)) * shape_.columns() + 4 * quad_) =
          row_of(slice_, i);
  }

 private:
  __device__ static int lane() { return int(threadIdx.x) % 32; }
  __device__ static int warp() { return int(threadIdx.x) / 32; }
  __device__ bool idle() const { return row_ >= shape_.row_threads; }
  __device__ int row(int i) const { return row_ + i * shape_.row_threads; }

  const PersistentShape& shape_;
  const int quad_, row_;
  Wide<T> slice_[ROWS][4] = {};
};

// A warp has 16 columns and each `splits`-th part of the depth, whatever the rows are, so that no row's sums depend on others. Its
// products go to two sums by turns, so that one need not wait for the other.
template <class T, int ROWS>
class MmaProduct {
 public:
  __device__ explicit MmaProduct(const TileOf<T>& of)
      : of_(of), split_(warp() % of.shape.splits), column_(warp() / of.shape.splits * kMmaEdge) {
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
      nvcuda::wmma::fill_fragment(even_[i], 0.0f);
      nvcuda::wmma::fill_fragment(odd_[i], 0.0f);
    }
  }

  __device__ void add(const T* tile, const T* w, int begin, int depth) {
    constexpr int kTogether = ROWS == 1 ? 4 : 2;  // products whose factors are on their way at once
    const int step = of_.shape.splits * kDepth;
    w += column_ * of_.shape.w_stride + begin;
    int k = split_ * kDepth;
    if (idle()) return;
    for (; k + (kTogether - 1) * step < depth; k += kTogether * step) multiply<kTogether>(tile, w, k, step);
    for (; k + step < depth; k += 2 * step) multiply<2>(tile, w, k, step);
    if (k < depth) multiply<1>(tile, w, k, step);
  }

  __device__ void leave(float* sums) {
    sums += split_ * of_.shape.rows * of_.shape.columns() + column_;
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
      if (idle()) continue;
      for (int j = 0; j < even_[i].num_elements; ++j) even_[i].x[j] += odd_[i].x[j];
      nvcuda::wmma::store_matrix_sync(sums + i * kMmaEdge * of_.shape.columns(), even_[i],
                                      unsigned(of_.shape.columns()), nvcuda::wmma::mem_row_major);
    }
  }

 private:
  using Factor = typename MmaFactor<T>::type;
  static constexpr int kDepth = MmaFactor<T>::kDepth;
  static_assert(kSlices * gpu::kDepth % (2 * kWarps * kDepth) == 0, "each part of the depth begins with an even one");
  using Sum = nvcuda::wmma::fragment<nvcuda::wmma::accumulator, kMmaEdge, kMmaEdge, kDepth, float>;

  __device__ static int warp() { return int(threadIdx.x) / 32; }
  __device__ bool idle() const { return column_ >= of_.shape.columns(); }

  template <int N>
  __device__ void multiply(const T* tile, const T* w, int k, int step) {
    namespace wmma = nvcuda::wmma;
    const int stride = of_.shape.depth_at_once + kVector<T>;
    wmma::fragment<wmma::matrix_b, kMmaEdge, kMmaEdge, kDepth, Factor, wmma::col_major> of_w[N];
    wmma::fragment<wmma::matrix_a, kMmaEdge, kMmaEdge, kDepth, Factor, wmma::row_major> of_a[N][ROWS];
#pragma unroll
    for (int n = 0; n < N; ++n) {
      wmma::load_matrix_sync(of_w[n], w + k + n * step, unsigned(of_.shape.w_stride));
#pragma unroll
      for (int i = 0; i < ROWS; ++i)
        wmma::load_matrix_sync(of_a[n][i], tile + i * kMmaEdge * stride + k + n * step, unsigned(stride));
    }
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < ROWS; ++i) {
        Sum& sum = n % 2 ? odd_[i] : even_[i];
        wmma::mma_sync(sum, of_a[n][i], of_w[n], sum);
      }
  }

  const TileOf<T>& of_;
  const int split_, column_;
  Sum even_[ROWS], odd_[ROWS];
};

// Leaves in shared memory what each split of the depth sums to, for all threads. Nothing, where the operand has no depth.
template <class T, int ROWS, bool TENSOR, int TOGETHER>
__device__ void find_sums(const TileOf<T>& of, const PersistentMemory<T, TENSOR>& memory, Patience& patience) {
  if (of.operand.depth == 0) return;
  std::conditional_t<TENSOR, MmaProduct<T, ROWS>, FmaProduct<T, ROWS>> product(of);
  for (int begin = 0; begin < of.operand.depth; begin += of.shape.depth_at_once) {
    const int depth = next_part<T, TENSOR, TOGETHER>(of, begin, memory.tile, patience);
    product.add(memory.tile, memory.w, begin, depth);
  }
  product.leave(memory.sums);
  if (!mutated("find_sums: barrier")) __syncthreads();
}

// Of neighbouring columns of a row of the tile, from what find_sums left: the splits in order.
template <int N, class T>
__device__ Vector<Wide<T>, N> sum_of_splits(const TileOf<T>& of, const Wide<T>* sums, int row, int column) {
  Vector<Wide<T>, N> total{}, parts[kWarps];
  if (of.operand.depth == 0) return total;
  const int apart = of.shape.rows * of.shape.columns();
  const Wide<T>* from = sums + row * of.shape.columns() + column;
#pragma unroll
  for (int split = 0; split < kWarps; ++split, from += apart)
    if (split < of.shape.splits) parts[split] = *reinterpret_cast<const Vector<Wide<T>, N>*>(from);
  total = parts[0];
#pragma unroll
  for (int split = 1; split < kWarps; ++split)
#pragma unroll
    for (int j = 0; j < N; ++j) total.at[j] = split < of.shape.splits ? total.at[j] + parts[split].at[j] : total.at[j];
  return total;
}

}  // namespace fastlstm::gpu
