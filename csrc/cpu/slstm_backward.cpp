// The sLSTM's backward time loop, in the rhythm of the LSTM's: each head's recurrence fills d_pre of a chunk of steps, then its
// rows become terms of dW, db and dx while the next chunk fills a second buffer, so that one barrier a chunk is enough.
#include <algorithm>
#include <vector>

#include "plan.h"
#include "slstm.h"

namespace fastlstm {
namespace {

template <class T>
Buffer<T> zeros(int64_t size) {
  Buffer<T> buffer(size);
  std::fill_n(buffer.data(), size, T(0));
  return buffer;
}

Shape shape_of(const SlstmShape& shape, int64_t T, int64_t B) {
  Shape same;
  same.T = T, same.B = B, same.I = shape.I, same.H = shape.H;
  return same;
}

// dW and db: sums over all rows of all steps, chunk by chunk, in the order of the chunks. All threads call it: between `pack`
// and `add`, and between `add` and `store`, they meet. "buffer" is 0 or 1.
template <class T>
class WeightSums {
 public:
  WeightSums(const SlstmPanels<T>& panels, const SlstmTape<T>& tape, const SlstmBackwardArgs<T>& args, int threads,
             int64_t chunk_rows)
      : panels_(panels),
        layout_(panels.layout),
        tape_(tape),
        args_(args),
        threads_(threads),
        chunk_rows_(chunk_rows),
        x_padded_(round_up(panels.shape.I, panels.kernels.tile_rows)),
        h_padded_(round_up(panels.shape.head(), panels.kernels.tile_rows)),
        packed_x_(size_product(2, chunk_rows, x_padded_)),
        packed_h_(size_product(2, chunk_rows, panels.shape.heads, h_padded_)),
        dw_x_(zeros<T>(size_product(layout_.columns, x_padded_))),
        dw_h_(zeros<T>(size_product(layout_.columns, h_padded_))),
        db_(zeros<T>(layout_.columns)) {}

  // x of some rows of a chunk as outer_sum reads it.
  void pack_x(Range rows, const Chunk& chunk, int buffer) {
    pack(rows, chunk, layout_.x_offset, panels_.shape.I, packed_x(buffer));
  }
  // The same of one head's h.
  void pack_h(Range rows, int64_t head, const Chunk& chunk, int buffer) {
    pack(rows, chunk, layout_.h_offset + head * panels_.head_units(), panels_.shape.head(), packed_h(head, buffer));
  }

  // A thread's part of the terms of a chunk. d_pre: of its rows.
  void add(int thread, const Chunk& chunk, int buffer, const T* d_pre, bool fresh) {
    const int64_t W = layout_.panel, of_head = panels_.head_columns() / W;
    const Range mine = share(layout_.columns / W, threads_, thread);
    OuterSum<T> sum{};
    sum.rows = sum.a_rows = chunk.rows();
    sum.b = d_pre;
    sum.b_stride = layout_.d_pre_stride;
    sum.fresh = fresh;
    sum.a = packed_x(buffer);
    sum.columns_a = panels_.shape.I;
    sum.panel_begin = mine.begin;
    sum.panel_end = mine.end;
    sum.sum = dw_x_.data();
    if (sum.columns_a > 0) panels_.kernels.outer_sum(sum);
    sum.columns_a = panels_.shape.head();
    sum.sum = dw_h_.data();
    sum.column_sum = db_.data();
    for (int64_t head = mine.begin / of_head; head * of_head < mine.end; ++head) {
      sum.a = packed_h(head, buffer);
      sum.panel_begin = std::max(mine.begin, head * of_head);
      sum.panel_end = std::min(mine.end, (head + 1) * of_head);
      panels_.kernels.outer_sum(sum);
    }
  }

  // Some heads, in the shapes of the weights.
  void store(Range heads) const {
    const int64_t H = panels_.shape.H, I = panels_.shape.I, K = panels_.shape.head(), W = layout_.panel;
    for (int64_t head = heads.begin; head < heads.end; ++head)
      panels_.for_blocks(head, [&](int64_t gate, int64_t unit, int64_t units, int64_t column) {
        const int64_t row = gate * H + unit, panel = column / W, in_panel = column % W;
        const auto turn = [&](const T* sums, int64_t padded, int64_t n, T* to) {
          panels_.kernels.transpose(sums + panel * padded * W + in_panel, W, n, units, to + row * n, n);
        };
        if (args_.dw_x) turn(dw_x_.data(), x_padded_, I, args_.dw_x);
        turn(dw_h_.data(), h_padded_, K, args_.dw_h);
        if (args_.db) std::copy_n(db_.data() + column, units, args_.db + row);
      });
  }

 private:
  T* packed_x(int buffer) const { return packed_x_.data() + buffer * chunk_rows_ * x_padded_; }
  T* packed_h(int64_t head, int buffer) const {
    return packed_h_.data() + (buffer * panels_.shape.heads + head) * chunk_rows_ * h_padded_;
  }

  // Columns of these rows' operands, from one on.
  void pack(Range rows, const Chunk& chunk, int64_t first, int64_t columns, T* to) {
    for (int64_t s = chunk.first; s < chunk.end; ++s)
      panels_.kernels.pack_columns(
          tape_.operands.data() + (s * args_.B + rows.begin) * layout_.operand_stride + first, layout_.operand_stride,
          rows.size(), columns,
          to + (chunk.offset[std::size_t(s - chunk.first)] + rows.begin) * panels_.kernels.tile_rows, chunk.rows());
  }

  const SlstmPanels<T>& panels_;
  const Layout& layout_;
  const SlstmTape<T>& tape_;
  const SlstmBackwardArgs<T>& args_;
  const int threads_;
  const int64_t chunk_rows_, x_padded_, h_padded_;  // to whole tiles
  Buffer<T> packed_x_;                              // [2][x_padded / tile_rows, chunk rows, tile_rows]
  Buffer<T> packed_h_;                              // [2][heads][h_padded / tile_rows, chunk rows, tile_rows]
  Buffer<T> dw_x_, dw_h_;  // as OuterSum::sum, the latter of each head's columns with its own h
  Buffer<T> db_;           // [columns]
};

template <class T>
class Backward {
 public:
  Backward(const SlstmPanels<T>& panels, const SlstmTape<T>& tape, const SlstmBackwardArgs<T>& args, int threads,
           Interrupt& interrupt)
      : panels_(panels),
        layout_(panels.layout),
        transposed_(panels.transposed()),
        tape_(tape),
        args_(args),
        interrupt_(interrupt),
        plan_(plan_slstm(panels.shape, args.T_, args.B, threads)),
        chunks_(split_into_chunks(shape_of(panels.shape, args.T_, args.B), Timeline{}, {0, args.T_})),
        chunk_rows_(most_rows_of_chunks(shape_of(panels.shape, args.T_, args.B), Timeline{})),
        weights_(panels, tape, args, plan_.threads(), chunk_rows_),
        barrier_(plan_.threads(), interrupt),
        dh_(zeros<T>(size_product(args.B, layout_.units))),
        d_pre_(size_product(2, chunk_rows_, layout_.d_pre_stride)),
        dx_(size_product(plan_.threads(), kRowBlock, layout_.input_padded)) {
    for (Buffer<T>& d : d_states_) d = zeros<T>(size_product(args.B, layout_.units));
  }

  void run() {
    run_team(plan_.threads(), [this](int rank) { run_rank(rank); });
  }

 private:
  static constexpr int64_t kRowBlock = 48;  // rows that run through the steps of a chunk together

  struct Member {
    int rank, index;  // in the team; among those that share the rows
    Range rows, heads;
  };

  void run_rank(int rank) {
    const int group = rank / plan_.head_groups, index = rank % plan_.head_groups;
    const Member me{rank, index, share(args_.B, plan_.row_groups, group),
                    share(panels_.shape.heads, plan_.head_groups, index)};
    begin_rows(me);
    for (std::size_t i = 0; i < chunks_.size(); ++i) {
      const Chunk& chunk = chunks_[i];
      const int buffer = int(i % 2);
      recur(me, chunk, buffer);
      const Range rows = share(me.rows.size(), plan_.head_groups, me.index);
      weights_.pack_x({me.rows.begin + rows.begin, me.rows.begin + rows.end}, chunk, buffer);
      for (int64_t head = me.heads.begin; head < me.heads.end; ++head) weights_.pack_h(me.rows, head, chunk, buffer);
      barrier_.wait(me.rank);
      if (interrupt_.stopped()) return;
      weights_.add(me.rank, chunk, buffer, d_pre(buffer, 0), i == 0);
      input_gradients(me, chunk, buffer);
    }
    end_rows(me);
    barrier_.wait(me.rank);
    weights_.store(share(panels_.shape.heads, plan_.threads(), me.rank));
  }

  T* d_pre(int buffer, int64_t row) const {
    return d_pre_.data() + (buffer * chunk_rows_ + row) * layout_.d_pre_stride;
  }
  T* dh(int64_t row, int64_t head) const { return dh_.data() + row * layout_.units + head * panels_.head_units(); }
  // A row of the head's first block in an array [blocks,B,lanes].
  int64_t state_at(int64_t row, int64_t head) const {
    return (head * panels_.head_blocks * args_.B + row) * layout_.lanes;
  }

  // function(place in an array [blocks,B,lanes], place in one [B,H], units) for each block of my heads of each of my rows.
  template <class Function>
  void for_states(const Member& me, Function function) const {
    const int64_t L = layout_.lanes, K = panels_.shape.head();
    for (int64_t row = me.rows.begin; row < me.rows.end; ++row)
      for (int64_t head = me.heads.begin; head < me.heads.end; ++head)
        for (int64_t block = 0; block < panels_.head_blocks; ++block)
          function(state_at(row, head) + block * args_.B * L, row * panels_.shape.H + head * K + block * L,
                   std::min(L, K - block * L));
  }

  void begin_rows(const Member& me) const {
    const int64_t H = panels_.shape.H, K = panels_.shape.head(), last = args_.T_ * args_.B * layout_.units;
    for (int64_t row = me.rows.begin; row < me.rows.end && args_.d_last[0]; ++row)
      for (int64_t head = me.heads.begin; head < me.heads.end; ++head)
        std::copy_n(args_.d_last[0] + row * H + head * K, K, dh(row, head));
    const auto [dc, dn, scale] = d_states();
    const T *c = tape_.c.data() + last, *n = tape_.n.data() + last;
    for_states(me, [&, dc = dc, dn = dn, scale = scale](int64_t at, int64_t from, int64_t units) {
      for (int64_t i = 0; i < units; ++i) {
        const auto d_last = [&](int state) { return args_.d_last[state] ? args_.d_last[state][from + i] : T(0); };
        dc[at + i] = d_last(1);
        dn[at + i] = d_last(2);
        scale[at + i] = d_last(3) - dc[at + i] * c[at + i] - dn[at + i] * n[at + i];
      }
    });
  }

  // From scale back to dm, see slstm_cell.h.
  void end_rows(const Member& me) const {
    const int64_t H = panels_.shape.H, K = panels_.shape.head();
    const auto cut = [&](int64_t row) {
      const uint8_t* flag = args_.marks.at(0, row, args_.T_, args_.B);
      return flag && (*flag & kCut);
    };
    for (int64_t row = me.rows.begin; row < me.rows.end; ++row)
      for (int64_t head = me.heads.begin; head < me.heads.end; ++head) {
        T* to = args_.d_first[0] + row * H + head * K;
        if (cut(row))
          std::fill_n(to, K, T(0));
        else
          std::copy_n(dh(row, head), K, to);
      }
    const auto [dc, dn, scale] = d_states();
    const T *c = tape_.c.data(), *n = tape_.n.data();
    for_states(me, [&, dc = dc, dn = dn, scale = scale](int64_t at, int64_t to, int64_t units) {
      const bool zero = cut(to / H);
      for (int64_t i = 0; i < units; ++i) {
        args_.d_first[1][to + i] = zero ? T(0) : dc[at + i];
        args_.d_first[2][to + i] = zero ? T(0) : dn[at + i];
        args_.d_first[3][to + i] = zero ? T(0) : scale[at + i] + dc[at + i] * c[at + i] + dn[at + i] * n[at + i];
      }
    });
  }

  SlstmStates<T> d_states() const { return {d_states_[0].data(), d_states_[1].data(), d_states_[2].data()}; }

  // The steps of a chunk, last one first, of a head and some rows: the cell gives d_pre, d_pre . U gives dh of the step before.
  void recur(const Member& me, const Chunk& chunk, int buffer) {
    const int64_t parts = (me.rows.size() + kRowBlock - 1) / kRowBlock;
    for (int64_t part = 0; part < parts; ++part) {
      const Range local = share(me.rows.size(), parts, part);
      const Range rows{me.rows.begin + local.begin, me.rows.begin + local.end};
      for (int64_t head = me.heads.begin; head < me.heads.end; ++head) {
        for (int64_t t = chunk.end - 1; t >= chunk.first; --t) {
          T* d = d_pre(buffer, chunk.offset[std::size_t(t - chunk.first)] + rows.begin) + head * panels_.head_columns();
          cell(rows, head, t, d);
          recurrent_product(rows, head, d);
        }
        if (me.rank == 0)
          interrupt_.worked(3 * (chunk.end - chunk.first) * rows.size() * panels_.head_columns() *
                            (panels_.shape.I + panels_.shape.head()));
        if (interrupt_.stopped()) return;
      }
    }
  }

  void cell(Range rows, int64_t head, int64_t t, T* d) const {
    const int64_t L = layout_.lanes, B = args_.B, row = rows.begin, at = state_at(row, head);
    SlstmBackward<T> k{};
    k.rows = rows.size();
    k.blocks = panels_.head_blocks;
    k.hidden = panels_.shape.head();
    k.c_prev = tape_.c.data() + t * B * layout_.units + at;
    k.n_prev = tape_.n.data() + t * B * layout_.units + at;
    k.c = k.c_prev + B * layout_.units;
    k.n = k.n_prev + B * layout_.units;
    k.block_stride = B * L;
    k.saved = tape_.gates.data() + (t * B * layout_.units + at) * 4;
    k.saved_block_stride = B * 4 * L;
    if (args_.dy) k.dy = args_.dy.row(t, row) + head * k.hidden;
    k.dy_stride = args_.dy.b_stride;
    k.dh = dh(row, head);
    k.dh_stride = layout_.units;
    const auto [dc, dn, scale] = d_states();
    k.dc = dc + at, k.dn = dn + at, k.scale = scale + at;
    k.d_pre = d;
    k.d_pre_stride = layout_.d_pre_stride;
    k.flags = args_.marks.at(t, row, args_.T_, B);
    k.flags_after = args_.marks.at(t + 1, row, args_.T_, B);
    k.repeat = args_.marks.repeat;
    panels_.kernels.slstm->backward(k);
  }

  void recurrent_product(Range rows, int64_t head, const T* d) const {
    const int64_t columns = panels_.head_columns(), K = panels_.shape.head(), padded = round_up(K, layout_.panel);
    Product<T> p{};
    p.rows = rows.size();
    p.K = columns;
    p.K_first = p.K_chain = kChain;
    p.a = d;
    p.a_stride = layout_.d_pre_stride;
    p.panels = transposed_.dh.data() + head * columns * padded;
    p.panel_stride = columns * layout_.panel;
    p.panel_end = padded / layout_.panel;
    p.tail_vectors = layout_.tail_vectors(K);
    p.c = dh(rows.begin, head);
    p.c_stride = layout_.units;
    if (args_.marks.flags) p.start = p.c, p.start_stride = p.c_stride;  // what held rows pass on
    panels_.kernels.product(p);
  }

  // dx of my part of the chunk's rows.
  void input_gradients(const Member& me, const Chunk& chunk, int buffer) const {
    const Range mine = share(chunk.rows(), plan_.threads(), me.rank);
    const int64_t I = panels_.shape.I, B = args_.B;
    const auto dx = [&](int64_t row) { return args_.dx.row(chunk.first + row / B, row % B); };
    if (I == 0) {
      for (int64_t row = mine.begin; row < mine.end; ++row)
        for (int64_t head = 0; head < panels_.shape.heads; ++head)
          panels_.for_blocks(head, [&](int64_t gate, int64_t unit, int64_t units, int64_t column) {
            std::copy_n(d_pre(buffer, row) + column, units, dx(row) + gate * panels_.shape.H + unit);
          });
      return;
    }
    Product<T> p{};
    p.K = layout_.columns;
    p.K_first = p.K_chain = kChain;
    p.a_stride = layout_.d_pre_stride;
    p.panels = transposed_.dx.data();
    p.panel_stride = layout_.columns * layout_.panel;
    p.panel_end = layout_.input_padded / layout_.panel;
    p.tail_vectors = layout_.tail_vectors(I);
    p.c = dx_.data() + me.rank * kRowBlock * layout_.input_padded;
    p.c_stride = layout_.input_padded;
    for (int64_t row = mine.begin; row < mine.end; row += p.rows) {
      p.rows = std::min(kRowBlock, mine.end - row);
      p.a = d_pre(buffer, row);
      panels_.kernels.product(p);
      for (int64_t i = 0; i < p.rows; ++i) std::copy_n(p.c + i * p.c_stride, I, dx(row + i));
    }
  }

  const SlstmPanels<T>& panels_;
  const Layout& layout_;
  const typename SlstmPanels<T>::Transposed& transposed_;
  const SlstmTape<T>& tape_;
  const SlstmBackwardArgs<T>& args_;
  Interrupt& interrupt_;
  const SlstmPlan plan_;
  const std::vector<Chunk> chunks_;  // last one first: they depend on the sizes alone, never on the threads
  const int64_t chunk_rows_;
  WeightSums<T> weights_;
  Barrier barrier_;
  Buffer<T> dh_;           // [B,units]
  Buffer<T> d_states_[3];  // [blocks,B,lanes] of c and n, and scale
  Buffer<T> d_pre_;        // [2, chunk rows, d_pre_stride]
  Buffer<T> dx_;           // [threads, kRowBlock, input_padded]
};

}  // namespace

template <class T>
void slstm_backward(const SlstmPanels<T>& panels, const SlstmTape<T>& tape, const SlstmBackwardArgs<T>& args,
                    int threads, Interrupt& interrupt) {
  Backward<T>(panels, tape, args, threads, interrupt).run();
}

#define INSTANTIATE(T)                                                                                       \
  template void slstm_backward(const SlstmPanels<T>&, const SlstmTape<T>&, const SlstmBackwardArgs<T>&, int, \
                               Interrupt&);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastlstm
