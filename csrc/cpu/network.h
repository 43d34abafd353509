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

  // A copy for one training call, in which weights of U are dropped.
  std::shared_ptr<const Network> dropped(uint64_t seed, uint32_t call) const;

  int64_t layers() const { return layers_; }
  int64_t directions() const { return directions_; }
  const Shape& shape(int64_t layer) const { return panels_[std::size_t(layer * directions_)]->shape; }
  int64_t input(int64_t layer) const {  // columns of its x; of pre-activations each direction has its own
    return shape(layer).given ? directions_ * shape(layer).x_size() : shape(layer).I;
  }
  int64_t output() const { return directions_ * shape(0).output(); }  // columns of y
  const Panels<T>& panels(int64_t layer, int64_t direction) const {
    return *panels_[std::size_t(layer * directions_ + direction)];
  }
  int64_t bytes() const;

 private:
  Network(int64_t layers, int64_t directions) : layers_(layers), directions_(directions) {}

  int64_t layers_, directions_;
  std::vector<std::unique_ptr<Panels<T>>> panels_;
};

// Layers that run a window together: all of them in one direction, so that y between them need not be there as a whole;
// else each alone, since a direction needs the other's whole y of the layer below.
std::vector<Range> stages(int64_t layers, int64_t directions);

constexpr int64_t kAutomatic = -1;

// What forward keeps for backward: every step, or the states between segments of steps and what it takes to run a segment again.
template <class T>
struct NetworkTape {
  std::unique_ptr<Timelines> timelines;
  Dropout dropout;
  int64_t T_ = 0, B = 0;
  bool training = false;  // else only segments and checkpoints are here

  std::vector<Range> segments[2];      // by direction, first one first
  std::vector<LayerTape<T>> layers;    // directions inner; empty where there are several segments
  std::vector<Buffer<T>> checkpoints;  // directions inner: [segments - 1,B,state] before each segment but the first
  std::vector<Buffer<T>> inputs;       // x of each stage, where one is run again
  Buffer<T> h0, c0;                    // then, where they are not zero: the initial states

  // Room for all of it. every: the fewest steps of a segment, 0 for one segment, kAutomatic for sqrt(T).
  void allocate(const Network<T>& network, int64_t every, bool with_h0, bool with_c0);
  // The same for one segment, in memory in which a forward has left it or will: no other part of a tape cannot be made anew.
  void place(const Network<T>& network, Lent& lent);
  // Of that, segments and checkpoints.
  void split(const Network<T>& network, const Timelines& walks, int64_t every);
  Draws draws(int64_t layer, int64_t direction) const {
    return {training, dropout.seed, dropout.call, dropout.first_step, layer, direction};
  }
  bool runs_again() const { return !inputs.empty(); }
  T* checkpoint(const Network<T>& network, int64_t index, std::size_t segment) const;  // [B,state] before the segment
  int64_t bytes() const;
};

template <class T>
struct NetworkForward {
  int64_t T_, B;
  Sequence<const T> x;    // [T,B,input]
  const T *h0, *c0;       // [L*D,B,output], [L*D,B,H]; null: zero
  Sequence<T> y;          // [T,B,D*output]; null: not wanted
  T *h_n, *c_n;           // both null where a segment runs again
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
  int64_t truncate = 0;  // as BackwardArgs
  struct Weights {
    T *w_x, *w_h, *b, *w_p, *peephole, *gamma_x, *gamma_h, *gamma_c, *beta_c;  // as BackwardArgs; w_h null: none wanted
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
