#include "cell_options.h"

namespace fastlstm {

namespace py = pybind11;

Activation activation_argument(const std::string& name) {
  std::string names;
  int kind = 0;
  for (const char* known : kActivationNames) {
    if (name == known) return Activation(kind);
    names += (kind++ ? ", " : "") + std::string(known);
  }
  throw py::value_error("activation is '" + name + "': expected one of " + names);
}

namespace {

ActivationOptions activation_options(const py::handle& function) {
  const auto parts = py::reinterpret_borrow<py::sequence>(function);  // name, alpha, beta
  return {activation_argument(parts[0].cast<std::string>()), parts[1].cast<double>(), parts[2].cast<double>()};
}

}  // namespace

CellOptions cell_options(py::handle object) {
  const auto number = [&](const char* name) { return object.attr(name).cast<double>(); };
  const auto flag = [&](const char* name) { return object.attr(name).cast<bool>(); };
  const auto limit = [&](const char* name) {
    const py::object value = object.attr(name);
    return value.is_none() ? kNoLimit : value.cast<double>();
  };
  const auto functions = object.attr("activations").cast<py::sequence>();
  CellOptions cell;
  cell.gate = activation_options(functions[0]);
  cell.squash = activation_options(functions[1]);
  cell.output = activation_options(functions[2]);
  cell.coupled_input_forget = flag("coupled_input_forget");
  cell.gate_clip = limit("gate_clip");
  cell.cell_clip = limit("cell_clip");
  cell.zoneout_h = number("zoneout_h");
  cell.zoneout_c = number("zoneout_c");
  cell.input_dropout = number("input_dropout");
  cell.recurrent_dropout = number("recurrent_dropout");
  // The weights are packed for masks by gate, which need some.
  cell.dropout_per_gate = flag("dropout_per_gate") && (cell.input_dropout > 0 || cell.recurrent_dropout > 0);
  cell.weight_drop = number("weight_drop");
  return cell;
}

}  // namespace fastlstm
