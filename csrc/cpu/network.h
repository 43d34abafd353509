// The whole LSTM: layers, directions, and the dropout between layers.
#pragma once
#include <memory>
#include <vector>

#include "../philox.h"
#include "layer_loop.h"
#include "timelines.h"

namespace fastlstm {

template <class T>
class Network {
 public:
  using Element = T;

  // raw: one entry per layer and direction, directions inner.
  Network(const Kernels<T>& kernels, Shape first_layer, int64_t layers, int64_t directions, const CellOptions& cell,
          const std::vector<RawWeights<T>>& raw, Storage storage, int threads);

  int64_t layers() const { return layers_; }
  int64_t directions() const { return directions_; }
  const Shape& shape(int64_t layer) const { return panels_[std::size_t(layer * directions_)]->shape; }
  int64_t output() const { return directions_ * shape(0).output(); }  // columns of y
  const Panels<T>& panels(int64_t layer, int64_t direction) const {
    return *panels_[std::size_t(layer * directions_ + direction)];
  }
  int64_t bytes() const;

 private:
  int64_t layers_, directions_;
  std::vector<std::unique_ptr<Panels<T>>> panels_;
};

template <class T>
struct NetworkTape {
  std::vector<LayerTape<T>> layers;  // directions inner
  std::unique_ptr<Timelines> timelines;
  Dropout dropout;
  int64_t T_ = 0, B = 0;
  int64_t bytes() const;
};

template <class T>
struct NetworkForward {
  int64_t T_, B;
  Sequence<const T> x;  // [T,B,I]
  const T *h0, *c0;     // [L*D,B,output], [L*D,B,H]; null: zero
  Sequence<T> y;        // [T,B,D*output]
  T *h_n, *c_n;
  Sequence<T> cells;      // [T,B,D*H] of the last layer; null: not wanted
  Sequence<T> gates;      // [T,B,D*4H] of the last layer; null: not wanted
  bool y_is_new = false;  // nobody would see what is left in y if memory ends
};

template <class T>
struct NetworkBackward {
  Sequence<const T> dy, dcells, dgates;  // null: zero
  const T *dh_n, *dc_n;                  // null: zero
  Sequence<T> dx;                        // null: not wanted
  T *dh0, *dc0;
  struct Weights {
    T *w_x, *w_h, *b, *w_p, *peephole;  // as BackwardArgs
  };
  std::vector<Weights> weights;  // directions inner
};

// With a tape: for training, and dropout is applied.
template <class T>
void network_forward(const Network<T>& network, const NetworkForward<T>& args, const Timelines& timelines,
                     NetworkTape<T>* tape, int threads, Interrupt& interrupt);

template <class T>
void network_backward(const Network<T>& network, const NetworkTape<T>& tape, const NetworkBackward<T>& args,
                      int threads, Interrupt& interrupt);

}  // namespace fastlstm
