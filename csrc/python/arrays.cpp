#include "arrays.h"

#include <sstream>

namespace fastlstm {
namespace {

std::string type_text(py::handle object) {
  const py::handle type = py::type::handle_of(object);
  return py::str(type.attr("__module__")).cast<std::string>() + "." +
         py::str(type.attr("__qualname__")).cast<std::string>();
}

std::string dtype_text(const py::array& array) { return py::str(array.dtype()).cast<std::string>(); }

bool aligned(const py::array& array) { return array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_; }

// Strides in elements, if they are whole ones and the last axis is dense.
template <class T>
bool dense_rows(const py::array& array) {
  const auto rank = array.ndim();
  if (rank == 0 || !aligned(array)) return false;
  for (py::ssize_t axis = 0; axis < rank; ++axis)
    if (array.shape(axis) > 1 && array.strides(axis) % py::ssize_t(sizeof(T))) return false;
  return array.shape(rank - 1) <= 1 || array.strides(rank - 1) == py::ssize_t(sizeof(T));
}

// The first and the last byte of an array, whatever the signs of its strides.
std::pair<const char*, const char*> byte_range(const py::array& array) {
  const char *low = static_cast<const char*>(array.data()), *high = low + array.itemsize();
  for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) {
    const py::ssize_t reach = (array.shape(axis) - 1) * array.strides(axis);
    (reach < 0 ? low : high) += reach;
  }
  return {low, high};
}

bool overlap(const py::array& a, const py::array& b) {
  if (a.size() == 0 || b.size() == 0) return false;
  const auto [a_low, a_high] = byte_range(a);
  const auto [b_low, b_high] = byte_range(b);
  return a_low < b_high && b_low < a_high;
}

template <class T>
Sequence<T> strided(T* data, const py::array& array, const SequenceLayout& layout) {
  const int64_t size = int64_t(sizeof(T));
  if (!layout.batched) return {data, array.strides(0) / size, 0};
  const int64_t first = array.strides(0) / size, second = array.strides(1) / size;
  return layout.batch_first ? Sequence<T>{data, second, first} : Sequence<T>{data, first, second};
}

py::array as_array(py::handle object, const std::string& name) {
  auto array = py::array::ensure(object);
  if (!array) {
    PyErr_Clear();
    throw py::type_error(name + " must be an array, got " + type_text(object));
  }
  return array;
}

}  // namespace

std::string shape_text(const std::vector<int64_t>& shape) {
  std::ostringstream text;
  text << "(";
  for (std::size_t i = 0; i < shape.size(); ++i) text << (i ? ", " : "") << shape[i];
  text << (shape.size() == 1 ? ",)" : ")");
  return text.str();
}

std::string shape_text(const py::array& array) { return shape_text({array.shape(), array.shape() + array.ndim()}); }

bool is_contiguous(const py::array& array) { return (array.flags() & py::array::c_style) && aligned(array); }

py::array contiguous(const py::array& array) {
  auto copy = py::array::ensure(array, py::array::c_style);
  if (!copy || !aligned(copy)) copy = array.attr("copy")().cast<py::array>();
  return copy;
}

py::array numpy_array(py::handle object, const std::string& name) {
  if (py::isinstance<py::array>(object)) return py::reinterpret_borrow<py::array>(object);
  const std::string type = type_text(object);
  std::string cure = "expected numpy.ndarray";
  if (type.rfind("torch.", 0) == 0) cure += "; for torch tensors use fastlstm.torch.LSTM, or pass " + name + ".numpy()";
  if (type.rfind("cupy.", 0) == 0)
    cure += "; CuPy arrays need the CUDA module, which this build lacks: pass " + name + ".get()";
  if (type.rfind("jax", 0) == 0) cure += "; for JAX arrays use fastlstm.jax.lstm, or pass numpy.asarray(" + name + ")";
  throw py::type_error(name + " is a " + type + ": " + cure);
}

template <>
const char* dtype_name<float>() {
  return "float32";
}
template <>
const char* dtype_name<double>() {
  return "float64";
}

template <class T>
py::array typed_array(py::handle object, const std::string& name) {
  py::array array = numpy_array(object, name);
  if (!py::isinstance<py::array_t<T>>(array))
    throw py::type_error(name + " has dtype " + dtype_text(array) + ", but the weights are " + dtype_name<T>() +
                         ": expected " + name + ".astype(np." + dtype_name<T>() + ")");
  return array;
}

std::vector<int64_t> SequenceLayout::shape(int64_t n) const {
  std::vector<int64_t> shape = !batched      ? std::vector<int64_t>{T}
                               : batch_first ? std::vector<int64_t>{B, T}
                                             : std::vector<int64_t>{T, B};
  if (n >= 0) shape.push_back(n);
  return shape;
}

std::string SequenceLayout::axes() const { return !batched ? "(T" : batch_first ? "(B, T" : "(T, B"; }

SequenceLayout layout_of(const py::array& x, int64_t input_size, bool batch_first) {
  SequenceLayout layout;
  layout.batch_first = batch_first;
  layout.batched = x.ndim() != 2;
  const std::string expected = "expected " + layout.axes() + ", " + std::to_string(input_size) + ")" +
                               (layout.batched ? ", or (T, " + std::to_string(input_size) + ") without a batch" : "");
  if (x.ndim() != 2 && x.ndim() != 3)
    throw py::value_error("x has shape " + shape_text(x) + ", of " + std::to_string(x.ndim()) + " axes: " + expected);
  if (x.shape(x.ndim() - 1) != input_size)
    throw py::value_error("x has shape " + shape_text(x) + ", but the weights need input size " +
                          std::to_string(input_size) + ": " + expected);
  layout.T = x.shape(layout.batched && batch_first ? 1 : 0);
  if (layout.batched) layout.B = x.shape(batch_first ? 0 : 1);
  return layout;
}

void expect_shape(const py::array& array, const std::string& name, const std::vector<int64_t>& shape) {
  if (std::vector<int64_t>(array.shape(), array.shape() + array.ndim()) != shape)
    throw py::value_error(name + " has shape " + shape_text(array) + ": expected " + shape_text(shape));
}

template <class T>
SequenceInput<T> sequence_input(py::handle object, const std::string& name, const SequenceLayout& layout, int64_t n) {
  SequenceInput<T> input;
  if (object.is_none()) return input;
  input.owner = typed_array<T>(object, name);
  expect_shape(input.owner, name, layout.shape(n));
  if (!dense_rows<T>(input.owner)) input.owner = contiguous(input.owner);
  input.sequence = strided(static_cast<const T*>(input.owner.data()), input.owner, layout);
  return input;
}

template <class T>
Sequence<T> sequence_output(py::array& array, const SequenceLayout& layout, int64_t n) {
  T* data = static_cast<T*>(array.mutable_data());
  if (layout.batched && layout.batch_first) return {data, n, layout.T * n};
  return {data, layout.B * n, n};
}

// NumPy names the size that it cannot have, but not the one that overflows.
template <class T>
py::array new_array(const std::vector<int64_t>& shape) {
  int64_t bytes = sizeof(T);
  for (int64_t size : shape)
    if (size > 0 && __builtin_mul_overflow(bytes, size, &bytes))
      throw py::value_error("the arguments ask for an array of shape " + shape_text(shape) +
                            ": expected fewer than 2**63 bytes");
  return py::array_t<T>(shape);
}

template <class T>
py::array new_sequence(const SequenceLayout& layout, int64_t n) {
  return new_array<T>(layout.shape(n));
}

std::vector<int64_t> state_shape(int64_t layers, const SequenceLayout& layout, int64_t n) {
  return layout.batched ? std::vector<int64_t>{layers, layout.B, n} : std::vector<int64_t>{layers, n};
}

template <class T>
StateInput<T> state_input(py::handle object, const std::string& name, int64_t layers, const SequenceLayout& layout,
                          int64_t n) {
  StateInput<T> input;
  if (object.is_none()) return input;
  input.owner = typed_array<T>(object, name);
  expect_shape(input.owner, name, state_shape(layers, layout, n));
  input.owner = contiguous(input.owner);
  input.data = static_cast<const T*>(input.owner.data());
  return input;
}

template <class T>
py::array new_state(int64_t layers, const SequenceLayout& layout, int64_t n) {
  return new_array<T>(state_shape(layers, layout, n));
}

std::vector<py::object> state_parts(py::handle object, const std::string& name, std::size_t parts,
                                    const std::string& expected) {
  if (object.is_none()) return std::vector<py::object>(parts, py::none());
  if (!py::isinstance<py::tuple>(object) && !py::isinstance<py::list>(object))
    throw py::type_error(name + " is a " + type_text(object) + ": expected " + expected);
  const auto given = py::reinterpret_borrow<py::sequence>(object);
  if (given.size() != parts)
    throw py::value_error(name + " has " + std::to_string(given.size()) + " entries: expected " + expected);
  return {given.begin(), given.end()};
}

std::pair<py::object, py::object> state_pair(py::handle object, const std::string& name) {
  const auto parts = state_parts(object, name, 2, "a pair (h, c)");
  return {parts[0], parts[1]};
}

template <class T>
py::array output_argument(py::handle object, const SequenceLayout& layout, int64_t n,
                          const std::vector<std::pair<std::string, py::array>>& inputs) {
  if (object.is_none()) return new_sequence<T>(layout, n);
  py::array out = typed_array<T>(object, "out");
  expect_shape(out, "out", layout.shape(n));
  if (!out.writeable()) throw py::value_error("out is read-only: expected a writable array");
  if (!(out.flags() & py::array::c_style) || !aligned(out))
    throw py::value_error("out is not contiguous: expected an aligned array in C order");
  for (const auto& [name, input] : inputs)
    if (input && overlap(out, input)) throw py::value_error("out overlaps " + name + ": expected memory of its own");
  return out;
}

template <class T>
const T* plain_input(const py::array& input) {
  return dense_rows<T>(input) ? static_cast<const T*>(input.data()) : nullptr;
}

template <class T>
T* plain_output(py::handle object, const py::array& input, int64_t rows, int64_t n) {
  if (!py::isinstance<py::array_t<T>>(object)) return nullptr;
  auto output = py::reinterpret_borrow<py::array>(object);
  const auto axes = output.ndim();
  if (axes != input.ndim() || output.shape(axes - 1) != n || (axes == 2 && output.shape(0) != rows)) return nullptr;
  if (!output.writeable() || !(output.flags() & py::array::c_style) || !aligned(output)) return nullptr;
  return overlap(output, input) ? nullptr : static_cast<T*>(output.mutable_data());
}

Buffer<uint8_t> marks(py::handle object, const std::string& name, const SequenceLayout& layout) {
  if (object.is_none()) return {};
  const py::array array = as_array(object, name);
  const char kind = array.dtype().kind();
  if (kind != 'b' && kind != 'i' && kind != 'u' && kind != 'f')
    throw py::type_error(name + " has dtype " + dtype_text(array) + ": expected booleans, or numbers 0 and 1");
  expect_shape(array, name, layout.shape(-1));
  Buffer<uint8_t> result(size_product(layout.T, layout.B));
  const bool swapped = layout.batched && layout.batch_first;
  const auto fill = [&](const auto* at, auto refuse) {
    for (int64_t i = 0; i < (swapped ? layout.B : layout.T); ++i)
      for (int64_t j = 0; j < (swapped ? layout.T : layout.B); ++j, ++at) {
        if (*at != 0 && *at != 1) refuse(*at);
        result.data()[swapped ? j * layout.B + i : i * layout.B + j] = *at == 1;
      }
  };
  if (kind == 'b') {
    const py::array_t<bool, py::array::c_style> values(array);
    fill(reinterpret_cast<const uint8_t*>(values.data()), [](uint8_t) {});
  } else {
    const py::array_t<double, py::array::c_style | py::array::forcecast> values(array);
    fill(values.data(), [&](double value) {
      std::ostringstream text;
      text << name << " contains " << value << ": expected booleans, or numbers 0 and 1";
      throw py::value_error(text.str());
    });
  }
  return result;
}

Buffer<int64_t> lengths_argument(py::handle object, const SequenceLayout& layout) {
  if (object.is_none()) return {};
  const py::array array = as_array(object, "lengths");
  const char kind = array.dtype().kind();
  const bool empty_list = array.size() == 0 && kind == 'f';  // NumPy makes floats of []
  if (kind != 'i' && kind != 'u' && !empty_list)
    throw py::type_error("lengths has dtype " + dtype_text(array) + ": expected integers");
  expect_shape(array, "lengths", layout.batched ? std::vector<int64_t>{layout.B} : std::vector<int64_t>{});
  Buffer<int64_t> lengths(layout.B);
  const auto fill = [&](const auto* values) {
    for (int64_t b = 0; b < layout.B; ++b) {
      const auto length = values[b];
      if (length < 0 || (length > 0 && uint64_t(length) > uint64_t(layout.T)))
        throw py::value_error("lengths[" + std::to_string(b) + "] is " + std::to_string(length) +
                              ": expected 0 <= length <= T = " + std::to_string(layout.T));
      lengths.data()[b] = int64_t(length);
    }
  };
  constexpr int kContiguous = py::array::c_style | py::array::forcecast;
  if (kind == 'u')
    fill(py::array_t<uint64_t, kContiguous>(array).data());
  else
    fill(py::array_t<int64_t, kContiguous>(array).data());
  return lengths;
}

int threads_argument(py::handle object) {
  if (object.is_none()) return 0;
  if (py::isinstance<py::bool_>(object) || !PyIndex_Check(object.ptr()))
    throw py::type_error("threads is a " + type_text(object) + ": expected a positive integer");
  const py::int_ number(py::reinterpret_borrow<py::object>(object));
  int overflow = 0;
  const long long threads = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
  if (overflow || threads < 1 || threads > 4096)
    throw py::value_error("threads is " + py::str(number).cast<std::string>() + ": expected 1 <= threads <= 4096");
  return int(threads);
}

#define INSTANTIATE(T)                                                                                            \
  template py::array typed_array<T>(py::handle, const std::string&);                                              \
  template SequenceInput<T> sequence_input<T>(py::handle, const std::string&, const SequenceLayout&, int64_t);    \
  template Sequence<T> sequence_output<T>(py::array&, const SequenceLayout&, int64_t);                            \
  template py::array new_sequence<T>(const SequenceLayout&, int64_t);                                             \
  template StateInput<T> state_input<T>(py::handle, const std::string&, int64_t, const SequenceLayout&, int64_t); \
  template py::array new_state<T>(int64_t, const SequenceLayout&, int64_t);                                       \
  template const T* plain_input<T>(const py::array&);                                                             \
  template T* plain_output<T>(py::handle, const py::array&, int64_t, int64_t);                                    \
  template py::array output_argument<T>(py::handle, const SequenceLayout&, int64_t,                               \
                                        const std::vector<std::pair<std::string, py::array>>&);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace fastlstm
