// The loop over time on a GPU: which kernel runs how often. The twin of cpu/layer_forward.cpp and cpu/layer_backward.cpp.
#include "layer.h"

#include <algorithm>

#include <string>

#include "check.h"
#include "dispatch.h"
#include "resident.cuh"
#include "state.cuh"
#include "step_backward.cuh"

namespace fastlstm::gpu {
namespace {

int64_t round_up_divide(int64_t n, int64_t by) { return (n + by - 1) / by; }

// The one way in which kernels are launched; an error names kernel and shape.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 blocks, int threads, size_t shared_bytes,
            cudaStream_t stream, const Arguments&... arguments) {
  if (blocks.x == 0 || blocks.y == 0) return;
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  constexpr size_t kUsual = 48 * 1024;
  if (shared_bytes > kUsual)
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               int(shared_bytes)),
          std::string(name) + " with " + std::to_string(shared_bytes) + " bytes of shared memory");
  check(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...),
        std::string(name) + " of " + std::to_string(blocks.x) + " x " + std::to_string(blocks.y) + " blocks");
}

// Calls function with the number of rows of a thread: more reuse what they read, fewer leave no thread idle.
template <class Function>
void with_rows(int64_t rows, Function function) {
  if (rows <= kRowThreads)
    function(std::integral_constant<int, 1>{});
  else
    function(std::integral_constant<int, 4>{});
}

// Calls function with the kind of cell as a constant.
template <class Function>
void with_kind(CellKind kind, Function function) {
  if (kind == kPlain) return function(std::integral_constant<CellKind, kPlain>{});
  if (kind == kTextbookActivations) return function(std::integral_constant<CellKind, kTextbookActivations>{});
  return function(std::integral_constant<CellKind, kAnyActivations>{});
}

template <int ROWS>
dim3 tiles(int64_t columns, int64_t rows) {
  return dim3(unsigned(round_up_divide(columns, kPanel)), unsigned(round_up_divide(rows, kRowThreads * ROWS)));
}

template <class T>
void forward_step(const StepForward<T>& step, const Shape& shape, const T* projection, cudaStream_t stream) {
  with_rows(shape.B, [&](auto rows) {
    constexpr int kRows = decltype(rows)::value;
    constexpr size_t kBytes = kProductBytes<T, kRows>;
    with_kind(kind_of(step.variant), [&](auto kind) {
      launch("step_forward", step_forward<T, kRows, decltype(kind)::value>, tiles<kRows>(4 * shape.H, shape.B),
             kThreads, kBytes, stream, step);
    });
    if (projection)
      launch("project_forward", project_forward<T, kRows>, tiles<kRows>(shape.P, shape.B), kThreads, kBytes, stream,
             step, Operand<T>{step.m, int(shape.H), projection}, int(shape.P));
  });
}

template <class T>
void backward_step(const StepBackward<T>& step, const Shape& shape, CellKind kind, cudaStream_t stream) {
  with_rows(shape.B, [&](auto rows) {
    constexpr int kRows = decltype(rows)::value;
    constexpr size_t kBytes = kProductBytes<T, kRows>;
    if (step.dh_out || !step.saved)
      launch("gradient_of_h", gradient_of_h<T, kRows>, tiles<kRows>(shape.output(), shape.B), kThreads, kBytes, stream,
             step);
    if (!step.saved) return;
    with_kind(kind, [&](auto kind) {
      launch("step_backward", step_backward<T, kRows, decltype(kind)::value>, tiles<kRows>(shape.H, shape.B), kThreads,
             kBytes, stream, step);
    });
  });
}

// Gradients of gates are a variant's, too.
template <class T>
CellKind kind_of(const LayerBackward<T>& layer) {
  const CellKind kind = kind_of(layer.forward.variant);
  return layer.dgates ? std::max(kind, kTextbookActivations) : kind;
}

// Calls function with the rows of a thread and the kind of cell as constants.
template <class T, class Function>
void with_resident(const LayerForward<T>& layer, const Choice& choice, CellKind kind, Function function) {
  if (layer.shape.T == 0) return;
  with_kind(kind, [&](auto constant) {
    if (choice.thread_rows == 1)
      function(std::integral_constant<int, 1>{}, constant);
    else
      function(std::integral_constant<int, 4>{}, constant);
  });
}

constexpr int kStateThreads = 256;

}  // namespace

template <class T>
Algorithm layer_forward(const LayerForward<T>& layer, Algorithm asked, cudaStream_t stream) {
  const Shape& shape = layer.shape;
  const Choice choice = choose(layer, asked, false);
  const dim3 blocks(unsigned(round_up_divide(shape.B * std::max(shape.H, shape.output()), kStateThreads)));
  launch("begin_forward", begin_forward<T>, blocks, kStateThreads, 0, stream, layer);
  if (choice.algorithm == Algorithm::kResident)
    with_resident(layer, choice, kind_of(layer.variant), [&](auto rows, auto kind) {
      launch("resident_forward", resident_forward<T, decltype(rows)::value, decltype(kind)::value>,
             dim3(unsigned(round_up_divide(shape.B, choice.block_rows))), choice.threads, choice.shared_bytes, stream,
             layer);
    });
  else
    for (int64_t s = 0; s < shape.T; ++s) forward_step(layer.step(s), shape, layer.projection, stream);
  launch("end_forward", end_forward<T>, blocks, kStateThreads, 0, stream, layer);
  return choice.algorithm;
}

template <class T>
Algorithm layer_backward(const LayerBackward<T>& layer, Algorithm asked, cudaStream_t stream) {
  const Shape& shape = layer.forward.shape;
  const Choice choice = choose(layer.forward, asked, true);
  const dim3 blocks(unsigned(round_up_divide(shape.B * std::max(shape.H, shape.output()), kStateThreads)));
  launch("begin_backward", begin_backward<T>, blocks, kStateThreads, 0, stream, layer);
  if (choice.algorithm == Algorithm::kResident) {
    with_resident(layer.forward, choice, kind_of(layer), [&](auto rows, auto kind) {
      launch("resident_backward", resident_backward<T, decltype(rows)::value, decltype(kind)::value>,
             dim3(unsigned(round_up_divide(shape.B, choice.block_rows))), choice.threads, choice.shared_bytes, stream,
             layer);
    });
  } else {
    for (int64_t s = shape.T - 1; s >= 0; --s) backward_step(layer.step(s), shape, kind_of(layer), stream);
    if (shape.T > 0) backward_step(layer.before_first(), shape, kPlain, stream);
  }
  launch("end_backward", end_backward<T>, blocks, kStateThreads, 0, stream, layer);
  return choice.algorithm;
}

void mark_steps(const StepMarks& marks, uint8_t* flags, cudaStream_t stream) {
  const dim3 blocks(unsigned(round_up_divide(marks.T * marks.B, kStateThreads)));
  launch("set_flags", set_flags<uint8_t>, blocks, kStateThreads, 0, stream, marks, flags);
}

template <class T>
void drop(Sequence<T> y, int64_t steps, int64_t batch, int64_t n, const Dropout& dropout, int64_t layer,
          int64_t direction, cudaStream_t stream) {
  const dim3 blocks(unsigned(round_up_divide(steps * batch * round_up_divide(n, 4), kStateThreads)));
  launch("drop_outputs", drop_outputs<T>, blocks, kStateThreads, 0, stream, y, steps, batch, n, dropout, layer,
         direction);
}

template <class T>
void draw(T* to, int64_t places, int64_t rows, int64_t n, Drawn kind, double p, const Draws& draws,
          cudaStream_t stream) {
  const dim3 blocks(unsigned(round_up_divide(places * rows * n, kStateThreads)));
  launch("draw_scales", draw_scales<T>, blocks, kStateThreads, 0, stream, to, places, rows, n, kind, p, draws);
}

#define INSTANTIATE(T)                                                                                        \
  template Algorithm layer_forward(const LayerForward<T>&, Algorithm, cudaStream_t);                          \
  template Algorithm layer_backward(const LayerBackward<T>&, Algorithm, cudaStream_t);                        \
  template void drop(Sequence<T>, int64_t, int64_t, int64_t, const Dropout&, int64_t, int64_t, cudaStream_t); \
  template void draw(T*, int64_t, int64_t, int64_t, Drawn, double, const Draws&, cudaStream_t);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(__half)
INSTANTIATE(__nv_bfloat16)

}  // namespace fastlstm::gpu
