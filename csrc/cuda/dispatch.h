// The one place where an algorithm is chosen for a layer, by shape, type and device.
#pragma once
#include <algorithm>
#include <stdexcept>
#include <string>

#include "launch.h"
#include "layer.h"
#include "persistent.cuh"
#include "resident.cuh"

namespace fastlstm::gpu {

struct Choice {
  Algorithm algorithm = Algorithm::kStep;
  int blocks = 0, threads = 0, thread_rows = 0;
  size_t shared_bytes = 0;
  PersistentShape persistent{};

  Launch launch(const char* name, cudaStream_t stream) const {
    return {name, dim3(unsigned(blocks)), threads, shared_bytes, stream, algorithm == Algorithm::kPersistent};
  }
};

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

// What a block can have at most, and how many blocks run at once.
struct Device {
  size_t shared_bytes = size_t(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
  int processors = device_attribute(cudaDevAttrMultiProcessorCount);
};

// Why a layer has to take a launch a step; "" if it has not.
template <class T>
std::string needs_steps(const LayerForward<T>& layer) {
  return layer.shape.P > 0 ? "it has a projection" : layer.variant.h_scales ? "it drops h" : "";
}

inline std::string too_large(size_t bytes, const Device& device) {
  return "its weights need " + std::to_string(bytes) + " bytes of shared memory, and a block has " +
         std::to_string(device.shared_bytes);
}

// Few rows go to as many blocks as there are processors; more rows of a thread share what it reads of U. `why`: why not.
template <class T>
Choice choose_resident(const LayerForward<T>& layer, bool backward, const Device& device, std::string& why) {
  constexpr int64_t kMost = 256;  // threads along the units
  why = needs_steps(layer);
  if (why.empty() && layer.shape.H > kMost) why = "its hidden size is above " + std::to_string(kMost);
  if (!why.empty()) return {};
  const ResidentShape shape = resident_shape(layer.shape.H);
  Choice choice{Algorithm::kResident};
  choice.threads = shape.threads();
  choice.thread_rows = layer.shape.B <= int64_t(device.processors) * shape.row_threads ? 1 : 4;
  const int rows = choice.thread_rows * shape.row_threads;
  choice.blocks = int(round_up_divide(layer.shape.B, rows));
  choice.shared_bytes = resident_bytes<T>(layer.shape.H, rows, backward);
  if (choice.shared_bytes > device.shared_bytes) why = too_large(choice.shared_bytes, device);
  return choice;
}

// As many blocks as there are processors, which then all run at once, and as few columns each as that allows.
template <class T>
Choice choose_persistent(const LayerForward<T>& layer, bool backward, const Device& device, std::string& why) {
  why = needs_steps(layer);
  if (why.empty() && layer.shape.B == 0) why = "it has no rows";
  if (!why.empty()) return {};
  const int64_t H = layer.shape.H, B = layer.shape.B, columns = backward ? H : 4 * H, depth = backward ? 4 * H : H;
  const int64_t quads = round_up_divide(round_up_divide(columns, 4), device.processors);
  PersistentShape shape{};
  shape.quads = int(quads);
  shape.blocks = int(round_up_divide(columns, 4 * quads));
  const size_t weights = size_t(depth * 4 * quads) * sizeof(T);
  const int64_t threads = std::max<int64_t>(1, kPersistentThreads / quads);
  shape.row_threads = int(std::min(threads, B));
  Choice choice{Algorithm::kPersistent, shape.blocks, kPersistentThreads, B <= shape.row_threads ? 1 : 4};
  shape.rows = shape.row_threads * choice.thread_rows;
  const size_t part = size_t(shape.rows) * kDepth * sizeof(T);
  if (quads > kPersistentThreads || weights + part > device.shared_bytes) {
    why = too_large(weights + part, device);
    return choice;
  }
  const int64_t parts = std::min(round_up_divide(depth, kDepth), int64_t((device.shared_bytes - weights) / part));
  shape.depth_at_once = int(parts) * kDepth;
  choice.shared_bytes = weights + size_t(parts) * part;
  choice.persistent = shape;
  return choice;
}

template <class T>
Choice choose(const LayerForward<T>& layer, Algorithm asked, bool backward) {
  if (asked == Algorithm::kStep) return {};
  const Device device;
  std::string why;
  if (asked != Algorithm::kPersistent) {
    const Choice resident = choose_resident(layer, backward, device, why);
    if (why.empty()) return resident;
  }
  if (asked != Algorithm::kResident) {
    const Choice persistent = choose_persistent(layer, backward, device, why);
    if (why.empty()) return persistent;
  }
  if (asked == Algorithm::kAutomatic) return {};
  throw std::invalid_argument(std::string("algo is \"") + kAlgorithmNames[int(asked)] +
                              "\", which this layer cannot be: " + why);
}

}  // namespace fastlstm::gpu
