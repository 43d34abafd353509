// How a cell departs from the textbook's, as plain data: chosen by the caller, read by the kernels of every instruction set.
// python/fastlstm/cells.py says what each means.
#pragma once
#include <cstdint>

#include "device.h"

namespace fastlstm {

// The activations of ONNX's LSTM, in the order of kActivationNames. activation_kinds.h has their formulas.
enum class Activation : uint8_t {
  kSigmoid,
  kTanh,
  kRelu,
  kHardSigmoid,
  kAffine,
  kLeakyRelu,
  kElu,
  kSoftsign,
  kSoftplus,
  kScaledTanh,
  kThresholdedRelu,
};

constexpr const char* kActivationNames[] = {"sigmoid",         "tanh", "relu",     "hard_sigmoid", "affine",
                                            "leaky_relu",      "elu",  "softsign", "softplus",     "scaled_tanh",
                                            "thresholded_relu"};

struct ActivationOptions {
  Activation kind = Activation::kSigmoid;
  double alpha = 0, beta = 0;  // where the formula has them
};

constexpr double kNoLimit = __builtin_inf();
constexpr double kNormEpsilon = 1e-5;  // added to variances: haste's and torch.nn.LayerNorm's

// Its functions are inlined always: kernels.cpp may leave no symbol that its instruction sets share.
struct CellOptions {
  ActivationOptions gate, squash{Activation::kTanh}, output{Activation::kTanh};  // of i f o, of g, of c
  bool coupled_input_forget = false;
  double gate_clip = kNoLimit, cell_clip = kNoLimit;
  double zoneout_h = 0, zoneout_c = 0;
  double input_dropout = 0, recurrent_dropout = 0, weight_drop = 0;
  bool dropout_per_gate = false;

  DEVICE [[gnu::always_inline]] bool clips_gates() const { return gate_clip < kNoLimit; }
  DEVICE [[gnu::always_inline]] bool clips_cells() const { return cell_clip < kNoLimit; }
  bool drops_inputs() const { return input_dropout > 0 || recurrent_dropout > 0; }
  bool zones() const { return zoneout_h > 0 || zoneout_c > 0; }
  DEVICE [[gnu::always_inline]] bool textbook_activations() const {
    return gate.kind == Activation::kSigmoid && squash.kind == Activation::kTanh && output.kind == Activation::kTanh;
  }
  // Whether the textbook's cell will do.
  bool plain() const {
    return textbook_activations() && !coupled_input_forget && !clips_gates() && !clips_cells() && !zones();
  }
};

}  // namespace fastlstm
