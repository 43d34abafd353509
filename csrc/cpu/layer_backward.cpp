// The backward time loop. Gates' gradients exist for a chunk of steps only: the recurrence fills the chunk, then its rows
// become terms of dW, db and dx while the next chunk fills a second buffer, so that one barrier a chunk is enough.
#include <algorithm>
#include <cstring>
#include <vector>

#include "layer_loop.h"
#include "plan.h"
#include "weight_gradients.h"
#include "zoneout.h"

namespace fastlstm {
namespace {

template <class T>
class Backward : public LayerBackward<T> {
 public:
  Backward(const Panels<T>& panels, const BackwardArgs<T>& args, int threads, Interrupt& interrupt)
      : panels_(panels),
        layout_(panels.layout),
        args_(args),
        shape_(args.shape),
        time_(args.timeline),
        interrupt_(interrupt),
        plan_(plan_backward(args.shape, panels.layout, sizeof(T), panels.only_matrices(), threads)),
        transposed_(plan_.single_step ? nullptr : &panels.transposed(threads)),
        chunk_rows_(most_rows_of_chunks(args.shape, args.timeline)),
        weights_(panels, args, plan_, chunk_rows_, chunk_rows_ > 0),
        zoneout_(panels, args.draws, args.timeline, plan_.threads(), plan_.row_block),
        barrier_(plan_.threads(), interrupt) {
    const int64_t B = shape_.B, rows = chunk_rows_;
    dh_ = Buffer<T>(size_product(B, layout_.output_padded));
    dc_ = Buffer<T>(size_product(B, layout_.units));
    d_pre_ = Buffer<T>(size_product(2, rows, layout_.d_pre_stride));
    if (panels.peepholes.size() > 0) d_peepholes_ = Buffer<T>(size_product(2, rows, 3 * layout_.units));
    if (args_.dx) dx_ = Buffer<T>(size_product(plan_.threads(), kDxRows, layout_.input_padded));
    if (shape_.P > 0) {
      dm_ = Buffer<T>(size_product(B, round_up(layout_.units, layout_.panel)));
      m_ = Buffer<T>(size_product(2, rows, layout_.units));
      dh_out_ = Buffer<T>(size_product(2, rows, layout_.output_padded));
      std::fill_n(dh_out_.data(), dh_out_.size(), T(0));
    }
    for (int i = 0; i < plan_.row_groups; ++i) group_barriers_.emplace_back(new Barrier(plan_.unit_groups, interrupt));
  }

  void run(const LayerTape<T>& tape) override {
    tape_ = &tape;
    chunks_ = split_into_chunks(shape_, time_, tape.steps);
    run_team(plan_.threads(), [this](int rank) { run_rank(rank); });
  }

 private:
  static constexpr int64_t kDxRows = 48;

  void run_rank(int rank) {
    const Member me = member(rank);
    begin_rows(me);
    if (plan_.unit_groups > 1) me.barrier->wait(me.index);
    for (std::size_t i = 0; i < chunks_.size(); ++i) {
      const int64_t buffer = int64_t(i % 2) * chunk_rows_;
      recur(me, chunks_[i], buffer);
      {
        const Timed timed(me.profile, kLoad);
        weights_.pack(*tape_, my_rows(me), chunks_[i], buffer, m_.data());
      }
      barrier_.wait(me.rank);
      if (interrupt_.stopped()) return;
      {
        const Timed timed(me.profile, kWeightGradients);
        weights_.add(me.rank, chunks_[i], buffer,
                     {d_pre(buffer), dh_out_.data() + buffer * layout_.output_padded, d_peepholes(buffer)},
                     chunks_[i].end == shape_.T);
      }
      if (args_.dx) input_gradients(me, chunks_[i], buffer);
    }
    barrier_.wait(me.rank);
    end_rows(me);
    if (tape_->steps.begin > 0) return;
    const Timed timed(me.profile, kWeightGradients);
    weights_.store(me.rank, *tape_, d_pre(0), chunk_rows_);
  }

  struct Member {
    int rank, index;
    Barrier* barrier;
    Range rows;
    Range blocks;      // of units
    Profile* profile;  // of rank 0, if one is taken
  };

  Member member(int rank) const {
    const int group = rank / plan_.unit_groups, index = rank % plan_.unit_groups;
    return {rank,
            index,
            group_barriers_[std::size_t(group)].get(),
            rows_of_group(shape_, time_, plan_.row_groups, group),
            share(layout_.blocks, plan_.unit_groups, index, backward_grain(layout_)),
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
  T* d_peepholes(int64_t buffer_row) const { return d_peepholes_.data() + buffer_row * 3 * layout_.units; }

  // This window's held steps beyond a row's end: dy reaches h only where the output repeats it, dcells always reaches c.
  void add_tail(int64_t row) const {
    if (!time_.end) return;
    Range steps = tape_->steps;
    if (time_.reverse)
      steps.end = std::min(steps.end, shape_.T - time_.end[row]);
    else
      steps.begin = std::max(steps.begin, time_.end[row]);
    for (int64_t s = steps.end - 1; s >= steps.begin; --s) {
      const int64_t t = time_.time(s, shape_.T), b = time_.order[row];
      if (truncated_after(s)) forget({row, row + 1}, {0, layout_.blocks});
      T* dh = dh_.data() + row * layout_.output_padded;
      if (args_.dy && time_.repeat)
        for (int64_t i = 0; i < shape_.output(); ++i) dh[i] += args_.dy.row(t, b)[i];
      if (args_.dcells)
        for (int64_t unit = 0; unit < shape_.H; ++unit) *dc_unit(row, unit) += args_.dcells.row(t, b)[unit];
    }
  }

  // Is there no way back from the step that is processed after s?
  bool truncated_after(int64_t s) const {
    if (args_.truncate == 0 || s + 1 == shape_.T) return false;
    return std::max(time_.time(s, shape_.T), time_.time(s + 1, shape_.T)) % args_.truncate == 0;
  }

  void forget(Range rows, Range blocks) const {
    const int64_t L = layout_.lanes, begin = blocks.begin * L;
    const int64_t end = blocks.end == layout_.blocks ? layout_.output_padded : blocks.end * L;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      std::fill_n(dh_.data() + row * layout_.output_padded + begin, end - begin, T(0));
      for (int64_t block = blocks.begin; block < blocks.end; ++block) std::fill_n(dc_unit(row, block * L), L, T(0));
    }
  }

  void begin_rows(const Member& me) const {
    const Range mine = my_rows(me);
    for (int64_t row = mine.begin; row < mine.end; ++row) {
      if (tape_->steps.end == shape_.T) {
        const int64_t b = time_.order[row], n = shape_.output();
        T* dh = dh_.data() + row * layout_.output_padded;
        std::fill_n(dh, layout_.output_padded, T(0));
        if (args_.dh_n) std::copy_n(args_.dh_n + b * n, n, dh);
        for (int64_t unit = 0; unit < layout_.units; ++unit)
          *dc_unit(row, unit) = args_.dc_n && unit < shape_.H ? args_.dc_n[b * shape_.H + unit] : T(0);
      }
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
      if (truncated_after(s)) forget({me.rows.begin, me.rows.begin + count}, me.blocks);
      for (int64_t part = 0; part < parts; ++part) {
        const Range local = share(count, parts, part), rows{me.rows.begin + local.begin, me.rows.begin + local.end};
        cell(me, rows, s, base);
        if (me.rank == 0) interrupt_.worked(3 * rows.size() * me.blocks.size() * 4 * layout_.lanes * layout_.depth);
        if (interrupt_.stopped()) return;
        if (plan_.unit_groups == 1) recurrent_product(me, rows, base, s * parts + part);
      }
      if (plan_.unit_groups == 1) continue;
      me.barrier->wait(me.index);
      if (interrupt_.stopped()) return;
      if (count > 0) recurrent_product(me, {me.rows.begin, end}, base, s);
    }
  }

  void cell(const Member& me, Range rows, int64_t s, int64_t base) const {
    const int64_t t = time_.time(s, shape_.T), row = rows.begin, L = layout_.lanes, B = shape_.B;
    StepBackward<T> k{};
    k.rows = rows.size();
    k.hidden = shape_.H;
    k.block_begin = me.blocks.begin;
    k.block_end = me.blocks.end;
    const int64_t slot = s - tape_->steps.begin;
    k.saved = tape_->gates.data() + (slot * layout_.blocks * B + row) * 4 * L;
    k.saved_block_stride = B * 4 * L;
    if (slot > 0) k.saved_next = -B * layout_.columns, k.c_next = -B * layout_.units;
    k.c_prev = tape_->c.data() + slot * B * layout_.units + row * L;
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
      projection_gradient(me, rows, s, base, k);
    } else {
      k.dh = dh_.data() + row * layout_.output_padded;
      k.dh_stride = layout_.output_padded;
      k.dy = args_.dy.step(t);
      k.dy_stride = args_.dy.b_stride;
      if (slot > 0) k.dy_next = (time_.time(s - 1, shape_.T) - t) * args_.dy.t_stride;
    }
    const Timed timed(me.profile, kCell);
    if (varies()) k.variant = variant(me, rows, base + row, t);
    panels_.kernels.step_backward(k);
  }

  bool varies() const { return !panels_.cell.plain() || panels_.peepholes.size() > 0 || args_.dgates; }

  CellVariant<T> variant(const Member& me, Range rows, int64_t buffer_row, int64_t t) const {
    const Range units{me.blocks.begin * layout_.lanes, me.blocks.end * layout_.lanes};
    CellVariant<T> v{};
    v.options = &panels_.cell;
    if (panels_.peepholes.size() > 0) {
      v.peepholes = panels_.peepholes.data();
      v.d_peepholes = d_peepholes(buffer_row);
      v.d_peepholes_stride = 3 * layout_.units;
    }
    if (shape_.P == 0) v.keep_h = zoneout_.of_h(me.rank, rows, units, t);
    v.keep_c = zoneout_.of_c(me.rank, rows, units, t);
    v.keep_stride = zoneout_.stride();
    v.d_gates = args_.dgates.step(t);
    v.gates_stride = args_.dgates.b_stride;
    return v;
  }

  // dh of the projected output, complete, then dm = dh . w_p. What stays in dh_ is what held rows pass on.
  void projection_gradient(const Member& me, Range rows, int64_t s, int64_t base, const StepBackward<T>& k) const {
    const int64_t P = shape_.P, t = time_.time(s, shape_.T), stride = layout_.output_padded;
    const T* keep = zoneout_.of_h(me.rank, rows, {0, P}, t);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const int64_t i = row - rows.begin;
      const bool held = k.flags && (k.flags[i] & kHeld), cut = k.flags_after && (k.flags_after[i] & kCut);
      T *dh = dh_.data() + row * stride, *out = dh_out_.data() + (base + row) * stride;
      const T* dy = args_.dy && !(held && !time_.repeat) ? args_.dy.row(t, time_.order[row]) : nullptr;
      for (int64_t p = 0; p < P; ++p) {
        const T total = (cut ? T(0) : dh[p]) + (dy ? dy[p] : T(0));
        const T kept = held ? T(1) : keep ? keep[i * zoneout_.stride() + p] : T(0);
        dh[p] = total * kept;
        out[p] = total - dh[p];
      }
    }
    Product<T> p{};
    p.rows = rows.size();
    p.K = P;
    p.a = dh_out_.data() + (base + rows.begin) * stride;
    p.a_stride = stride;
    p.panels = transposed_->dm.data();
    p.panel_stride = P * layout_.panel;
    p.panel_end = round_up(layout_.units, layout_.panel) / layout_.panel;
    p.c = k.dh;
    p.c_stride = k.dh_stride;
    panels_.kernels.product(p);
  }

  Product<T> d_pre_product(int64_t buffer_row, int64_t rows) const {
    Product<T> p{};
    p.rows = rows;
    p.K = layout_.columns;
    p.K_first = p.K_chain = kChain;
    p.a = d_pre(buffer_row);
    p.a_stride = layout_.d_pre_stride;
    p.panel_stride = layout_.columns * layout_.panel;
    p.prefetch = plan_.prefetch;
    return p;
  }

  // With `count` rows of the gate panels from `first` on, transposed before or, for a single step, on the way.
  void times_weights(Product<T> p, Buffer<T> Panels<T>::Transposed::* panels, int64_t first, int64_t count) const {
    if (!transposed_) return panels_.product_transposed(p, first, count);
    p.panels = (transposed_->*panels).data();
    panels_.kernels.product(p);
  }

  // dh of the step before. Turns alternate between the first panel first and the last.
  void recurrent_product(const Member& me, Range rows, int64_t base, int64_t turn) const {
    Product<T> p = d_pre_product(base + rows.begin, rows.size());
    p.descending = turn % 2 > 0;
    const int64_t per_panel = std::max<int64_t>(1, layout_.panel / layout_.lanes);
    const bool whole = plan_.unit_groups == 1;
    p.panel_begin = whole ? 0 : me.blocks.begin / per_panel;
    p.panel_end = whole ? layout_.output_padded / layout_.panel : (me.blocks.end + per_panel - 1) / per_panel;
    if (p.panel_end * layout_.panel > shape_.output()) p.tail_vectors = layout_.tail_vectors(shape_.output());
    p.c = dh_.data() + rows.begin * layout_.output_padded;
    p.c_stride = layout_.output_padded;
    if (time_.flags || shape_.P > 0 || panels_.cell.zoneout_h > 0) p.start = p.c, p.start_stride = p.c_stride;
    const Timed timed(me.profile, kRecur);
    times_weights(p, &Panels<T>::Transposed::dh, shape_.I, shape_.output());
  }

  // dx = d_pre . W for my part of the chunk's rows.
  void input_gradients(const Member& me, const Chunk& chunk, int64_t buffer) const {
    const Timed timed(me.profile, kProject);
    const Range mine = share(chunk.rows(), plan_.threads(), me.rank);
    T* scratch = dx_.data() + me.rank * kDxRows * layout_.input_padded;
    std::size_t step = 0;
    for (int64_t begin = mine.begin; begin < mine.end; begin += kDxRows) {
      const int64_t rows = std::min(kDxRows, mine.end - begin);
      Product<T> p = d_pre_product(buffer + begin, rows);
      p.panel_end = layout_.input_padded / layout_.panel;
      p.tail_vectors = layout_.tail_vectors(shape_.I);
      p.c = scratch;
      p.c_stride = layout_.input_padded;
      times_weights(p, &Panels<T>::Transposed::dx, 0, shape_.I);
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
    const Range mine = my_rows(me), steps = tape_->steps, times = time_.times(steps, shape_.T);
    const int64_t n = shape_.output(), H = shape_.H;
    for (int64_t row = mine.begin; row < mine.end; ++row) {
      const int64_t first = time_.first_step(row, shape_.T), b = time_.order[row];
      const uint8_t* flag = first >= steps.begin && first < steps.end ? flags(first, row) : nullptr;
      if (flag && (*flag & kCut)) forget({row, row + 1}, {0, layout_.blocks});
      if (time_.reverse) add_tail(row);
      if (steps.begin == 0) {
        if (args_.dh0) std::copy_n(dh_.data() + row * layout_.output_padded, n, args_.dh0 + b * n);
        for (int64_t unit = 0; args_.dc0 && unit < H; ++unit) args_.dc0[b * H + unit] = *dc_unit(row, unit);
      }
      if (!args_.dx || args_.add_to_dx || !time_.end) continue;
      for (int64_t t = std::max(time_.end[row], times.begin); t < times.end; ++t)
        std::fill_n(args_.dx.row(t, b), shape_.I, T(0));
    }
  }

  const Panels<T>& panels_;
  const Layout& layout_;
  const LayerTape<T>* tape_ = nullptr;  // of the window that runs
  const BackwardArgs<T>& args_;
  const Shape& shape_;
  const Timeline& time_;
  Interrupt& interrupt_;
  Plan plan_;
  const typename Panels<T>::Transposed* transposed_;  // null: of a single step
  std::vector<Chunk> chunks_;                         // of this window
  int64_t chunk_rows_;
  WeightGradients<T> weights_;
  Zoneout<T> zoneout_;
  Barrier barrier_;
  std::vector<std::unique_ptr<Barrier>> group_barriers_;
  Buffer<T> dh_, dc_;          // [B, output_padded], [blocks,B,lanes]: gradients of the state after the step at hand
  Buffer<T> d_pre_;            // [2, chunk rows, d_pre_stride]
  Buffer<T> d_peepholes_;      // [2, chunk rows, blocks, 3, lanes]; empty without
  Buffer<T> dx_;               // [threads, kDxRows, input_padded]
  Buffer<T> dm_, m_, dh_out_;  // with projection: [B, units], [2, chunk rows, units], [2, chunk rows, output_padded]
};

}  // namespace

template <class T>
std::unique_ptr<LayerBackward<T>> backward_pass(const Panels<T>& panels, const BackwardArgs<T>& args, int threads,
                                                Interrupt& interrupt) {
  return std::make_unique<Backward<T>>(panels, args, threads, interrupt);
}

template std::unique_ptr<LayerBackward<float>> backward_pass(const Panels<float>&, const BackwardArgs<float>&, int,
                                                             Interrupt&);
template std::unique_ptr<LayerBackward<double>> backward_pass(const Panels<double>&, const BackwardArgs<double>&, int,
                                                              Interrupt&);

}  // namespace fastlstm
