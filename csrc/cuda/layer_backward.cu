// The backward loop over time on a GPU: which kernel runs how often. The twin of cpu/layer_backward.cpp.
#include "dispatch.h"
#include "launch.h"
#include "layer_norm.cuh"
#include "persistent.cuh"
#include "resident.cuh"
#include "state.cuh"

namespace fastlstm::gpu {
namespace {

// Gradients of gates are a variant's, too.
template <class T>
CellKind kind_of_backward(const LayerBackward<T>& layer) {
  const CellKind kind = kind_of(layer.forward.variant);
  return layer.dgates ? std::max(kind, kTextbookActivations) : kind;
}

template <class T>
void dh_of_step(const LayerBackward<T>& layer, const StepBackward<T>& step, const Device& device, cudaStream_t stream) {
  const Shape& shape = layer.forward.shape;
  with_rows(rows_of_step(shape.output(), shape.B, device), [&](auto rows) {
    constexpr int kRows = decltype(rows)::value;
    launch(for_tiles<T, kRows>("gradient_of_h", shape.output(), shape.B, stream), gradient_of_h<T, kRows>, step);
  });
}

template <class T>
void step(const LayerBackward<T>& layer, int64_t s, const Device& device, cudaStream_t stream) {
  const Shape& shape = layer.forward.shape;
  const StepBackward<T> step = layer.step(s);
  if (layer.projection) dh_of_step(layer, step, device, stream);
  with_rows(rows_of_step(shape.H, shape.B, device), [&](auto rows) {
    constexpr int kRows = decltype(rows)::value;
    with_kind(kind_of_backward(layer), [&](auto kind) {
      constexpr CellKind kKind = decltype(kind)::value;
      if (!layer.forward.norm.gains)
        return launch(for_tiles<T, kRows>("step_backward", shape.H, shape.B, stream), step_backward<T, kRows, kKind>,
                      step);
      launch(for_tiles<T, kRows>("gradient_sums", shape.H, shape.B, stream), gradient_sums<T, kRows>, step);
      launch(for_rows<T>("normalised_backward", shape.B, stream),
             normalised_backward<T, std::max(kKind, kTextbookActivations)>, step);
    });
  });
}

}  // namespace

template <class T>
Algorithm layer_backward(const LayerBackward<T>& layer, Algorithm asked, uint32_t* failed, cudaStream_t stream) {
  const Shape& shape = layer.forward.shape;
  const Device device;
  const Choice choice = choose(layer.forward, kind_of_backward(layer), asked, true, device);
  const int64_t elements = shape.B * std::max(shape.H, shape.output());
  if (choice.algorithm == Algorithm::kPersistent) fill_unwritten(layer.d_pre, shape.T * shape.B * shape.H * 4, stream);
  launch(for_elements("begin_backward", elements, stream), begin_backward<T>, layer);
  if (choice.algorithm == Algorithm::kStep) {
    for (int64_t s = shape.T - 1; s >= 0; --s) step(layer, s, device, stream);
    if (shape.T > 0) dh_of_step(layer, layer.before_first(), device, stream);
  } else if (shape.T > 0) {
    with_rows(choice.thread_rows, [&](auto rows) {
      constexpr int kRows = decltype(rows)::value;
      with_kind(kind_of_backward(layer), [&](auto kind) {
        constexpr CellKind kKind = decltype(kind)::value;
        if (choice.algorithm == Algorithm::kResident)
          launch(choice.launch("resident_backward", stream), resident_backward<T, kRows, kKind>, layer,
                 choice.resident);
        else
          with_tensor_cores<T>(choice.persistent.tensor_cores, [&](auto tensor) {
            launch(choice.launch("persistent_backward", stream),
                   persistent_backward<T, kRows, kKind, decltype(tensor)::value>, layer, choice.persistent,
                   failure_of(failed));
          });
      });
    });
  }
  launch(for_elements("end_backward", elements, stream), end_backward<T>, layer);
  return choice.algorithm;
}

#define INSTANTIATE(T) template Algorithm layer_backward(const LayerBackward<T>&, Algorithm, uint32_t*, cudaStream_t);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(__half)
INSTANTIATE(__nv_bfloat16)

}  // namespace fastlstm::gpu
