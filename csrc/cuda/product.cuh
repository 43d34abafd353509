// The product that each step begins with, for a tile of rows and some columns of a panel. Included by the kernels.
#pragma once
#include "exchange.cuh"
#include "kernels.cuh"

namespace fastlstm::gpu {

// How every kernel without tensor cores sums. The depth is cut into parts of kDepth, each summed from zero; part p belongs to
// slice p % kSlices; a slice adds its parts in order, and the sum is that of the slices in order. Short chains are more exact,
// slices can be summed at once, and no row's result depends on others.
constexpr int kDepth = 32;
constexpr int kSlices = 8;
constexpr int kThreads = 32 * kSlices;  // of a block: a warp has a slice
template <class T>
constexpr int kBlocksAtOnce = sizeof(T) == 8 ? 1 : 2;  // of a processor, which its registers have to suffice for

// The rows and columns of a block. Of a warp's threads each has ROWS rows, as far apart as all threads' first ones, and four
// columns: 1 for narrow tiles, of which there are more, and 4 for wide ones, which read less for each sum.
constexpr int kTileRows = 16;
template <int ROWS>
constexpr int kTileColumns = 8 * ROWS;
static_assert(kPanel % kTileColumns<4> == 0);

// What a warp reads at once, before it multiplies what it has read before.
template <int ROWS>
constexpr int kChunk = ROWS == 1 ? kDepth : kDepth / 2;
template <int ROWS>
constexpr int kChunkStride = kChunk<ROWS> + 4;  // of rows: they start in different banks

// Of a warp: its rows of a, then its columns of b; in the end, in their place, its sums.
template <int ROWS>
constexpr int kWarpNumbers = kTileRows * kChunkStride<ROWS> + kChunk<ROWS> * kTileColumns<ROWS>;
template <class T, int ROWS>
constexpr size_t kProductBytes = kSlices * kWarpNumbers<ROWS> * sizeof(Wide<T>);

struct Tile {
  int first_row, rows;  // all rows, also beyond the tile
  int first_column;
};

template <int ROWS>
__device__ Tile tile_of_block(int rows) {
  return {int(blockIdx.y) * kTileRows, rows, int(blockIdx.x) * kTileColumns<ROWS>};
}

template <class T>
__device__ bool has_quads(const Operand<T>& operand) {
  return operand.depth % 4 == 0;
}

// A chunk of a and b, a part of which is in the registers of each thread of a warp.
template <class T, int ROWS>
struct Chunk {
  static constexpr int kQuadsOfRow = kChunk<ROWS> / 4, kQuadsOfA = kTileRows * kQuadsOfRow / 32;
  static constexpr int kQuadsOfTile = kTileColumns<ROWS> / 4, kQuadsOfB = kChunk<ROWS> * kQuadsOfTile / 32;
  Quad<T> a[kQuadsOfA], b[kQuadsOfB];

  __device__ void load(const Operand<T>& operand, const Tile& tile, const Quad<T>* columns, int begin) {
    const int lane = int(threadIdx.x) % 32, k = begin + lane % kQuadsOfRow * 4;
    const T* const rows = operand.a + int64_t(tile.first_row) * operand.depth;
#pragma unroll
    for (int i = 0; i < kQuadsOfA; ++i) {
      const int own = lane / kQuadsOfRow + i * (32 / kQuadsOfRow);
      const bool there = has_quads(operand) && k < operand.depth && tile.first_row + own < tile.rows;
      a[i] = there ? *reinterpret_cast<const Quad<T>*>(rows + own * operand.depth + k) : Quad<T>{};
    }
#pragma unroll
    for (int i = 0; i < kQuadsOfB; ++i) {
      const int depth = begin + lane / kQuadsOfTile + i * (32 / kQuadsOfTile);
      b[i] = depth < operand.depth ? columns[depth * kQuads + lane % kQuadsOfTile] : Quad<T>{};
    }
  }

  // Where rows do not begin as quads do, they are read here, number by number. to_a [kTileRows][kChunkStride], to_b [kChunk][kTileColumns]
  __device__ void store(const Operand<T>& operand, const Tile& tile, int begin, Wide<T>* to_a, Wide<T>* to_b) const {
    const int lane = int(threadIdx.x) % 32;
#pragma unroll
    for (int i = 0; i < kQuadsOfA; ++i) {
      const int own = lane / kQuadsOfRow + i * (32 / kQuadsOfRow), k = lane % kQuadsOfRow * 4;
      Quad<Wide<T>> quad;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int64_t at = int64_t(tile.first_row + own) * operand.depth + begin + k + j;
        const bool there = tile.first_row + own < tile.rows && begin + k + j < operand.depth;
        quad.at[j] = widen(there && !has_quads(operand) ? operand.a[at] : a[i].at[j]);
        if (there && operand.scales) quad.at[j] *= widen(operand.scales[at]);
        if (operand.only >= 0 && operand.only != j) quad.at[j] = 0;
      }
      *reinterpret_cast<Quad<Wide<T>>*>(to_a + own * kChunkStride<ROWS> + k) = quad;
    }
#pragma unroll
    for (int i = 0; i < kQuadsOfB; ++i) {
      Quad<Wide<T>> quad;
#pragma unroll
      for (int j = 0; j < 4; ++j) quad.at[j] = widen(b[i].at[j]);
      reinterpret_cast<Quad<Wide<T>>*>(to_b)[i * 32 + lane] = quad;
    }
  }
};

// The slices of all sums of a tile, into shared memory, from where sum_of_tile takes them.
template <class T, int ROWS>
__device__ void product(const Operand<T>& operand, const Tile& tile) {
  using W = Wide<T>;
  constexpr int kLaneQuads = kTileColumns<ROWS> / 4, kLaneRows = 32 / kLaneQuads;
  const int slice = int(threadIdx.x) / 32, quad = int(threadIdx.x) % kLaneQuads;
  const int row = int(threadIdx.x) % 32 / kLaneQuads;
  W* const a = shared_memory<W>() + slice * kWarpNumbers<ROWS>;
  W* const b = a + kTileRows * kChunkStride<ROWS>;
  const Quad<T>* const columns = reinterpret_cast<const Quad<T>*>(
      operand.panels + int64_t(tile.first_column / kPanel) * operand.depth * kPanel + tile.first_column % kPanel);
  W sum[ROWS][4] = {}, part[ROWS][4] = {};
  Chunk<T, ROWS> chunk;
  int begin = slice * kDepth;
  if (begin < operand.depth) chunk.load(operand, tile, columns, begin);
  if (!mutated("product: first barrier")) __syncthreads();  // all have read the sums before
  while (begin < operand.depth) {
    if (!mutated("product: barrier before a chunk")) __syncwarp();  // all have read the one before
    chunk.store(operand, tile, begin, a, b);
    if (!mutated("product: barrier after a chunk")) __syncwarp();
    const int depth = operand.depth - begin;  // left
    begin += kChunk<ROWS>;
    const bool ends = begin % kDepth == 0;  // the part
    if (ends) begin += kDepth * (kSlices - 1);
    if (begin < operand.depth) chunk.load(operand, tile, columns, begin);
#pragma unroll(ROWS == 1 ? 2 : 1)
    for (int k = 0; k < kChunk<ROWS> && k < depth; k += 4) {
      Quad<W> of_a[ROWS];
#pragma unroll
      for (int i = 0; i < ROWS; ++i)
        of_a[i] = *reinterpret_cast<const Quad<W>*>(a + (row + i * kLaneRows) * kChunkStride<ROWS> + k);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const Quad<W> of_b = *reinterpret_cast<const Quad<W>*>(b + (k + j) * kTileColumns<ROWS> + quad * 4);
#pragma unroll
        for (int i = 0; i < ROWS; ++i)
#pragma unroll
          for (int n = 0; n < 4; ++n) part[i][n] = fma(of_a[i].at[j], of_b.at[n], part[i][n]);
      }
    }
    if (!ends && begin < operand.depth) continue;
#pragma unroll
    for (int i = 0; i < ROWS; ++i)
#pragma unroll
      for (int n = 0; n < 4; ++n) sum[i][n] += part[i][n], part[i][n] = 0;
  }
  if (!mutated("product: barrier before the sums")) __syncwarp();
#pragma unroll
  for (int i = 0; i < ROWS; ++i)
    reinterpret_cast<Quad<W>*>(a)[(row + i * kLaneRows) * kLaneQuads + quad] = row_of(sum, i);
  if (!mutated("product: last barrier")) __syncthreads();
}

// A thread's place in the tile when all sums of it, COLUMNS neighbours each, are shared out over the block.
struct Place {
  int row, column;
  bool there;  // in the tile, and one of all rows
};
template <int ROWS, int COLUMNS>
constexpr int kPlaces = (kTileRows * kTileColumns<ROWS> / COLUMNS + kThreads - 1) / kThreads;  // of each thread

template <int ROWS, int COLUMNS>
__device__ Place place_of_thread(const Tile& tile, int i) {
  constexpr int kAlong = kTileColumns<ROWS> / COLUMNS;
  const int n = int(threadIdx.x) + i * kThreads, row = tile.first_row + n / kAlong;
  return {row, tile.first_column + n % kAlong * COLUMNS, n < kTileRows * kAlong && row < tile.rows};
}

// What product has found for the thread's i-th place.
template <class T, int ROWS, int COLUMNS>
__device__ Vector<Wide<T>, COLUMNS> sum_of_tile(int i) {
  using Found = Vector<Wide<T>, COLUMNS>;
  const Found* const found = reinterpret_cast<const Found*>(shared_memory<Wide<T>>());
  Found sum{};
  if (int(threadIdx.x) + i * kThreads >= kTileRows * kTileColumns<ROWS> / COLUMNS) return sum;
#pragma unroll
  for (int slice = 0; slice < kSlices; ++slice) {
    const Found add = found[slice * kWarpNumbers<ROWS> / COLUMNS + int(threadIdx.x) + i * kThreads];
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) sum.at[j] += add.at[j];
  }
  return sum;
}

// Whether any row of the tile counts at this step: where none does, the product is not needed.
__device__ inline bool any_counts(const uint8_t* flags, const Tile& tile) {
  if (!flags) return true;
  const int row = tile.first_row + int(threadIdx.x);
  return __syncthreads_or(int(threadIdx.x) < kTileRows && row < tile.rows && !(flags[row] & kHeld));
}

}  // namespace fastlstm::gpu
