// Every check of an argument, and every message about one. Turns NumPy arrays into the pointers and strides of layer.h; a copy
// is made only where the rows of an array are not contiguous.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>
#include <utility>
#include <vector>

#include "../cpu/workspace.h"
#include "../layer.h"

namespace fastlstm {

namespace py = pybind11;

std::string shape_text(const py::array& array);
std::string shape_text(const std::vector<int64_t>& shape);

// The NumPy array behind `object`; TypeError for anything else, naming the face to use where there is one.
py::array numpy_array(py::handle object, const std::string& name);

// The array itself, or an aligned copy in C order.
py::array contiguous(const py::array& array);
bool is_contiguous(const py::array& array);

template <class T>
const char* dtype_name();

// Of element type T, native byte order; TypeError naming the cast otherwise.
template <class T>
py::array typed_array(py::handle object, const std::string& name);

// What a [T,B,n] argument looks like to the caller.
struct SequenceLayout {
  int64_t T = 0, B = 1;
  bool batch_first = false, batched = true;

  std::vector<int64_t> shape(int64_t n) const;  // n < 0: of a mask, without the last axis
  std::string axes() const;                     // "(T, B, ", to be completed
};

// The layout of x [T,B,input_size]; ValueError otherwise.
SequenceLayout layout_of(const py::array& x, int64_t input_size, bool batch_first);

void expect_shape(const py::array& array, const std::string& name, const std::vector<int64_t>& shape);

// A read-only argument, kept alive (as itself or as a contiguous copy) as long as this lives.
template <class T>
struct SequenceInput {
  py::array owner;
  Sequence<const T> sequence;  // null where the argument was None
};

template <class T>
SequenceInput<T> sequence_input(py::handle object, const std::string& name, const SequenceLayout& layout, int64_t n);

template <class T>
Sequence<T> sequence_output(py::array& array, const SequenceLayout& layout, int64_t n);

template <class T>
py::array new_sequence(const SequenceLayout& layout, int64_t n);

// A state [L*D,B,n], contiguous; null where None was given.
template <class T>
struct StateInput {
  py::array owner;
  const T* data = nullptr;
};

template <class T>
StateInput<T> state_input(py::handle object, const std::string& name, int64_t layers, const SequenceLayout& layout,
                          int64_t n);

template <class T>
py::array new_state(int64_t layers, const SequenceLayout& layout, int64_t n);

// As many parts of a state as are expected, in words too; all of them None where the state is.
std::vector<py::object> state_parts(py::handle object, const std::string& name, std::size_t parts,
                                    const std::string& expected);

// The pair (h, c), either of which may be None.
std::pair<py::object, py::object> state_pair(py::handle object, const std::string& name);

// `out`: C-contiguous, writable, of the shape of y and apart from every array in `inputs`.
template <class T>
py::array output_argument(py::handle object, const SequenceLayout& layout, int64_t n,
                          const std::vector<std::pair<std::string, py::array>>& inputs);

// For calls that may allocate nothing: the array's memory where it can be used as it is, else null. Rows of `input` are
// contiguous; `output` is C-contiguous, writable and apart from the input. Both have element type T and shape [rows,] n.
template <class T>
const T* plain_input(const py::array& input);
template <class T>
T* plain_output(py::handle output, const py::array& input, int64_t rows, int64_t n);

// [T,B] time-major 0/1 of a mask or reset; no buffer where None was given.
Buffer<uint8_t> marks(py::handle object, const std::string& name, const SequenceLayout& layout);

// [B]; no buffer where None was given.
Buffer<int64_t> lengths_argument(py::handle object, const SequenceLayout& layout);

// 0 (use the default) for None.
int threads_argument(py::handle object);

}  // namespace fastlstm
