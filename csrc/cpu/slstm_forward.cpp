// The sLSTM's packed weights, the split over threads, and the forward time loop: x of some steps is loaded once for all heads,
// then each head runs these steps by itself.
#include <algorithm>
#include <vector>

#include "plan.h"
#include "slstm.h"

namespace fastlstm {
namespace {

template <class T>
Layout padded_layout(const Kernels<T>& kernels, const SlstmShape& shape) {
  Shape padded;
  padded.I = shape.I;
  padded.H = shape.heads * round_up(shape.head(), kernels.lanes);
  return Layout(padded, CellOptions{}, kernels.lanes, kernels.panel, sizeof(T));
}

}  // namespace

template <class T>
SlstmPanels<T>::SlstmPanels(const Kernels<T>& kernels_, const SlstmShape& shape_, const SlstmRawWeights<T>& raw)
    : kernels(kernels_),
      shape(shape_),
      head_blocks(round_up(shape_.head(), kernels_.lanes) / kernels_.lanes),
      layout(padded_layout(kernels_, shape_)),
      inputs(size_product(layout.columns, shape_.I)),
      recurrent(size_product(layout.columns, shape_.head())),
      bias(layout.columns) {
  const int64_t I = shape.I, H = shape.H, K = shape.head(), W = layout.panel;
  for (const Buffer<T>* buffer : {&inputs, &recurrent, &bias}) std::fill_n(buffer->data(), buffer->size(), T(0));
  for (int64_t head = 0; head < shape.heads; ++head)
    for_blocks(head, [&](int64_t gate, int64_t unit, int64_t units, int64_t column) {
      const int64_t row = gate * H + unit, panel = column / W, in_panel = column % W;
      kernels.transpose(raw.w_x + row * I, I, units, I, inputs.data() + panel * I * W + in_panel, W);
      kernels.transpose(raw.w_h + row * K, K, units, K, recurrent.data() + panel * K * W + in_panel, W);
      if (raw.bias) std::copy_n(raw.bias + row, units, bias.data() + column);
    });
}

template <class T>
const typename SlstmPanels<T>::Transposed& SlstmPanels<T>::transposed() const {
  std::call_once(once_, [this] {
    const int64_t W = layout.panel, K = shape.head(), I = shape.I;
    // `rows` rows of the panels of some columns, as columns: [rows to whole panels / panel][columns][panel].
    const auto transpose = [&](const T* panels, int64_t rows, int64_t columns, T* to) {
      for (int64_t row = 0; row < rows; row += W)
        for (int64_t column = 0; column < columns; column += W)
          kernels.transpose(panels + column * rows + row * W, W, std::min(W, rows - row), W,
                            to + row * columns + column * W, W);
    };
    transposed_.dx = Buffer<T>(size_product(layout.input_padded, layout.columns));
    transposed_.dh = Buffer<T>(size_product(round_up(K, W), layout.columns));
    for (Buffer<T>* to : {&transposed_.dx, &transposed_.dh}) std::fill_n(to->data(), to->size(), T(0));
    transpose(inputs.data(), I, layout.columns, transposed_.dx.data());
    for (int64_t head = 0; head < shape.heads; ++head)
      transpose(recurrent.data() + head * head_columns() * K, K, head_columns(),
                transposed_.dh.data() + head * head_columns() * round_up(K, W));
  });
  return transposed_;
}

// The grid whose busiest thread has least to do; heads before rows, since these threads read no weight twice.
SlstmPlan plan_slstm(const SlstmShape& shape, int64_t T, int64_t B, int threads) {
  SlstmPlan best;
  constexpr int64_t kWorthStarting = 96 * 1024;  // multiply-adds, as for the LSTM
  if (T * B * 4 * shape.H * (shape.I + shape.head()) < kWorthStarting) return best;
  int64_t least = shape.heads * B;
  for (int64_t heads = std::min<int64_t>(threads, shape.heads); heads >= 1; --heads) {
    const int64_t rows = std::min<int64_t>(threads / heads, B);
    const int64_t most = ((shape.heads + heads - 1) / heads) * ((B + rows - 1) / rows);
    if (most < least) least = most, best = {int(rows), int(heads)};
  }
  return best;
}

namespace {

template <class T>
class Forward {
 public:
  Forward(const SlstmPanels<T>& panels, const SlstmForwardArgs<T>& args, SlstmTape<T>* tape, int threads,
          Interrupt& interrupt)
      : panels_(panels),
        layout_(panels.layout),
        args_(args),
        tape_(tape),
        interrupt_(interrupt),
        plan_(plan_slstm(panels.shape, args.T_, args.B, threads)),
        rows_(std::min(kRowBlock, args.B)),
        steps_(std::max<int64_t>(1, std::min(args.T_, kRowsAtOnce / std::max<int64_t>(1, rows_)))),
        slots_(tape ? args.T_ + 1 : 2 * steps_) {
    const int64_t B = args.B;
    pre_ = Buffer<T>(size_product(plan_.threads(), steps_, rows_, panels.head_columns()));
    m_ = Buffer<T>(size_product(B, layout_.units));
    if (!tape) {
      operands_ = Buffer<T>(size_product(slots_, B, layout_.operand_stride));
      c_ = Buffer<T>(size_product(B, layout_.units));
      n_ = Buffer<T>(size_product(B, layout_.units));
    }
    for (int i = 0; i < plan_.row_groups; ++i) barriers_.emplace_back(new Barrier(plan_.head_groups, interrupt));
  }

  void run() {
    run_team(plan_.threads(), [this](int rank) { run_rank(rank); });
  }

 private:
  static constexpr int64_t kRowBlock = 48;     // rows that run through all steps together
  static constexpr int64_t kRowsAtOnce = 192;  // of x . W, before a head's steps: some L2 of it

  struct Member {
    int rank, index;
    Barrier& barrier;
    Range heads;
    T* pre;  // [steps_, rows, head columns]
  };

  void run_rank(int rank) {
    const int group = rank / plan_.head_groups, index = rank % plan_.head_groups;
    const Member me{rank, index, *barriers_[std::size_t(group)], share(panels_.shape.heads, plan_.head_groups, index),
                    pre_.data() + rank * (pre_.size() / plan_.threads())};
    const Range mine = share(args_.B, plan_.row_groups, group);
    const int64_t parts = (mine.size() + kRowBlock - 1) / kRowBlock;
    for (int64_t part = 0; part < parts; ++part) {
      const Range rows = share(mine.size(), parts, part);
      run_rows(me, {mine.begin + rows.begin, mine.begin + rows.end});
      if (interrupt_.stopped()) return;
    }
  }

  void run_rows(const Member& me, Range rows) {
    for (int64_t row = rows.begin; row < rows.end; ++row) begin_row(me, row);
    for (int64_t t = 0; t < args_.T_; t += steps_) {
      const Range steps{t, std::min(args_.T_, t + steps_)};
      load_inputs(me, rows, steps);
      if (plan_.head_groups > 1) me.barrier.wait(me.index);
      for (int64_t head = me.heads.begin; head < me.heads.end; ++head) {
        project_inputs(me, rows, head, steps);
        for (int64_t s = steps.begin; s < steps.end; ++s) step(me, rows, head, steps, s);
      }
      if (me.rank == 0)
        interrupt_.worked(steps.size() * rows.size() * me.heads.size() * panels_.head_columns() *
                          (panels_.shape.I + panels_.shape.head()));
      if (interrupt_.stopped()) return;
    }
    for (int64_t row = rows.begin; row < rows.end; ++row) end_row(me, row);
  }

  T* operand(int64_t t, int64_t row) const {
    return (tape_ ? tape_->operands : operands_).data() + (t % slots_ * args_.B + row) * layout_.operand_stride;
  }
  T* h(int64_t t, int64_t row, int64_t head) const {
    return operand(t, row) + layout_.h_offset + head * panels_.head_units();
  }
  // The states before step t, at `row` of the head's first block; all but m are the tape's if there is one.
  SlstmStates<T> states(int64_t t, int64_t row, int64_t head) const {
    const int64_t at = (head * panels_.head_blocks * args_.B + row) * layout_.lanes;
    if (!tape_) return {c_.data() + at, n_.data() + at, m_.data() + at};
    const int64_t slot = t * args_.B * layout_.units;
    return {tape_->c.data() + slot + at, tape_->n.data() + slot + at, m_.data() + at};
  }

  // function(state, place, unit, units) for each block of c, n and m, whose state is 1, 2 or 3.
  template <class Function>
  void for_states(int64_t t, int64_t row, int64_t head, Function function) const {
    const int64_t L = layout_.lanes, K = panels_.shape.head();
    const SlstmStates<T> at = states(t, row, head);
    T* const places[] = {at.c, at.n, at.m};
    for (int state = 1; state < 4; ++state)
      for (int64_t block = 0; block < panels_.head_blocks; ++block)
        function(state, places[state - 1] + block * args_.B * L, head * K + block * L, std::min(L, K - block * L));
  }

  void begin_row(const Member& me, int64_t row) const {
    const int64_t H = panels_.shape.H, K = panels_.shape.head();
    const uint8_t* flag = args_.marks.at(0, row, args_.T_, args_.B);
    for (int64_t head = me.heads.begin; head < me.heads.end; ++head) {
      std::fill_n(h(0, row, head), panels_.head_units(), T(0));
      if (args_.first[0] && !(flag && (*flag & kCut)))
        std::copy_n(args_.first[0] + row * H + head * K, K, h(0, row, head));
      for_states(0, row, head, [&](int state, T* to, int64_t unit, int64_t units) {
        std::fill_n(to, layout_.lanes, T(0));
        if (args_.first[state]) std::copy_n(args_.first[state] + row * H + unit, units, to);
      });
    }
  }

  void end_row(const Member& me, int64_t row) const {
    const int64_t H = panels_.shape.H, K = panels_.shape.head(), T_ = args_.T_;
    for (int64_t head = me.heads.begin; head < me.heads.end; ++head) {
      std::copy_n(h(T_, row, head), K, args_.last[0] + row * H + head * K);
      for_states(T_, row, head, [&](int state, const T* from, int64_t unit, int64_t units) {
        std::copy_n(from, units, args_.last[state] + row * H + unit);
      });
    }
  }

  bool held(int64_t t, int64_t row) const {
    const uint8_t* flag = args_.marks.at(t, row, args_.T_, args_.B);
    return flag && (*flag & kHeld);
  }

  // x of a held step is never read: a NaN there would reach dW as 0 * NaN.
  void load_inputs(const Member& me, Range rows, Range steps) const {
    const Range mine = share(rows.size(), plan_.head_groups, me.index);
    for (int64_t t = steps.begin; t < steps.end && panels_.shape.I > 0; ++t)
      for (int64_t row = rows.begin + mine.begin; row < rows.begin + mine.end; ++row) {
        T* to = operand(t, row) + layout_.x_offset;
        if (held(t, row))
          std::fill_n(to, panels_.shape.I, T(0));
        else
          std::copy_n(args_.x.row(t, row), panels_.shape.I, to);
      }
  }

  // me.pre = b + x . W of one head for some steps.
  void project_inputs(const Member& me, Range rows, int64_t head, Range steps) const {
    const int64_t columns = panels_.head_columns(), first = head * columns;
    if (panels_.shape.I == 0) return copy_inputs(me, rows, head, steps);
    const bool one_stride = rows.size() == args_.B;  // between the rows of all steps; a ring has room for whole ones
    Product<T> p{};
    p.rows = rows.size() * (one_stride ? steps.size() : 1);
    p.K = panels_.shape.I;
    p.K_first = p.K_chain = kChain;
    p.a_stride = layout_.operand_stride;
    p.panels = panels_.inputs.data() + first * panels_.shape.I;
    p.panel_stride = panels_.shape.I * layout_.panel;
    p.panel_end = columns / layout_.panel;
    p.start = panels_.bias.data() + first;
    p.c_stride = columns;
    for (int64_t t = steps.begin; t < steps.end; t += one_stride ? steps.size() : 1) {
      p.a = operand(t, rows.begin) + layout_.x_offset;
      p.c = me.pre + (t - steps.begin) * rows.size() * columns;
      panels_.kernels.product(p);
    }
  }

  // The same from x that holds the product.
  void copy_inputs(const Member& me, Range rows, int64_t head, Range steps) const {
    const int64_t columns = panels_.head_columns();
    T* pre = me.pre;
    for (int64_t t = steps.begin; t < steps.end; ++t)
      for (int64_t row = rows.begin; row < rows.end; ++row, pre += columns) {
        const T *x = args_.x.row(t, row), *bias = panels_.bias.data();
        std::copy_n(bias + head * columns, columns, pre);
        if (held(t, row)) continue;
        panels_.for_blocks(head, [&](int64_t gate, int64_t unit, int64_t units, int64_t column) {
          for (int64_t u = 0; u < units; ++u) pre[column - head * columns + u] += x[gate * panels_.shape.H + unit + u];
        });
      }
  }

  void step(const Member& me, Range rows, int64_t head, Range steps, int64_t t) const {
    const int64_t columns = panels_.head_columns(), K = panels_.shape.head(), row = rows.begin, B = args_.B;
    Product<T> p{};
    p.rows = rows.size();
    p.K = K;
    p.K_first = p.K_chain = kChain;
    p.a = h(t, row, head);
    p.a_stride = layout_.operand_stride;
    p.panels = panels_.recurrent.data() + head * columns * K;
    p.panel_stride = K * layout_.panel;
    p.start = me.pre + (t - steps.begin) * rows.size() * columns;
    p.start_stride = columns;
    p.start_last = true;
    SlstmForward<T> k{};
    k.product = panels_.kernels.product;
    k.gates = &p;
    k.blocks = panels_.head_blocks;
    k.hidden = K;
    const SlstmStates<T> before = states(t, row, head);
    k.before = {before.c, before.n, before.m};
    k.after = states(t + 1, row, head);
    k.block_stride = B * layout_.lanes;
    k.h_next = h(t + 1, row, head);
    k.h_next_stride = layout_.operand_stride;
    if (tape_) {
      k.saved = tape_->gates.data() + ((t * layout_.blocks + head * k.blocks) * B + row) * 4 * layout_.lanes;
      k.saved_block_stride = B * 4 * layout_.lanes;
    }
    k.y = args_.y.row(t, row) + head * K;
    k.y_stride = args_.y.b_stride;
    k.flags = args_.marks.at(t, row, args_.T_, B);
    k.flags_next = args_.marks.at(t + 1, row, args_.T_, B);
    k.repeat = args_.marks.repeat;
    panels_.kernels.slstm->forward(k);
  }

  const SlstmPanels<T>& panels_;
  const Layout& layout_;
  const SlstmForwardArgs<T>& args_;
  SlstmTape<T>* tape_;
  Interrupt& interrupt_;
  const SlstmPlan plan_;
  const int64_t rows_, steps_, slots_;  // most rows and steps at once; rings of operands
  std::vector<std::unique_ptr<Barrier>> barriers_;
  Buffer<T> pre_;       // [threads, steps_, rows_, head columns]
  Buffer<T> m_;         // [blocks,B,lanes]
  Buffer<T> operands_;  // inference only: [slots_,B,operand_stride]
  Buffer<T> c_, n_;     // the same: [blocks,B,lanes]
};

}  // namespace

template <class T>
void slstm_forward(const SlstmPanels<T>& panels, const SlstmForwardArgs<T>& args, SlstmTape<T>* tape, int threads,
                   Interrupt& interrupt) {
  Forward<T>(panels, args, tape, threads, interrupt).run();
}

#define INSTANTIATE(T)           \
  template class SlstmPanels<T>; \
  template void slstm_forward(const SlstmPanels<T>&, const SlstmForwardArgs<T>&, SlstmTape<T>*, int, Interrupt&);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastlstm
