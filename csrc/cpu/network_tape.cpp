// What a training call keeps: room for it, and where its segments begin.
#include <cmath>

#include "network.h"
#include "plan.h"
#include "row_state.h"

namespace fastlstm {

std::vector<Range> stages(int64_t layers, int64_t directions) {
  if (directions == 1) return {{0, layers}};
  std::vector<Range> each;
  for (int64_t layer = 0; layer < layers; ++layer) each.push_back({layer, layer + 1});
  return each;
}

template <class T>
void NetworkTape<T>::split(const Network<T>& network, const Timelines& walks, int64_t every) {
  if (every == kAutomatic) every = int64_t(std::ceil(std::sqrt(double(T_))));
  for (int64_t i = 0; i < network.layers() * network.directions(); ++i) {
    const int64_t d = i % network.directions();
    Shape shape = network.shape(0);
    shape.T = T_, shape.B = B;
    if (i == d) segments[d] = split_into_segments(shape, walks.direction(d), every);
    const int64_t between = int64_t(segments[d].size()) - 1;
    checkpoints.emplace_back();
    if (between > 0)
      checkpoints.back() = Buffer<T>(size_product(between, B, state_size(shape, network.panels(0, 0).layout)));
  }
}

template <class T>
void NetworkTape<T>::allocate(const Network<T>& network, int64_t every, bool with_h0, bool with_c0) {
  training = true;
  split(network, *timelines, every);
  const int64_t L = network.layers(), D = network.directions();
  for (int64_t i = 0; i < L * D; ++i)
    if (segments[i % D].size() == 1)
      layers.emplace_back(network.panels(i / D, i % D), T_, B);
    else
      layers.emplace_back();
  if (segments[0].size() <= 1 && segments[1].size() <= 1) return;
  for (const Range& stage : stages(L, D)) inputs.emplace_back(size_product(T_, B, network.input(stage.begin)));
  if (with_h0) h0 = Buffer<T>(size_product(L * D, B, network.shape(0).output()));
  if (with_c0) c0 = Buffer<T>(size_product(L * D, B, network.shape(0).H));
}

template <class T>
void NetworkTape<T>::place(const Network<T>& network, Lent& lent) {
  training = true;
  split(network, *timelines, 0);
  const int64_t D = network.directions();
  for (int64_t i = 0; i < network.layers() * D; ++i) {
    layers.emplace_back(network.panels(i / D, i % D), T_, B, &lent);
    layers.back().steps = segments[i % D][0];
  }
}

template <class T>
T* NetworkTape<T>::checkpoint(const Network<T>& network, int64_t index, std::size_t segment) const {
  const int64_t size = B * state_size(network.shape(0), network.panels(0, 0).layout);
  return checkpoints[std::size_t(index)].data() + int64_t(segment - 1) * size;
}

template <class T>
int64_t NetworkTape<T>::bytes() const {
  int64_t total = h0.bytes() + c0.bytes();
  for (const auto& layer : layers) total += layer.bytes();
  for (const auto& states : checkpoints) total += states.bytes();
  for (const auto& input : inputs) total += input.bytes();
  return total;
}

template struct NetworkTape<float>;
template struct NetworkTape<double>;

}  // namespace fastlstm
