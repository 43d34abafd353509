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
  ResidentShape resident{};
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
  return layer.shape.P > 0        ? "it has a projection"
         : layer.norm.gains       ? "it is normalised"
         : layer.variant.h_scales ? "it drops h"
                                  : "";
}

inline std::string too_large(size_t bytes, const Device& device) {
  return "its weights need " + std::to_string(bytes) + " bytes of shared memory, and a block has " +
         std::to_string(device.shared_bytes);
}

// `why`: why not.
template <class T>
Choice choose_resident(const LayerForward<T>& layer, CellKind kind, bool backward, const Device& device,
                       std::string& why) {
  constexpr int64_t kMost = 256;  // threads along the units
  why = needs_steps(layer);
  if (why.empty() && layer.shape.H > kMost) why = "its hidden size is above " + std::to_string(kMost);
  if (!why.empty()) return {};
  const int64_t H = layer.shape.H, B = layer.shape.B;
  Choice choice{Algorithm::kResident};
  choice.thread_rows = B <= device.processors ? 1 : 4;
  for (int most = most_resident_threads(sizeof(T), kind); most >= H; most /= 2) {  // fewer have fewer rows
    choice.resident = resident_shape(H, B, backward, choice.thread_rows, device.processors, most);
    choice.shared_bytes = resident_bytes<T>(choice.resident, backward ? H : 4 * H);
    if (choice.shared_bytes <= device.shared_bytes) break;
  }
  choice.threads = choice.resident.threads();
  choice.blocks = int(round_up_divide(B, choice.resident.rows));
  // Whether it fits must not depend on how many rows there are.
  const ResidentShape of_many = resident_shape(H, 1, backward, 4, device.processors, int(H));
  const size_t least = resident_bytes<T>(of_many, backward ? H : 4 * H);
  if (least > device.shared_bytes) why = too_large(least, device);
  return choice;
}

// Which types have kernels on tensor cores, and whether this layer takes them.
template <class T>
constexpr bool kHasTensorCores = sizeof(T) < 8;
template <class T>
bool takes_tensor_cores(const LayerForward<T>& layer) {
  return sizeof(T) == 2 || (kHasTensorCores<T> && layer.tf32);
}

// Calls function with whether a persistent kernel takes tensor cores, as a constant: 16-bit types always do.
template <class T, class Function>
void with_tensor_cores(bool wanted, Function function) {
  if constexpr (kHasTensorCores<T>)
    if (wanted) return function(std::true_type{});
  if constexpr (sizeof(T) > 2) function(std::false_type{});
}

// The columns: as many blocks as there are processors, which then all run at once, and as few columns each as that allows.
template <class T, bool TENSOR>
PersistentShape persistent_columns(int64_t columns, int64_t depth, const Device& device) {
  PersistentShape shape{};
  const int64_t together = TENSOR ? kMmaEdge / 4 : 1;  // quads that no two blocks share
  const int64_t groups = round_up_divide(columns, 4 * together);
  shape.tensor_cores = TENSOR;
  shape.quads = int(round_up_divide(groups, device.processors) * together);
  shape.splits = TENSOR ? std::max(1, kWarps / (shape.columns() / kMmaEdge)) : kSlices;
  shape.w_stride = TENSOR ? round_up(int(depth), kMmaDepth) + kVector<T> : shape.columns();
  return shape;
}

// Makes the tile as deep as fits: all of the operand, or some parts of all slices at once.
template <class T, bool TENSOR>
bool fits_with_tile(PersistentShape& shape, int depth, const Device& device) {
  constexpr int kSome = kSlices * kDepth;
  const auto fits = [&] { return PersistentMemory<T, TENSOR>::bytes(shape, depth) <= device.shared_bytes; };
  shape.depth_at_once = round_up(depth, kDepth);
  while (!fits() && shape.depth_at_once > kSome) shape.depth_at_once = round_up(shape.depth_at_once - kSome, kSome);
  return fits();
}

// More rows of a thread share what it reads of U, if there are so many rows and so much memory.
template <class T, bool TENSOR>
Choice choose_persistent(const LayerForward<T>& layer, bool backward, const Device& device, std::string& why) {
  const int64_t H = layer.shape.H, B = layer.shape.B, columns = backward ? H : 4 * H, depth = backward ? 4 * H : H;
  PersistentShape shape = persistent_columns<T, TENSOR>(columns, depth, device);
  Choice choice{Algorithm::kPersistent, int(round_up_divide(columns, shape.columns())), kPersistentThreads};
  if (shape.columns() > kMostColumns) {
    why = "a block would have " + std::to_string(shape.columns()) + " columns, and can have " +
          std::to_string(kMostColumns);
    return {};
  }
  shape.row_threads = int(std::min<int64_t>(32 / shape.quads, B));
  const int row_tile = TENSOR ? kMmaEdge : shape.row_threads;
  for (const int thread_rows : {B <= row_tile ? 1 : 4, 1}) {
    choice.thread_rows = thread_rows;
    shape.rows = row_tile * thread_rows;
    const bool fits = fits_with_tile<T, TENSOR>(shape, int(depth), device);
    choice.shared_bytes = PersistentMemory<T, TENSOR>::bytes(shape, int(depth));
    choice.persistent = shape;
    if (fits) return choice;
  }
  why = too_large(choice.shared_bytes, device);
  return {};
}

template <class T>
Choice choose_persistent(const LayerForward<T>& layer, bool backward, const Device& device, std::string& why) {
  why = needs_steps(layer);
  if (why.empty() && layer.shape.B == 0) why = "it has no rows";
  if (!why.empty()) return {};
  Choice choice;
  with_tensor_cores<T>(takes_tensor_cores(layer), [&](auto tensor) {
    choice = choose_persistent<T, decltype(tensor)::value>(layer, backward, device, why);
  });
  return choice;
}

// Up to so many units, resident layers are faster than persistent ones, if they fit at all. Measured on an H200, as what follows.
template <class T>
constexpr int64_t kMostResidentUnits = sizeof(T) == 2 ? 128 : 256;

// From so many rows on, steps are faster than persistent blocks backward, each of which reads all of d_pre. Both give the same bits,
// as they do not on tensor cores: there, no row's results may depend on how many rows there are.
constexpr int64_t kFewestRowsOfSteps = 64;

template <class T>
Choice choose_automatically(LayerForward<T> layer, CellKind kind, bool backward, const Device& device) {
  std::string why;
  const Choice resident = choose_resident(layer, kind, backward, device, why);
  const bool can_be_resident = why.empty();
  if (can_be_resident && layer.shape.H <= kMostResidentUnits<T>) return resident;
  if (backward) layer.tf32 = false;  // tensor cores take twice as long there for floats
  if (backward && !takes_tensor_cores(layer) && layer.shape.B >= kFewestRowsOfSteps) return {};
  const Choice persistent = choose_persistent(layer, backward, device, why);
  return why.empty() ? persistent : can_be_resident ? resident : Choice{};
}

template <class T>
Choice choose(const LayerForward<T>& layer, CellKind kind, Algorithm asked, bool backward, const Device& device) {
  if (asked == Algorithm::kStep) return {};
  if (asked == Algorithm::kAutomatic) return choose_automatically(layer, kind, backward, device);
  std::string why;
  const Choice choice = asked == Algorithm::kResident ? choose_resident(layer, kind, backward, device, why)
                                                      : choose_persistent(layer, backward, device, why);
  if (why.empty()) return choice;
  throw std::invalid_argument(std::string("algo is \"") + kAlgorithmNames[int(asked)] +
                              "\", which this layer cannot be: " + why);
}

// How many rows each thread of a step's kernel has, by how often a processor then has a tile, and how long one takes it. On paper: a
// wide one has 4 times the sums of a narrow one, and takes 8/3 of the time, since it reads less for each.
inline int rows_of_step(int64_t columns, int64_t rows, const Device& device) {
  const auto tiles_of_processor = [&](int64_t tile_columns) {
    return round_up_divide(round_up_divide(columns, tile_columns) * round_up_divide(rows, kTileRows),
                           device.processors);
  };
  return 8 * tiles_of_processor(kTileColumns<4>) <= 3 * tiles_of_processor(kTileColumns<1>) ? 4 : 1;
}

}  // namespace fastlstm::gpu
