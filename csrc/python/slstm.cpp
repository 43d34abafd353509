// The sLSTM of the module _core: packed weights, a tape, forward and backward. Arguments are checked in arrays.h.
#include "../cpu/slstm.h"

#include "weights.h"

namespace fastlstm {
namespace {

constexpr const char* kStates[] = {"h", "c", "n", "m"};

// Packed weights. Immutable: a tape keeps the ones that its forward call used.
class SlstmWeights {
 public:
  template <class T>
  using Pointer = std::shared_ptr<const SlstmPanels<T>>;

  SlstmWeights(py::object w_x, py::object w_h, py::object bias, int64_t input_size, int64_t hidden_size, int64_t heads)
      : isa_(active_isa()), has_bias_(!bias.is_none()) {
    const auto sane = [](int64_t size) { return size > 0 && size < (int64_t(1) << 31); };
    if (input_size < 0 || (input_size > 0 && !sane(input_size)) || !sane(hidden_size) || !sane(heads) ||
        hidden_size % heads != 0)
      throw py::value_error("weights: expected positive sizes, and heads that divide the hidden size");
    const SlstmShape shape{input_size, hidden_size, heads};
    with_element(numpy_array(w_h, "weight_hh"), "weight_hh", [&](auto element) {
      using T = typename decltype(element)::type;
      std::vector<py::array> keep;
      const auto take = [&](py::handle object, const std::string& name, std::vector<int64_t> expected) {
        keep.push_back(typed_array<T>(object, name));
        expect_shape(keep.back(), name, expected);
        keep.back() = contiguous(keep.back());
        return static_cast<const T*>(keep.back().data());
      };
      SlstmRawWeights<T> raw{};
      if (input_size > 0) raw.w_x = take(w_x, "weight_ih", {4 * hidden_size, input_size});
      raw.w_h = take(w_h, "weight_hh", {4 * hidden_size, shape.head()});
      if (has_bias_) raw.bias = take(bias, "bias", {4 * hidden_size});
      py::gil_scoped_release unlock;
      panels_ = std::make_shared<const SlstmPanels<T>>(active_kernels<T>(), shape, raw);
    });
  }

  const std::string& isa() const { return isa_; }
  bool has_bias() const { return has_bias_; }
  std::string dtype() const { return panels_.index() == 0 ? "float32" : "float64"; }
  int64_t nbytes() const {
    return std::visit([](const auto& panels) { return panels->bytes(); }, panels_);
  }
  // Calls function(shared_ptr<const SlstmPanels<T>>).
  template <class Function>
  auto visit(Function function) const {
    return std::visit(function, panels_);
  }

 private:
  std::string isa_;
  bool has_bias_;
  std::variant<Pointer<float>, Pointer<double>> panels_;
};

// What forward saved for backward, with the weights that it used.
class SlstmTapeObject {
 public:
  template <class T>
  struct Of {
    std::shared_ptr<const SlstmPanels<T>> panels;
    std::unique_ptr<SlstmTape<T>> tape;
  };

  SlstmTapeObject(std::variant<Of<float>, Of<double>> content, SequenceLayout layout, SlstmMarks marks, bool has_bias)
      : content_(std::move(content)), layout_(layout), marks_(std::move(marks)), has_bias_(has_bias) {}

  const SequenceLayout& layout() const { return layout_; }
  const SlstmMarks& marks() const { return marks_; }
  bool has_bias() const { return has_bias_; }
  int64_t nbytes() const {
    return marks_.flags.bytes() + std::visit([](const auto& of) { return of.tape->bytes(); }, content_);
  }
  template <class Function>
  auto visit(Function function) const {
    return std::visit(function, content_);
  }

 private:
  std::variant<Of<float>, Of<double>> content_;
  SequenceLayout layout_;
  SlstmMarks marks_;
  bool has_bias_;
};

// The four parts of a state or of its gradient that came in, null where there is none, and their names.
template <class T>
struct States {
  StateInput<T> parts[4];
  std::string names[4];

  States(py::handle object, const std::string& name, const std::string& suffix, const SequenceLayout& layout,
         int64_t H) {
    const auto given = state_parts(object, name, 4, "four (h, c, n, m)");
    for (int i = 0; i < 4; ++i) {
      names[i] = name + "[" + std::to_string(i) + "] (" + kStates[i] + suffix + ")";
      parts[i] = state_input<T>(given[i], names[i], 1, layout, H);
    }
  }
};

template <class T>
py::tuple new_states(const SequenceLayout& layout, int64_t H, T* (&to)[4]) {
  py::tuple states(4);
  for (int i = 0; i < 4; ++i) {
    py::array state = new_state<T>(1, layout, H);
    to[i] = static_cast<T*>(state.mutable_data());
    states[i] = state;
  }
  return states;
}

struct SlstmOptions {
  py::object lengths, mask, reset;
  bool batch_first, repeat, training;
  py::object threads, out;
};

template <class T>
py::tuple forward_of(const std::shared_ptr<const SlstmPanels<T>>& panels, bool has_bias, py::handle x_object,
                     py::handle state, const SlstmOptions& options) {
  const SlstmShape& shape = panels->shape;
  const py::array x_array = typed_array<T>(x_object, "x");
  const SequenceLayout layout = layout_of(x_array, shape.x_size(), options.batch_first);
  const auto x = sequence_input<T>(x_array, "x", layout, shape.x_size());
  const States<T> first(state, "state", "0", layout, shape.H);
  const auto lengths = lengths_argument(options.lengths, layout);
  const auto mask = marks(options.mask, "mask", layout), reset = marks(options.reset, "reset", layout);
  const int threads = threads_or_default(options.threads);

  std::vector<std::pair<std::string, py::array>> inputs{{"x", x_array}};
  for (int i = 0; i < 4; ++i)
    if (first.parts[i].data) inputs.emplace_back(first.names[i], first.parts[i].owner);
  py::array y = output_argument<T>(options.out, layout, shape.H, inputs);
  SlstmMarks flags;
  SlstmForwardArgs<T> args{layout.T, layout.B, flags, x.sequence, {}, sequence_output<T>(y, layout, shape.H), {}};
  for (int i = 0; i < 4; ++i) args.first[i] = first.parts[i].data;
  const py::tuple last = new_states<T>(layout, shape.H, args.last);

  SlstmTapeObject::Of<T> kept{panels, nullptr};
  run_interruptible([&](Interrupt& interrupt) {
    flags.flags = step_flags(layout.T, layout.B, step_marks(lengths, mask, reset, options.repeat));
    flags.repeat = options.repeat;
    if (options.training) kept.tape = std::make_unique<SlstmTape<T>>(panels->layout, layout.T, layout.B);
    slstm_forward(*panels, args, kept.tape.get(), threads, interrupt);
  });
  py::object tape = py::none();
  if (options.training)
    tape = py::cast(std::make_unique<SlstmTapeObject>(std::move(kept), layout, std::move(flags), has_bias));
  return py::make_tuple(y, last, tape);
}

template <class T>
py::tuple backward_of(const SlstmTapeObject::Of<T>& kept, const SlstmTapeObject& tape, py::handle dy_object,
                      py::handle dstate, py::handle threads_object) {
  const SlstmShape& shape = kept.panels->shape;
  const SequenceLayout& layout = tape.layout();
  const auto dy = sequence_input<T>(dy_object, "dy", layout, shape.H);
  const States<T> d_last(dstate, "dstate", "_n", layout, shape.H);
  const int threads = threads_or_default(threads_object);

  py::array dx = new_sequence<T>(layout, shape.x_size());
  SlstmBackwardArgs<T> args{
      layout.T, layout.B, tape.marks(), dy.sequence, {}, sequence_output<T>(dx, layout, shape.x_size()),
      {},       nullptr,  nullptr,      nullptr};
  for (int i = 0; i < 4; ++i) args.d_last[i] = d_last.parts[i].data;
  const py::tuple d_first = new_states<T>(layout, shape.H, args.d_first);
  py::list weights;
  const auto add = [&](std::vector<int64_t> size) {
    py::array_t<T> array(size);
    weights.append(array);
    return array.mutable_data();
  };
  if (shape.I > 0) args.dw_x = add({4 * shape.H, shape.I});
  args.dw_h = add({4 * shape.H, shape.head()});
  if (tape.has_bias()) args.db = add({4 * shape.H});
  run_interruptible([&](Interrupt& interrupt) { slstm_backward(*kept.panels, *kept.tape, args, threads, interrupt); });
  return py::make_tuple(dx, d_first, weights);
}

}  // namespace

void bind_slstm(py::module_& m) {
  py::class_<SlstmWeights>(m, "SlstmWeights")
      .def(py::init<py::object, py::object, py::object, int64_t, int64_t, int64_t>(), py::arg("weight_ih"),
           py::arg("weight_hh"), py::arg("bias"), py::arg("input_size"), py::arg("hidden_size"), py::arg("num_heads"))
      .def_property_readonly("dtype", &SlstmWeights::dtype)
      .def_property_readonly("isa", &SlstmWeights::isa)
      .def_property_readonly("nbytes", &SlstmWeights::nbytes);
  py::class_<SlstmTapeObject>(m, "SlstmTape").def_property_readonly("nbytes", &SlstmTapeObject::nbytes);
  m.def(
      "slstm_forward",
      [](const SlstmWeights& weights, py::object x, py::object state, py::object lengths, py::object mask,
         py::object reset, bool batch_first, bool repeat, bool training, py::object threads, py::object out) {
        const SlstmOptions options{lengths, mask, reset, batch_first, repeat, training, threads, out};
        return weights.visit(
            [&](const auto& panels) { return forward_of(panels, weights.has_bias(), x, state, options); });
      },
      py::arg("weights"), py::arg("x"), py::arg("state"), py::arg("lengths"), py::arg("mask"), py::arg("reset"),
      py::arg("batch_first"), py::arg("repeat"), py::arg("training"), py::arg("threads"), py::arg("out"));
  m.def(
      "slstm_backward",
      [](const SlstmTapeObject& tape, py::object dy, py::object dstate, py::object threads) {
        return tape.visit([&](const auto& kept) { return backward_of(kept, tape, dy, dstate, threads); });
      },
      py::arg("tape"), py::arg("dy"), py::arg("dstate"), py::arg("threads"));
}

}  // namespace fastlstm
