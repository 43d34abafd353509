// The instruction sets in order of preference: which were compiled, which can run here, which one is active.
#pragma once
#include <string>
#include <vector>

#include "kernels.h"

namespace fastlstm {

std::vector<std::string> compiled_isas();
std::vector<std::string> runnable_isas();
std::string active_isa();

// Throws std::invalid_argument, naming what can run, for a name that is unknown or cannot run.
void set_isa(const std::string& name);

template <class T>
const Kernels<T>& active_kernels();

}  // namespace fastlstm
