// What a training forward of the module _core leaves for backward, and the memory of the caller's where it may lie.
#pragma once
#include <memory>
#include <string>
#include <utility>
#include <variant>

#include "weights.h"

namespace fastlstm {

// What forward saved for backward, with the weights that it used.
class Tape {
 public:
  template <class T>
  struct Of {
    std::shared_ptr<const Network<T>> network;
    NetworkTape<T> tape;
  };

  Tape(std::variant<Of<float>, Of<double>> content, SequenceLayout layout, Weights::Parts parts, bool has_y)
      : content_(std::move(content)), layout_(layout), parts_(parts), has_y_(has_y) {}

  const SequenceLayout& layout() const { return layout_; }
  const Weights::Parts& parts() const { return parts_; }
  bool has_y() const { return has_y_; }
  const Dropout& dropout() const {
    return std::visit([](const auto& of) -> const Dropout& { return of.tape.dropout; }, content_);
  }
  int64_t nbytes() const {
    return std::visit([](const auto& of) { return of.tape.bytes(); }, content_);
  }
  template <class Function>
  auto visit(Function function) const {
    return std::visit(function, content_);
  }

 private:
  std::variant<Of<float>, Of<double>> content_;
  SequenceLayout layout_;
  Weights::Parts parts_;
  bool has_y_;
};

// What the tape of one segment takes of the caller's memory.
template <class T>
int64_t tape_bytes_of(const Network<T>& network, int64_t T_, int64_t B) {
  NetworkTape<T> tape;
  tape.T_ = T_, tape.B = B;
  tape.timelines = std::make_unique<Timelines>(T_, B, StepMarks{}, network.directions());
  Lent counted;
  tape.place(network, counted);
  return counted.used();
}

// The caller's memory, if a tape of these sizes has its place there.
template <class T>
Lent lent_memory(py::handle object, const Network<T>& network, const SequenceLayout& layout) {
  const py::array memory = numpy_array(object, "memory");
  if (!py::isinstance<py::array_t<uint8_t, py::array::c_style>>(memory))
    throw py::type_error("memory is no C-contiguous array of uint8: expected one");
  expect_shape(memory, "memory", {tape_bytes_of(network, layout.T, layout.B)});
  if (reinterpret_cast<uintptr_t>(memory.data()) % Lent::kAlignment)
    throw py::value_error("memory begins between two lines: expected a multiple of " +
                          std::to_string(Lent::kAlignment) + " bytes");
  return Lent(const_cast<void*>(memory.data()));
}

}  // namespace fastlstm
