#include "weight_gradients.h"

#include <algorithm>

namespace fastlstm {

template <class T>
WeightGradients<T>::WeightGradients(const Panels<T>& panels, const BackwardArgs<T>& args, const Plan& plan,
                                    int64_t chunk_rows, bool any_rows)
    : panels_(panels),
      layout_(panels.layout),
      args_(args),
      shape_(args.shape),
      threads_(plan.threads()),
      single_step_(plan.single_step) {
  if (!args.dw_x || single_step_) return;
  const int64_t tile = panels.kernels.tile_rows;
  const auto sums = [any_rows](int64_t size) {
    Buffer<T> buffer(size);
    if (!any_rows) std::fill_n(buffer.data(), size, T(0));  // else the first terms do not add to what is there
    return buffer;
  };
  operands_ = Buffer<T>(size_product(2, chunk_rows, round_up(layout_.depth, tile)));
  sum_ = sums(size_product(round_up(layout_.depth, tile), layout_.columns));
  db_ = sums(layout_.columns);
  peepholes_ = Buffer<T>(2 * panels.peepholes.size());
  std::fill_n(peepholes_.data(), peepholes_.size(), T(0));
  if (shape_.P == 0) return;
  packed_m_ = Buffer<T>(size_product(2, chunk_rows, round_up(shape_.H, tile)));
  dw_p_ = sums(size_product(round_up(shape_.H, tile), layout_.output_padded));
}

template <class T>
void WeightGradients<T>::pack(const LayerTape<T>& tape, Range rows, const Chunk& chunk, int64_t buffer, const T* m) {
  if (!args_.dw_x || single_step_) return;
  const int64_t depth = layout_.depth, tile = panels_.kernels.tile_rows, B = shape_.B;
  for (int64_t s = chunk.first; s < chunk.end; ++s) {
    const int64_t base = chunk.offset[std::size_t(s - chunk.first)] + rows.begin;
    const int64_t count = std::min(rows.end, args_.timeline.rows(s, B)) - rows.begin;
    panels_.kernels.pack_columns(
        tape.operands.data() + ((s - tape.steps.begin) * B + rows.begin) * layout_.operand_stride + layout_.x_offset,
        layout_.operand_stride, count, depth, operands_.data() + buffer * round_up(depth, tile) + base * tile,
        chunk.rows());
    if (shape_.P > 0)
      panels_.kernels.pack_columns(m + (buffer + base) * layout_.units, layout_.units, count, shape_.H,
                                   packed_m_.data() + buffer * round_up(shape_.H, tile) + base * tile, chunk.rows());
  }
}

template <class T>
void WeightGradients<T>::add(int thread, const Chunk& chunk, int64_t buffer, const Terms& terms, bool fresh) {
  if (!args_.dw_x || single_step_) return;
  const int64_t tile = panels_.kernels.tile_rows;
  OuterSum<T> sum{};
  sum.rows = chunk.rows();
  sum.a = operands_.data() + buffer * round_up(layout_.depth, tile);
  sum.a_rows = chunk.rows();
  sum.columns_a = layout_.depth;
  sum.b = terms.d_pre;
  sum.b_stride = layout_.d_pre_stride;
  const Range panels = share(layout_.columns / layout_.panel, threads_, thread);
  sum.panel_begin = panels.begin;
  sum.panel_end = panels.end;
  sum.sum = sum_.data();
  sum.column_sum = db_.data();
  sum.fresh = fresh;
  panels_.kernels.outer_sum(sum);
  if (peepholes_.size() > 0) add_peepholes(thread, chunk.rows(), terms.d_peepholes);
  if (shape_.P == 0) return;

  const Range outputs = share(layout_.output_padded / layout_.panel, threads_, thread);
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
void WeightGradients<T>::add_peepholes(int thread, int64_t rows, const T* d_peepholes) {
  const int64_t columns = 3 * layout_.units;
  const Range mine = share(columns, threads_, thread, 3 * layout_.lanes);
  T *sum = peepholes_.data(), *chain = sum + columns;
  for (int64_t first = 0; first < rows; first += kChain) {
    std::fill(chain + mine.begin, chain + mine.end, T(0));
    for (int64_t row = first; row < std::min(rows, first + kChain); ++row)
      for (int64_t i = mine.begin; i < mine.end; ++i) chain[i] += d_peepholes[row * columns + i];
    for (int64_t i = mine.begin; i < mine.end; ++i) sum[i] += chain[i];
  }
}

template <class T>
void WeightGradients<T>::store(int thread, const LayerTape<T>& tape, const T* d_pre, int64_t rows) const {
  if (!args_.dw_x) return;
  if (single_step_)
    store_single_step(thread, tape, d_pre, rows);
  else
    store_sums(thread);
}

// From panels of blocked columns to the shapes of the weights, each thread some blocks.
template <class T>
void WeightGradients<T>::store_sums(int thread) const {
  const int64_t H = shape_.H, L = layout_.lanes, W = layout_.panel, n = shape_.output();
  const int64_t tile = panels_.kernels.tile_rows, depth = round_up(layout_.depth, tile);
  const Range blocks = share(layout_.blocks, threads_, thread);
  const auto transpose = panels_.kernels.transpose;
  for (int64_t block = blocks.begin; block < blocks.end; ++block)
    for (int64_t gate = 0; gate < 4; ++gate) {
      const int64_t row = gate * H + block * L, column = (block * 4 + gate) * L, units = std::min(L, H - block * L);
      const T* from = sum_.data() + column / W * depth * W + column % W;
      transpose(from, W, shape_.I, units, args_.dw_x + row * shape_.I, shape_.I);
      transpose(from + shape_.I * W, W, n, units, args_.dw_h + row * n, n);
      if (args_.db) std::copy_n(db_.data() + column, units, args_.db + row);
      if (args_.d_peephole && gate < 3)
        std::copy_n(peepholes_.data() + (block * 3 + gate) * L, units, args_.d_peephole + row);
    }
  for (int64_t p = 0; p < shape_.P && thread == 0; p += W)
    transpose(dw_p_.data() + p * round_up(H, tile), W, H, std::min(W, shape_.P - p), args_.dw_p + p * H, H);
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
      panels_.kernels.outer_rows(outer);
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
