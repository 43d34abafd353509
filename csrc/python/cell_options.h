// CellOptions from their Python twin.
#pragma once
#include <pybind11/pybind11.h>

#include <string>

#include "../cell_options.h"

namespace fastlstm {

// The activation of that name; ValueError listing the names otherwise.
Activation activation_argument(const std::string& name);

// object: a fastlstm.LSTMCellOptions, checked by Python.
CellOptions cell_options(pybind11::handle object);

}  // namespace fastlstm
