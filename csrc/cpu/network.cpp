#include "network.h"

#include <algorithm>

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

// y of a layer, or the gradient of it, times the mask and 1 / (1 - p).
template <class T>
void apply_dropout(const Dropout& dropout, Sequence<T> y, int64_t T_, int64_t B, int64_t layer, int64_t directions,
                   int64_t n, int threads) {
  const uint64_t threshold = dropout.threshold();
  constexpr int64_t kWorthSharing = 64 * 1024;
  threads = T_ * B * directions * n < kWorthSharing ? 1 : int(std::min<int64_t>(threads, T_));
  const T scale = dropout.p < 1 ? T(1) / T(1 - dropout.p) : T(0);
  run_team(threads, [&](int rank) {
    const Range steps = share(T_, threads, rank);
    for (int64_t t = steps.begin; t < steps.end; ++t)
      for (int64_t b = 0; b < B; ++b)
        for (int64_t d = 0; d < directions; ++d)
          for (int64_t unit = 0; unit < n; unit += 4) {
            const Philox random = dropout.words(layer, d, t, b, unit / 4);
            T* at = y.row(t, b) + d * n + unit;
            for (int64_t i = 0; i < 4 && unit + i < n; ++i) at[i] = random.word[i] >= threshold ? at[i] * scale : T(0);
          }
  });
}

}  // namespace

template <class T>
Network<T>::Network(const Kernels<T>& kernels, Shape first_layer, int64_t layers, int64_t directions,
                    const CellOptions& cell, const std::vector<RawWeights<T>>& raw, Storage storage, int threads)
    : layers_(layers), directions_(directions) {
  for (int64_t i = 0; i < layers * directions; ++i) {
    Shape shape = first_layer;
    if (i >= directions) shape.I = directions * first_layer.output();
    panels_.push_back(std::make_unique<Panels<T>>(kernels, shape, cell, raw[std::size_t(i)], storage, threads));
  }
}

template <class T>
int64_t Network<T>::bytes() const {
  int64_t total = 0;
  for (const auto& panels : panels_) total += panels->bytes();
  return total;
}

template <class T>
int64_t NetworkTape<T>::bytes() const {
  int64_t total = 0;
  for (const auto& layer : layers) total += layer.bytes();
  return total;
}

template <class T>
void network_forward(const Network<T>& network, const NetworkForward<T>& args, const Timelines& timelines,
                     NetworkTape<T>* tape, int threads, Interrupt& interrupt) {
  const int64_t L = network.layers(), D = network.directions(), n = network.shape(0).output(), H = network.shape(0).H;
  // A layer of one direction reads x of a step before it writes y of it, so all layers may share y.
  const bool in_place = D == 1 && args.y_is_new;
  Between<T> between[2];
  for (int64_t i = 0; i < std::min<int64_t>(L - 1, 2) && !in_place; ++i)
    between[i] = Between<T>(args.T_, args.B, D * n);
  const auto output = [&](int64_t layer) { return in_place || layer == L - 1 ? args.y : between[layer % 2].sequence; };
  for (int64_t layer = 0; layer < L; ++layer) {
    const bool last = layer == L - 1;
    const Sequence<const T> x = layer == 0 ? args.x : read_only(output(layer - 1));
    const Sequence<T> y = output(layer);
    for (int64_t d = 0; d < D; ++d) {
      const int64_t index = layer * D + d;
      ForwardArgs<T> one;
      one.shape = network.shape(layer);
      one.shape.T = args.T_;
      one.shape.B = args.B;
      one.timeline = timelines.direction(d);
      one.x = x;
      one.h0 = state_of(args.h0, index, args.B, n);
      one.c0 = state_of(args.c0, index, args.B, H);
      one.y = columns_from(y, d * n);
      one.h_n = state_of(args.h_n, index, args.B, n);
      one.c_n = state_of(args.c_n, index, args.B, H);
      if (last) one.cells = columns_from(args.cells, d * H), one.gates = columns_from(args.gates, d * 4 * H);
      if (tape) one.draws = {true, tape->dropout.seed, tape->dropout.call, layer, d};
      layer_forward(network.panels(layer, d), one, tape ? &tape->layers[std::size_t(index)] : nullptr, threads,
                    interrupt);
      if (interrupt.stopped()) return;
    }
    if (tape && !last && tape->dropout.p > 0) apply_dropout(tape->dropout, y, args.T_, args.B, layer, D, n, threads);
  }
}

template <class T>
void network_backward(const Network<T>& network, const NetworkTape<T>& tape, const NetworkBackward<T>& args,
                      int threads, Interrupt& interrupt) {
  const int64_t L = network.layers(), D = network.directions(), n = network.shape(0).output(), H = network.shape(0).H;
  Between<T> between[2];
  for (int64_t i = 0; i < std::min<int64_t>(L - 1, 2); ++i) between[i] = Between<T>(tape.T_, tape.B, D * n);
  for (int64_t layer = L - 1; layer >= 0; --layer) {
    const bool last = layer == L - 1;
    const Sequence<const T> dy = last ? args.dy : read_only(between[layer % 2].sequence);
    const Sequence<T> dx = layer == 0 ? args.dx : between[(layer - 1) % 2].sequence;
    for (int64_t d = 0; d < D; ++d) {
      const int64_t index = layer * D + d;
      const auto& weights = args.weights[std::size_t(index)];
      BackwardArgs<T> one;
      one.shape = network.shape(layer);
      one.shape.T = tape.T_;
      one.shape.B = tape.B;
      one.timeline = tape.timelines->direction(d);
      one.dy = columns_from(dy, d * n);
      one.dh_n = state_of(args.dh_n, index, tape.B, n);
      one.dc_n = state_of(args.dc_n, index, tape.B, H);
      if (last) one.dcells = columns_from(args.dcells, d * H), one.dgates = columns_from(args.dgates, d * 4 * H);
      one.draws = {true, tape.dropout.seed, tape.dropout.call, layer, d};
      one.dx = dx;
      one.add_to_dx = d > 0;
      one.dh0 = state_of(args.dh0, index, tape.B, n);
      one.dc0 = state_of(args.dc0, index, tape.B, H);
      one.dw_x = weights.w_x, one.dw_h = weights.w_h, one.db = weights.b, one.dw_p = weights.w_p;
      one.d_peephole = weights.peephole;
      layer_backward(network.panels(layer, d), tape.layers[std::size_t(index)], one, threads, interrupt);
      if (interrupt.stopped()) return;
    }
    if (layer > 0 && tape.dropout.p > 0) apply_dropout(tape.dropout, dx, tape.T_, tape.B, layer - 1, D, n, threads);
  }
}

#define INSTANTIATE(T)                                                                                               \
  template class Network<T>;                                                                                         \
  template struct NetworkTape<T>;                                                                                    \
  template void network_forward(const Network<T>&, const NetworkForward<T>&, const Timelines&, NetworkTape<T>*, int, \
                                Interrupt&);                                                                         \
  template void network_backward(const Network<T>&, const NetworkTape<T>&, const NetworkBackward<T>&, int, Interrupt&);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastlstm
