// The backward time loop. Gates' gradients exist for a chunk of steps only: the recurrence fills the chunk, then its rows
// become terms of dW, db and dx while the next chunk fills a second buffer, so that one barrier a chunk is enough.
#include <algorithm>
#include <cstring>
#include <vector>

#include "layer_loop.h"
#include "plan.h"

namespace fastlstm {
namespace {

template <class T>
class Backward {
 public:
  Backward(const Panels<T>& panels, const LayerTape<T>& tape, const BackwardArgs<T>& args, int threads,
           Interrupt& interrupt)
      : panels_(panels),
        transposed_(panels.transposed(threads)),
        layout_(panels.layout),
        tape_(tape),
        args_(args),
        shape_(args.shape),
        time_(args.timeline),
        interrupt_(interrupt),
        plan_(plan_backward(args.shape, panels.layout, sizeof(T), threads)),
        chunks_(split_into_chunks(args.shape, args.timeline)),
        barrier_(plan_.threads(), interrupt) {
    for (const Chunk& chunk : chunks_) chunk_rows_ = std::max(chunk_rows_, chunk.rows());
    const int64_t B = shape_.B, rows = chunk_rows_;
    dh_ = Buffer<T>(size_product(B, layout_.output_padded));
    dc_ = Buffer<T>(size_product(B, layout_.units));
    d_pre_ = Buffer<T>(size_product(2, rows, layout_.d_pre_stride));
    if (args_.dx) dx_ = Buffer<T>(size_product(plan_.threads(), kDxRows, layout_.input_padded));
    if (args_.dw_x) {
      const int64_t tile = panels.kernels.tile_rows;
      operands_ = Buffer<T>(size_product(2, rows, round_up(layout_.depth, tile)));
      const auto sums = any_rows() ? [](int64_t size) { return Buffer<T>(size); } : zeros;
      sum_ = sums(size_product(round_up(layout_.depth, tile), layout_.columns));
      db_ = sums(layout_.columns);
      if (shape_.P > 0) dw_p_ = sums(size_product(round_up(shape_.H, tile), layout_.output_padded));
    }
    if (shape_.P > 0) {
      dm_ = Buffer<T>(size_product(B, round_up(layout_.units, layout_.panel)));
      m_ = Buffer<T>(size_product(2, rows, layout_.units));
      packed_m_ = Buffer<T>(size_product(2, rows, round_up(shape_.H, panels.kernels.tile_rows)));
      dh_out_ = zeros(size_product(2, rows, layout_.output_padded));
    }
    for (int i = 0; i < plan_.row_groups; ++i) group_barriers_.emplace_back(new Barrier(plan_.unit_groups, interrupt));
  }

  int threads() const { return plan_.threads(); }

  void run(int rank) {
    const Member me = member(rank);
    begin_rows(me);
    if (plan_.unit_groups > 1) me.barrier->wait(me.index);
    for (std::size_t i = 0; i < chunks_.size(); ++i) {
      const int64_t buffer = int64_t(i % 2) * chunk_rows_;
      recur(me, chunks_[i], buffer);
      if (args_.dw_x) pack_operands(me, chunks_[i], buffer);
      barrier_.wait(me.rank);
      if (interrupt_.stopped()) return;
      add_weight_gradients(me, chunks_[i], buffer, i == 0);
      if (args_.dx) input_gradients(me, chunks_[i], buffer);
    }
    barrier_.wait(me.rank);
    end_rows(me);
    if (args_.dw_x) store_weight_gradients(me);
  }

 private:
  static constexpr int64_t kDxRows = 48;

  struct Member {
    int rank, index;
    Barrier* barrier;
    Range rows;
    Range blocks;      // of units
    Profile* profile;  // of rank 0, if one is taken
  };

  static Buffer<T> zeros(int64_t size) {
    Buffer<T> buffer(size);
    std::fill_n(buffer.data(), size, T(0));
    return buffer;
  }

  // The first chunk has rows, or none has: it takes steps until it has enough.
  bool any_rows() const { return !chunks_.empty() && chunks_.front().rows() > 0; }

  Member member(int rank) const {
    const int group = rank / plan_.unit_groups, index = rank % plan_.unit_groups;
    const int64_t grain = std::max<int64_t>(1, layout_.panel / layout_.lanes);
    return {rank,
            index,
            group_barriers_[std::size_t(group)].get(),
            rows_of_group(shape_, time_, plan_.row_groups, group),
            share(layout_.blocks, plan_.unit_groups, index, grain),
            rank == 0 ? active_profile() : nullptr};
  }

  // The rows whose state this member sets up and stores.
  Range my_rows(const Member& me) const {
    const Range mine = share(me.rows.size(), plan_.unit_groups, me.index);
    return {me.rows.begin + mine.begin, me.rows.begin + mine.end};
  }

  const uint8_t* flags(int64_t s, int64_t row) const {
    return time_.flags && s < shape_.T ? time_.flags + s * shape_.B + row : nullptr;
  }
  T* dc_unit(int64_t row, int64_t unit) const {
    return dc_.data() + (unit / layout_.lanes * shape_.B + row) * layout_.lanes + unit % layout_.lanes;
  }
  T* d_pre(int64_t buffer_row) const { return d_pre_.data() + buffer_row * layout_.d_pre_stride; }

  // Held steps beyond a row's end: dy reaches h only where the output repeats it, dcells always reaches c.
  void add_tail(int64_t row) const {
    if (!time_.end) return;
    const int64_t b = time_.order[row];
    T* dh = dh_.data() + row * layout_.output_padded;
    for (int64_t t = shape_.T - 1; t >= time_.end[row]; --t) {
      if (args_.dy && time_.repeat)
        for (int64_t i = 0; i < shape_.output(); ++i) dh[i] += args_.dy.row(t, b)[i];
      if (args_.dcells)
        for (int64_t unit = 0; unit < shape_.H; ++unit) *dc_unit(row, unit) += args_.dcells.row(t, b)[unit];
    }
  }

  void begin_rows(const Member& me) const {
    const Range mine = my_rows(me);
    for (int64_t row = mine.begin; row < mine.end; ++row) {
      const int64_t b = time_.order[row], n = shape_.output();
      T* dh = dh_.data() + row * layout_.output_padded;
      std::fill_n(dh, layout_.output_padded, T(0));
      if (args_.dh_n) std::copy_n(args_.dh_n + b * n, n, dh);
      for (int64_t unit = 0; unit < layout_.units; ++unit)
        *dc_unit(row, unit) = args_.dc_n && unit < shape_.H ? args_.dc_n[b * shape_.H + unit] : T(0);
      if (!time_.reverse) add_tail(row);
    }
  }

  // The steps of a chunk, last one first: the cell gives d_pre, d_pre . U gives dh of the step before.
  void recur(const Member& me, const Chunk& chunk, int64_t buffer) const {
    for (int64_t s = chunk.end - 1; s >= chunk.first; --s) {
      const int64_t end = std::min(me.rows.end, time_.rows(s, shape_.B)),
                    count = std::max<int64_t>(0, end - me.rows.begin);
      const int64_t parts = (count + plan_.row_block - 1) / plan_.row_block,
                    base = buffer + chunk.offset[std::size_t(s - chunk.first)];
      for (int64_t part = 0; part < parts; ++part) {
        const Range local = share(count, parts, part), rows{me.rows.begin + local.begin, me.rows.begin + local.end};
        cell(me, rows, s, base);
        if (me.rank == 0) interrupt_.worked(3 * rows.size() * me.blocks.size() * 4 * layout_.lanes * layout_.depth);
        if (interrupt_.stopped()) return;
        if (plan_.unit_groups == 1) recurrent_product(me, rows, base);
      }
      if (plan_.unit_groups == 1) continue;
      me.barrier->wait(me.index);
      if (interrupt_.stopped()) return;
      if (count > 0) recurrent_product(me, {me.rows.begin, end}, base);
    }
  }

  void cell(const Member& me, Range rows, int64_t s, int64_t base) const {
    const int64_t t = time_.time(s, shape_.T), row = rows.begin, L = layout_.lanes, B = shape_.B;
    StepBackward<T> k{};
    k.rows = rows.size();
    k.hidden = shape_.H;
    k.block_begin = me.blocks.begin;
    k.block_end = me.blocks.end;
    k.saved = tape_.gates.data() + (s * layout_.blocks * B + row) * 4 * L;
    k.saved_block_stride = B * 4 * L;
    k.c_prev = tape_.c.data() + s * B * layout_.units + row * L;
    k.c = k.c_prev + B * layout_.units;
    k.c_block_stride = B * L;
    k.dcells = args_.dcells.step(t);
    k.dcells_stride = args_.dcells.b_stride;
    k.order = time_.order + row;
    k.dc = dc_.data() + row * L;
    k.dc_block_stride = B * L;
    k.d_pre = d_pre(base + row);
    k.d_pre_stride = layout_.d_pre_stride;
    k.flags = flags(s, row);
    k.flags_after = flags(s + 1, row);
    k.repeat = time_.repeat;
    if (shape_.P > 0) {
      k.dh = dm_.data() + row * round_up(layout_.units, layout_.panel);
      k.dh_stride = round_up(layout_.units, layout_.panel);
      k.m = m_.data() + (base + row) * layout_.units;
      k.m_stride = layout_.units;
      projection_gradient(rows, s, base, k);
    } else {
      k.dh = dh_.data() + row * layout_.output_padded;
      k.dh_stride = layout_.output_padded;
      k.dy = args_.dy.step(t);
      k.dy_stride = args_.dy.b_stride;
    }
    const Timed timed(me.profile, kCell);
    panels_.kernels.step_backward(k);
  }

  // dh of the projected output, complete, then dm = dh . w_p. What stays in dh_ is what held rows pass on.
  void projection_gradient(Range rows, int64_t s, int64_t base, const StepBackward<T>& k) const {
    const int64_t P = shape_.P, t = time_.time(s, shape_.T), stride = layout_.output_padded;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const int64_t i = row - rows.begin;
      const bool held = k.flags && (k.flags[i] & kHeld), cut = k.flags_after && (k.flags_after[i] & kCut);
      T *dh = dh_.data() + row * stride, *out = dh_out_.data() + (base + row) * stride;
      const T* dy = args_.dy && !(held && !time_.repeat) ? args_.dy.row(t, time_.order[row]) : nullptr;
      for (int64_t p = 0; p < P; ++p) {
        const T total = (cut ? T(0) : dh[p]) + (dy ? dy[p] : T(0));
        out[p] = held ? T(0) : total;
        dh[p] = held ? total : T(0);
      }
    }
    Product<T> p{};
    p.rows = rows.size();
    p.K = P;
    p.a = dh_out_.data() + (base + rows.begin) * stride;
    p.a_stride = stride;
    p.panels = transposed_.dm.data();
    p.panel_stride = P * layout_.panel;
    p.panel_end = round_up(layout_.units, layout_.panel) / layout_.panel;
    p.c = k.dh;
    p.c_stride = k.dh_stride;
    panels_.kernels.product(p);
  }

  Product<T> d_pre_product(int64_t buffer_row, int64_t rows, const Buffer<T>& panels) const {
    Product<T> p{};
    p.rows = rows;
    p.K = layout_.columns;
    p.K_first = p.K_chain = kChain;
    p.a = d_pre(buffer_row);
    p.a_stride = layout_.d_pre_stride;
    p.panels = panels.data();
    p.panel_stride = layout_.columns * layout_.panel;
    p.prefetch = plan_.prefetch;
    return p;
  }

  void recurrent_product(const Member& me, Range rows, int64_t base) const {
    Product<T> p = d_pre_product(base + rows.begin, rows.size(), transposed_.dh);
    const int64_t per_panel = std::max<int64_t>(1, layout_.panel / layout_.lanes);
    const bool whole = plan_.unit_groups == 1;
    p.panel_begin = whole ? 0 : me.blocks.begin / per_panel;
    p.panel_end = whole ? layout_.output_padded / layout_.panel : (me.blocks.end + per_panel - 1) / per_panel;
    if (p.panel_end * layout_.panel > shape_.output()) p.tail_vectors = layout_.tail_vectors(shape_.output());
    p.c = dh_.data() + rows.begin * layout_.output_padded;
    p.c_stride = layout_.output_padded;
    if (time_.flags || shape_.P > 0) p.start = p.c, p.start_stride = p.c_stride;
    const Timed timed(me.profile, kRecur);
    panels_.kernels.product(p);
  }

  // My rows of [x | h_{s-1}], and of m with projection, as outer_sum reads them.
  void pack_operands(const Member& me, const Chunk& chunk, int64_t buffer) const {
    const Timed timed(me.profile, kLoad);
    const int64_t depth = layout_.depth, tile = panels_.kernels.tile_rows, B = shape_.B;
    const Range mine = my_rows(me);
    for (int64_t s = chunk.first; s < chunk.end; ++s) {
      const int64_t base = chunk.offset[std::size_t(s - chunk.first)] + mine.begin;
      const int64_t rows = std::min(mine.end, time_.rows(s, B)) - mine.begin;
      panels_.kernels.pack_columns(
          tape_.operands.data() + (s * B + mine.begin) * layout_.operand_stride + layout_.x_offset,
          layout_.operand_stride, rows, depth, operands_.data() + buffer * round_up(depth, tile) + base * tile,
          chunk.rows());
      if (shape_.P > 0)
        panels_.kernels.pack_columns(m_.data() + (buffer + base) * layout_.units, layout_.units, rows, shape_.H,
                                     packed_m_.data() + buffer * round_up(shape_.H, tile) + base * tile, chunk.rows());
    }
  }

  void add_weight_gradients(const Member& me, const Chunk& chunk, int64_t buffer, bool fresh) const {
    if (!args_.dw_x) return;
    const Timed timed(me.profile, kWeightGradients);
    const int64_t tile = panels_.kernels.tile_rows;
    OuterSum<T> sum{};
    sum.rows = chunk.rows();
    sum.a = operands_.data() + buffer * round_up(layout_.depth, tile);
    sum.a_rows = chunk.rows();
    sum.columns_a = layout_.depth;
    sum.b = d_pre(buffer);
    sum.b_stride = layout_.d_pre_stride;
    const Range panels = share(layout_.columns / layout_.panel, threads(), me.rank);
    sum.panel_begin = panels.begin;
    sum.panel_end = panels.end;
    sum.sum = sum_.data();
    sum.column_sum = db_.data();
    sum.fresh = fresh;
    panels_.kernels.outer_sum(sum);
    if (shape_.P == 0) return;

    const Range outputs = share(layout_.output_padded / layout_.panel, threads(), me.rank);
    sum.a = packed_m_.data() + buffer * round_up(shape_.H, tile);
    sum.columns_a = shape_.H;
    sum.b = dh_out_.data() + buffer * layout_.output_padded;
    sum.b_stride = layout_.output_padded;
    sum.panel_begin = outputs.begin;
    sum.panel_end = outputs.end;
    sum.sum = dw_p_.data();
    sum.column_sum = nullptr;
    panels_.kernels.outer_sum(sum);
  }

  // dx = d_pre . W for my part of the chunk's rows.
  void input_gradients(const Member& me, const Chunk& chunk, int64_t buffer) const {
    const Timed timed(me.profile, kProject);
    const Range mine = share(chunk.rows(), threads(), me.rank);
    T* scratch = dx_.data() + me.rank * kDxRows * layout_.input_padded;
    std::size_t step = 0;
    for (int64_t begin = mine.begin; begin < mine.end; begin += kDxRows) {
      const int64_t rows = std::min(kDxRows, mine.end - begin);
      Product<T> p = d_pre_product(buffer + begin, rows, transposed_.dx);
      p.panel_end = layout_.input_padded / layout_.panel;
      p.tail_vectors = layout_.tail_vectors(shape_.I);
      p.c = scratch;
      p.c_stride = layout_.input_padded;
      panels_.kernels.product(p);
      for (int64_t row = begin; row < begin + rows; ++row) {
        while (chunk.offset[step + 1] <= row) ++step;
        const int64_t t = time_.time(chunk.first + int64_t(step), shape_.T);
        T* dx = args_.dx.row(t, time_.order[row - chunk.offset[step]]);
        const T* from = scratch + (row - begin) * layout_.input_padded;
        if (args_.add_to_dx)
          for (int64_t i = 0; i < shape_.I; ++i) dx[i] += from[i];
        else
          std::memcpy(dx, from, std::size_t(shape_.I) * sizeof(T));
      }
    }
  }

  void end_rows(const Member& me) const {
    const Range mine = my_rows(me);
    for (int64_t row = mine.begin; row < mine.end; ++row) {
      const int64_t first = time_.first_step(row, shape_.T), b = time_.order[row], n = shape_.output();
      T* dh = dh_.data() + row * layout_.output_padded;
      const uint8_t* flag = flags(first, row);
      if (flag && (*flag & kCut)) {
        std::fill_n(dh, n, T(0));
        for (int64_t unit = 0; unit < shape_.H; ++unit) *dc_unit(row, unit) = T(0);
      }
      if (time_.reverse) add_tail(row);
      if (args_.dh0) std::copy_n(dh, n, args_.dh0 + b * n);
      for (int64_t unit = 0; args_.dc0 && unit < shape_.H; ++unit) args_.dc0[b * shape_.H + unit] = *dc_unit(row, unit);
      if (!args_.dx || args_.add_to_dx || !time_.end) continue;
      for (int64_t t = time_.end[row]; t < shape_.T; ++t) std::fill_n(args_.dx.row(t, b), shape_.I, T(0));
    }
  }

  // From panels of blocked columns to the shapes of the weights, each member some blocks.
  void store_weight_gradients(const Member& me) const {
    const Timed timed(me.profile, kWeightGradients);
    const int64_t H = shape_.H, L = layout_.lanes, W = layout_.panel, n = shape_.output();
    const int64_t tile = panels_.kernels.tile_rows, depth = round_up(layout_.depth, tile);
    const Range blocks = share(layout_.blocks, threads(), me.rank);
    const auto transpose = panels_.kernels.transpose;
    for (int64_t block = blocks.begin; block < blocks.end; ++block)
      for (int64_t gate = 0; gate < 4; ++gate) {
        const int64_t row = gate * H + block * L, column = (block * 4 + gate) * L, units = std::min(L, H - block * L);
        const T* from = sum_.data() + column / W * depth * W + column % W;
        transpose(from, W, shape_.I, units, args_.dw_x + row * shape_.I, shape_.I);
        transpose(from + shape_.I * W, W, n, units, args_.dw_h + row * n, n);
        if (args_.db) std::copy_n(db_.data() + column, units, args_.db + row);
      }
    for (int64_t p = 0; p < shape_.P && me.rank == 0; p += W)
      transpose(dw_p_.data() + p * round_up(H, tile), W, H, std::min(W, shape_.P - p), args_.dw_p + p * H, H);
  }

  const Panels<T>& panels_;
  const typename Panels<T>::Transposed& transposed_;
  const Layout& layout_;
  const LayerTape<T>& tape_;
  const BackwardArgs<T>& args_;
  const Shape& shape_;
  const Timeline& time_;
  Interrupt& interrupt_;
  Plan plan_;
  std::vector<Chunk> chunks_;
  Barrier barrier_;
  std::vector<std::unique_ptr<Barrier>> group_barriers_;
  int64_t chunk_rows_ = 0;
  Buffer<T> dh_, dc_;  // [B, output_padded], [blocks,B,lanes]: gradients of the state after the step at hand
  Buffer<T> d_pre_;    // [2, chunk rows, d_pre_stride]
  Buffer<T> operands_, packed_m_;  // [2][columns / tile_rows, chunk rows, tile_rows] of [x | h] and of m
  Buffer<T> dx_;                   // [threads, kDxRows, input_padded]
  Buffer<T> sum_, db_, dw_p_;      // as OuterSum::sum, column_sum; of m with projection
  Buffer<T> dm_, m_, dh_out_;  // with projection: [B, units], [2, chunk rows, units], [2, chunk rows, output_padded]
};

}  // namespace

template <class T>
void layer_backward(const Panels<T>& panels, const LayerTape<T>& tape, const BackwardArgs<T>& args, int threads,
                    Interrupt& interrupt) {
  Backward<T> backward(panels, tape, args, threads, interrupt);
  run_team(backward.threads(), [&](int rank) { backward.run(rank); });
}

template void layer_backward(const Panels<float>&, const LayerTape<float>&, const BackwardArgs<float>&, int,
                             Interrupt&);
template void layer_backward(const Panels<double>&, const LayerTape<double>&, const BackwardArgs<double>&, int,
                             Interrupt&);

}  // namespace fastlstm
