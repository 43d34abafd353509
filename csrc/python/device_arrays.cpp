#include "device_arrays.h"

#include <pybind11/stl.h>

#include "../cuda/check.h"
#include "dlpack.h"

namespace fastlstm::gpu {
namespace {

constexpr const char* kNames[] = {"float16", "bfloat16", "float32", "float64", "uint8", "int32", "int64"};
constexpr int64_t kSizes[] = {2, 2, 4, 8, 1, 4, 8};
constexpr uintptr_t kAlignment = 256;  // of what cudaMalloc gives

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + (shape.size() == 1 ? ",)" : ")");
}

std::vector<int64_t> packed_strides(const std::vector<int64_t>& shape) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (std::size_t i = shape.size(); i-- > 0; stride *= shape[i]) strides[i] = stride;
  return strides;
}

DType dtype_of(const dlpack::DataType& type, const std::string& name) {
  const auto is = [&](uint8_t code, uint8_t bits) { return type.code == code && type.bits == bits && type.lanes == 1; };
  if (is(dlpack::kFloat, 16)) return DType::kFloat16;
  if (is(dlpack::kBfloat, 16)) return DType::kBfloat16;
  if (is(dlpack::kFloat, 32)) return DType::kFloat32;
  if (is(dlpack::kFloat, 64)) return DType::kFloat64;
  if (is(dlpack::kUInt, 8) || is(dlpack::kBool, 8)) return DType::kUint8;
  if (is(dlpack::kInt, 32)) return DType::kInt32;
  if (is(dlpack::kInt, 64)) return DType::kInt64;
  throw py::type_error(name + " has a dtype of DLPack code " + std::to_string(type.code) + " with " +
                       std::to_string(type.bits) +
                       " bits: expected float16, bfloat16, float32, float64, bool or int64");
}

DType dtype_of(const std::string& typestr, const std::string& name) {
  if (typestr == "<f2") return DType::kFloat16;
  if (typestr == "<f4") return DType::kFloat32;
  if (typestr == "<f8") return DType::kFloat64;
  if (typestr == "|b1" || typestr == "|u1") return DType::kUint8;
  if (typestr == "<i4") return DType::kInt32;
  if (typestr == "<i8") return DType::kInt64;
  throw py::type_error(name + " has dtype " + typestr + ": expected float16, float32, float64, bool or int64");
}

// The capsule stays the producer's: the caller's argument outlives the call, and its deleter runs with the capsule.
DeviceArray from_dlpack(py::handle object, const std::string& name, uint64_t stream) {
  py::object capsule;
  try {
    capsule = object.attr("__dlpack__")(py::arg("stream") = stream, py::arg("max_version") = py::make_tuple(1, 1));
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
    capsule = object.attr("__dlpack__")(py::arg("stream") = stream);  // from before version 1
  }
  const dlpack::Tensor* tensor = nullptr;
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned"))
    tensor = &static_cast<dlpack::Versioned*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"))->tensor;
  else if (PyCapsule_IsValid(capsule.ptr(), "dltensor"))
    tensor = &static_cast<dlpack::Managed*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"))->tensor;
  else
    throw py::type_error(name + ".__dlpack__() returned no DLPack capsule");
  DeviceArray array;
  array.data = static_cast<char*>(tensor->data) + tensor->byte_offset;
  array.dtype = dtype_of(tensor->dtype, name);
  array.device = tensor->device.id;
  array.shape.assign(tensor->shape, tensor->shape + tensor->ndim);
  array.strides = packed_strides(array.shape);
  if (tensor->strides) array.strides.assign(tensor->strides, tensor->strides + tensor->ndim);
  return array;
}

// Whatever is on `earlier` now comes before whatever is put on `stream` next. Waits for neither.
void wait_for(cudaStream_t earlier, cudaStream_t stream) {
  if (earlier == stream) return;
  cudaEvent_t event;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  const cudaError_t recorded = cudaEventRecord(event, earlier);
  const cudaError_t waits = recorded == cudaSuccess ? cudaStreamWaitEvent(stream, event, 0) : recorded;
  cudaEventDestroy(event);
  check(waits, "waiting for the stream of an argument");
}

DeviceArray from_interface(const py::dict& interface, const std::string& name, int device, cudaStream_t stream) {
  DeviceArray array;
  array.data = reinterpret_cast<void*>(interface["data"].cast<py::tuple>()[0].cast<uintptr_t>());
  array.dtype = dtype_of(interface["typestr"].cast<std::string>(), name);
  array.device = device;  // which the protocol does not tell
  array.shape = interface["shape"].cast<std::vector<int64_t>>();
  array.strides = packed_strides(array.shape);
  if (interface.contains("strides") && !interface["strides"].is_none()) {
    array.strides = interface["strides"].cast<std::vector<int64_t>>();
    for (int64_t& stride : array.strides) stride /= kSizes[int(array.dtype)];
  }
  if (interface.contains("stream") && !interface["stream"].is_none())
    wait_for(stream_argument(interface["stream"].cast<uint64_t>()), stream);
  return array;
}

bool on_gpu(py::handle object) {
  if (!py::hasattr(object, "__dlpack_device__")) return false;
  const int kind = object.attr("__dlpack_device__")().cast<py::tuple>()[0].cast<int>();
  return kind == dlpack::kCuda || kind == dlpack::kCudaManaged;
}

}  // namespace

const char* dtype_name(DType dtype) { return kNames[int(dtype)]; }

cudaStream_t stream_argument(uint64_t stream) {
  if (stream == 0 || stream == 1) return cudaStreamLegacy;
  if (stream == 2) return cudaStreamPerThread;
  return reinterpret_cast<cudaStream_t>(stream);
}

DeviceArray DeviceArguments::array(const char* name) const {
  const py::object object = arrays_[name];
  if (on_gpu(object)) {
    const auto number = reinterpret_cast<uintptr_t>(stream_);
    return from_dlpack(object, name, stream_ == cudaStreamLegacy ? 1 : stream_ == cudaStreamPerThread ? 2 : number);
  }
  if (py::hasattr(object, "__cuda_array_interface__"))
    return from_interface(object.attr("__cuda_array_interface__"), name, device_, stream_);
  throw py::type_error(std::string(name) + " is a " + py::type::of(object).attr("__qualname__").cast<std::string>() +
                       ": expected an array on a GPU, with __dlpack__ or __cuda_array_interface__");
}

DeviceArray DeviceArguments::checked(const char* name, DType dtype, const std::vector<int64_t>& shape,
                                     bool contiguous) const {
  if (!has(name)) return {};
  DeviceArray a = array(name);
  if (a.dtype != dtype)
    throw py::type_error(std::string(name) + " has dtype " + dtype_name(a.dtype) + ": expected " + dtype_name(dtype));
  if (a.shape != shape)
    throw py::value_error(std::string(name) + " has shape " + shape_text(a.shape) + ": expected " + shape_text(shape));
  if (a.device != device_)
    throw py::value_error(std::string(name) + " is on device " + std::to_string(a.device) + ": expected device " +
                          std::to_string(device_) + ", where x is");
  const std::vector<int64_t> packed = packed_strides(shape);
  int64_t elements = 1;
  for (const int64_t size : shape) elements *= size;
  for (std::size_t i = 0; i < shape.size() && elements > 0; ++i)
    if (shape[i] > 1 && a.strides[i] != packed[i] && (contiguous || i + 1 == shape.size()))
      throw py::value_error(std::string(name) + " has strides " + shape_text(a.strides) + ": expected " +
                            (contiguous ? shape_text(packed) : "contiguous rows"));
  // Allocators give null for no bytes, which would mean that no array was given. Nobody reads here.
  if (elements == 0) a.data = reinterpret_cast<void*>(kAlignment);
  return a;
}

}  // namespace fastlstm::gpu
