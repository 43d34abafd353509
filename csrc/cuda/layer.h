// A layer in one direction on a GPU: the arguments of both passes, and the passes themselves, which only launch kernels on the
// given stream. Free of device code, for the bindings.
#pragma once
#include <cuda_runtime.h>

#include "kernels.cuh"

namespace fastlstm::gpu {

// How a layer runs: a launch a step, which any shape can have; or one launch, with all of U in the shared memory of each block,
// or with a part of it in each, which wait for one another's numbers.
enum class Algorithm { kAutomatic, kStep, kResident, kPersistent };

constexpr const char* kAlgorithmNames[] = {"auto", "step", "resident", "persistent"};

// Both throw std::invalid_argument where the layer cannot have the algorithm asked for; the algorithm that ran is returned.
// failed: a zero in device memory.
template <class T>
Algorithm layer_forward(const LayerForward<T>& layer, Algorithm asked, uint32_t* failed, cudaStream_t stream);
template <class T>
Algorithm layer_backward(const LayerBackward<T>& layer, Algorithm asked, uint32_t* failed, cudaStream_t stream);

// Throws std::runtime_error if a launch has given up since the last call, on any device. Waits for nothing.
void check_for_failures();

// Which steps count and where rows are cut, of one direction, from what the caller says.
struct StepMarks {
  int64_t T, B;
  bool reverse;
  const int64_t* lengths;         // [B]; null: T
  Sequence<const uint8_t> mask;   // [T,B,1]; null: all count
  Sequence<const uint8_t> reset;  // [T,B,1]; null: none
};
void mark_steps(const StepMarks& marks, uint8_t* flags /* [T,B] by time */, cudaStream_t stream);

// Layer normalisation of the sums [rows,columns] of x . W, which are overwritten by what is normalised; inverses [rows] are those of
// their deviations. pre = normalised * gains + bias, which may be null.
template <class T>
void normalise(T* sums, Wide<T>* inverses, T* pre, const T* gains, const T* bias, int64_t rows, int64_t columns,
               cudaStream_t stream);
// d_sums [rows,columns], the gradient of the sums, from that of pre.
template <class T>
void normalise_backward(const T* d_pre, const T* gains, const T* normalised, const Wide<T>* inverses, T* d_sums,
                        int64_t rows, int64_t columns, cudaStream_t stream);

// y [T,B,n] of one direction of a layer, or the gradient of it, times the mask of the dropout between layers.
template <class T>
void drop(Sequence<T> y, int64_t steps, int64_t batch, int64_t n, const Dropout& dropout, int64_t layer,
          int64_t direction, cudaStream_t stream);

// to [places,rows,n] = 0 with probability p, else 1 / (1 - p).
template <class T>
void draw(T* to, int64_t places, int64_t rows, int64_t n, Drawn kind, double p, const Draws& draws,
          cudaStream_t stream);

}  // namespace fastlstm::gpu
