// What surrounds the loop over time: marks, masks, and the one word by which launches say that they gave up.
#include "launch.h"
#include "layer_norm.cuh"
#include "state.cuh"

#include <mutex>

namespace fastlstm::gpu {
namespace {

// In memory of the host that every device sees; never freed, since a kernel may write it at any time.
unsigned* failure_word() {
  static unsigned* word = nullptr;
  static std::once_flag once;
  std::call_once(once, [] {
    void* memory = nullptr;
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;  // the first call may be captured into a graph
    check(cudaThreadExchangeStreamCaptureMode(&mode), "cudaThreadExchangeStreamCaptureMode");
    const cudaError_t allocated = cudaHostAlloc(&memory, sizeof(unsigned), cudaHostAllocPortable | cudaHostAllocMapped);
    check(cudaThreadExchangeStreamCaptureMode(&mode), "cudaThreadExchangeStreamCaptureMode");  // back again
    check(allocated, "cudaHostAlloc");
    word = static_cast<unsigned*>(memory);
    *word = 0;
  });
  return word;
}

}  // namespace

Failure failure_of(uint32_t* failed) { return {failed, failure_word()}; }

void check_for_failures() {
  volatile unsigned* const word = failure_word();
  if (*word == 0) return;
  *word = 0;
  throw std::runtime_error(
      "an earlier launch of algorithm \"persistent\" gave up waiting for a block, and its results are wrong: use "
      "algo=\"step\"");
}

void mark_steps(const StepMarks& marks, uint8_t* flags, cudaStream_t stream) {
  launch(for_elements("set_flags", marks.T * marks.B, stream), set_flags<uint8_t>, marks, flags);
}

template <class T>
void drop(Sequence<T> y, int64_t steps, int64_t batch, int64_t n, const Dropout& dropout, int64_t layer,
          int64_t direction, cudaStream_t stream) {
  launch(for_elements("drop_outputs", steps * batch * round_up_divide(n, 4), stream), drop_outputs<T>, y, steps, batch,
         n, dropout, layer, direction);
}

template <class T>
void draw(T* to, int64_t places, int64_t rows, int64_t n, Drawn kind, double p, const Draws& draws,
          cudaStream_t stream) {
  launch(for_elements("draw_scales", places * rows * n, stream), draw_scales<T>, to, places, rows, n, kind, p, draws);
}

template <class T>
void normalise(T* sums, Wide<T>* inverses, T* pre, const T* gains, const T* bias, int64_t rows, int64_t columns,
               cudaStream_t stream) {
  launch(for_rows<T>("normalise_rows", rows, stream), normalise_rows<T>, sums, inverses, pre, gains, bias,
         int(columns));
}

template <class T>
void normalise_backward(const T* d_pre, const T* gains, const T* normalised, const Wide<T>* inverses, T* d_sums,
                        int64_t rows, int64_t columns, cudaStream_t stream) {
  launch(for_rows<T>("normalise_rows_backward", rows, stream), normalise_rows_backward<T>, d_pre, gains, normalised,
         inverses, d_sums, int(columns));
}

#define INSTANTIATE(T)                                                                                                \
  template void drop(Sequence<T>, int64_t, int64_t, int64_t, const Dropout&, int64_t, int64_t, cudaStream_t);         \
  template void normalise(T*, Wide<T>*, T*, const T*, const T*, int64_t, int64_t, cudaStream_t);                      \
  template void normalise_backward(const T*, const T*, const T*, const Wide<T>*, T*, int64_t, int64_t, cudaStream_t); \
  template void draw(T*, int64_t, int64_t, int64_t, Drawn, double, const Draws&, cudaStream_t);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(__half)
INSTANTIATE(__nv_bfloat16)

}  // namespace fastlstm::gpu
