// Chooses the kernels at run time: the first row that this processor and its operating system support, or the one named by
// FASTLSTM_ISA or set_isa. FASTLSTM_ISA_ROWS comes from CMakeLists.txt: X(name) per compiled row, in order of preference.
#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace fastlstm {

#define X(name)                                 \
  namespace name {                              \
  extern const Kernels<float> kernels_float32;  \
  extern const Kernels<double> kernels_float64; \
  }
FASTLSTM_ISA_ROWS
#undef X

namespace {

// __builtin_cpu_supports asks XGETBV too: a processor whose operating system does not save the registers says no.
[[maybe_unused]] bool runs(const std::string& name) {
#if defined(__x86_64__)
  if (name.rfind("x86_v4", 0) == 0)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (name.rfind("x86_v3", 0) == 0) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (name.rfind("x86_v2", 0) == 0) return __builtin_cpu_supports("sse4.2");
#endif
  return name == "neon";
}

struct Row {
  const char* name;
  const Kernels<float>* float32;
  const Kernels<double>* float64;
};

#define X(name) {#name, &name::kernels_float32, &name::kernels_float64},
const Row kRows[] = {FASTLSTM_ISA_ROWS};
#undef X

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
  return text.empty() ? "none" : text;
}

const Row& find(const std::string& name) {
  for (const Row& row : kRows)
    if (row.name == name && runs(name)) return row;
  throw std::invalid_argument("instruction set '" + name + "' cannot run here: expected one of " +
                              joined(runnable_isas()));
}

const Row& preferred() {
  if (const char* forced = std::getenv("FASTLSTM_ISA"); forced && *forced) return find(forced);
  for (const Row& row : kRows)
    if (runs(row.name)) return row;
  throw std::runtime_error("fastlstm was compiled for " + joined(compiled_isas()) +
                           ", none of which this processor runs");
}

std::atomic<const Row*> g_active{nullptr};

const Row& active() {
  const Row* row = g_active.load(std::memory_order_acquire);
  if (!row) g_active.store(row = &preferred(), std::memory_order_release);
  return *row;
}

}  // namespace

std::vector<std::string> compiled_isas() {
  std::vector<std::string> names;
  for (const Row& row : kRows) names.push_back(row.name);
  return names;
}

std::vector<std::string> runnable_isas() {
  std::vector<std::string> names;
  for (const Row& row : kRows)
    if (runs(row.name)) names.push_back(row.name);
  return names;
}

std::string active_isa() { return active().name; }

void set_isa(const std::string& name) { g_active.store(&find(name), std::memory_order_release); }

template <>
const Kernels<float>& active_kernels() {
  return *active().float32;
}
template <>
const Kernels<double>& active_kernels() {
  return *active().float64;
}

}  // namespace fastlstm
