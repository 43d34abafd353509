"""ONNX's operator LSTM with every attribute, as a function and as an operator of `onnx.reference.ReferenceEvaluator`.

Letters: T steps, B batch, I input, H hidden, D directions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

from .. import exchange
from ..activations import ACTIVATIONS
from ..cells import LSTMCellOptions
from ..functional import lstm_forward
from ..masking import check_lengths
from ..weights import check_array

__all__ = ["LSTM", "lstm"]

DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
# ONNX's names in lower case, as some writers have them in other cases.
OURS = {name.replace("_", ""): name for name in ACTIVATIONS}


def cells(
    direction: str,
    activations: Sequence[str] | None = None,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    clip: float | None = None,
    input_forget: int = 0,
) -> list[LSTMCellOptions]:
    """The cell of each direction that a node's attributes describe; raises ValueError that names the attribute.

    alpha and beta are lists of the values of those activations that have such a parameter, in their order; where one
    is too short, the rest has ONNX's defaults.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction is {direction!r}, expected one of {', '.join(map(repr, DIRECTIONS))}")
    if input_forget not in (0, 1):
        raise ValueError(f"input_forget is {input_forget!r}, expected 0 or 1")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip is {clip}, expected a positive number")
    D = DIRECTIONS[direction]
    names = ["Sigmoid", "Tanh", "Tanh"] * D if activations is None else list(activations)
    if len(names) != 3 * D:
        raise ValueError(f"activations has {len(names)} names, expected three for each of the {D} directions")
    values = iter(activation_alpha or ()), iter(activation_beta or ())
    functions = [_activation(name, *values) for name in names]
    for which, rest in zip(("activation_alpha", "activation_beta"), values, strict=True):
        if list(rest):
            raise ValueError(f"{which} has more values than the activations {', '.join(names)} take")
    return [
        LSTMCellOptions((f, g, h), bool(input_forget), gate_clip=clip)
        for f, g, h in zip(functions[::3], functions[1::3], functions[2::3], strict=True)
    ]


def _activation(name: str, alphas: Iterator[float], betas: Iterator[float]) -> tuple[Any, ...]:
    ours = OURS.get(name.lower())
    if ours is None:
        raise ValueError(f"activations has {name!r}, expected one of {', '.join(map(onnx_name, ACTIVATIONS))}")
    has_alpha, has_beta = parameters(ours)
    return ours, next(alphas, None) if has_alpha else None, next(betas, None) if has_beta else None


def parameters(ours: str) -> list[bool]:
    """Whether an activation has an alpha, and whether a beta."""
    return [default != 0.0 for default in ACTIVATIONS[ours]]


def onnx_name(ours: str) -> str:
    """ONNX's name of an activation.

    >>> onnx_name("hard_sigmoid")
    'HardSigmoid'
    """
    return "".join(part.capitalize() for part in ours.split("_"))


def lstm(
    X: np.ndarray,
    W: np.ndarray,
    R: np.ndarray,
    B: np.ndarray | None = None,
    sequence_lens: np.ndarray | None = None,
    initial_h: np.ndarray | None = None,
    initial_c: np.ndarray | None = None,
    P: np.ndarray | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ONNX's LSTM (opset 22, and those before): Y, Y_h, Y_c, from its inputs and attributes under ONNX's names.

    layout 0: X `[T,B,I]`, Y `[T,D,B,H]`, states `[D,B,H]`; layout 1: X `[B,T,I]`, Y `[B,T,D,H]`, states `[B,D,H]`.
    Beyond a row's length Y is 0, and the states are those at its end; a row of length 0 keeps its initial state
    (onnxruntime's becomes 0). float16 and bfloat16 are computed in float32, and the results rounded.

    Raises ValueError or TypeError that names the input or the attribute.

    >>> X, W, R = np.ones((7, 3, 2), np.float32), np.ones((1, 20, 2), np.float32), np.ones((1, 20, 5), np.float32)
    >>> Y, Y_h, Y_c = lstm(X, W, R, direction="reverse", clip=3.0)
    >>> Y.shape, Y_h.shape, bool((Y[0] == Y_h).all())
    ((7, 1, 3, 5), (1, 3, 5), True)
    """
    options = cells(direction, activations, activation_alpha, activation_beta, clip, input_forget)
    if layout not in (0, 1):
        raise ValueError(f"layout is {layout!r}, expected 0 or 1")
    if check_array("X", X).ndim != 3:
        raise ValueError(f"X has shape {X.shape}, expected {'(B, T, I)' if layout else '(T, B, I)'}")
    dtype = X.dtype
    arrays = {"X": X, "W": W, "R": R, "B": B, "initial_h": initial_h, "initial_c": initial_c, "P": P}
    given = {name: check_array(name, array, dtype=dtype) for name, array in arrays.items() if array is not None}
    if dtype.name in ("float16", "bfloat16"):
        given = {name: array.astype(np.float32) for name, array in given.items()}
    weights = exchange.from_onnx(given["W"], given["R"], given.get("B"), given.get("P"))
    D, _, H = R.shape
    if D != len(options):
        raise ValueError(f"R has shape {R.shape}, but direction is {direction!r}: expected {len(options)} in front")
    if hidden_size is not None and hidden_size != H:
        raise ValueError(f"hidden_size is {hidden_size}, but R has shape {R.shape}: expected {H}")
    x = given["X"].swapaxes(0, 1) if layout else given["X"]
    states = [_state(name, given.get(name), (D, x.shape[1], H), x.dtype, layout) for name in ("initial_h", "initial_c")]
    lengths = None if sequence_lens is None else check_lengths(sequence_lens, x.shape[1:2], len(x), "sequence_lens")

    y, h_n, c_n = _computed(x, weights, states, lengths, direction, options)
    Y = y.reshape(*x.shape[:2], D, H)
    Y = Y.swapaxes(0, 1) if layout else Y.swapaxes(1, 2)
    outputs = Y, h_n.swapaxes(0, layout), c_n.swapaxes(0, layout)
    Y, Y_h, Y_c = (np.ascontiguousarray(array).astype(dtype, copy=False) for array in outputs)
    return Y, Y_h, Y_c


def _computed(
    x: np.ndarray,
    weights: dict[str, np.ndarray],
    states: list[np.ndarray],
    lengths: np.ndarray | None,
    direction: str,
    options: list[LSTMCellOptions],
) -> list[np.ndarray]:
    """y `[T,B,D*H]`, h_n and c_n `[D,B,H]`, by as few calls of the kernels as there can be."""
    results = []
    for directions, backwards in _runs(direction, options):
        y, (h_n, c_n), _ = lstm_forward(
            _reversed(x, lengths) if backwards else x,
            _of(weights, directions),
            (states[0][directions], states[1][directions]),
            cell=options[directions.start],
            lengths=lengths,
            training=False,
        )
        results.append((_reversed(y, lengths) if backwards else y, h_n, c_n))
    return [np.concatenate(parts, axis) for axis, parts in zip((-1, 0, 0), zip(*results, strict=True), strict=True)]


def _state(name: str, array: np.ndarray | None, shape: tuple[int, ...], dtype: Any, layout: int) -> np.ndarray:
    """An initial state as `[D,B,H]`."""
    if array is None:
        return np.zeros(shape, dtype)
    expected = (shape[1], shape[0], shape[2]) if layout else shape
    return check_array(name, array, expected).swapaxes(0, layout)


def _runs(direction: str, options: list[LSTMCellOptions]) -> list[tuple[slice, bool]]:
    """The directions that each call of the kernels computes, and whether they run over the reversed sequence."""
    if direction == "bidirectional" and options[0] != options[1]:  # the kernels' two directions have one cell
        return [(slice(0, 1), False), (slice(1, 2), True)]
    return [(slice(0, len(options)), direction == "reverse")]


def _of(weights: dict[str, np.ndarray], directions: slice) -> dict[str, np.ndarray]:
    """The weights of these directions, the first of which becomes the forward one."""
    if directions.stop - directions.start == 2:
        return weights
    kept = {name: array for name, array in weights.items() if name.endswith("_reverse") == (directions.start == 1)}
    return {name.removesuffix("_reverse"): array for name, array in kept.items()}


def _reversed(sequence: np.ndarray, lengths: np.ndarray | None) -> np.ndarray:
    """`[T,B,..]` with each row's steps in the opposite order, up to its length."""
    if lengths is None:
        return sequence[::-1]
    t = np.arange(len(sequence))[:, None]
    steps = np.where(t < lengths, lengths - 1 - t, t)  # [T,B]
    return np.take_along_axis(sequence, steps[..., None], axis=0)


class LSTM(OpRun):
    """The operator for `onnx.reference.ReferenceEvaluator(model, new_ops=[fastlstm.onnx.LSTM])`.

    Unlike onnx's own it heeds sequence_lens, clip, input_forget and activations.
    """

    op_domain = ""

    def _run(self, *inputs: Any, **attributes: Any) -> tuple[np.ndarray, ...]:
        return lstm(*inputs, **attributes)[: len(self.onnx_node.output)]
