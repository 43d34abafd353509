"""Weights to and from other libraries: `from_x` returns a mapping with torch's names, `to_x` takes one.

Those of ONNX, Keras and Flax are of one layer: merge the mappings of several with `|`. What comes in is copied; float16
and bfloat16 become float32, which holds them exactly. Letters: I input, H hidden, D directions.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .weights import ONNX_PEEPHOLES, check_array, gates_from_onnx, gates_to_onnx, weight_suffix

__all__ = [
    "from_flax",
    "from_keras",
    "from_onnx",
    "from_safetensors",
    "from_torch",
    "to_flax",
    "to_keras",
    "to_onnx",
    "to_safetensors",
    "to_torch",
]


def numpy_of(array: Any) -> np.ndarray:
    """A copy of any library's array, in float32 or float64; of numbers in lists, as JSON has them, in float32."""
    if hasattr(array, "detach"):  # a torch tensor
        array = array.detach().cpu()
        array = (array.float() if array.element_size() < 4 else array).numpy()
    copied = np.array(array, np.float32 if isinstance(array, list) else None)
    return copied if copied.dtype.name in ("float32", "float64") else copied.astype(np.float32)


def suffixes(weights: Mapping[str, np.ndarray], layer: int) -> list[str]:
    """The suffixes of the directions that the mapping has of a layer."""
    if (first := weight_suffix(layer, 0)) and "weight_hh" + first not in weights:
        raise ValueError(f"weights has no weight_hh{first}: expected the weights of layer {layer} by torch's names")
    second = weight_suffix(layer, 1)
    return [first, second] if "weight_hh" + second in weights else [first]


def refuse(weights: Mapping[str, np.ndarray], whose: str, *kinds: str) -> None:
    """Raise ValueError where the mapping has weights of a kind that the other side has none of."""
    for name in weights:
        if name.startswith(kinds):
            raise ValueError(f"weights has {name}, which {whose} has not: expected none")


# torch.nn.LSTM and LSTMCell: the names are ours, in a checkpoint behind those of the modules around it.


def from_torch(module: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """The weights of a torch.nn.LSTM or LSTMCell, or of those names of a checkpoint that begin with prefix.

    The checkpoint is a mapping, of tensors, arrays, or lists as in the JSON of audio plugins.

    >>> checkpoint = {"encoder.lstm.weight_hh_l0": np.zeros((20, 5)), "decoder.weight": np.zeros((3, 5))}
    >>> list(from_torch(checkpoint, prefix="encoder.lstm."))
    ['weight_hh_l0']
    """
    arrays = module if isinstance(module, Mapping) else module.state_dict()
    found = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    if not found:
        raise ValueError(f"prefix is {prefix!r}, expected what names of the checkpoint begin with")
    layer = {name: name + weight_suffix(0, 0) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}  # a cell's
    return {layer.get(name, name): numpy_of(array) for name, array in found.items()}


def to_torch(weights: Mapping[str, np.ndarray], prefix: str = "") -> dict[str, Any]:
    """The tensors, copies, that `load_state_dict` of a torch.nn.LSTM takes, with prefix before each name."""
    import torch

    refuse(weights, "torch.nn.LSTM", "weight_peephole", "gamma", "beta")
    return {prefix + name: torch.tensor(array) for name, array in weights.items()}


def from_safetensors(path: str | os.PathLike[str], prefix: str = "") -> dict[str, np.ndarray]:
    """The weights of those names of a safetensors file that begin with prefix (`pip install fastlstm[io]`)."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]
        if any(file.get_slice(name).get_dtype() == "BF16" for name in names):
            import ml_dtypes  # noqa: F401, which makes bfloat16 known to NumPy
        return from_torch({name: file.get_tensor(name) for name in names}, prefix)


def to_safetensors(weights: Mapping[str, np.ndarray], path: str | os.PathLike[str], prefix: str = "") -> None:
    """Write the weights as a checkpoint of torch's, with prefix before each name; `LSTM.save` is for our own files."""
    from safetensors.numpy import save_file

    # It writes the memory of a strided array as if it were contiguous.
    save_file({prefix + name: np.ascontiguousarray(array) for name, array in weights.items()}, path, {"format": "pt"})


# keras.layers.LSTM: kernel [I,4H], recurrent_kernel [H,4H], bias [4H]; Bidirectional has both directions' in turn.


def from_keras(arrays: Sequence[Any], layer: int = 0) -> dict[str, np.ndarray]:
    """The weights of `get_weights()` of a keras.layers.LSTM, or of a Bidirectional around one.

    Keras has one bias, which becomes bias_ih beside a bias_hh of 0.

    >>> list(from_keras([np.zeros((8, 20)), np.zeros((5, 20))], layer=1))
    ['weight_ih_l1', 'weight_hh_l1']
    """
    if len(arrays) not in (2, 3, 4, 6):
        raise ValueError(
            f"arrays has {len(arrays)}, expected 2 (a kernel and a recurrent kernel) or 3, or twice as many"
        )
    D = 1 if len(arrays) < 4 else 2
    weights: dict[str, np.ndarray] = {}
    for d in range(D):
        kernel, recurrent, *bias = map(numpy_of, arrays[len(arrays) // D * d : len(arrays) // D * (d + 1)])
        weights |= _transposed(kernel, recurrent, bias[0] if bias else None, weight_suffix(layer, d))
    return weights


def to_keras(weights: Mapping[str, np.ndarray], layer: int = 0) -> list[np.ndarray]:
    """What `set_weights` of a keras.layers.LSTM takes, or of a Bidirectional around one where there are two directions.

    >>> [array.shape for array in to_keras({"weight_ih_l0": np.zeros((20, 8)), "weight_hh_l0": np.zeros((20, 5))})]
    [(8, 20), (5, 20)]
    """
    refuse(weights, "keras.layers.LSTM", "weight_hr", "weight_peephole", "gamma", "beta")
    arrays = []
    for end in suffixes(weights, layer):
        arrays += [weights[name + end].T.copy() for name in ("weight_ih", "weight_hh")]
        if "bias_ih" + end in weights:
            arrays.append(weights["bias_ih" + end] + weights["bias_hh" + end])
    return arrays


def _transposed(kernel: np.ndarray, recurrent: np.ndarray, bias: np.ndarray | None, end: str) -> dict[str, np.ndarray]:
    weights = {"weight_ih" + end: kernel.T.copy(), "weight_hh" + end: recurrent.T.copy()}
    if bias is not None:
        weights |= {"bias_ih" + end: bias, "bias_hh" + end: np.zeros_like(bias)}
    return weights


# Flax: kernels as Keras's, in one or by gate; one bias, on the hidden side. Its carry is (c, h).

# By form: the names of the kernels of x and of h, each of all gates, or one of each in our order.
FLAX = {
    "linen": (("ii", "if", "ig", "io"), ("hi", "hf", "hg", "ho")),  # LSTMCell and OptimizedLSTMCell
    "nnx": (("ii", "if_", "ig", "io"), ("hi", "hf", "hg", "ho")),
    "nnx_optimized": (("dense_i",), ("dense_h",)),
}


def from_flax(params: Mapping[str, Any], layer: int = 0, direction: int = 0) -> dict[str, np.ndarray]:
    """The weights of a cell's parameters: linen's `variables["params"]`, nnx's `nnx.to_pure_dict(nnx.state(cell))`."""
    for x_names, h_names in FLAX.values():
        if {*x_names, *h_names} == params.keys():
            kernel = np.concatenate([numpy_of(params[name]["kernel"]) for name in x_names], axis=1)
            recurrent = np.concatenate([numpy_of(params[name]["kernel"]) for name in h_names], axis=1)
            bias = np.concatenate([numpy_of(params[name]["bias"]) for name in h_names])
            return _transposed(kernel, recurrent, bias, weight_suffix(layer, direction))
    raise ValueError(f"params has {', '.join(map(str, params))}, expected the parameters of an LSTM cell of Flax's")


def to_flax(weights: Mapping[str, np.ndarray], form: str, layer: int = 0, direction: int = 0) -> dict[str, Any]:
    """The parameters of one Flax cell; form: "linen" for its two cells, "nnx" or "nnx_optimized".

    >>> ours = {"weight_ih_l0": np.zeros((20, 8)), "weight_hh_l0": np.zeros((20, 5))}
    >>> {name: layer["kernel"].shape for name, layer in to_flax(ours, "nnx_optimized").items()}
    {'dense_i': (8, 20), 'dense_h': (5, 20)}
    """
    if form not in FLAX:
        raise ValueError(f"form is {form!r}, expected one of {', '.join(map(repr, FLAX))}")
    refuse(weights, "Flax's LSTM", "weight_hr", "weight_peephole", "gamma", "beta")
    end = suffixes(weights, layer)[direction]
    w_h = weights["weight_hh" + end]
    bias = (
        weights["bias_ih" + end] + weights["bias_hh" + end] if "bias_ih" + end in weights else np.zeros_like(w_h[:, 0])
    )
    x_names, h_names = FLAX[form]
    x_kernels = np.split(weights["weight_ih" + end].T, len(x_names), axis=1)
    h_kernels = np.split(w_h.T, len(h_names), axis=1)
    of_x = {name: {"kernel": kernel.copy()} for name, kernel in zip(x_names, x_kernels, strict=True)}
    biases = np.split(bias, len(h_names))
    return of_x | {n: {"kernel": k.copy(), "bias": b} for n, k, b in zip(h_names, h_kernels, biases, strict=True)}


# ONNX's operator LSTM: W [D,4H,I], R [D,4H,H], B [D,8H] = [W's, R's], P [D,3H]; gates in an order of its own.


def to_onnx(weights: Mapping[str, np.ndarray], layer: int = 0) -> dict[str, np.ndarray]:
    """The inputs W, R, and B and P where there are such, of ONNX's LSTM. Raises ValueError for what it has not.

    >>> ours = {"weight_ih_l0": np.zeros((20, 8)), "weight_hh_l0": np.zeros((20, 5))}
    >>> {name: array.shape for name, array in to_onnx(ours).items()}
    {'W': (1, 20, 8), 'R': (1, 20, 5)}
    """
    refuse(weights, "ONNX's LSTM", "weight_hr", "gamma", "beta")
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
