// Arrays on a GPU, as DLPack or the CUDA array interface hand them over, and every check of them. No library's own API is used:
// CuPy's arrays, torch's tensors and others are alike here.
#pragma once
#include <cuda_runtime.h>
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "../cuda/device.cuh"
#include "../layer.h"

namespace fastlstm::gpu {

namespace py = pybind11;

enum class DType { kFloat16, kBfloat16, kFloat32, kFloat64, kUint8, kInt32, kInt64 };

const char* dtype_name(DType dtype);

template <class T>
constexpr DType kDType = DType::kUint8;
template <>
constexpr DType kDType<__half> = DType::kFloat16;
template <>
constexpr DType kDType<__nv_bfloat16> = DType::kBfloat16;
template <>
constexpr DType kDType<float> = DType::kFloat32;
template <>
constexpr DType kDType<double> = DType::kFloat64;
template <>
constexpr DType kDType<uint32_t> = DType::kInt32;  // torch has no unsigned ones
template <>
constexpr DType kDType<int64_t> = DType::kInt64;

struct DeviceArray {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape, strides;  // strides in elements
  int device = 0;
};

// What a call on one stream needs of its arguments: reads the protocols, checks, and makes the stream wait where an array says
// that another stream still writes it.
class DeviceArguments {
 public:
  DeviceArguments(const py::dict& arrays, int device, cudaStream_t stream)
      : arrays_(arrays), device_(device), stream_(stream) {}

  bool has(const char* name) const { return arrays_.contains(name) && !arrays_[name].is_none(); }
  DeviceArray array(const char* name) const;

  // Contiguous, of this shape; null where None was given.
  template <class T>
  T* contiguous(const char* name, const std::vector<int64_t>& shape) const {
    return static_cast<T*>(checked(name, kDType<T>, shape, true).data);
  }
  // [T,B,n] of any strides between rows of contiguous elements; null where None was given.
  template <class T>
  Sequence<T> sequence(const char* name, int64_t steps, int64_t batch, int64_t n) const {
    const DeviceArray a = checked(name, kDType<std::remove_const_t<T>>, {steps, batch, n}, false);
    return a.data ? Sequence<T>{static_cast<T*>(a.data), a.strides[0], a.strides[1]} : Sequence<T>{};
  }

 private:
  DeviceArray checked(const char* name, DType dtype, const std::vector<int64_t>& shape, bool contiguous) const;

  const py::dict& arrays_;
  const int device_;
  const cudaStream_t stream_;
};

// The stream behind the number that libraries use for it.
cudaStream_t stream_argument(uint64_t stream);

}  // namespace fastlstm::gpu
