#include "stream.h"

#include <algorithm>

namespace fastlstm {

template <class T>
Stream<T>::Stream(std::shared_ptr<const Network<T>> network, int64_t B, int threads)
    : network_(std::move(network)),
      B_(B),
      threads_(threads),
      h_(size_product(network_->layers(), B, network_->output())),
      c_(size_product(network_->layers(), B, network_->shape(0).H)),
      between_(size_product(2, B, network_->output())),
      step_timeline_(1, B, {}, 1),
      never_(nullptr),
      args_(std::size_t(network_->layers())) {
  std::fill_n(h_.data(), h_.size(), T(0));
  std::fill_n(c_.data(), c_.size(), T(0));
  const int64_t n = network_->output(), H = network_->shape(0).H;
  const auto between = [&](std::size_t layer) { return between_.data() + int64_t(layer % 2) * B * n; };
  for (std::size_t layer = 0; layer < args_.size(); ++layer) {
    ForwardArgs<T>& args = args_[layer];
    args.shape = network_->shape(int64_t(layer));
    args.shape.T = 1;
    args.shape.B = B;
    args.timeline = step_timeline_.direction(0);
    args.steps = {0, 1};
    args.h0 = args.h_n = h_.data() + int64_t(layer) * B * n;
    args.c0 = args.c_n = c_.data() + int64_t(layer) * B * H;
    if (layer > 0) args.x = {between(layer - 1), B * n, n};
    args.y = {between(layer), B * n, n};
    work_ += B * args.shape.depth() * 4 * H;
    passes_.push_back(forward_pass(network_->panels(int64_t(layer), 0), args, threads, never_));
  }
}

template <class T>
void Stream<T>::step(Sequence<const T> x, Sequence<T> y) {
  args_.front().x = x;
  args_.back().y = y;
  for (const auto& pass : passes_) pass->run();
}

template <class T>
void Stream<T>::block(int64_t T_, Sequence<const T> x, Sequence<T> y, Interrupt& interrupt) {
  const Timelines timelines(T_, B_, {}, 1);
  const NetworkForward<T> args{T_, B_, x, h_.data(), c_.data(), y, h_.data(), c_.data(), {}, {}, false};
  network_forward(*network_, args, timelines, static_cast<NetworkTape<T>*>(nullptr), threads_, interrupt);
}

template class Stream<float>;
template class Stream<double>;

}  // namespace fastlstm
