"""What an LSTM's cell can be made of: the activations of ONNX's LSTM, in plain NumPy.

The twins of `activate` and `activation_slope` in csrc/activation_kinds.h. They compute in the dtype they are given, and
are relatively right for small and for large arguments.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["ACTIVATIONS", "activate", "activation_slope"]

# The defaults of alpha and beta: those of ONNX's operators of the same names, as its LSTM wants it. None: ONNX has no
# such operator, so that they have to be given. 0.0: the activation has no such parameter.
ACTIVATIONS: dict[str, tuple[float | None, float | None]] = {
    "sigmoid": (0.0, 0.0),
    "tanh": (0.0, 0.0),
    "relu": (0.0, 0.0),
    "hard_sigmoid": (0.2, 0.5),
    "affine": (None, None),
    "leaky_relu": (0.01, 0.0),
    "elu": (1.0, 0.0),
    "softsign": (0.0, 0.0),
    "softplus": (0.0, 0.0),
    "scaled_tanh": (None, None),
    "thresholded_relu": (1.0, 0.0),
}


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow and relatively right in both tails."""
    e = np.exp(-np.abs(x))
    y: np.ndarray = np.where(x >= 0, 1 / (1 + e), e / (1 + e))
    return y


def softsign(x: np.ndarray) -> np.ndarray:
    """x / (1 + |x|), of infinities too.

    >>> softsign(np.array([-np.inf, -1.0, 3.0])).tolist()
    [-1.0, -0.5, 0.75]
    """
    bounded = np.clip(x, -1e30, 1e30)
    y: np.ndarray = bounded / (1 + np.abs(bounded))
    return y


Formula = Callable[[np.ndarray, float, float], np.ndarray]

VALUES: dict[str, Formula] = {
    "sigmoid": lambda x, alpha, beta: sigmoid(x),
    "tanh": lambda x, alpha, beta: np.tanh(x),
    "relu": lambda x, alpha, beta: np.maximum(x, 0),
    "hard_sigmoid": lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1),
    "affine": lambda x, alpha, beta: alpha * x + beta,
    "leaky_relu": lambda x, alpha, beta: np.where(x >= 0, x, alpha * x),
    "elu": lambda x, alpha, beta: np.where(x >= 0, x, alpha * np.expm1(np.minimum(x, 0))),
    "softsign": lambda x, alpha, beta: softsign(x),
    "softplus": lambda x, alpha, beta: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
    "scaled_tanh": lambda x, alpha, beta: alpha * np.tanh(beta * x),
    "thresholded_relu": lambda x, alpha, beta: np.where(x < alpha, 0, x),
}

SLOPES: dict[str, Formula] = {
    "sigmoid": lambda y, alpha, beta: y * (1 - y),
    "tanh": lambda y, alpha, beta: 1 - y * y,
    "relu": lambda y, alpha, beta: np.where(y > 0, 1, 0),
    "hard_sigmoid": lambda y, alpha, beta: np.where((y > 0) & (y < 1), alpha, 0),
    "affine": lambda y, alpha, beta: np.full_like(y, alpha),
    "leaky_relu": lambda y, alpha, beta: np.where(y > 0, 1, alpha),
    "elu": lambda y, alpha, beta: np.where(y > 0, 1, y + alpha),
    "softsign": lambda y, alpha, beta: (1 - np.abs(y)) ** 2,
    "softplus": lambda y, alpha, beta: -np.expm1(-y),
    "scaled_tanh": lambda y, alpha, beta: beta * (alpha - y * (y / alpha)) if alpha else np.zeros_like(y),
    "thresholded_relu": lambda y, alpha, beta: np.where(y == 0, 0, 1),
}


def formula(formulas: dict[str, Formula], kind: str) -> Formula:
    if kind not in formulas:
        raise ValueError(f"activation is {kind!r}: expected one of {', '.join(ACTIVATIONS)}")
    return formulas[kind]


def activate(kind: str, x: np.ndarray, alpha: float = 0.0, beta: float = 0.0) -> np.ndarray:
    """The activation of that kind, of each element of x; alpha and beta count where its formula has them.

    >>> activate("hard_sigmoid", np.array([-9.0, 1.0, 9.0]), 0.2, 0.5).tolist()
    [0.0, 0.7, 1.0]
    >>> activate("softplus", np.array([-1000.0, 0.0, 1000.0])).round(4).tolist()
    [0.0, 0.6931, 1000.0]
    """
    return formula(VALUES, kind)(x, float(alpha), float(beta)).astype(x.dtype, copy=False)


def activation_slope(kind: str, y: np.ndarray, alpha: float = 0.0, beta: float = 0.0) -> np.ndarray:
    """The derivative of `activate` where its value is y; at a kink, the slope on its left.

    alpha of leaky_relu and elu must not be negative, else y would not say where x lay.

    >>> activation_slope("tanh", np.array([0.0, 0.5, 1.0])).tolist()
    [1.0, 0.75, 0.0]
    >>> activation_slope("leaky_relu", np.array([-0.02, 0.0, 2.0]), 0.01).tolist()
    [0.01, 0.01, 1.0]
    """
    slope: np.ndarray = np.where(np.isnan(y), y, formula(SLOPES, kind)(y, float(alpha), float(beta)))
    return slope.astype(y.dtype, copy=False)
