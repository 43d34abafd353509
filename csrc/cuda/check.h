// Errors of the CUDA runtime as exceptions.
#pragma once
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace fastlstm::gpu {

inline void check(cudaError_t error, const std::string& what) {
  if (error != cudaSuccess)
    throw std::runtime_error(what + ": " + cudaGetErrorName(error) + ", " + cudaGetErrorString(error));
}

}  // namespace fastlstm::gpu
