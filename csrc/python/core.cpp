// The module _core: forward and backward on NumPy arrays, threads and instruction sets. Arguments are checked in arrays.h; the
// interpreter's lock is released while the kernels run.
#include <pybind11/stl.h>

#include "../cpu/plan.h"
#include "../version.h"
#include "tape.h"

namespace fastlstm {
namespace {

struct ForwardOptions {
  py::object lengths, mask, reset;
  bool batch_first, repeat, return_sequence, return_cells, return_gates, training;
  int64_t checkpoint_every;
  double dropout;
  uint64_t dropout_seed, dropout_call, dropout_step;
  py::object threads, out, memory;
};

// What forward keeps, before it runs or after it has: then all is in `lent` that cannot be made anew.
template <class T>
Tape::Of<T> kept_of(const std::shared_ptr<const Network<T>>& network, const SequenceLayout& layout,
                    const StepMarks& marks, const ForwardOptions& options, bool with_h0, bool with_c0, Lent* lent) {
  Tape::Of<T> kept{network, {}};
  NetworkTape<T>& tape = kept.tape;
  tape.timelines = std::make_unique<Timelines>(layout.T, layout.B, marks, network->directions());
  if (!options.training) return kept;
  if (network->panels(0, 0).cell.weight_drop > 0)
    kept.network = network->dropped(options.dropout_seed, uint32_t(options.dropout_call));
  tape.T_ = layout.T, tape.B = layout.B;
  tape.dropout = {options.dropout, options.dropout_seed, uint32_t(options.dropout_call),
                  uint32_t(options.dropout_step)};
  if (lent)
    tape.place(*network, *lent);
  else
    tape.allocate(*network, options.checkpoint_every, with_h0, with_c0);
  return kept;
}

// The tape that a forward with `memory` left there.
template <class T>
std::unique_ptr<Tape> resumed(const std::shared_ptr<const Network<T>>& network, const Weights::Parts& parts,
                              const SequenceLayout& layout, const ForwardOptions& options) {
  const auto lengths = lengths_argument(options.lengths, layout);
  const auto mask = marks(options.mask, "mask", layout), reset = marks(options.reset, "reset", layout);
  Lent lent = lent_memory(options.memory, *network, layout);
  const StepMarks marked = step_marks(lengths, mask, reset, options.repeat);
  auto kept = kept_of(network, layout, marked, options, false, false, &lent);
  return std::make_unique<Tape>(std::move(kept), layout, parts, options.return_sequence);
}

template <class T>
py::tuple forward_of(const std::shared_ptr<const Network<T>>& network, const Weights::Parts& parts, py::handle x_object,
                     py::handle state, const ForwardOptions& options) {
  const Shape& shape = network->shape(0);
  const int64_t L = network->layers() * network->directions(), n = network->output(), H = shape.H;
  const py::array x_array = typed_array<T>(x_object, "x");
  const SequenceLayout layout = layout_of(x_array, network->input(0), options.batch_first);
  const auto x = sequence_input<T>(x_array, "x", layout, network->input(0));
  const auto [h0_object, c0_object] = state_pair(state, "state");
  const auto h0 = state_input<T>(h0_object, "state[0] (h0)", L, layout, shape.output());
  const auto c0 = state_input<T>(c0_object, "state[1] (c0)", L, layout, H);
  const auto lengths = lengths_argument(options.lengths, layout);
  const auto mask = marks(options.mask, "mask", layout), reset = marks(options.reset, "reset", layout);
  if (!(options.dropout >= 0 && options.dropout <= 1))
    throw py::value_error("dropout is " + std::to_string(options.dropout) + ": expected 0 <= dropout <= 1");
  const int threads = threads_or_default(options.threads);
  if (options.training && network->panels(0, 0).storage != Storage::kWhole)
    throw py::value_error("training is True: expected False, since compressed weights have no backward");

  py::object y = py::none();
  Sequence<T> y_sequence;
  if (options.return_sequence) {
    py::array array = output_argument<T>(options.out, layout, n,
                                         {{"x", x_array}, {"state[0] (h0)", h0.owner}, {"state[1] (c0)", c0.owner}});
    y_sequence = sequence_output<T>(array, layout, n);
    y = array;
  }
  py::array h_n = new_state<T>(L, layout, shape.output()), c_n = new_state<T>(L, layout, H);
  NetworkForward<T> args{layout.T,
                         layout.B,
                         x.sequence,
                         h0.data,
                         c0.data,
                         y_sequence,
                         static_cast<T*>(h_n.mutable_data()),
                         static_cast<T*>(c_n.mutable_data()),
                         {},
                         {},
                         options.out.is_none()};
  const auto wanted = [&](bool asked, Sequence<T>& sequence, int64_t n) -> py::object {
    if (!asked) return py::none();
    py::array array = new_sequence<T>(layout, network->directions() * n);
    sequence = sequence_output<T>(array, layout, network->directions() * n);
    return array;
  };
  const py::object cells = wanted(options.return_cells, args.cells, H);
  const py::object gates = wanted(options.return_gates, args.gates, 4 * H);

  const bool lends = options.training && !options.memory.is_none();
  Lent lent = lends ? lent_memory(options.memory, *network, layout) : Lent();
  const StepMarks marked = step_marks(lengths, mask, reset, options.repeat);
  Tape::Of<T> kept;
  run_interruptible([&](Interrupt& interrupt) {
    kept = kept_of(network, layout, marked, options, h0.data, c0.data, lends ? &lent : nullptr);
    NetworkTape<T>* tape = options.training ? &kept.tape : nullptr;
    network_forward(*kept.network, args, *kept.tape.timelines, tape, threads, interrupt);
  });
  py::object tape_object = py::none();
  if (options.training && !lends)
    tape_object = py::cast(std::make_unique<Tape>(std::move(kept), layout, parts, options.return_sequence));
  return py::make_tuple(y, py::make_tuple(h_n, c_n), cells, gates, tape_object);
}

template <class T>
py::tuple backward_of(const Tape::Of<T>& kept, const Tape& tape, py::handle dy_object, py::handle dstate,
                      py::handle dcells_object, py::handle dgates_object, int64_t truncate, py::handle threads_object,
                      bool want_x, bool want_weights) {
  const Network<T>& network = *kept.network;
  const SequenceLayout& layout = tape.layout();
  const Shape& shape = network.shape(0);
  const int64_t D = network.directions(), L = network.layers() * D;
  if (!tape.has_y() && !dy_object.is_none())
    throw py::value_error("dy is given: expected None, since forward ran with return_sequence=False");
  const auto dy = sequence_input<T>(dy_object, "dy", layout, network.output());
  const auto dcells = sequence_input<T>(dcells_object, "dcells", layout, D * shape.H);
  const auto dgates = sequence_input<T>(dgates_object, "dgates", layout, D * 4 * shape.H);
  const auto [dh_object, dc_object] = state_pair(dstate, "dstate");
  const auto dh_n = state_input<T>(dh_object, "dstate[0] (dh_n)", L, layout, shape.output());
  const auto dc_n = state_input<T>(dc_object, "dstate[1] (dc_n)", L, layout, shape.H);
  const int threads = threads_or_default(threads_object);

  py::object dx = py::none();
  Sequence<T> dx_sequence;
  if (want_x) {
    py::array array = new_sequence<T>(layout, network.input(0));
    dx_sequence = sequence_output<T>(array, layout, network.input(0));
    dx = array;
  }
  py::array dh0 = new_state<T>(L, layout, shape.output()), dc0 = new_state<T>(L, layout, shape.H);
  NetworkBackward<T> args{dy.sequence,
                          dcells.sequence,
                          dgates.sequence,
                          dh_n.data,
                          dc_n.data,
                          dx_sequence,
                          static_cast<T*>(dh0.mutable_data()),
                          static_cast<T*>(dc0.mutable_data()),
                          truncate,
                          {}};
  std::vector<py::array> weights;
  const auto add = [&](std::vector<int64_t> size) {
    weights.push_back(py::array_t<T>(std::move(size)));
    return static_cast<T*>(weights.back().mutable_data());
  };
  std::vector<T*> db_hh;  // both biases have the whole gradient, as in torch
  // Peepholes and layer normalisation have terms of their own, which are summed in any case.
  const bool sums_weights = want_weights || tape.parts().peepholes || tape.parts().layer_norm;
  if (!sums_weights) args.weights.resize(std::size_t(L));
  for (int64_t i = 0; sums_weights && i < L; ++i) {
    typename NetworkBackward<T>::Weights one{};
    if (!network.shape(i / D).given) one.w_x = add({4 * shape.H, network.shape(i / D).I});
    one.w_h = add({4 * shape.H, shape.output()});
    if (tape.parts().bias) one.b = add({4 * shape.H}), db_hh.push_back(add({4 * shape.H}));
    if (shape.P > 0) one.w_p = add({shape.P, shape.H});
    if (tape.parts().peepholes) one.peephole = add({3 * shape.H});
    if (tape.parts().layer_norm) {
      one.gamma_x = add({4 * shape.H}), one.gamma_h = add({4 * shape.H});
      one.gamma_c = add({shape.H}), one.beta_c = add({shape.H});
    }
    args.weights.push_back(one);
  }
  run_interruptible([&](Interrupt& interrupt) { network_backward(network, kept.tape, args, threads, interrupt); });
  for (std::size_t i = 0; i < db_hh.size(); ++i) std::copy_n(args.weights[i].b, 4 * shape.H, db_hh[i]);
  if (!want_weights) weights.clear();
  return py::make_tuple(dx, py::make_tuple(dh0, dc0), py::cast(weights));
}

// The plan of each layer, as text, for sequences of T_ steps and B rows.
py::list paths(const Weights& weights, int64_t T_, int64_t B, bool training, py::handle threads_object) {
  const int threads = threads_or_default(threads_object);
  py::list lines;
  weights.visit([&](const auto& network) {
    using T = typename std::decay_t<decltype(*network)>::Element;
    for (int64_t layer = 0; layer < network->layers(); ++layer) {
      Shape shape = network->shape(layer);
      shape.T = T_, shape.B = B;
      const Layout& layout = network->panels(layer, 0).layout;
      const std::string name = "layer " + std::to_string(layer) + " ";
      const Needs needs = needs_of(network->panels(layer, 0), training);
      lines.append(name + "forward: " + plan_forward(shape, layout, sizeof(T), needs, threads).text());
      if (training) lines.append(name + "backward: " + plan_backward(shape, layout, sizeof(T), needs, threads).text());
    }
  });
  return lines;
}

int64_t tape_bytes(const Weights& weights, int64_t T_, int64_t B) {
  return weights.visit([&](const auto& network) { return tape_bytes_of(*network, T_, B); });
}

py::dict profile(bool on) {
  static const char* const kNames[kPhases] = {"pack", "load", "project", "recur", "cell", "weight gradients"};
  const Profile before = set_profiling(on);
  py::dict seconds;
  for (int phase = 0; phase < kPhases; ++phase) seconds[kNames[phase]] = double(before.nanoseconds[phase]) * 1e-9;
  return seconds;
}

py::array sweep(const std::string& name, py::handle object, double alpha, double beta, bool slope) {
  const ActivationOptions options{activation_argument(name), alpha, beta};
  const char* argument = slope ? "y" : "x";
  const py::array x = numpy_array(object, argument);
  return with_element(x, argument, [&](auto element) -> py::array {
    using T = typename decltype(element)::type;
    const py::array_t<T, py::array::c_style> flat(x);
    py::array_t<T> y(std::vector<py::ssize_t>(flat.shape(), flat.shape() + flat.ndim()));
    const Kernels<T>& kernels = active_kernels<T>();
    run_team(1, [&](int) { kernels.sweep(options, slope, flat.data(), y.mutable_data(), flat.size()); });
    return y;
  });
}

py::array transposed(py::handle object) {
  const py::array array = contiguous(numpy_array(object, "array"));
  if (array.ndim() != 2) throw py::value_error("array has shape " + shape_text(array) + ": expected two axes");
  return with_element(array, "array", [&](auto element) -> py::array {
    return transposed_copy<typename decltype(element)::type>(array);
  });
}

py::array activation(const std::string& name, py::handle x, double alpha, double beta) {
  return sweep(name, x, alpha, beta, false);
}

py::array activation_slope(const std::string& name, py::handle y, double alpha, double beta) {
  return sweep(name, y, alpha, beta, true);
}

py::dict build_config() {
  py::dict config;
  config["version"] = FASTLSTM_VERSION;
  config["compiler"] = FASTLSTM_COMPILER;
  config["isa_compiled"] = py::cast(compiled_isas());
  config["isa_runnable"] = py::cast(runnable_isas());
  config["isa_active"] = active_isa();
  config["openmp"] = openmp_version();
  config["num_threads"] = get_num_threads();
  return config;
}

void set_num_threads_checked(py::handle n) {
  const int threads = threads_argument(n);
  if (threads == 0) throw py::type_error("n is None: expected a positive integer");
  set_num_threads(threads);
}

}  // namespace
}  // namespace fastlstm

PYBIND11_MODULE(_core, m) {
  namespace py = pybind11;
  using namespace fastlstm;
  m.attr("__version__") = FASTLSTM_VERSION;
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const OutOfMemory& e) {
      PyErr_SetString(PyExc_MemoryError, e.what());
    }
  });

  py::class_<Weights>(m, "Weights")
      .def(py::init<py::list, int64_t, int64_t, int64_t, int64_t, int64_t, bool, bool, bool, py::object, std::string,
                    py::object>(),
           py::arg("arrays"), py::arg("input_size"), py::arg("hidden_size"), py::arg("num_layers"),
           py::arg("num_directions"), py::arg("proj_size"), py::arg("bias"), py::arg("peepholes"),
           py::arg("layer_norm"), py::arg("cell"), py::arg("storage"), py::arg("threads"))
      .def_property_readonly("dtype", &Weights::dtype)
      .def_property_readonly("isa", &Weights::isa)
      .def_property_readonly("nbytes", &Weights::nbytes);
  py::class_<Tape>(m, "Tape")
      .def_property_readonly("nbytes", &Tape::nbytes)
      .def_property_readonly("dropout_seed", [](const Tape& t) { return t.dropout().seed; })
      .def_property_readonly("dropout_call", [](const Tape& t) { return t.dropout().call; });

  m.def(
      "forward",
      [](const Weights& weights, py::object x, py::object state, py::object lengths, py::object mask, py::object reset,
         bool batch_first, bool repeat, bool return_sequence, bool return_cells, bool return_gates, bool training,
         int64_t checkpoint_every, double dropout, uint64_t dropout_seed, uint64_t dropout_call, uint64_t dropout_step,
         py::object threads, py::object out, py::object memory) {
        const ForwardOptions options{lengths,      mask,
                                     reset,        batch_first,
                                     repeat,       return_sequence,
                                     return_cells, return_gates,
                                     training,     checkpoint_every,
                                     dropout,      dropout_seed,
                                     dropout_call, dropout_step,
                                     threads,      out,
                                     memory};
        return weights.visit(
            [&](const auto& network) { return forward_of(network, weights.parts(), x, state, options); });
      },
      py::arg("weights"), py::arg("x"), py::arg("state"), py::arg("lengths"), py::arg("mask"), py::arg("reset"),
      py::arg("batch_first"), py::arg("repeat"), py::arg("return_sequence"), py::arg("return_cells"),
      py::arg("return_gates"), py::arg("training"), py::arg("checkpoint_every"), py::arg("dropout"),
      py::arg("dropout_seed"), py::arg("dropout_call"), py::arg("dropout_step"), py::arg("threads"), py::arg("out"),
      py::arg("memory") = py::none());
  m.def("tape_bytes", &tape_bytes, py::arg("weights"), py::arg("T"), py::arg("B"));
  m.def(
      "resume",
      [](const Weights& weights, py::object memory, int64_t T_, int64_t B, bool batched, bool batch_first,
         py::object lengths, py::object mask, py::object reset, bool repeat, bool return_sequence, double dropout,
         uint64_t dropout_seed, uint64_t dropout_call) {
        ForwardOptions options{};
        options.lengths = lengths, options.mask = mask, options.reset = reset, options.memory = memory;
        options.repeat = repeat, options.return_sequence = return_sequence, options.training = true;
        options.dropout = dropout, options.dropout_seed = dropout_seed, options.dropout_call = dropout_call;
        const SequenceLayout layout{T_, B, batch_first, batched};
        return weights.visit([&](const auto& network) { return resumed(network, weights.parts(), layout, options); });
      },
      py::keep_alive<0, 2>(), py::arg("weights"), py::arg("memory"), py::arg("T"), py::arg("B"), py::arg("batched"),
      py::arg("batch_first"), py::arg("lengths"), py::arg("mask"), py::arg("reset"), py::arg("repeat"),
      py::arg("return_sequence"), py::arg("dropout"), py::arg("dropout_seed"), py::arg("dropout_call"));
  m.def(
      "backward",
      [](const Tape& tape, py::object dy, py::object dstate, py::object dcells, py::object dgates, int64_t truncate,
         py::object threads, bool want_x, bool want_weights) {
        return tape.visit([&](const auto& kept) {
          return backward_of(kept, tape, dy, dstate, dcells, dgates, truncate, threads, want_x, want_weights);
        });
      },
      py::arg("tape"), py::arg("dy"), py::arg("dstate"), py::arg("dcells"), py::arg("dgates"), py::arg("truncate"),
      py::arg("threads"), py::arg("want_x") = true, py::arg("want_weights") = true);

  bind_stream(m);
  bind_slstm(m);
  m.def("set_num_threads", &set_num_threads_checked, py::arg("n"));
  m.def("get_num_threads", &get_num_threads);
  m.def("set_isa", &set_isa, py::arg("name"));
  m.def("active_isa", &active_isa);
  m.def("release_memory", &release_pages);
  m.def("build_config", &build_config);
  m.def("paths", &paths, py::arg("weights"), py::arg("T"), py::arg("B"), py::arg("training"), py::arg("threads"));
  m.def("profile", &profile, py::arg("on"));
  m.def("transposed", &transposed, py::arg("array"));
  m.def("activation", &activation, py::arg("name"), py::arg("x"), py::arg("alpha") = 0.0, py::arg("beta") = 0.0);
  m.def("activation_slope", &activation_slope, py::arg("name"), py::arg("y"), py::arg("alpha") = 0.0,
        py::arg("beta") = 0.0);
}
