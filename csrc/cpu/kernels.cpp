// The kernels of one instruction set. Compiled once per row of the table in CMakeLists.txt, which sets FASTLSTM_ISA,
// FASTLSTM_VECTOR_BYTES, FASTLSTM_TILE_VECTORS and FASTLSTM_TILE_ASM. All of it, headers included, lies in a namespace of that
// name and anonymous inside: a template shared between two such objects would be one weak symbol, and the linker could keep
// the clone that this machine cannot run.
#include <utility>

#include "kernels.h"

#if defined(__x86_64__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12 warns of its own header
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace fastlstm::FASTLSTM_ISA {

extern const SlstmKernels<float> slstm_kernels_float32;  // of slstm_kernels.cpp
extern const SlstmKernels<double> slstm_kernels_float64;

namespace {

#include "simd.h"
#include "with_flags.h"
// clang-format off
#include "../activations.h"
#include "../activation_kinds.h"
#include "../cell.h"
#include "gemm.h"
#include "random.h"
// clang-format on

#include "layer_norm.h"

// Which cell a kernel is compiled for.
enum CellKind { kPlain, kTextbookActivations, kAnyActivations };

template <class T>
CellKind kind_of(const CellVariant<T>& variant) {
  if (!variant.options) return kPlain;
  return variant.options->textbook_activations() ? kTextbookActivations : kAnyActivations;
}

// The cell of one block of units.
template <class T, CellKind KIND>
inline auto cell_of(const CellVariant<T>& variant, int64_t block) {
  if constexpr (KIND == kPlain) {
    return PlainCell<Vec<T>>{};
  } else {
    VariantCell<Vec<T>, KIND == kTextbookActivations> cell(*variant.options);
    cell.has_peepholes = variant.peepholes;
    for (int gate = 0; gate < 3 && variant.peepholes; ++gate)
      cell.p[gate] = load(variant.peepholes + (block * 3 + gate) * kLanes<T>);
    return cell;
  }
}

// Calls function(std::integral_constant<CellKind, ...>).
template <class F>
auto with_kind(CellKind kind, F function) {
  if (kind == kPlain) return function(std::integral_constant<CellKind, kPlain>{});
  if (kind == kTextbookActivations) return function(std::integral_constant<CellKind, kTextbookActivations>{});
  return function(std::integral_constant<CellKind, kAnyActivations>{});
}

#include "step_forward.h"
#include "step_backward.h"
#include "transpose.h"

template <class T>
void sweep(const ActivationOptions& options, bool slope, const T* x, T* y, int64_t n) {
  using V = Vec<T>;
  const auto function = slope ? activation_slope<V> : activate<V>;
  const V alpha = broadcast<V>(T(options.alpha)), beta = broadcast<V>(T(options.beta));
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    const int lanes = n - i < kLanes<T> ? int(n - i) : kLanes<T>;
    store(y + i, function(options.kind, load(x + i, lanes), alpha, beta), lanes);
  }
}

template <class T>
constexpr const SlstmKernels<T>* slstm_kernels() {
  if constexpr (sizeof(T) == 4)
    return &slstm_kernels_float32;
  else
    return &slstm_kernels_float64;
}

template <class T>
constexpr Kernels<T> kTable = {kLanes<T>,         kPanel<T>,        MR,           product<T>,
                               step_forward<T>,   step_backward<T>, outer_sum<T>, outer_rows<T>,
                               draw<T>,           pack_columns<T>,  transpose<T>, sweep<T>,
                               slstm_kernels<T>()};

}  // namespace

extern const Kernels<float> kernels_float32;
extern const Kernels<double> kernels_float64;
const Kernels<float> kernels_float32 = kTable<float>;
const Kernels<double> kernels_float64 = kTable<double>;

}  // namespace fastlstm::FASTLSTM_ISA
