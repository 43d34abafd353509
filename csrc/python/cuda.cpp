// The module _cuda: one layer in one direction on a GPU. What a layer is made of, and in which order, is said in
// python/fastlstm/device_forward.py, which owns all memory; here arguments are checked and kernels launched.
#include <pybind11/stl.h>

#include <optional>
#include <variant>

#include "../cuda/check.h"
#include "../cuda/layer.h"
#include "../version.h"
#include "cell_options.h"
#include "device_arrays.h"

namespace fastlstm::gpu {
namespace {

// Makes a device the current one, for the launches of one call.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (device != before_) check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~OnDevice() { cudaSetDevice(before_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
};

template <class Function>
auto with_dtype(DType dtype, Function function) {
  switch (dtype) {
    case DType::kFloat16:
      return function(__half{});
    case DType::kBfloat16:
      return function(__nv_bfloat16{});
    case DType::kFloat32:
      return function(float{});
    case DType::kFloat64:
      return function(double{});
    default:
      throw py::type_error(std::string("x has dtype ") + dtype_name(dtype) +
                           ": expected float16, bfloat16, float32 or float64");
  }
}

Algorithm algorithm_argument(const std::string& name) {
  std::string names;
  int algorithm = 0;
  for (const char* known : kAlgorithmNames) {
    if (name == known) return Algorithm(algorithm);
    names += (algorithm++ ? ", " : "") + std::string(known);
  }
  throw py::value_error("algo is '" + name + "': expected one of " + names);
}

int64_t panels_of(int64_t columns) { return (columns + kPanel - 1) / kPanel; }

Draws draws_of(const py::dict& options) {
  Draws draws;
  draws.training = options["training"].cast<bool>();
  draws.seed = options["seed"].cast<uint64_t>();
  draws.call = options["call"].cast<uint32_t>();
  draws.first_step = options["first_step"].cast<uint32_t>();
  draws.layer = options["layer"].cast<int64_t>();
  draws.direction = options["direction"].cast<int64_t>();
  return draws;
}

template <class T>
CellVariant<T> variant_of(const DeviceArguments& of, const py::dict& options, int64_t B, int64_t H, int64_t n) {
  CellVariant<T> variant{};
  variant.options = cell_options(options["cell"]);
  variant.peepholes = of.contiguous<T>("peepholes", {3 * H});
  variant.draws = draws_of(options);
  variant.scale_gates = variant.options.dropout_per_gate ? 4 : 1;
  variant.h_scales = of.contiguous<T>("h_scales", {variant.scale_gates, B, n});
  return variant;
}

// A layer that ran forward, with all that its arrays need to stay alive.
class Layer {
 public:
  Layer(py::dict arrays, py::dict options) : arrays_(std::move(arrays)), options_(std::move(options)) {
    device_ = options_["device"].cast<int>();
    const cudaStream_t stream = stream_argument(options_["stream"].cast<uint64_t>());
    const OnDevice on(device_);
    check_for_failures();
    const DeviceArguments of(arrays_, device_, stream);
    const DeviceArray pre = of.array("pre");
    if (pre.shape.size() != 4 || pre.shape[3] != 4) throw py::value_error("pre has no shape (T, B, H, 4)");
    with_dtype(pre.dtype, [&](auto zero) {
      using T = decltype(zero);
      const LayerForward<T> layer = forward_of<T>(of, pre.shape[0], pre.shape[1], pre.shape[2]);
      algorithm_ = layer_forward(layer, algorithm_argument(options_["algo"].cast<std::string>()),
                                 of.contiguous<uint32_t>("failed", {1}), stream);
      layer_ = layer;
    });
  }

  std::string algorithm() const { return kAlgorithmNames[int(algorithm_)]; }

  void backward(const py::dict& arrays, int64_t truncate, uint64_t stream_number) const {
    const cudaStream_t stream = stream_argument(stream_number);
    const OnDevice on(device_);
    check_for_failures();
    const DeviceArguments of(arrays, device_, stream);
    std::visit(
        [&](const auto& layer) {
          if (!layer.saved && layer.shape.T > 0)
            throw py::value_error("the layer ran without a tape: it has no backward");
          layer_backward(backward_of(layer, of, truncate), algorithm_argument(options_["algo"].cast<std::string>()),
                         of.contiguous<uint32_t>("failed", {1}), stream);
        },
        layer_);
  }

 private:
  template <class T>
  LayerForward<T> forward_of(const DeviceArguments& of, int64_t steps, int64_t B, int64_t H) const {
    LayerForward<T> layer{};
    Shape& shape = layer.shape;
    shape.T = steps, shape.B = B, shape.H = H;
    shape.P = options_["proj_size"].cast<int64_t>();
    const int64_t n = shape.output();
    layer.reverse = options_["reverse"].cast<bool>();
    layer.repeat = options_["repeat"].cast<bool>();
    layer.tf32 = options_["tf32"].cast<bool>();
    layer.flags = of.contiguous<uint8_t>("flags", {steps, B});
    layer.recurrent = of.contiguous<T>("recurrent", {panels_of(4 * H), n, kPanel});
    if (shape.P > 0) {
      layer.projection = of.contiguous<T>("projection", {panels_of(n), H, kPanel});
      layer.m = of.contiguous<T>("m", {B, H});
    }
    layer.pre = of.contiguous<T>("pre", {steps, B, H, 4});
    layer.h0 = of.contiguous<T>("h0", {B, n});
    layer.c0 = of.contiguous<T>("c0", {B, H});
    layer.saved = of.contiguous<T>("saved", {steps, B, H, 4});
    layer.slots = of.has("saved") ? steps + 1 : 2;
    layer.h = of.contiguous<T>("h", {steps + 1, B, n});
    layer.c = of.contiguous<Wide<T>>("c", {layer.slots, B, H});
    layer.h_n = of.contiguous<T>("h_n", {B, n});
    layer.c_n = of.contiguous<T>("c_n", {B, H});
    layer.y = of.sequence<T>("y", steps, B, n);
    layer.cells = of.sequence<T>("cells", steps, B, H);
    layer.gates = of.sequence<T>("gates", steps, B, 4 * H);
    layer.variant = variant_of<T>(of, options_, B, H, n);
    layer.norm.gains = of.contiguous<T>("norm_gains", {4 * H});
    layer.norm.output = of.contiguous<T>("norm_output", {2, H});
    layer.norm.sums = of.contiguous<Wide<T>>("norm_sums", {B, 4 * H});
    layer.norm.c = of.contiguous<Wide<T>>("norm_c", {B, H});
    layer.norm.normalised = of.contiguous<T>("normalised", {steps, B, 4 * H});
    layer.norm.inverses = of.contiguous<Wide<T>>("inverses", {steps, B});
    return layer;
  }

  template <class T>
  static LayerBackward<T> backward_of(const LayerForward<T>& forward, const DeviceArguments& of, int64_t truncate) {
    const Shape& shape = forward.shape;
    const int64_t steps = shape.T, B = shape.B, H = shape.H, n = shape.output();
    LayerBackward<T> layer{};
    layer.forward = forward;
    layer.recurrent = of.contiguous<T>("recurrent", {panels_of(n), 4 * H, kPanel});
    if (shape.P > 0) {
      layer.projection = of.contiguous<T>("projection", {panels_of(H), n, kPanel});
      layer.dh_out = of.contiguous<T>("dh_out", {steps, B, n});
      layer.m = of.contiguous<T>("m", {steps, B, H});
    }
    layer.dh_n = of.contiguous<T>("dh_n", {B, n});
    layer.dc_n = of.contiguous<T>("dc_n", {B, H});
    layer.dy = of.sequence<const T>("dy", steps, B, n);
    layer.dcells = of.sequence<const T>("dcells", steps, B, H);
    layer.dgates = of.sequence<const T>("dgates", steps, B, 4 * H);
    layer.truncate = truncate;
    layer.dh = of.contiguous<Wide<T>>("dh", {B, n});
    layer.dc = of.contiguous<Wide<T>>("dc", {B, H});
    layer.d_pre = of.contiguous<T>("d_pre", {steps, B, H, 4});
    layer.dh0 = of.contiguous<T>("dh0", {B, n});
    layer.dc0 = of.contiguous<T>("dc0", {B, H});
    layer.d_peepholes = of.contiguous<Wide<T>>("d_peepholes", {B, H, 3});
    if (forward.norm.gains) {
      layer.norm.dh = of.contiguous<Wide<T>>("norm_dh", {B, H});
      layer.norm.c = of.contiguous<Wide<T>>("norm_c", {B, H});
      layer.norm.d = of.contiguous<Wide<T>>("norm_d", {B, H});
      layer.norm.d_output = of.contiguous<Wide<T>>("d_output", {B, 2 * H});
      layer.norm.d_sums = of.contiguous<T>("d_sums", {steps * B, 4 * H});
    }
    return layer;
  }

  py::dict arrays_, options_;
  int device_ = 0;
  Algorithm algorithm_ = Algorithm::kAutomatic;
  std::variant<LayerForward<float>, LayerForward<double>, LayerForward<__half>, LayerForward<__nv_bfloat16>> layer_;
};

// flags [T,B] from lengths [B], mask and reset [T,B], each of which may be missing.
void mark(const py::dict& arrays, bool reverse, int device, uint64_t stream_number) {
  const cudaStream_t stream = stream_argument(stream_number);
  const OnDevice on(device);
  const DeviceArguments of(arrays, device, stream);
  const DeviceArray flags = of.array("flags");
  if (flags.shape.size() != 2) throw py::value_error("flags has no shape (T, B)");
  StepMarks marks{};
  marks.T = flags.shape[0], marks.B = flags.shape[1], marks.reverse = reverse;
  marks.lengths = of.contiguous<int64_t>("lengths", {marks.B});
  marks.mask = of.sequence<const uint8_t>("mask", marks.T, marks.B, 1);
  marks.reset = of.sequence<const uint8_t>("reset", marks.T, marks.B, 1);
  mark_steps(marks, of.contiguous<uint8_t>("flags", flags.shape), stream);
}

// sums [rows,columns] of x . W become normalised; inverses [rows] and pre [rows,columns] are written.
void normalise_sums(const py::dict& arrays, int device, uint64_t stream_number) {
  const cudaStream_t stream = stream_argument(stream_number);
  const OnDevice on(device);
  const DeviceArguments of(arrays, device, stream);
  const DeviceArray sums = of.array("sums");
  const int64_t rows = sums.shape.at(0), columns = sums.shape.at(1);
  with_dtype(sums.dtype, [&](auto zero) {
    using T = decltype(zero);
    normalise(of.contiguous<T>("sums", sums.shape), of.contiguous<Wide<T>>("inverses", {rows}),
              of.contiguous<T>("pre", sums.shape), of.contiguous<T>("gains", {columns}),
              of.contiguous<T>("bias", {columns}), rows, columns, stream);
  });
}

// d_sums [rows,columns] from d_pre, and from what normalise_sums was given and left.
void normalise_sums_backward(const py::dict& arrays, int device, uint64_t stream_number) {
  const cudaStream_t stream = stream_argument(stream_number);
  const OnDevice on(device);
  const DeviceArguments of(arrays, device, stream);
  const DeviceArray d_pre = of.array("d_pre");
  const int64_t rows = d_pre.shape.at(0), columns = d_pre.shape.at(1);
  with_dtype(d_pre.dtype, [&](auto zero) {
    using T = decltype(zero);
    normalise_backward(of.contiguous<T>("d_pre", d_pre.shape), of.contiguous<T>("gains", {columns}),
                       of.contiguous<T>("normalised", d_pre.shape), of.contiguous<Wide<T>>("inverses", {rows}),
                       of.contiguous<T>("d_sums", d_pre.shape), rows, columns, stream);
  });
}

// y [T,B,n] in place, of the layer and direction of the options.
void drop_between(const py::dict& arrays, const py::dict& options, double p) {
  const cudaStream_t stream = stream_argument(options["stream"].cast<uint64_t>());
  const int device = options["device"].cast<int>();
  const OnDevice on(device);
  const DeviceArguments of(arrays, device, stream);
  const DeviceArray y = of.array("y");
  const Draws draws = draws_of(options);
  with_dtype(y.dtype, [&](auto zero) {
    using T = decltype(zero);
    drop(of.sequence<T>("y", y.shape[0], y.shape[1], y.shape[2]), y.shape[0], y.shape[1], y.shape[2],
         Dropout{p, draws.seed, draws.call, draws.first_step}, draws.layer, draws.direction, stream);
  });
}

// to [places,rows,n]: scales of the kind of dropout with this number in Drawn.
void draw_kind(const py::dict& arrays, const py::dict& options, int kind, double p) {
  const cudaStream_t stream = stream_argument(options["stream"].cast<uint64_t>());
  const int device = options["device"].cast<int>();
  const OnDevice on(device);
  const DeviceArguments of(arrays, device, stream);
  const DeviceArray to = of.array("to");
  with_dtype(to.dtype, [&](auto zero) {
    using T = decltype(zero);
    draw(of.contiguous<T>("to", to.shape), to.shape[0], to.shape[1], to.shape[2], Drawn(kind), p, draws_of(options),
         stream);
  });
}

// Why no GPU can be used; "" if one can.
std::string reason() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return "";
  if (error == cudaErrorInsufficientDriver)
    return "there is no NVIDIA driver for CUDA " + std::to_string(CUDART_VERSION / 1000) +
           ": install or update it (nvidia-smi shows what is there)";
  if (error == cudaSuccess || error == cudaErrorNoDevice)
    return "there is a driver, but no GPU is visible: look at nvidia-smi and at CUDA_VISIBLE_DEVICES";
  return std::string("the driver says ") + cudaGetErrorName(error) + ", " + cudaGetErrorString(error);
}

}  // namespace
}  // namespace fastlstm::gpu

PYBIND11_MODULE(_cuda, m) {
  using namespace fastlstm::gpu;
  m.attr("__version__") = FASTLSTM_VERSION;
  m.attr("runtime_version") = CUDART_VERSION;
  m.attr("architectures") = FASTLSTM_CUDA_ARCHITECTURES;
  m.attr("panel") = kPanel;
  m.def("reason", &reason);
  py::class_<Layer>(m, "Layer")
      .def(py::init<py::dict, py::dict>(), py::arg("arrays"), py::arg("options"))
      .def_property_readonly("algorithm", &Layer::algorithm)
      .def("backward", &Layer::backward, py::arg("arrays"), py::arg("truncate"), py::arg("stream"));
  m.def("drop", &drop_between, py::arg("arrays"), py::arg("options"), py::arg("p"));
  m.def("draw", &draw_kind, py::arg("arrays"), py::arg("options"), py::arg("kind"), py::arg("p"));
  m.def("normalise", &normalise_sums, py::arg("arrays"), py::arg("device"), py::arg("stream"));
  m.def("normalise_backward", &normalise_sums_backward, py::arg("arrays"), py::arg("device"), py::arg("stream"));
  m.def("mark", &mark, py::arg("arrays"), py::arg("reverse"), py::arg("device"), py::arg("stream"));
}
