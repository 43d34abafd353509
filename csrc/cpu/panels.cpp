#include "panels.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "drawing.h"
#include "plan.h"
#include "threads.h"

namespace fastlstm {
namespace {

template <class T>
constexpr int64_t kMostPanel = 256 / sizeof(T);  // of any instruction set

// Rows that lie a multiple of 512 bytes apart compete for the same few lines of the cache; one more line spreads them.
int64_t spread(int64_t elements, int64_t element_bytes) {
  constexpr int64_t kLine = 64;
  const int64_t bytes = elements * element_bytes;
  return bytes % 512 == 0 ? (bytes + kLine) / element_bytes : elements;
}

template <class T>
Buffer<T> copy_of(const Buffer<T>& from) {
  Buffer<T> copy(from.size());
  std::copy_n(from.data(), from.size(), copy.data());
  return copy;
}

}  // namespace

Layout::Layout(Shape shape, const CellOptions& cell, int lanes_, int panel_, int64_t element_bytes)
    : lanes(lanes_),
      panel(panel_),
      blocks(round_up(shape.H, lanes) / lanes),
      units(blocks * lanes),
      columns(4 * units),
      depth(shape.depth()),
      inputs_even(round_up(shape.I, 2)),
      depth_even(inputs_even + round_up(shape.output(), 2)),
      output_padded(round_up(shape.output(), panel)),
      input_padded(round_up(shape.I, panel)),
      h_offset(round_up(shape.I, lanes)),
      x_offset(h_offset - shape.I),
      operand_stride(spread(h_offset + round_up(shape.output(), lanes), element_bytes)),
      d_block(cell.dropout_per_gate ? lanes : 4 * lanes),
      d_gate(cell.dropout_per_gate ? round_up(units, panel) : lanes),
      d_columns(cell.dropout_per_gate ? 4 * d_gate : columns),
      d_pre_stride(spread(d_columns, element_bytes)) {}

template <class T>
Panels<T>::Panels(const Kernels<T>& kernels_, Shape shape_, const CellOptions& cell_, const RawWeights<T>& raw,
                  Storage storage_, int threads)
    : kernels(kernels_),
      shape(shape_),
      cell(cell_),
      layout(shape_, cell_, kernels_.lanes, kernels_.panel, sizeof(T)),
      storage(storage_),
      bias(layout.columns),
      projection(shape_.P > 0 ? size_product(layout.output_padded, shape_.H) : 0),
      peepholes(raw.peephole ? 3 * layout.units : 0),
      norm_gains(raw.gamma_x ? 2 * layout.columns : 0),
      norm_output(raw.gamma_x ? 2 * layout.units : 0),
      whole_(size_product(layout.columns, layout.depth)) {
  const Timed timed(active_profile(), kPack);
  const int members = team(threads);
  run_team(members, [&](int rank) {
    const Range blocks = share(layout.blocks, members, rank, forward_grain(layout));
    pack_blocks(raw, blocks.begin, blocks.end);
  });
  const int64_t H = shape.H, W = layout.panel;
  if (shape.P > 0) {
    std::fill_n(projection.data(), projection.size(), T(0));
    for (int64_t p = 0; p < shape.P; p += W)
      kernels.transpose(raw.w_p + p * H, H, std::min(W, shape.P - p), H, projection.data() + p * H, W);
  }
  if constexpr (sizeof(T) == 4) {
    if (storage == Storage::kBfloat16) to_bfloat16();
    if (storage == Storage::kInt8) to_int8();
  }
}

template <class T>
void Panels<T>::pack_blocks(const RawWeights<T>& raw, int64_t begin, int64_t end) {
  const int64_t H = shape.H, I = shape.I, W = layout.panel, L = layout.lanes;
  const auto part = [L](const T* from, int64_t units, T* to) {
    std::fill_n(to, L, T(0));
    std::copy_n(from, units, to);
  };
  for (int64_t block = begin; block < end; ++block)
    for (int64_t gate = 0; gate < 4; ++gate) {
      const int64_t row = gate * H + block * L, column = (block * 4 + gate) * L, units = std::min(L, H - block * L);
      T* to = whole_.data() + column / W * layout.depth * W + column % W;
      for (int64_t k = 0; units < L && k < layout.depth; ++k) std::fill_n(to + k * W, L, T(0));
      if (raw.w_x) kernels.transpose(raw.w_x + row * I, I, units, I, to, W);
      kernels.transpose(raw.w_h + row * shape.output(), shape.output(), units, shape.output(), to + I * W, W);
      std::fill_n(bias.data() + column, L, T(0));
      if (raw.b_ih)
        for (int64_t u = 0; u < units; ++u) bias.data()[column + u] = raw.b_ih[row + u] + raw.b_hh[row + u];
      if (raw.peephole && gate < 3) part(raw.peephole + row, units, peepholes.data() + (block * 3 + gate) * L);
      if (!raw.gamma_x) continue;
      part(raw.gamma_x + row, units, norm_gains.data() + column);
      part(raw.gamma_h + row, units, norm_gains.data() + layout.columns + column);
      if (gate < 2)
        part((gate == 0 ? raw.gamma_c : raw.beta_c) + block * L, units, norm_output.data() + (block * 2 + gate) * L);
    }
}

// Threads that packing is worth: below 1 MiB, some 0.1 ms, little is to be won, and a busy machine makes them wait for one another.
template <class T>
int Panels<T>::team(int threads) const {
  constexpr int64_t kWorthSharing = 1024 * 1024;
  return layout.columns * layout.depth * int64_t(sizeof(T)) < kWorthSharing ? 1 : threads;
}

template <class T>
Panels<T>::Panels(const Panels& from, const Draws& draws)
    : kernels(from.kernels),
      shape(from.shape),
      cell(from.cell),
      layout(from.layout),
      storage(from.storage),
      bias(copy_of(from.bias)),
      projection(copy_of(from.projection)),
      peepholes(copy_of(from.peepholes)),
      norm_gains(copy_of(from.norm_gains)),
      norm_output(copy_of(from.norm_output)),
      whole_(copy_of(from.whole_)) {
  const int64_t W = layout.panel, L = layout.lanes, n = shape.output();
  Buffer<T> scales(n);
  for (int64_t row = 0; row < 4 * shape.H; ++row) {
    const int64_t gate = row / shape.H, unit = row % shape.H, column = (unit / L * 4 + gate) * L + unit % L;
    weight_scales(kernels, cell, draws, row, n, scales.data());
    T* at = whole_.data() + column / W * layout.depth * W + shape.I * W + column % W;
    for (int64_t k = 0; k < n; ++k) at[k * W] *= scales.data()[k];
  }
}

template <class T>
const void* Panels<T>::gates(int64_t row) const {
  const int64_t elements = row * layout.panel;
  if (storage == Storage::kWhole) return whole_.data() + elements;
  return compressed_.data() + elements * (storage == Storage::kBfloat16 ? 2 : 1);
}

// The nearest of 256 multiples of a column's scale. The scale has 16 bits only, so that 127 times it is exact: what has been
// through here before comes out as it went in.
template <class T>
static T scale_of(T largest) {
  if (!(largest > 0)) return 1;
  int exponent;
  const T mantissa = std::frexp(largest / 127, &exponent);
  return std::ldexp(std::ceil(std::ldexp(mantissa, 16)), exponent - 16);
}

template <class T>
void Panels<T>::to_bfloat16() {
  const int64_t W = layout.panel, L = layout.lanes;
  compressed_ = Buffer<uint8_t>(size_product(whole_.size(), 2));
  for (int64_t i = 0; i < whole_.size(); ++i) {
    const int64_t column = i % W, vector = column / L;
    uint32_t bits;
    std::memcpy(&bits, whole_.data() + i, 4);
    const uint16_t half = uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);  // to nearest, ties to even
    std::memcpy(compressed_.data() + 2 * (i - column + vector / 2 * 2 * L + column % L * 2 + vector % 2), &half, 2);
  }
  whole_ = Buffer<T>();
}

template <class T>
void Panels<T>::to_int8() {
  const int64_t W = layout.panel, rows[] = {shape.I, shape.output()}, firsts[] = {0, layout.inputs_even};
  compressed_ = Buffer<uint8_t>(size_product(layout.columns, layout.depth_even));
  std::fill_n(compressed_.data(), compressed_.size(), uint8_t(0));
  for (int part = 0; part < 2; ++part) {
    scales[part] = Buffer<T>(layout.columns);
    for (int64_t column = 0; column < layout.columns; ++column) {
      const T* from = whole_.data() + column / W * layout.depth * W + part * shape.I * W + column % W;
      uint8_t* to = compressed_.data() + column / W * layout.depth_even * W + firsts[part] * W + column % W * 2;
      T largest = 0;
      for (int64_t k = 0; k < rows[part]; ++k) largest = std::max(largest, std::abs(from[k * W]));
      const T scale = scales[part].data()[column] = scale_of(largest);
      for (int64_t k = 0; k < rows[part]; ++k)
        to[k / 2 * 2 * W + k % 2] = uint8_t(int8_t(std::lrint(from[k * W] / scale)));
    }
  }
  whole_ = Buffer<T>();
}

// The rows first .. first + count of the gate panels as columns: [padded / panel][columns][panel], in the order of d_pre.
template <class T>
Buffer<T> Panels<T>::transposed_rows(int64_t first, int64_t count, int64_t padded, int threads) const {
  const int64_t W = layout.panel, C = layout.columns, L = layout.lanes;
  const auto place = [&](int64_t column) {  // of the first of a vector
    const int64_t vector = column / L;
    return cell.dropout_per_gate ? vector % 4 * layout.units + vector / 4 * L : column;
  };
  const int64_t step = cell.dropout_per_gate ? L : W;  // columns that stay together
  Buffer<T> to(size_product(padded, C));
  if (count != padded) std::fill_n(to.data(), to.size(), T(0));
  const int members = team(threads);
  run_team(members, [&](int rank) {
    const Range columns = share(C, members, rank, W);
    for (int64_t n = 0; n < count; n += W)
      for (int64_t column = columns.begin; column < columns.end; column += step)
        kernels.transpose(whole_.data() + column / W * W * layout.depth + (first + n) * W + column % W, W,
                          std::min(W, count - n), step, to.data() + n * C + place(column) * W, W);
  });
  return to;
}

template <class T>
const typename Panels<T>::Transposed& Panels<T>::transposed(int threads) const {
  std::call_once(once_, [this, threads] {
    const Timed timed(active_profile(), kPack);
    transposed_.dh = transposed_rows(shape.I, shape.output(), layout.output_padded, threads);
    transposed_.dx = transposed_rows(0, shape.I, layout.input_padded, threads);
    if (shape.P == 0) return;
    const int64_t W = layout.panel, H = shape.H, P = shape.P;
    transposed_.dm = Buffer<T>(size_product(round_up(layout.units, W), P));
    std::fill_n(transposed_.dm.data(), transposed_.dm.size(), T(0));
    for (int64_t n = 0; n < H; n += W)
      for (int64_t p = 0; p < P; p += W)  // projection [P panels][H][W]: rows are units, columns are outputs
        kernels.transpose(projection.data() + p * H + n * W, W, std::min(W, H - n), std::min(W, P - p),
                          transposed_.dm.data() + n * P + p * W, W);
  });
  return transposed_;
}

template <class T>
void Panels<T>::product_transposed(const Product<T>& p, int64_t first, int64_t count) const {
  const int64_t W = layout.panel;
  alignas(64) T columns[kChain * kMostPanel<T>];
  std::fill_n(columns, kChain * W, T(0));
  for (int64_t panel = p.panel_begin; panel < p.panel_end; ++panel) {
    Product<T> chain = p;
    chain.panels = columns;
    chain.panel_stride = 0;
    chain.panel_begin = panel;
    chain.panel_end = panel + 1;
    if (panel + 1 < p.panel_end) chain.tail_vectors = 0;
    for (int64_t column = 0; column < p.K; column += kChain, chain.a += kChain) {
      chain.K = std::min(kChain, p.K - column);
      for (int64_t part = 0; part < chain.K; part += W)
        kernels.transpose(whole_.data() + (column + part) * layout.depth + (first + panel * W) * W, W,
                          std::min(W, count - panel * W), W, columns + part * W, W);
      kernels.product(chain);
      chain.start = p.c;
      chain.start_stride = p.c_stride;
      chain.start_last = true;
    }
  }
}

template class Panels<float>;
template class Panels<double>;

}  // namespace fastlstm
