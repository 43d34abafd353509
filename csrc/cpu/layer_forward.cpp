// The forward time loop. Each row group owns a ring of operand rows [x_s | h_{s-1}] and the cell states of its rows; with a
// tape the "ring" is the tape itself, with a slot for every step. Slots count from the first step of the window.
#include <algorithm>
#include <vector>

#include "forward_products.h"
#include "layer_loop.h"
#include "plan.h"
#include "row_state.h"
#include "zoneout.h"

namespace fastlstm {
namespace {

template <class T>
class Forward : public LayerPass {
 public:
  Forward(const Panels<T>& panels, const ForwardArgs<T>& args, LayerTape<T>* tape, int threads, Interrupt& interrupt)
      : panels_(panels),
        layout_(panels.layout),
        args_(args),
        shape_(args.shape),
        time_(args.timeline),
        steps_(args.steps),
        tape_(tape),
        interrupt_(interrupt),
        plan_(plan_forward(args.shape, panels.layout, sizeof(T), needs_of(panels, args.draws.training), threads)),
        products_(panels, args, plan_),
        zoneout_(panels, args.draws, args.timeline, plan_.threads(), plan_.row_block) {
    if (tape) tape->steps = steps_;
    for (int i = 0; i < plan_.row_groups; ++i) groups_.push_back(make_group(i));
    if (args.gates && !tape) gates_ = Buffer<T>(size_product(plan_.threads(), plan_.row_block, layout_.columns));
    if (normalised()) norms_ = Buffer<T>(size_product(plan_.threads(), plan_.row_block, norm_scratch()));
  }

  void run() override {
    run_team(plan_.threads(), [this](int rank) { run_rank(rank); });
  }

 private:
  void run_rank(int rank) {
    Group& group = *groups_[std::size_t(rank / plan_.unit_groups)];
    const Member me = member(rank);
    const int64_t block = plan_.unit_groups > 1 ? group.rows.size() : plan_.row_block;
    const int64_t parts = block > 0 ? (group.rows.size() + block - 1) / block : 0;
    for (int64_t part = 0; part < parts && !interrupt_.stopped(); ++part) {
      const Range rows = share(group.rows.size(), parts, part);
      run_rows(group, me, {group.rows.begin + rows.begin, group.rows.begin + rows.end});
    }
  }

  struct Group {
    Group(int members, const Interrupt& interrupt) : barrier(members, interrupt) {}
    Range rows;
    Barrier barrier;
    Buffer<T> operands, c;  // inference only
    Buffer<T> pre;          // [pre_slots, rows, columns]
    Buffer<T> m, h;         // with projection: [rows, units], [rows, output_padded]
    T *operand = nullptr, *state = nullptr;
    int64_t capacity = 0;  // rows in a slot
    int64_t slots = 0;
  };

  struct Member {
    int rank, index;
    bool leads;        // runs on the calling thread, and asks whether to stop
    Range blocks;      // of units
    Profile* profile;  // of the leader, if one is taken
  };

  std::unique_ptr<Group> make_group(int index) const {
    auto group = std::make_unique<Group>(plan_.unit_groups, interrupt_);
    group->rows = rows_of_group(shape_, time_, plan_.row_groups, index);
    const int64_t rows = group->rows.size();
    if (tape_) {
      group->capacity = shape_.B;
      group->slots = steps_.size() + 1;
      group->operand = tape_->operands.data();
      group->state = tape_->c.data();
    } else {
      group->capacity = plan_.unit_groups > 1 ? rows : std::min(rows, plan_.row_block);
      group->slots = 2 * plan_.hoisted_steps;
      group->operands = Buffer<T>(size_product(group->slots, group->capacity, layout_.operand_stride));
      group->c = Buffer<T>(size_product(group->capacity, layout_.units));
      group->operand = group->operands.data();
      group->state = group->c.data();
    }
    if (hoisted() || shape_.given) group->pre = Buffer<T>(size_product(pre_slots(), group->capacity, layout_.columns));
    if (shape_.P > 0) {
      group->m = Buffer<T>(size_product(plan_.row_block, layout_.units));
      group->h = Buffer<T>(size_product(plan_.row_block, layout_.output_padded));
    }
    return group;
  }

  bool hoisted() const { return plan_.hoisted_steps > 1 && !shape_.given; }
  bool normalised() const { return panels_.normalised(); }
  // Where x holds pre-activations, those of the steps to come are loaded while others still read those of this one.
  int64_t pre_slots() const { return plan_.hoisted_steps * (shape_.given ? 2 : 1); }
  int64_t in_hoist(int64_t s) const { return (s - steps_.begin) % plan_.hoisted_steps; }
  Member member(int rank) const {
    const int index = rank % plan_.unit_groups;
    const Range blocks = share(layout_.blocks, plan_.unit_groups, index, forward_grain(layout_));
    return {rank, index, rank == 0, blocks, rank == 0 ? active_profile() : nullptr};
  }

  // Row `row` of the operands of step s; the tape holds all rows, a ring only those that run now, from `origin`.
  T* operand(const Group& g, int64_t s, int64_t row, int64_t origin) const {
    const int64_t local = tape_ ? row : row - origin;
    return g.operand + ((s - steps_.begin) % g.slots * g.capacity + local) * layout_.operand_stride;
  }
  // The cell states before step s, at `row` of the first block.
  T* state(const Group& g, int64_t s, int64_t row, int64_t origin) const {
    const int64_t local = tape_ ? row : row - origin;
    return g.state + (tape_ ? (s - steps_.begin) * g.capacity * layout_.units : 0) + local * layout_.lanes;
  }
  // x . W of `row` at step s, where it is known before the step.
  T* pre(const Group& g, int64_t s, int64_t row, int64_t origin) const {
    return g.pre.data() + ((s - steps_.begin) % pre_slots() * g.capacity + row - origin) * layout_.columns;
  }
  const uint8_t* flags(int64_t s, int64_t row) const {
    return time_.flags && s < shape_.T ? time_.flags + s * shape_.B + row : nullptr;
  }

  void run_rows(Group& g, const Member& me, Range rows) {
    begin_rows(g, me, rows);
    load_inputs(g, me, rows, steps_.begin);
    if (plan_.unit_groups > 1) g.barrier.wait(me.index);
    for (int64_t s = steps_.begin; s < steps_.end; ++s) {
      if (hoisted() && in_hoist(s) == 0) project_inputs(g, me, rows, s);
      step(g, me, rows, s);
      if (in_hoist(s + 1) == 0) load_inputs(g, me, rows, s + 1);
      if (me.leads) interrupt_.worked(rows.size() * me.blocks.size() * 4 * layout_.lanes * layout_.depth);
      if (interrupt_.stopped()) return;
      if (plan_.unit_groups > 1) g.barrier.wait(me.index);
    }
    end_rows(g, me, rows);
  }

  Range my_rows(const Member& me, Range rows) const {
    const Range mine = share(rows.size(), plan_.unit_groups, me.index);
    return {rows.begin + mine.begin, rows.begin + mine.end};
  }

  RowState<T> row_state(const Group& g, int64_t s, int64_t row, int64_t origin) const {
    return {shape_, layout_, operand(g, s, row, origin) + layout_.h_offset, state(g, s, row, origin),
            g.capacity * layout_.lanes};
  }

  // The initial state goes to the slot of each row's own first step; rows that began before go on from there.
  void begin_rows(const Group& g, const Member& me, Range rows) const {
    const Range mine = my_rows(me, rows);
    for (int64_t row = mine.begin; row < mine.end; ++row) {
      const int64_t first = time_.first_step(row, shape_.T), b = time_.order[row];
      const uint8_t* flag = flags(first, row);
      const bool zero_h = !args_.h0 || (flag && (*flag & kCut));
      if (runs_across(row, steps_.begin))
        row_state(g, steps_.begin, row, rows.begin).resume(args_.from + row * state_size(shape_, layout_));
      else if (steps_.begin <= first && first <= steps_.end)
        row_state(g, first, row, rows.begin)
            .begin(zero_h ? nullptr : args_.h0 + b * shape_.output(), args_.c0 ? args_.c0 + b * shape_.H : nullptr);
    }
  }

  // Does it have steps on both sides of the start of step s?
  bool runs_across(int64_t row, int64_t s) const {
    return time_.first_step(row, shape_.T) < s && s < time_.last_step(row, shape_.T);
  }

  // x of the steps of the chunk that starts at s.
  void load_inputs(const Group& g, const Member& me, Range rows, int64_t s) const {
    const Timed timed(me.profile, kLoad);
    const int64_t end = std::min(s + plan_.hoisted_steps, steps_.end);
    const Range mine = my_rows(me, rows);
    for (; s < end; ++s) {
      const int64_t t = time_.time(s, shape_.T), active = std::min(mine.end, time_.rows(s, shape_.B));
      for (int64_t row = mine.begin; row < active; ++row) {
        const uint8_t* flag = flags(s, row);
        // x of a held step is never read: a NaN there would reach dW as 0 * NaN.
        const T* x = flag && (*flag & kHeld) ? nullptr : args_.x.row(t, time_.order[row]);
        if (shape_.given)
          products_.load_given(x, pre(g, s, row, rows.begin));
        else
          fill(operand(g, s, row, rows.begin) + layout_.x_offset, x, shape_.I);
      }
    }
  }

  // pre = b + x . W of my units for a chunk of steps; the recurrence goes on from there.
  void project_inputs(const Group& g, const Member& me, Range rows, int64_t s) const {
    const int64_t steps = std::min(plan_.hoisted_steps, steps_.end - s), per_block = 4 * layout_.lanes;
    Product<T> p = products_.of_inputs(me.rank, steps * g.capacity, operand(g, s, rows.begin, rows.begin));
    p.panel_begin = me.blocks.begin * per_block / layout_.panel;
    p.panel_end = me.blocks.end * per_block / layout_.panel;
    p.c = pre(g, s, rows.begin, rows.begin);
    p.c_stride = layout_.columns;
    const Timed timed(me.profile, kProject);
    panels_.kernels.product(p);
  }

  void step(const Group& g, const Member& me, Range rows, int64_t s) const {
    const int64_t end = std::min(rows.end, time_.rows(s, shape_.B));
    const int64_t parts = (end - rows.begin + plan_.row_block - 1) / plan_.row_block;
    for (int64_t part = 0; part < parts; ++part) {
      const Range local = share(end - rows.begin, parts, part);
      step_rows(g, me, {rows.begin + local.begin, rows.begin + local.end}, rows.begin, s, s * parts + part);
    }
  }

  // Turns alternate between the first panel first and the last.
  void step_rows(const Group& g, const Member& me, Range rows, int64_t origin, int64_t s, int64_t turn) const {
    const int64_t t = time_.time(s, shape_.T), row = rows.begin;
    StepForward<T> k{};
    T* now = operand(g, s, row, origin);
    products_.of_step(me.rank, rows, now, g.pre ? pre(g, s, row, origin) : nullptr, k);
    k.gates.descending = k.inputs.descending = turn % 2 > 0;
    k.hidden = shape_.H;
    k.block_begin = me.blocks.begin;
    k.block_end = me.blocks.end;
    k.c_prev = state(g, s, row, origin);
    k.c = state(g, s + 1, row, origin);
    k.c_block_stride = g.capacity * layout_.lanes;
    k.h_prev = now + layout_.h_offset;
    k.h_next = operand(g, s + 1, row, origin) + layout_.h_offset;
    k.h_next_stride = layout_.operand_stride;
    if (shape_.P > 0) k.m = g.m.data(), k.m_stride = layout_.units;
    if (tape_) {
      k.saved = tape_->gates.data() + ((s - steps_.begin) * layout_.blocks * shape_.B + row) * 4 * layout_.lanes;
      k.saved_block_stride = shape_.B * 4 * layout_.lanes;
    } else if (args_.gates) {
      k.saved = gates_.data() + me.rank * plan_.row_block * layout_.columns;
      k.saved_block_stride = rows.size() * 4 * layout_.lanes;
    }
    k.y = args_.y.step(t);
    k.y_stride = args_.y.b_stride;
    k.cells = args_.cells.step(t);
    k.cells_stride = args_.cells.b_stride;
    k.order = time_.order + row;
    k.flags = flags(s, row);
    k.flags_next = flags(s + 1, row);
    k.repeat = time_.repeat;
    k.profile = me.profile;
    if (!panels_.plain_cell()) k.variant = variant(me, rows, t);
    if (normalised()) k.norm = norm(me, row, s);
    panels_.kernels.step_forward(k);
    if (args_.gates) copy_gates(k, t);
    if (shape_.P > 0) project_outputs(g, me, k, rows, t);
  }

  // What a step saved, for the caller; steps that do not count have none.
  void copy_gates(const StepForward<T>& k, int64_t t) const {
    const int64_t H = shape_.H, L = layout_.lanes;
    for (int64_t block = k.block_begin; block < k.block_end; ++block)
      for (int64_t row = 0; row < k.gates.rows; ++row) {
        const bool held = k.flags && (k.flags[row] & kHeld);
        const T* from = k.saved + block * k.saved_block_stride + row * 4 * L;
        T* to = args_.gates.row(t, k.order[row]) + block * L;
        for (int64_t gate = 0; gate < 4; ++gate)
          fill(to + gate * H, held ? nullptr : from + gate * L, std::min(L, H - block * L));
      }
  }

  CellVariant<T> variant(const Member& me, Range rows, int64_t t) const {
    const Range units{me.blocks.begin * layout_.lanes, me.blocks.end * layout_.lanes};
    CellVariant<T> v{};
    v.options = &panels_.cell;
    if (panels_.peepholes.size() > 0) v.peepholes = panels_.peepholes.data();
    if (shape_.P == 0) v.keep_h = zoneout_.of_h(me.rank, rows, units, t);
    v.keep_c = zoneout_.of_c(me.rank, rows, units, t);
    v.keep_stride = zoneout_.stride();
    return v;
  }

  // Scratch of a row: both sums and their inverses in inference, then pre, c and its moments.
  int64_t norm_scratch() const { return 3 * layout_.columns + layout_.units + 8; }

  StepNorm<T> norm(const Member& me, int64_t row, int64_t s) const {
    T* scratch = norms_.data() + me.rank * plan_.row_block * norm_scratch();
    const auto take = [&](int64_t elements) {
      T* const part = scratch;
      scratch += plan_.row_block * elements;
      return part;
    };
    StepNorm<T> n = panels_.step_norm();
    n.pre = take(layout_.columns);
    n.c = take(layout_.units);
    n.moments = take(4);
    if (tape_) {
      const int64_t at = (s - steps_.begin) * shape_.B + row;
      n.sums = tape_->sums.data() + at * 2 * layout_.columns;
      n.inverses = tape_->inverses.data() + at * 2;
    } else {
      n.sums = take(2 * layout_.columns);
      n.inverses = take(2);
    }
    return n;
  }

  // h = m . w_p^T, then what step_forward does with h without a projection.
  void project_outputs(const Group& g, const Member& me, const StepForward<T>& k, Range rows, int64_t t) const {
    Product<T> p{};
    p.rows = k.gates.rows;
    p.K = shape_.H;
    p.a = k.m;
    p.a_stride = k.m_stride;
    p.panels = panels_.projection.data();
    p.panel_stride = shape_.H * layout_.panel;
    p.panel_end = layout_.output_padded / layout_.panel;
    p.c = g.h.data();
    p.c_stride = layout_.output_padded;
    panels_.kernels.product(p);

    const int64_t P = shape_.P;
    const T* keep = zoneout_.of_h(me.rank, rows, {0, P}, t);
    for (int64_t row = 0; row < p.rows; ++row) {
      const bool held = k.flags && (k.flags[row] & kHeld), cut_next = k.flags_next && (k.flags_next[row] & kCut);
      const T *before = k.h_prev + row * k.gates.a_stride, *after = p.c + row * p.c_stride;
      T *y = k.y + k.order[row] * k.y_stride, *next = k.h_next + row * k.h_next_stride;
      for (int64_t i = 0; i < P; ++i) {
        const T kept = keep ? keep[row * zoneout_.stride() + i] : T(0);
        const T h = held ? before[i] : kept != 0 ? kept * before[i] + (1 - kept) * after[i] : after[i];
        y[i] = held && !k.repeat ? T(0) : h;
        next[i] = cut_next ? T(0) : h;
      }
    }
  }

  // The states of rows that end here, or go on in the next window.
  void end_rows(const Group& g, const Member& me, Range rows) const {
    const Range mine = my_rows(me, rows);
    for (int64_t row = mine.begin; row < mine.end; ++row) {
      const int64_t last = time_.last_step(row, shape_.T), b = time_.order[row];
      if (args_.to && runs_across(row, steps_.end))
        row_state(g, steps_.end, row, rows.begin).leave(args_.to + row * state_size(shape_, layout_));
      if (!args_.h_n) continue;
      if (last <= steps_.end && (last > steps_.begin || steps_.begin == 0))
        row_state(g, last, row, rows.begin).end(args_.h_n + b * shape_.output(), args_.c_n + b * shape_.H);
      if (time_.end) fill_tail(row);
    }
  }

  // The outputs of the steps beyond a row's end, which no kernel has visited.
  void fill_tail(int64_t row) const {
    const int64_t b = time_.order[row], n = shape_.output(), H = shape_.H;
    const T* h_held = time_.reverse ? (args_.h0 ? args_.h0 + b * n : nullptr) : args_.h_n + b * n;
    const T* c_held = time_.reverse ? (args_.c0 ? args_.c0 + b * H : nullptr) : args_.c_n + b * H;
    const Range times = time_.times(steps_, shape_.T);
    for (int64_t t = std::max(time_.end[row], times.begin); t < times.end; ++t) {
      fill(args_.y.row(t, b), time_.repeat ? h_held : nullptr, n);
      if (args_.cells) fill(args_.cells.row(t, b), c_held, H);
      if (args_.gates) fill(args_.gates.row(t, b), nullptr, 4 * H);
    }
  }

  static void fill(T* to, const T* from, int64_t n) {
    if (from)
      std::copy_n(from, n, to);
    else
      std::fill_n(to, n, T(0));
  }

  const Panels<T>& panels_;
  const Layout& layout_;
  const ForwardArgs<T>& args_;
  const Shape& shape_;
  const Timeline& time_;
  const Range steps_;
  LayerTape<T>* tape_;
  Interrupt& interrupt_;
  Plan plan_;
  ForwardProducts<T> products_;
  Zoneout<T> zoneout_;
  std::vector<std::unique_ptr<Group>> groups_;
  Buffer<T> gates_;  // [threads, row_block, columns] where they are wanted and there is no tape
  Buffer<T> norms_;  // [threads, row_block, norm_scratch]; empty without normalisation
};

}  // namespace

template <class T>
void layer_forward(const Panels<T>& panels, const ForwardArgs<T>& args, LayerTape<T>* tape, int threads,
                   Interrupt& interrupt) {
  Forward<T>(panels, args, tape, threads, interrupt).run();
}

template <class T>
std::unique_ptr<LayerPass> forward_pass(const Panels<T>& panels, const ForwardArgs<T>& args, int threads,
                                        Interrupt& interrupt) {
  return std::make_unique<Forward<T>>(panels, args, nullptr, threads, interrupt);
}

#define INSTANTIATE(T)                                                                                  \
  template void layer_forward(const Panels<T>&, const ForwardArgs<T>&, LayerTape<T>*, int, Interrupt&); \
  template std::unique_ptr<LayerPass> forward_pass(const Panels<T>&, const ForwardArgs<T>&, int, Interrupt&);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastlstm
