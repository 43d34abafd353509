// The backward time loop. Gates' gradients exist for a chunk of steps only: the recurrence fills the chunk, then its rows
// become terms of dW, db and dx while the next chunk fills a second buffer, so that one barrier a chunk is enough.
#include <algorithm>
#include <cstring>
#include <vector>

#include "backward_products.h"
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
        plan_(plan_backward(args.shape, panels.layout, sizeof(T), needs_of(panels, true), threads)),
        chunk_rows_(most_rows_of_chunks(args.shape, args.timeline)),
        products_(panels, args.draws, args.timeline, args.shape.B, plan_, bool(args.dx)),
        weights_(panels, args, plan_, products_.scales(), chunk_rows_, chunk_rows_ > 0),
        zoneout_(panels, args.draws, args.timeline, plan_.threads(), plan_.row_block),
        barrier_(plan_.threads(), interrupt) {
    const int64_t B = shape_.B, rows = chunk_rows_;
    dh_ = Buffer<T>(size_product(B, layout_.output_padded));
    dc_ = Buffer<T>(size_product(B, layout_.units));
    d_pre_ = Buffer<T>(size_product(2, rows, layout_.d_pre_stride));
    row_terms_ = Buffer<T>(size_product(2, rows, terms_of_row()));
    if (panels.normalised()) {
      d_sums_ = Buffer<T>(size_product(2, 2, rows, layout_.d_pre_stride));
      norms_ = Buffer<T>(size_product(plan_.threads(), plan_.row_block, 2 * layout_.units + 4));
    }
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
  void run_rank(int rank) {
    const Member me = member(rank);
    begin_rows(me);
    if (plan_.unit_groups > 1) me.barrier->wait(me.index);
    for (std::size_t i = 0; i < chunks_.size(); ++i) {
      const int64_t buffer = int64_t(i % 2) * chunk_rows_;
      recur(me, chunks_[i], buffer);
      {
        const Timed timed(me.profile, kLoad);
        weights_.pack(me.rank, *tape_, my_rows(me), chunks_[i], buffer, m_.data());
      }
      barrier_.wait(me.rank);
      if (interrupt_.stopped()) return;
      {
        const Timed timed(me.profile, kWeightGradients);
        weights_.add(me.rank, chunks_[i], buffer,
                     {d_x(buffer), d_h(buffer), dh_out_.data() + buffer * layout_.output_padded, row_terms(buffer)},
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
  // The gradients of x . W and of h . U, which are d_pre unless they are normalised.
  T* d_x(int64_t buffer_row) const { return d_sum(0, buffer_row); }
  T* d_h(int64_t buffer_row) const { return d_sum(1, buffer_row); }
  T* d_sum(int part, int64_t buffer_row) const {
    if (!panels_.normalised()) return d_pre(buffer_row);
    return d_sums_.data() + (part * 2 * chunk_rows_ + buffer_row) * layout_.d_pre_stride;
  }
  int64_t terms_of_row() const { return WeightGradients<T>::terms_of_row(panels_); }
  T* row_terms(int64_t buffer_row) const { return row_terms_.data() + buffer_row * terms_of_row(); }

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
    if (panels_.normalised()) k.norm = norm(me, slot * B + row, base + row);
    panels_.kernels.step_backward(k);
  }

  bool varies() const { return !panels_.plain_cell() || panels_.cell.dropout_per_gate || args_.dgates; }

  CellVariant<T> variant(const Member& me, Range rows, int64_t buffer_row, int64_t t) const {
    const Range units{me.blocks.begin * layout_.lanes, me.blocks.end * layout_.lanes};
    CellVariant<T> v{};
    v.options = &panels_.cell;
    if (panels_.peepholes.size() > 0) {
      v.peepholes = panels_.peepholes.data();
      v.d_peepholes = row_terms(buffer_row);
    }
    v.terms_stride = terms_of_row();
    v.d_block = layout_.d_block, v.d_gate = layout_.d_gate;
    if (shape_.P == 0) v.keep_h = zoneout_.of_h(me.rank, rows, units, t);
    v.keep_c = zoneout_.of_c(me.rank, rows, units, t);
    v.keep_stride = zoneout_.stride();
    v.d_gates = args_.dgates.step(t);
    v.d_gates_stride = args_.dgates.b_stride;
    return v;
  }

  // tape_row: of the tape's sums.
  StepNorm<T> norm(const Member& me, int64_t tape_row, int64_t buffer_row) const {
    StepNorm<T> n = panels_.step_norm();
    n.sums = tape_->sums.data() + tape_row * 2 * layout_.columns;
    n.inverses = tape_->inverses.data() + tape_row * 2;
    n.c = norms_.data() + me.rank * plan_.row_block * (2 * layout_.units + 4);
    n.d = n.c + plan_.row_block * layout_.units;
    n.moments = n.d + plan_.row_block * layout_.units;
    n.d_x = d_x(buffer_row), n.d_h = d_h(buffer_row);
    n.d_gains = row_terms(buffer_row) + WeightGradients<T>::gains_at(panels_);
    n.d_output = row_terms(buffer_row) + WeightGradients<T>::output_at(panels_);
    return n;
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
    p.panels = products_.transposed().dm.data();
    p.panel_stride = P * layout_.panel;
    p.panel_end = round_up(layout_.units, layout_.panel) / layout_.panel;
    p.c = k.dh;
    p.c_stride = k.dh_stride;
    panels_.kernels.product(p);
  }

  // dh of the step before. Turns alternate between the first panel first and the last.
  void recurrent_product(const Member& me, Range rows, int64_t base, int64_t turn) const {
    const int64_t per_panel = std::max<int64_t>(1, layout_.panel / layout_.lanes);
    const bool whole = plan_.unit_groups == 1;
    const Range panels{whole ? 0 : me.blocks.begin / per_panel,
                       whole ? layout_.output_padded / layout_.panel : (me.blocks.end + per_panel - 1) / per_panel};
    const bool passes = time_.flags || shape_.P > 0 || panels_.cell.zoneout_h > 0;  // some of dh by the cell
    const Timed timed(me.profile, kRecur);
    products_.into_dh(me.rank, rows, d_h(base + rows.begin), panels, turn % 2 > 0, passes,
                      dh_.data() + rows.begin * layout_.output_padded);
  }

  // dx of my part of the chunk's rows.
  void input_gradients(const Member& me, const Chunk& chunk, int64_t buffer) const {
    const Timed timed(me.profile, kProject);
    const Range mine = share(chunk.rows(), plan_.threads(), me.rank);
    std::size_t first = 0;  // the chunk's step that `begin` is of
    for (int64_t begin = mine.begin; begin < mine.end; begin += BackwardProducts<T>::kDxRows) {
      const int64_t rows = std::min(BackwardProducts<T>::kDxRows, mine.end - begin);
      while (chunk.offset[first + 1] <= begin) ++first;
      const auto each = [&](auto store) {
        std::size_t step = first;
        for (int64_t i = 0; i < rows; ++i) {
          while (chunk.offset[step + 1] <= begin + i) ++step;
          const int64_t row = begin + i - chunk.offset[step], t = time_.time(chunk.first + int64_t(step), shape_.T);
          store(i, row, args_.dx.row(t, time_.order[row]));
        }
      };
      products_.into_dx(me.rank, rows, d_x(buffer + begin), args_.add_to_dx, each);
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
        std::fill_n(args_.dx.row(t, b), shape_.x_size(), T(0));
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
  std::vector<Chunk> chunks_;  // of this window
  int64_t chunk_rows_;
  BackwardProducts<T> products_;
  WeightGradients<T> weights_;
  Zoneout<T> zoneout_;
  Barrier barrier_;
  std::vector<std::unique_ptr<Barrier>> group_barriers_;
  Buffer<T> dh_, dc_;          // [B, output_padded], [blocks,B,lanes]: gradients of the state after the step at hand
  Buffer<T> d_pre_;            // [2, chunk rows, d_pre_stride]
  Buffer<T> d_sums_;           // [2, 2, chunk rows, d_pre_stride] with normalisation: d_x, d_h
  Buffer<T> row_terms_;        // [2, chunk rows, terms_of_row]
  Buffer<T> norms_;            // [threads, row_block, 2 units + 4] with normalisation: scratch
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
