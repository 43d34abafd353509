"""Weights to and from other libraries' arrays: `to_x` takes a mapping with torch's names, `from_x` returns one.

Each function is of one layer, of one or two directions; merge the mappings of several. NumPy alone: none imports the
library it is named after. Letters: I input, H hidden, D directions.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .weights import ONNX_PEEPHOLES, check_array, gates_from_onnx, gates_to_onnx, weight_suffix

__all__ = ["from_onnx", "to_onnx"]


def suffixes(weights: Mapping[str, np.ndarray], layer: int) -> list[str]:
    """The suffixes of the directions that the mapping has of a layer."""
    if (first := weight_suffix(layer, 0)) and "weight_hh" + first not in weights:
        raise ValueError(f"weights has no weight_hh{first}: expected the weights of layer {layer} by torch's names")
    second = weight_suffix(layer, 1)
    return [first, second] if "weight_hh" + second in weights else [first]


def refuse(weights: Mapping[str, np.ndarray], whose: str, kinds: tuple[str, ...]) -> None:
    """Raise ValueError where the mapping has weights of a kind that the other side has none of."""
    for name in weights:
        if name.startswith(kinds):
            raise ValueError(f"weights has {name}, which {whose} has not: expected none")


# ONNX's operator LSTM: W [D,4H,I], R [D,4H,H], B [D,8H] = [W's, R's], P [D,3H]; gates in an order of its own.


def to_onnx(weights: Mapping[str, np.ndarray], layer: int = 0) -> dict[str, np.ndarray]:
    """The inputs W, R, and B and P where there are such, of ONNX's LSTM. Raises ValueError for what it has not.

    >>> ours = {"weight_ih_l0": np.zeros((20, 8)), "weight_hh_l0": np.zeros((20, 5))}
    >>> {name: array.shape for name, array in to_onnx(ours).items()}
    {'W': (1, 20, 8), 'R': (1, 20, 5)}
    """
    refuse(weights, "ONNX's LSTM", ("weight_hr", "gamma", "beta"))
    ends = suffixes(weights, layer)
    if "weight_ih" + ends[0] not in weights:
        raise ValueError(
            f"weights has no weight_ih{ends[0]}, but ONNX's LSTM multiplies x: expected input_size above 0"
        )
    arrays = {
        "W": np.stack([gates_to_onnx(weights["weight_ih" + end]) for end in ends]),
        "R": np.stack([gates_to_onnx(weights["weight_hh" + end]) for end in ends]),
    }
    if "bias_ih" + ends[0] in weights:
        pairs = [[gates_to_onnx(weights[name + end]) for name in ("bias_ih", "bias_hh")] for end in ends]
        arrays["B"] = np.stack([np.concatenate(pair) for pair in pairs])
    if "weight_peephole" + ends[0] in weights:
        arrays["P"] = np.stack([gates_to_onnx(weights["weight_peephole" + end], ONNX_PEEPHOLES) for end in ends])
    return arrays


def from_onnx(
    W: np.ndarray, R: np.ndarray, B: np.ndarray | None = None, P: np.ndarray | None = None, layer: int = 0
) -> dict[str, np.ndarray]:
    """The weights of the inputs of ONNX's LSTM, whose name the errors have.

    >>> list(from_onnx(np.zeros((1, 20, 8)), np.zeros((1, 20, 5)), layer=2))
    ['weight_ih_l2', 'weight_hh_l2']
    """
    if check_array("R", R).ndim != 3 or R.shape[0] not in (1, 2) or R.shape[1] != 4 * R.shape[2]:
        raise ValueError(f"R has shape {R.shape}, expected (num_directions, 4*hidden_size, hidden_size)")
    D, gates, H = R.shape
    if check_array("W", W).ndim != 3 or W.shape[:2] != (D, gates):
        raise ValueError(f"W has shape {W.shape}, but R has {R.shape}: expected ({D}, {gates}, input_size)")
    for name, array, size in (("B", B, 2 * gates), ("P", P, 3 * H)):
        if array is not None:
            check_array(name, array, (D, size))
    weights = {}
    for d in range(D):
        end = weight_suffix(layer, d)
        weights["weight_ih" + end], weights["weight_hh" + end] = gates_from_onnx(W[d]), gates_from_onnx(R[d])
        if B is not None:
            weights["bias_ih" + end], weights["bias_hh" + end] = map(gates_from_onnx, np.split(B[d], 2))
        if P is not None:
            weights["weight_peephole" + end] = gates_from_onnx(P[d], ONNX_PEEPHOLES)
    return weights
