#include "network.h"

#include <algorithm>

#include "drawing.h"
#include "plan.h"

namespace fastlstm {
namespace {

// An own [T,B,n] array between two layers.
template <class T>
struct Between {
  Buffer<T> data;
  Sequence<T> sequence;

  Between() = default;
  Between(int64_t T_, int64_t B, int64_t n) : data(size_product(T_, B, n)), sequence{data.data(), B * n, n} {}
};

template <class T>
Sequence<T> columns_from(Sequence<T> s, int64_t first) {
  if (s.data) s.data += first;
  return s;
}

template <class T>
Sequence<const T> read_only(Sequence<T> s) {
  return {s.data, s.t_stride, s.b_stride};
}

template <class T>
T* state_of(T* states, int64_t index, int64_t B, int64_t n) {
  return states ? states + index * B * n : nullptr;
}

// The window's part of a whole array: where only that part exists, what lies before it is never touched.
template <class T>
Sequence<T> starting_at(Sequence<T> s, int64_t t) {
  s.data -= t * s.t_stride;
  return s;
}

// y of a layer in one direction, or the gradient of it, times the mask and 1 / (1 - p). y [*,B,n] at these times.
template <class T>
void apply_dropout(const Dropout& dropout, Sequence<T> y, Range times, int64_t B, int64_t layer, int64_t direction,
                   int64_t n, int threads) {
  const uint64_t threshold = dropout.threshold();
  constexpr int64_t kWorthSharing = 64 * 1024;
  threads = times.size() * B * n < kWorthSharing ? 1 : int(std::min<int64_t>(threads, times.size()));
  const T scale = dropout.p < 1 ? T(1) / T(1 - dropout.p) : T(0);
  run_team(threads, [&](int rank) {
    const Range mine = share(times.size(), threads, rank);
    for (int64_t t = times.begin + mine.begin; t < times.begin + mine.end; ++t)
      for (int64_t b = 0; b < B; ++b)
        for (int64_t unit = 0; unit < n; unit += 4) {
          const Philox random = dropout.words(layer, direction, t, b, unit / 4);
          T* at = y.row(t, b) + unit;
          for (int64_t i = 0; i < 4 && unit + i < n; ++i) at[i] = random.word[i] >= threshold ? at[i] * scale : T(0);
        }
  });
}

int64_t most_steps(const std::vector<Range>& segments) {
  int64_t most = 0;
  for (const Range& segment : segments) most = std::max(most, segment.size());
  return most;
}

// One segment of a stage in one direction.
template <class T>
struct StageWindow {
  Range layers;
  int64_t direction;
  std::size_t segment;
  Range steps;
  bool last;                      // no segment follows, or the one that does knows its state
  Sequence<const T> x = {};       // of the first layer [T,B,I]
  Sequence<T> inner = {};         // y of the layers before the last one, all in one place
  Sequence<T> y = {};             // of the last; null: not wanted
  T* unwanted = nullptr;          // [B,output] for y that is not wanted
  LayerTape<T>* tapes = nullptr;  // of the layers; null: nothing is kept
};

template <class T>
void stage_forward(const Network<T>& network, const NetworkForward<T>& args, const Timelines& timelines,
                   const NetworkTape<T>& tape, const StageWindow<T>& window, int threads, Interrupt& interrupt) {
  const int64_t L = network.layers(), D = network.directions(), n = network.shape(0).output(), H = network.shape(0).H;
  const int64_t d = window.direction, B = args.B;
  for (int64_t layer = window.layers.begin; layer < window.layers.end; ++layer) {
    const bool first = layer == window.layers.begin, last = layer == window.layers.end - 1;
    const int64_t index = layer * D + d;
    const Sequence<T> y = columns_from(last ? window.y : window.inner, d * n);
    ForwardArgs<T> one;
    one.shape = network.shape(layer);
    one.shape.T = args.T_;
    one.shape.B = B;
    one.timeline = timelines.direction(d);
    one.steps = window.steps;
    one.x = first ? window.x : read_only(window.inner);
    if (one.shape.given) one.x = columns_from(one.x, d * one.shape.x_size());
    one.h0 = state_of(args.h0, index, B, n);
    one.c0 = state_of(args.c0, index, B, H);
    if (window.segment > 0) one.from = tape.checkpoint(network, index, window.segment);
    if (!window.last) one.to = tape.checkpoint(network, index, window.segment + 1);
    one.y = y ? y : Sequence<T>{window.unwanted, 0, n};
    one.h_n = state_of(args.h_n, index, B, n);
    one.c_n = state_of(args.c_n, index, B, H);
    if (layer == L - 1) one.cells = columns_from(args.cells, d * H), one.gates = columns_from(args.gates, d * 4 * H);
    one.draws = tape.draws(layer, d);
    layer_forward(network.panels(layer, d), one, window.tapes ? window.tapes + (layer - window.layers.begin) : nullptr,
                  threads, interrupt);
    if (interrupt.stopped()) return;
    if (y && layer < L - 1 && tape.dropout.p > 0)
      apply_dropout(tape.dropout, y, one.timeline.times(window.steps, args.T_), B, layer, d, n, threads);
  }
}

// Runs segments of one stage of a tape again, each into the same room.
template <class T>
class Recomputation {
 public:
  Recomputation(const Network<T>& network, const NetworkTape<T>& tape, std::size_t stage, Range layers, int threads,
                Interrupt& interrupt)
      : network_(network), tape_(tape), stage_(stage), layers_(layers), threads_(threads), interrupt_(interrupt) {
    int64_t steps = 0;
    for (const auto& segments : tape.segments)
      if (segments.size() > 1) steps = std::max(steps, most_steps(segments));
    if (steps == 0) return;
    const int64_t n = network.shape(0).output();
    unwanted_ = Buffer<T>(size_product(tape.B, n));
    if (layers.size() > 1) inner_ = Between<T>(steps, tape.B, n);
    for (int64_t layer = layers.begin; layer < layers.end; ++layer)
      tapes_.emplace_back(network.panels(layer, 0), steps, tape.B);
  }

  // The tapes of the layers over this segment.
  const LayerTape<T>* run(int64_t direction, std::size_t segment) {
    const int64_t I = network_.input(layers_.begin), B = tape_.B;
    const NetworkForward<T> args{tape_.T_, B,  {},   tape_.h0.data(), tape_.c0.data(), {}, nullptr, nullptr,
                                 {},       {}, false};
    StageWindow<T> window{layers_, direction, segment, tape_.segments[direction][segment], true};
    window.x = {tape_.inputs[stage_].data(), B * I, I};
    if (inner_.sequence) window.inner = starting_at(inner_.sequence, window.steps.begin);
    window.unwanted = unwanted_.data();
    window.tapes = tapes_.data();
    stage_forward(network_, args, *tape_.timelines, tape_, window, threads_, interrupt_);
    return tapes_.data();
  }

 private:
  const Network<T>& network_;
  const NetworkTape<T>& tape_;
  const std::size_t stage_;
  const Range layers_;
  const int threads_;
  Interrupt& interrupt_;
  Buffer<T> unwanted_;
  Between<T> inner_;
  std::vector<LayerTape<T>> tapes_;
};

}  // namespace

template <class T>
Network<T>::Network(const Kernels<T>& kernels, Shape first_layer, int64_t layers, int64_t directions,
                    const CellOptions& cell, const std::vector<RawWeights<T>>& raw, Storage storage, int threads)
    : layers_(layers), directions_(directions) {
  for (int64_t i = 0; i < layers * directions; ++i) {
    Shape shape = first_layer;
    if (i >= directions) shape.I = directions * first_layer.output(), shape.given = false;
    panels_.push_back(std::make_unique<Panels<T>>(kernels, shape, cell, raw[std::size_t(i)], storage, threads));
  }
}

template <class T>
std::shared_ptr<const Network<T>> Network<T>::dropped(uint64_t seed, uint32_t call) const {
  std::shared_ptr<Network> copy(new Network(layers_, directions_));
  for (int64_t i = 0; i < layers_ * directions_; ++i) {
    const Draws draws{true, seed, call, 0, i / directions_, i % directions_};
    copy->panels_.push_back(std::make_unique<Panels<T>>(*panels_[std::size_t(i)], draws));
  }
  return copy;
}

template <class T>
int64_t Network<T>::bytes() const {
  int64_t total = 0;
  for (const auto& panels : panels_) total += panels->bytes();
  return total;
}

namespace {

// What the caller may change before backward.
template <class T>
void keep_arguments(const Network<T>& network, const NetworkForward<T>& args, const NetworkTape<T>& tape) {
  if (!tape.runs_again()) return;
  const int64_t I = network.input(0);
  T* to = tape.inputs[0].data();
  for (int64_t t = 0; t < args.T_; ++t)
    for (int64_t b = 0; b < args.B; ++b, to += I) std::copy_n(args.x.row(t, b), I, to);
  if (tape.h0) std::copy_n(args.h0, tape.h0.size(), tape.h0.data());
  if (tape.c0) std::copy_n(args.c0, tape.c0.size(), tape.c0.data());
}

}  // namespace

template <class T>
void network_forward(const Network<T>& network, const NetworkForward<T>& args, const Timelines& timelines,
                     NetworkTape<T>* tape, int threads, Interrupt& interrupt) {
  const int64_t L = network.layers(), D = network.directions(), n = network.shape(0).output();
  NetworkTape<T> states;  // in inference: segments and checkpoints alone, so that y between layers is of a segment, too
  states.T_ = args.T_, states.B = args.B;
  if (!tape) states.split(network, timelines, D == 1 && L > 1 && !args.y ? kAutomatic : 0);
  const NetworkTape<T>& kept = tape ? *tape : states;
  // A layer of one direction reads x of a step before it writes y of it, so all layers may share y.
  const bool in_place = D == 1 && args.y && args.y_is_new;
  const bool runs_again = tape && tape->runs_again();
  Between<T> between[2];
  for (int64_t i = 0; i < std::min<int64_t>(L - 1, D) && !in_place && !(D == 2 && runs_again); ++i)
    between[i] = Between<T>(D == 1 ? most_steps(kept.segments[0]) : args.T_, args.B, D * n);
  Buffer<T> unwanted;
  if (!args.y) unwanted = Buffer<T>(size_product(args.B, n));
  keep_arguments(network, args, kept);

  Sequence<const T> x = args.x;
  std::size_t stage = 0;
  for (const Range layers : stages(L, D)) {
    Sequence<T> y = args.y;
    if (layers.end < L) y = between[stage % 2].sequence;
    if (layers.end < L && runs_again) y = {tape->inputs[stage + 1].data(), args.B * D * n, D * n};
    for (int64_t d = 0; d < D; ++d)
      for (std::size_t i = 0; i < kept.segments[d].size(); ++i) {
        const Range steps = kept.segments[d][i];
        StageWindow<T> window{layers, d, i, steps, i + 1 == kept.segments[d].size(), x, args.y, y, unwanted.data()};
        if (!in_place && layers.size() > 1) window.inner = starting_at(between[0].sequence, steps.begin);
        if (tape && kept.segments[d].size() == 1) window.tapes = &tape->layers[std::size_t(layers.begin * D + d)];
        stage_forward(network, args, timelines, kept, window, threads, interrupt);
        if (interrupt.stopped()) return;
      }
    x = read_only(y);
    ++stage;
  }
}

namespace {

// The backward of one layer in one direction.
template <class T>
struct Pass {
  BackwardArgs<T> args;
  std::unique_ptr<LayerBackward<T>> backward;
};

template <class T>
BackwardArgs<T> backward_args(const Network<T>& network, const NetworkTape<T>& tape, const NetworkBackward<T>& args,
                              int64_t layer, int64_t d) {
  const int64_t D = network.directions(), n = network.shape(0).output(), H = network.shape(0).H;
  const int64_t index = layer * D + d;
  const auto& weights = args.weights[std::size_t(index)];
  BackwardArgs<T> one;
  one.shape = network.shape(layer);
  one.shape.T = tape.T_;
  one.shape.B = tape.B;
  one.timeline = tape.timelines->direction(d);
  one.truncate = args.truncate;
  one.dh_n = state_of(args.dh_n, index, tape.B, n);
  one.dc_n = state_of(args.dc_n, index, tape.B, H);
  if (layer == network.layers() - 1)
    one.dcells = columns_from(args.dcells, d * H), one.dgates = columns_from(args.dgates, d * 4 * H);
  one.draws = tape.draws(layer, d);
  one.add_to_dx = d > 0 && !one.shape.given;
  one.dh0 = state_of(args.dh0, index, tape.B, n);
  one.dc0 = state_of(args.dc0, index, tape.B, H);
  one.dw_x = weights.w_x, one.dw_h = weights.w_h, one.db = weights.b, one.dw_p = weights.w_p;
  one.d_peephole = weights.peephole;
  one.d_gamma_x = weights.gamma_x, one.d_gamma_h = weights.gamma_h;
  one.d_gamma_c = weights.gamma_c, one.d_beta_c = weights.beta_c;
  return one;
}

// A dropped weight of U has no gradient.
template <class T>
void drop_weight_gradient(const Panels<T>& panels, const BackwardArgs<T>& args) {
  if (panels.cell.weight_drop == 0 || !args.dw_h) return;
  const int64_t n = panels.shape.output();
  Buffer<T> scales(n);
  for (int64_t row = 0; row < 4 * panels.shape.H; ++row) {
    weight_scales(panels.kernels, panels.cell, args.draws, row, n, scales.data());
    for (int64_t k = 0; k < n; ++k) args.dw_h[row * n + k] *= scales.data()[k];
  }
}

}  // namespace

template <class T>
void network_backward(const Network<T>& network, const NetworkTape<T>& tape, const NetworkBackward<T>& args,
                      int threads, Interrupt& interrupt) {
  const int64_t L = network.layers(), D = network.directions(), n = network.shape(0).output();
  Between<T> between[2];
  for (int64_t i = 0; i < std::min<int64_t>(L - 1, 2); ++i)
    between[i] = Between<T>(D == 1 ? most_steps(tape.segments[0]) : tape.T_, tape.B, D * n);
  const std::vector<Range> all = stages(L, D);
  for (std::size_t stage = all.size(); stage-- > 0;) {
    const Range layers = all[stage];
    Recomputation<T> again(network, tape, stage, layers, threads, interrupt);
    for (int64_t d = 0; d < D; ++d) {
      std::vector<Pass<T>> passes(std::size_t(layers.size()));
      const std::vector<Range>& segments = tape.segments[d];
      for (std::size_t i = segments.size(); i-- > 0;) {
        const bool whole = segments.size() == 1;
        const LayerTape<T>* tapes = whole ? &tape.layers[std::size_t(layers.begin * D + d)] : again.run(d, i);
        for (int64_t layer = layers.end - 1; layer >= layers.begin && !interrupt.stopped(); --layer) {
          const auto part = [&](int64_t below) {  // of the gradient of y of the layer `below`
            return starting_at(between[below % 2].sequence, D == 1 ? segments[i].begin : 0);
          };
          Pass<T>& pass = passes[std::size_t(layer - layers.begin)];
          if (!pass.backward) pass.args = backward_args(network, tape, args, layer, d);
          pass.args.dy = columns_from(layer == L - 1 ? args.dy : read_only(part(layer)), d * n);
          pass.args.dx = layer == 0 ? args.dx : part(layer - 1);
          if (pass.args.shape.given) pass.args.dx = columns_from(args.dx, d * pass.args.shape.x_size());
          if (layer < L - 1 && tape.dropout.p > 0)
            apply_dropout(tape.dropout, columns_from(part(layer), d * n),
                          pass.args.timeline.times(segments[i], tape.T_), tape.B, layer, d, n, threads);
          if (!pass.backward) pass.backward = backward_pass(network.panels(layer, d), pass.args, threads, interrupt);
          pass.backward->run(tapes[layer - layers.begin]);
          if (i > 0) continue;
          pass.backward.reset();  // its memory is warm for the next layer
          drop_weight_gradient(network.panels(layer, d), pass.args);
        }
        if (interrupt.stopped()) return;
      }
    }
  }
}

#define INSTANTIATE(T)                                                                                               \
  template class Network<T>;                                                                                         \
  template void network_forward(const Network<T>&, const NetworkForward<T>&, const Timelines&, NetworkTape<T>*, int, \
                                Interrupt&);                                                                         \
  template void network_backward(const Network<T>&, const NetworkTape<T>&, const NetworkBackward<T>&, int, Interrupt&);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastlstm
