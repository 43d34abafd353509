// The one place where an algorithm is chosen for a layer, by shape, type and device.
#pragma once
#include <algorithm>
#include <stdexcept>
#include <string>

#include "check.h"
#include "layer.h"
#include "resident.cuh"

namespace fastlstm::gpu {

struct Choice {
  Algorithm algorithm = Algorithm::kStep;
  int threads = 0, thread_rows = 0, block_rows = 0;  // of a resident block
  size_t shared_bytes = 0;
};

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

// Why the layer cannot be resident; "" if it can.
template <class T>
std::string not_resident(const LayerForward<T>& layer, size_t bytes) {
  constexpr int64_t kMost = 256;  // threads along the units
  const auto most = size_t(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  if (layer.shape.P > 0) return "it has a projection";
  if (layer.variant.h_scales) return "it drops h";
  if (layer.shape.H > kMost) return "its hidden size is above " + std::to_string(kMost);
  if (bytes > most)
    return "its weights take " + std::to_string(bytes) + " bytes of shared memory, and a block has " +
           std::to_string(most);
  return "";
}

// Few rows go to as many blocks as there are processors; more rows of a thread share what it reads of U.
template <class T>
Choice resident_choice(const LayerForward<T>& layer, bool backward) {
  const ResidentShape shape = resident_shape(layer.shape.H);
  const int64_t processors = device_attribute(cudaDevAttrMultiProcessorCount);
  const bool few = layer.shape.B <= processors * shape.row_threads;
  Choice choice{Algorithm::kResident, shape.threads(), few ? 1 : 4};
  choice.block_rows = choice.thread_rows * shape.row_threads;
  choice.shared_bytes = resident_bytes<T>(layer.shape.H, choice.block_rows, backward);
  return choice;
}

template <class T>
Choice choose(const LayerForward<T>& layer, Algorithm asked, bool backward) {
  if (asked == Algorithm::kStep) return {};
  const Choice resident = resident_choice(layer, backward);
  const std::string why = not_resident(layer, resident.shared_bytes);
  if (why.empty()) return resident;
  if (asked == Algorithm::kResident)
    throw std::invalid_argument("algo is \"resident\", which this layer cannot be: " + why);
  return {};
}

}  // namespace fastlstm::gpu
