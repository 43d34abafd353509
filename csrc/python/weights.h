// What the parts of the module _core share: the switch from a dtype to a template, long calls without the interpreter's lock, and
// packed weights.
#pragma once
#include <chrono>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "../cpu/dispatch.h"
#include "../cpu/network.h"
#include "arrays.h"
#include "cell_options.h"

namespace fastlstm {

template <class T>
struct Element {
  using type = T;
};

// The one switch from a dtype to a template.
template <class Function>
auto with_element(const py::array& array, const std::string& name, Function function) {
  if (py::isinstance<py::array_t<float>>(array)) return function(Element<float>{});
  if (py::isinstance<py::array_t<double>>(array)) return function(Element<double>{});
  throw py::type_error(name + " has dtype " + py::str(array.dtype()).cast<std::string>() +
                       ": expected float32 or float64");
}

// Runs `work` without the lock. Ctrl-C and other signals are looked at ten times a second.
template <class Work>
void run_interruptible(Work work) {
  using Clock = std::chrono::steady_clock;
  auto last = Clock::now();
  Interrupt interrupt([&last] {
    const auto now = Clock::now();
    if (now - last < std::chrono::milliseconds(100)) return false;
    last = now;
    py::gil_scoped_acquire lock;
    return PyErr_CheckSignals() != 0;
  });
  {
    py::gil_scoped_release unlock;
    work(interrupt);
  }
  if (interrupt.stopped()) throw py::error_already_set();
}

inline int threads_or_default(py::handle threads) {
  const int asked = threads_argument(threads);
  return asked > 0 ? asked : get_num_threads();
}

// A contiguous array of T [n,m] from one [m,n].
template <class T>
py::array transposed_copy(const py::array& array) {
  const auto rows = array.shape(0), columns = array.shape(1);
  py::array_t<T> to({columns, rows});
  active_kernels<T>().transpose(static_cast<const T*>(array.data()), columns, rows, columns, to.mutable_data(), rows);
  return to;
}

// What the buffers of arguments say, which must outlive it.
inline StepMarks step_marks(const Buffer<int64_t>& lengths, const Buffer<uint8_t>& mask, const Buffer<uint8_t>& reset,
                            bool repeat) {
  StepMarks marks;
  marks.lengths = lengths.data();
  marks.mask = mask.data();
  marks.reset = reset.data();
  marks.repeat = repeat;
  return marks;
}

// Packed weights of a whole LSTM. Immutable: a tape keeps the ones that its forward call used.
class Weights {
 public:
  template <class T>
  using Pointer = std::shared_ptr<const Network<T>>;

  Weights(const py::list& arrays, int64_t input_size, int64_t hidden_size, int64_t num_layers, int64_t num_directions,
          int64_t proj_size, bool bias, bool peepholes, bool layer_norm, const py::object& cell,
          const std::string& storage, py::object threads_object)
      : isa_(active_isa()), parts_{input_size > 0, bias, peepholes, layer_norm} {
    const int threads = threads_or_default(threads_object);
    const std::size_t each = 2 + (bias ? 2 : 0) + (proj_size > 0) + peepholes + (layer_norm ? 4 : 0);
    const std::size_t absent = input_size > 0 ? 0 : std::size_t(num_directions);
    const auto sane = [](int64_t size) { return size > 0 && size < (int64_t(1) << 31); };
    const bool sizes = (input_size == 0 || sane(input_size)) && sane(hidden_size) && sane(num_layers) &&
                       proj_size >= 0 && proj_size < hidden_size;
    if (!sizes || (num_directions != 1 && num_directions != 2) ||
        arrays.size() != each * std::size_t(num_layers * num_directions) - absent)
      throw py::value_error("weights: expected positive sizes, 1 or 2 directions and " + std::to_string(each) +
                            " arrays per layer and direction");
    Shape shape;
    shape.I = input_size, shape.H = hidden_size, shape.P = proj_size, shape.given = input_size == 0;
    with_element(numpy_array(arrays[0], "weights[0]"), "weights[0]", [&](auto element) {
      using T = typename decltype(element)::type;
      const Storage kind = storage_argument(storage);
      if (kind != Storage::kWhole && sizeof(T) != 4)
        throw py::type_error("weights[0] has dtype float64: expected float32");
      pack<T>(arrays, shape, num_layers, num_directions, cell_options(cell), kind, threads);
    });
  }

  const std::string& isa() const { return isa_; }
  bool compressed() const {
    return std::visit([](const auto& network) { return network->panels(0, 0).storage != Storage::kWhole; }, network_);
  }
  // Which weights there are beside U and the W of later layers.
  struct Parts {
    bool first_w, bias, peepholes, layer_norm;
  };
  const Parts& parts() const { return parts_; }
  std::string dtype() const { return network_.index() == 0 ? "float32" : "float64"; }
  int64_t nbytes() const {
    return std::visit([](const auto& network) { return network->bytes(); }, network_);
  }
  // Calls function(shared_ptr<const Network<T>>).
  template <class Function>
  auto visit(Function function) const {
    return std::visit(function, network_);
  }

 private:
  static Storage storage_argument(const std::string& name) {
    if (name == "whole") return Storage::kWhole;
    if (name == "bf16") return Storage::kBfloat16;
    if (name == "int8") return Storage::kInt8;
    throw py::value_error("storage is '" + name + "': expected 'whole', 'bf16' or 'int8'");
  }

  template <class T>
  void pack(const py::list& arrays, const Shape& shape, int64_t layers, int64_t directions, const CellOptions& cell,
            Storage storage, int threads) {
    std::vector<RawWeights<T>> raw;
    std::vector<py::array> keep;
    std::size_t next = 0;
    const auto take = [&](std::vector<int64_t> expected) {
      const std::string name = "weights[" + std::to_string(next) + "]";
      py::array array = typed_array<T>(arrays[next++], name);
      expect_shape(array, name, expected);
      const bool turned = array.ndim() == 2 && is_contiguous(array.attr("T"));  // NumPy copies such a one slowly
      keep.push_back(turned ? transposed_copy<T>(array.attr("T")) : contiguous(array));
      return static_cast<const T*>(keep.back().data());
    };
    for (int64_t i = 0; i < layers * directions; ++i) {
      RawWeights<T> one{};
      if (parts_.first_w || i >= directions)
        one.w_x = take({4 * shape.H, i < directions ? shape.I : directions * shape.output()});
      one.w_h = take({4 * shape.H, shape.output()});
      if (parts_.bias) one.b_ih = take({4 * shape.H}), one.b_hh = take({4 * shape.H});
      if (shape.P > 0) one.w_p = take({shape.P, shape.H});
      if (parts_.peepholes) one.peephole = take({3 * shape.H});
      if (parts_.layer_norm) {
        one.gamma_x = take({4 * shape.H}), one.gamma_h = take({4 * shape.H});
        one.gamma_c = take({shape.H}), one.beta_c = take({shape.H});
      }
      raw.push_back(one);
    }
    py::gil_scoped_release unlock;
    network_ =
        std::make_shared<const Network<T>>(active_kernels<T>(), shape, layers, directions, cell, raw, storage, threads);
  }

  std::string isa_;
  Parts parts_;
  std::variant<Pointer<float>, Pointer<double>> network_;
};

// Each adds its classes and functions to the module: Stream; those of the sLSTM.
void bind_stream(py::module_& m);
void bind_slstm(py::module_& m);

}  // namespace fastlstm
