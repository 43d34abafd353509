// The class Stream of _core. A call that is short keeps the interpreter's lock: to release it costs 0.3 us, and a busy thread
// that takes it meanwhile gives it back after 5 ms only.
#include <algorithm>
#include <atomic>

#include "../cpu/stream.h"
#include "weights.h"

namespace fastlstm {
namespace {

constexpr int64_t kWorthReleasing = 4'000'000;  // multiply-adds of a call: some 0.1 to 0.2 ms

class StreamObject {
 public:
  StreamObject(const Weights& weights, py::object batch_size, bool batch_first, py::object threads)
      : batched_(!batch_size.is_none()), batch_first_(batch_first) {
    const int64_t B = batched_ ? batch_size.cast<int64_t>() : 1;
    const int team = threads_or_default(threads);
    stream_ = weights.visit([&](const auto& network) -> Content {
      using T = typename std::decay_t<decltype(*network)>::Element;
      return std::make_unique<Stream<T>>(network, B, team);
    });
  }

  py::array call(py::handle x, py::handle out) {
    return std::visit([&](const auto& stream) { return call_of(*stream, x, out); }, stream_);
  }

  py::tuple state() {
    const Busy busy(busy_);
    return std::visit([&](const auto& stream) { return state_of(*stream); }, stream_);
  }

  void set_state(py::handle state) {
    const Busy busy(busy_);
    std::visit([&](const auto& stream) { set_state_of(*stream, state); }, stream_);
  }

 private:
  using Content = std::variant<std::unique_ptr<Stream<float>>, std::unique_ptr<Stream<double>>>;

  // Two calls at once would mix their states.
  struct Busy {
    explicit Busy(std::atomic<bool>& flag_) : flag(flag_) {
      if (flag.exchange(true, std::memory_order_acquire))
        throw std::runtime_error("this stream is in a call on another thread: expected one stream for each thread");
    }
    ~Busy() { flag.store(false, std::memory_order_release); }
    std::atomic<bool>& flag;
  };

  template <class T>
  py::array call_of(Stream<T>& stream, py::handle x_object, py::handle out) {
    const py::array x = typed_array<T>(x_object, "x");
    const int axes = batched_ ? 2 : 1;
    if (x.ndim() == axes) return step_of(stream, x, out);
    if (x.ndim() == axes + 1) return block_of(stream, x, out);
    const std::string I = std::to_string(stream.network().input(0)), B = std::to_string(stream.B());
    const std::string step = batched_ ? "(" + B + ", " + I + ")" : "(" + I + ",)";
    const std::string block =
        batched_ ? (batch_first_ ? "(" + B + ", T, " + I + ")" : "(T, " + B + ", " + I + ")") : "(T, " + I + ")";
    throw py::value_error("x has shape " + shape_text(x) + ": expected " + step + " for a step or " + block +
                          " for a block");
  }

  template <class T>
  py::array step_of(Stream<T>& stream, const py::array& x, py::handle out) {
    const int64_t B = stream.B(), I = stream.network().input(0), n = stream.network().output();
    if ((batched_ && x.shape(0) != B) || x.shape(x.ndim() - 1) != I)
      throw py::value_error("x has shape " + shape_text(x) + ": expected " +
                            shape_text(batched_ ? std::vector<int64_t>{B, I} : std::vector<int64_t>{I}));
    T* to = out.is_none() ? nullptr : plain_output<T>(out, x, B, n);
    const py::array y = to ? py::reinterpret_borrow<py::array>(out) : step_output<T>(out, B, n, x);  // or out's error
    if (!to) to = static_cast<T*>(const_cast<void*>(y.data()));
    const T* from = plain_input<T>(x);
    const py::array copy = from ? x : py::array(py::array_t<T, py::array::c_style>(x.attr("copy")()));
    if (!from) from = static_cast<const T*>(copy.data());
    const Sequence<const T> rows{from, 0, batched_ ? copy.strides(0) / int64_t(sizeof(T)) : I};
    const Busy busy(busy_);
    if (stream.work() >= kWorthReleasing) {
      py::gil_scoped_release unlock;
      stream.step(rows, {to, 0, n});
    } else {
      stream.step(rows, {to, 0, n});
    }
    return y;
  }

  // [B,n], or [n] without a batch axis: the shapes of a sequence without a batch, and of its mask.
  template <class T>
  py::array step_output(py::handle out, int64_t B, int64_t n, const py::array& x) const {
    SequenceLayout rows;
    rows.T = batched_ ? B : n;
    rows.batched = false;
    return output_argument<T>(out, rows, batched_ ? n : -1, {{"x", x}});
  }

  template <class T>
  py::array block_of(Stream<T>& stream, const py::array& x, py::handle out) {
    const int64_t I = stream.network().input(0), n = stream.network().output();
    const SequenceLayout layout = layout_of(x, I, batch_first_);
    if (layout.B != stream.B())
      throw py::value_error("x has shape " + shape_text(x) + ", of " + std::to_string(layout.B) +
                            " rows: expected the stream's batch_size, " + std::to_string(stream.B()));
    const auto input = sequence_input<T>(x, "x", layout, I);
    py::array y = output_argument<T>(out, layout, n, {{"x", x}});
    const Sequence<T> to = sequence_output<T>(y, layout, n);
    const Busy busy(busy_);
    if (stream.work() * layout.T < kWorthReleasing) {
      Interrupt never(nullptr);
      stream.block(layout.T, input.sequence, to, never);
    } else {
      run_interruptible([&](Interrupt& interrupt) { stream.block(layout.T, input.sequence, to, interrupt); });
    }
    return y;
  }

  SequenceLayout state_layout(int64_t B) const {
    SequenceLayout layout;
    layout.B = B;
    layout.batched = batched_;
    return layout;
  }

  template <class T>
  py::tuple state_of(const Stream<T>& stream) const {
    const auto copy = [&](const T* from, int64_t n) {
      py::array array = new_state<T>(stream.network().layers(), state_layout(stream.B()), n);
      std::copy_n(from, array.size(), static_cast<T*>(array.mutable_data()));
      return array;
    };
    return py::make_tuple(copy(stream.h(), stream.network().output()), copy(stream.c(), stream.network().shape(0).H));
  }

  template <class T>
  void set_state_of(Stream<T>& stream, py::handle state) {
    const auto [h_object, c_object] = state_pair(state, "state");
    const int64_t L = stream.network().layers(), B = stream.B(), n = stream.network().output(),
                  H = stream.network().shape(0).H;
    const auto h = state_input<T>(h_object, "state[0] (h)", L, state_layout(B), n);
    const auto c = state_input<T>(c_object, "state[1] (c)", L, state_layout(B), H);
    const auto take = [](T* to, const T* from, int64_t size) {
      from ? void(std::copy_n(from, size, to)) : void(std::fill_n(to, size, T(0)));
    };
    take(stream.h(), h.data, L * B * n);
    take(stream.c(), c.data, L * B * H);
  }

  bool batched_, batch_first_;
  Content stream_;
  std::atomic<bool> busy_{false};
};

}  // namespace

void bind_stream(py::module_& m) {
  py::class_<StreamObject>(m, "Stream")
      .def(py::init<const Weights&, py::object, bool, py::object>(), py::arg("weights"), py::arg("batch_size"),
           py::arg("batch_first"), py::arg("threads"))
      .def("__call__", &StreamObject::call, py::arg("x"), py::arg("out") = py::none())
      .def_property("state", &StreamObject::state, &StreamObject::set_state);
}

}  // namespace fastlstm
