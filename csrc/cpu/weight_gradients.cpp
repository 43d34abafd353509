#include "weight_gradients.h"

#include <algorithm>

namespace fastlstm {

template <class T>
WeightGradients<T>::WeightGradients(const Panels<T>& panels, const BackwardArgs<T>& args, const Plan& plan,
                                    const InputScales<T>& scales, int64_t chunk_rows, bool any_rows)
    : panels_(panels),
      layout_(panels.layout),
      args_(args),
      shape_(args.shape),
      threads_(plan.threads()),
      single_step_(plan.single_step),
      scales_(scales),
      chunk_rows_(chunk_rows) {
  if (!args.dw_h || single_step_) return;
  const int64_t tile = panels.kernels.tile_rows, kinds = std::max(1, scales.kinds());
  const auto sums = [any_rows](int64_t size) {
    Buffer<T> buffer(size);
    if (!any_rows) std::fill_n(buffer.data(), size, T(0));  // else the first terms do not add to what is there
    return buffer;
  };
  const auto add_part = [&](int64_t first, int64_t columns) {
    const int64_t padded = round_up(columns, tile);
    if (columns > 0)
      parts_.push_back({first, columns, padded, Buffer<T>(size_product(kinds, 2, chunk_rows, padded)),
                        sums(size_product(padded, layout_.d_columns))});
  };
  if (panels.normalised()) {
    add_part(0, shape_.I);
    add_part(shape_.I, shape_.output());
  } else {
    add_part(0, layout_.depth);
    db_ = sums(layout_.d_columns);
  }
  if (scales) scaled_ = Buffer<T>(size_product(threads_, kScaledRows, layout_.operand_stride));
  row_terms_ = Buffer<T>(2 * terms_of_row(panels));
  std::fill_n(row_terms_.data(), row_terms_.size(), T(0));
  if (shape_.P == 0) return;
  packed_m_ = Buffer<T>(size_product(2, chunk_rows, round_up(shape_.H, tile)));
  dw_p_ = sums(size_product(round_up(shape_.H, tile), layout_.output_padded));
}

template <class T>
void WeightGradients<T>::pack(int thread, const LayerTape<T>& tape, Range rows, const Chunk& chunk, int64_t buffer,
                              const T* m) {
  if (!args_.dw_h || single_step_) return;
  const int64_t tile = panels_.kernels.tile_rows, B = shape_.B;
  T* scaled = scaled_.data() + thread * kScaledRows * layout_.operand_stride;
  for (int64_t s = chunk.first; s < chunk.end; ++s) {
    const int64_t base = chunk.offset[std::size_t(s - chunk.first)] + rows.begin;
    const int64_t count = std::min(rows.end, args_.timeline.rows(s, B)) - rows.begin;
    const T* operands = tape.operands.data() + ((s - tape.steps.begin) * B + rows.begin) * layout_.operand_stride;
    if (!scales_) pack_rows(operands, count, 0, chunk, buffer, base);
    for (int kind = 0; kind < scales_.kinds(); ++kind)
      for (int64_t row = 0; row < count; row += kScaledRows) {
        const int64_t n = std::min(kScaledRows, count - row);
        scales_.scale(kind, {rows.begin + row, rows.begin + row + n}, operands + row * layout_.operand_stride, scaled);
        pack_rows(scaled, n, kind, chunk, buffer, base + row);
      }
    if (shape_.P > 0)
      panels_.kernels.pack_columns(m + (buffer + base) * layout_.units, layout_.units, count, shape_.H,
                                   packed_m_.data() + buffer * round_up(shape_.H, tile) + base * tile, chunk.rows());
  }
}

// Rows of operands, which become the chunk's rows from `base` on.
template <class T>
void WeightGradients<T>::pack_rows(const T* operands, int64_t rows, int kind, const Chunk& chunk, int64_t buffer,
                                   int64_t base) const {
  for (const Part& part : parts_)
    panels_.kernels.pack_columns(operands + layout_.x_offset + part.first, layout_.operand_stride, rows, part.columns,
                                 packed(part, kind, buffer) + base * panels_.kernels.tile_rows, chunk.rows());
}

template <class T>
T* WeightGradients<T>::packed(const Part& part, int kind, int64_t buffer) const {
  return part.packed.data() + (kind * 2 * chunk_rows_ + buffer) * part.padded;
}

template <class T>
void WeightGradients<T>::add(int thread, const Chunk& chunk, int64_t buffer, const Terms& terms, bool fresh) {
  if (!args_.dw_h || single_step_) return;
  const int64_t W = layout_.panel, kinds = std::max(1, scales_.kinds());
  const Range mine = share(layout_.d_columns / W, threads_, thread);
  OuterSum<T> sum{};
  sum.rows = sum.a_rows = chunk.rows();
  sum.b_stride = layout_.d_pre_stride;
  sum.fresh = fresh;
  for (const Part& part : parts_)
    for (int kind = 0; kind < kinds; ++kind) {
      const Range panels = share(layout_.d_columns / W, kinds, kind);  // those of its gate
      sum.a = packed(part, kind, buffer);
      sum.columns_a = part.columns;
      sum.b = part.first < shape_.I ? terms.d_x : terms.d_h;
      sum.panel_begin = std::max(mine.begin, panels.begin);
      sum.panel_end = std::min(mine.end, panels.end);
      sum.sum = part.sum.data();
      sum.column_sum = db_.data();
      panels_.kernels.outer_sum(sum);
    }
  if (row_terms_.size() > 0) add_rows(thread, chunk.rows(), terms.rows);
  if (shape_.P == 0) return;

  const int64_t tile = panels_.kernels.tile_rows;
  const Range outputs = share(layout_.output_padded / W, threads_, thread);
  sum.a = packed_m_.data() + buffer * round_up(shape_.H, tile);
  sum.columns_a = shape_.H;
  sum.b = terms.dh;
  sum.b_stride = layout_.output_padded;
  sum.panel_begin = outputs.begin;
  sum.panel_end = outputs.end;
  sum.sum = dw_p_.data();
  sum.column_sum = nullptr;
  panels_.kernels.outer_sum(sum);
}

// Chain by chain, as all long sums.
template <class T>
void WeightGradients<T>::add_rows(int thread, int64_t rows, const T* terms) {
  const int64_t columns = terms_of_row(panels_);
  const Range mine = share(columns, threads_, thread, layout_.lanes);
  T *sum = row_terms_.data(), *chain = sum + columns;
  for (int64_t first = 0; first < rows; first += kChain) {
    std::fill(chain + mine.begin, chain + mine.end, T(0));
    for (int64_t row = first; row < std::min(rows, first + kChain); ++row)
      for (int64_t i = mine.begin; i < mine.end; ++i) chain[i] += terms[row * columns + i];
    for (int64_t i = mine.begin; i < mine.end; ++i) sum[i] += chain[i];
  }
}

template <class T>
void WeightGradients<T>::store(int thread, const LayerTape<T>& tape, const T* d_pre, int64_t rows) const {
  if (!args_.dw_h) return;
  if (single_step_)
    store_single_step(thread, tape, d_pre, rows);
  else
    store_sums(thread);
}

// From panels of the columns of d_pre to the shapes of the weights, each thread some blocks.
template <class T>
void WeightGradients<T>::store_sums(int thread) const {
  const int64_t H = shape_.H, L = layout_.lanes, W = layout_.panel, n = shape_.output(), C = layout_.columns;
  const Range blocks = share(layout_.blocks, threads_, thread);
  const T *gains = row_terms_.data() + gains_at(panels_), *output = row_terms_.data() + output_at(panels_);
  for (int64_t block = blocks.begin; block < blocks.end; ++block)
    for (int64_t gate = 0; gate < 4; ++gate) {
      const int64_t row = gate * H + block * L, units = std::min(L, H - block * L), blocked = (block * 4 + gate) * L;
      const int64_t column = block * layout_.d_block + gate * layout_.d_gate;
      const auto store = [&](const Part& part, int64_t first, int64_t columns, T* to) {
        const T* from = part.sum.data() + column / W * part.padded * W + column % W;
        panels_.kernels.transpose(from + (first - part.first) * W, W, columns, units, to + row * columns, columns);
      };
      if (args_.dw_x) store(parts_.front(), 0, shape_.I, args_.dw_x);
      store(parts_.back(), shape_.I, n, args_.dw_h);
      const T* db = panels_.normalised() ? gains + 2 * C + blocked : db_.data() + column;
      if (args_.db) std::copy_n(db, units, args_.db + row);
      if (args_.d_peephole && gate < 3)
        std::copy_n(row_terms_.data() + (block * 3 + gate) * L, units, args_.d_peephole + row);
      if (!args_.d_gamma_x) continue;
      std::copy_n(gains + blocked, units, args_.d_gamma_x + row);
      std::copy_n(gains + C + blocked, units, args_.d_gamma_h + row);
      if (gate < 2)
        std::copy_n(output + (block * 2 + gate) * L, units, (gate == 0 ? args_.d_gamma_c : args_.d_beta_c) + block * L);
    }
  const int64_t padded = round_up(H, panels_.kernels.tile_rows);
  for (int64_t p = 0; p < shape_.P && thread == 0; p += W)
    panels_.kernels.transpose(dw_p_.data() + p * padded, W, H, std::min(W, shape_.P - p), args_.dw_p + p * H, H);
}

// The rows of a single step are few enough to go to the shapes of the weights at once.
template <class T>
void WeightGradients<T>::store_single_step(int thread, const LayerTape<T>& tape, const T* d_pre, int64_t rows) const {
  const int64_t H = shape_.H, L = layout_.lanes, n = shape_.output();
  const Range blocks = share(layout_.blocks, threads_, thread);
  for (int64_t block = blocks.begin; block < blocks.end; ++block)
    for (int64_t gate = 0; gate < 4; ++gate) {
      const int64_t row = gate * H + block * L;
      OuterRows<T> outer{};
      outer.rows = rows;
      outer.a_stride = layout_.operand_stride;
      outer.b = d_pre + (block * 4 + gate) * L;
      outer.b_stride = layout_.d_pre_stride;
      outer.columns_b = std::min(L, H - block * L);
      outer.a = tape.operands.data() + layout_.x_offset;
      outer.columns_a = shape_.I;
      outer.to = args_.dw_x + row * shape_.I;
      if (args_.dw_x) panels_.kernels.outer_rows(outer);
      outer.a = tape.operands.data() + layout_.h_offset;
      outer.columns_a = n;
      outer.to = args_.dw_h + row * n;
      panels_.kernels.outer_rows(outer);
      for (int64_t unit = 0; args_.db && unit < outer.columns_b; ++unit) {
        T sum = 0;
        for (int64_t i = 0; i < rows; ++i) sum += outer.b[i * outer.b_stride + unit];
        args_.db[row + unit] = sum;
      }
    }
}

template class WeightGradients<float>;
template class WeightGradients<double>;

}  // namespace fastlstm
