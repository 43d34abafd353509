// What DLPack (dmlc.github.io/dlpack, versions 0.8 to 1.1) lays down of a tensor in memory: as much as reading one takes.
#pragma once
#include <cstdint>

namespace fastlstm::dlpack {

constexpr int kCuda = 2, kCudaManaged = 13;                                 // kinds of device
constexpr uint8_t kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kBool = 6;  // codes of types

struct Device {
  int32_t kind, id;
};

struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t *shape, *strides;  // in elements; null strides: packed
  uint64_t byte_offset;
};

struct Managed {
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};

struct Versioned {
  uint32_t major, minor;
  void* context;
  void (*deleter)(Versioned*);
  uint64_t flags;
  Tensor tensor;
};

}  // namespace fastlstm::dlpack
