// The forward loop over time on a GPU: which kernel runs how often. The twin of cpu/layer_forward.cpp.
#include "dispatch.h"
#include "launch.h"
#include "layer_norm.cuh"
#include "persistent.cuh"
#include "resident.cuh"
#include "state.cuh"

namespace fastlstm::gpu {
namespace {

template <class T>
void step(const LayerForward<T>& layer, int64_t s, const Device& device, cudaStream_t stream) {
  const Shape& shape = layer.shape;
  const StepForward<T> step = layer.step(s);
  with_rows(rows_of_step(4 * shape.H, shape.B, device), [&](auto rows) {
    constexpr int kRows = decltype(rows)::value;
    with_kind(kind_of(step.variant), [&](auto kind) {
      constexpr CellKind kKind = decltype(kind)::value;
      if (!step.norm.gains)
        return launch(for_tiles<T, kRows>("step_forward", 4 * shape.H, shape.B, stream), step_forward<T, kRows, kKind>,
                      step);
      launch(for_tiles<T, kRows>("recurrent_sums", 4 * shape.H, shape.B, stream), recurrent_sums<T, kRows>, step);
      launch(for_rows<T>("normalised_forward", shape.B, stream),
             normalised_forward<T, std::max(kKind, kTextbookActivations)>, step);
    });
  });
  if (layer.projection)
    with_rows(rows_of_step(shape.P, shape.B, device), [&](auto rows) {
      constexpr int kRows = decltype(rows)::value;
      launch(for_tiles<T, kRows>("project_forward", shape.P, shape.B, stream), project_forward<T, kRows>, step,
             Operand<T>{step.m, int(shape.H), layer.projection, nullptr}, int(shape.P));
    });
}

}  // namespace

template <class T>
Algorithm layer_forward(const LayerForward<T>& layer, Algorithm asked, uint32_t* failed, cudaStream_t stream) {
  const Shape& shape = layer.shape;
  const Device device;
  const Choice choice = choose(layer, kind_of(layer.variant), asked, false, device);
  const int64_t elements = shape.B * std::max(shape.H, shape.output());
  if (choice.algorithm == Algorithm::kPersistent) fill_unwritten(layer.h, (shape.T + 1) * shape.B * shape.H, stream);
  launch(for_elements("begin_forward", elements, stream), begin_forward<T>, layer);
  if (choice.algorithm == Algorithm::kStep)
    for (int64_t s = 0; s < shape.T; ++s) step(layer, s, device, stream);
  else
    with_rows(choice.thread_rows, [&](auto rows) {
      constexpr int kRows = decltype(rows)::value;
      with_kind(kind_of(layer.variant), [&](auto kind) {
        constexpr CellKind kKind = decltype(kind)::value;
        if (choice.algorithm == Algorithm::kResident)
          launch(choice.launch("resident_forward", stream), resident_forward<T, kRows, kKind>, layer, choice.resident);
        else
          with_tensor_cores<T>(choice.persistent.tensor_cores, [&](auto tensor) {
            launch(choice.launch("persistent_forward", stream),
                   persistent_forward<T, kRows, kKind, decltype(tensor)::value>, layer, choice.persistent,
                   failure_of(failed));
          });
      });
    });
  launch(for_elements("end_forward", elements, stream), end_forward<T>, layer);
  return choice.algorithm;
}

#define INSTANTIATE(T) template Algorithm layer_forward(const LayerForward<T>&, Algorithm, uint32_t*, cudaStream_t);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(__half)
INSTANTIATE(__nv_bfloat16)

}  // namespace fastlstm::gpu
