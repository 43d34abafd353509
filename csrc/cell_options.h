// Which functions a cell is made of, as plain data: chosen by the caller, read by the kernels of every instruction set.
#pragma once
#include <cstdint>

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

}  // namespace fastlstm
