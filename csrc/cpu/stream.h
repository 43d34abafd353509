// A network that carries its state from call to call: single steps without allocations, or blocks of steps. It goes forward in
// time only, so its network has one direction.
#pragma once
#include <memory>
#include <vector>

#include "network.h"

namespace fastlstm {

template <class T>
class Stream {
 public:
  Stream(std::shared_ptr<const Network<T>> network, int64_t B, int threads);

  // Both carry on from the state, and leave the new one in it.
  void step(Sequence<const T> x, Sequence<T> y);  // x [1,B,I], y [1,B,output]
  void block(int64_t T_, Sequence<const T> x, Sequence<T> y, Interrupt& interrupt);

  const Network<T>& network() const { return *network_; }
  int64_t B() const { return B_; }
  T* h() const { return h_.data(); }  // [L,B,output]
  T* c() const { return c_.data(); }  // [L,B,H]
  int64_t work() const { return work_; }

 private:
  std::shared_ptr<const Network<T>> network_;
  int64_t B_;
  int threads_;
  int64_t work_ = 0;           // multiply-adds of a step
  Buffer<T> h_, c_, between_;  // between_: y of a layer, which is x of the next [2,B,output]
  Timelines step_timeline_;
  Interrupt never_;
  std::vector<ForwardArgs<T>> args_;  // of a step of each layer
  std::vector<std::unique_ptr<LayerPass>> passes_;
};

}  // namespace fastlstm
