"""The native LSTM against the operator LSTM of onnxruntime: hundreds of random models of what ONNX's cell can do.

ONNX orders the gates i o f c and the peepholes i o f; ours are i f g o and i f o.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cases import TOLERANCE, relative_error
from fastlstm import LSTMCellOptions, functional, reference
from fastlstm.weights import WeightSpec

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

MODELS = 200  # of each feature
FROM_OURS = [0, 3, 1, 2]  # i f g o -> i o f c
Random = np.random.Generator

# ONNX's names, and the range of alpha and beta of those that have them.
NAMES = {
    "sigmoid": ("Sigmoid",),
    "tanh": ("Tanh",),
    "relu": ("Relu",),
    "hard_sigmoid": ("HardSigmoid", (0.1, 0.4), (0.3, 0.7)),
    "affine": ("Affine", (0.2, 0.6), (-0.2, 0.2)),
    "leaky_relu": ("LeakyRelu", (0.01, 0.5)),
    "elu": ("Elu", (0.3, 1.5)),
    "softsign": ("Softsign",),
    "softplus": ("Softplus",),
    "scaled_tanh": ("ScaledTanh", (0.5, 1.5), (0.5, 1.5)),
    "thresholded_relu": ("ThresholdedRelu", (0.1, 0.6)),
}


def any_activation(rng: Random) -> tuple[Any, ...]:
    name = str(rng.choice(list(NAMES)))
    return name, *(float(rng.uniform(*limits)) for limits in NAMES[name][1:])


# What differs from the textbook's cell: cell options, and "peepholes" or "lengths".
FEATURES: dict[str, Callable[[Random], dict[str, Any]]] = {
    "plain": lambda rng: {},
    "clip": lambda rng: {"gate_clip": float(rng.uniform(0.2, 2))},
    "input_forget": lambda rng: {"coupled_input_forget": True},
    "peepholes": lambda rng: {"peepholes": True},
    "lengths": lambda rng: {"lengths": True},
    "activations": lambda rng: {"activations": tuple(any_activation(rng) for _ in range(3))},
    "all": lambda rng: {
        "gate_clip": float(rng.uniform(0.5, 2)),
        "coupled_input_forget": bool(rng.integers(2)),
        "peepholes": True,
        "lengths": True,
        "activations": tuple(any_activation(rng) for _ in range(3)),
    },
}


def by_gate(array: np.ndarray) -> np.ndarray:
    return np.concatenate([np.split(array, 4)[gate] for gate in FROM_OURS])


def onnx_solve(
    spec: WeightSpec,
    weights: dict[str, np.ndarray],
    x: np.ndarray,
    state: tuple[np.ndarray, np.ndarray],
    cell: LSTMCellOptions,
    lengths: np.ndarray | None,
    direction: str,
) -> dict[str, np.ndarray]:
    """y `[T,B,D*H]`, h_n and c_n `[D,B,H]` of one layer."""
    suffixes = ["_l0", "_l0_reverse"][: spec.num_directions]
    stacked = {
        "W": np.stack([by_gate(weights["weight_ih" + s]) for s in suffixes]),
        "R": np.stack([by_gate(weights["weight_hh" + s]) for s in suffixes]),
        "B": np.stack([np.r_[by_gate(weights["bias_ih" + s]), by_gate(weights["bias_hh" + s])] for s in suffixes]),
        "sequence_lens": lengths,
        "initial_h": state[0],
        "initial_c": state[1],
        "P": None,
    }
    if spec.peepholes:
        thirds = [np.split(weights["weight_peephole" + s], 3) for s in suffixes]
        stacked["P"] = np.stack([np.concatenate([i, o, f]) for i, f, o in thirds])
    functions = cell.activations * spec.num_directions
    lists = {"activation_alpha": [], "activation_beta": []}  # only of those that have them, in their order
    for function in functions:
        for which, value in zip(lists, function[1 : len(NAMES[function.name])], strict=False):
            lists[which].append(value)
    attributes = {
        "hidden_size": spec.hidden_size,
        "direction": direction,
        "activations": [NAMES[function.name][0] for function in functions],
        "input_forget": int(cell.coupled_input_forget),
        **({} if cell.gate_clip is None else {"clip": cell.gate_clip}),
        **{name: values for name, values in lists.items() if values},
    }
    given = {"X": x} | {name: array for name, array in stacked.items() if array is not None}
    names = ["X", *(name if stacked[name] is not None else "" for name in stacked)]
    make = onnx.helper
    node = make.make_node("LSTM", names, ["Y", "Y_h", "Y_c"], **attributes)
    inputs = [make.make_tensor_value_info(n, make.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in given.items()]
    outputs = [make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("Y", "Y_h", "Y_c")]
    model = make.make_model(
        make.make_graph([node], "lstm", inputs, outputs), opset_imports=[make.make_opsetid("", 14)], ir_version=10
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    y, h_n, c_n = session.run(None, given)
    return {"y": np.concatenate(list(y.swapaxes(0, 1)), axis=-1), "h_n": h_n, "c_n": c_n}


@pytest.mark.parametrize("feature", FEATURES)
def test_random_models(feature: str) -> None:
    rng = np.random.default_rng(list(FEATURES).index(feature))
    compared = 0
    while compared < MODELS:
        options = FEATURES[feature](rng)
        peepholes, with_lengths = (options.pop(name, False) for name in ("peepholes", "lengths"))
        T, B, I, H = (int(rng.integers(1, most)) for most in (12, 7, 20, 35))
        direction = str(rng.choice(["forward", "bidirectional"]))
        spec = WeightSpec(I, H, bidirectional=direction == "bidirectional", peepholes=peepholes)
        weights = {n: rng.uniform(-0.6, 0.6, size).astype(np.float32) for n, size in spec.shapes().items()}
        x = rng.standard_normal((T, B, I), np.float32)
        state = tuple(rng.standard_normal((spec.num_directions, B, H), np.float32) for _ in range(2))
        lengths = rng.integers(1, T + 1, B, np.int32) if with_lengths else None
        cell = LSTMCellOptions(**options)
        expected = onnx_solve(spec, weights, x, state, cell, lengths, direction)
        if not abs(expected["c_n"]).max() < 100:
            continue  # gates without a bound let a cell explode, and its errors with it
        compared += 1
        y, (h_n, c_n), _ = functional.lstm_forward(x, weights, state, cell=cell, lengths=lengths, training=False)
        for name, array in {"y": y, "h_n": h_n, "c_n": c_n}.items():
            assert array.shape == expected[name].shape
            error = relative_error(array, expected[name])
            if (
                error > TOLERANCE["onnxruntime"]
            ):  # then the model makes much of each rounding: who is nearer to the truth?
                double = (
                    {n: w.astype(np.float64) for n, w in weights.items()},
                    tuple(s.astype(np.float64) for s in state),
                )
                truth = reference.lstm_forward(
                    x.astype(np.float64), *double, cell=cell, lengths=lengths, training=False
                )
                exact = {"y": truth[0], "h_n": truth[1][0], "c_n": truth[1][1]}[name]
                assert relative_error(array, exact) <= 10 * relative_error(expected[name], exact), (
                    f"{spec}, {cell}, {T}, {B}"
                )


def test_the_reverse_direction_alone() -> None:
    rng = np.random.default_rng(5)
    spec = WeightSpec(6, 11)
    weights = {name: rng.uniform(-0.6, 0.6, size).astype(np.float32) for name, size in spec.shapes().items()}
    x = rng.standard_normal((9, 4, 6), np.float32)
    state = tuple(rng.standard_normal((1, 4, 11), np.float32) for _ in range(2))
    expected = onnx_solve(spec, weights, x, state, LSTMCellOptions(), None, "reverse")
    y, (h_n, c_n), _ = functional.lstm_forward(np.ascontiguousarray(x[::-1]), weights, state, training=False)
    for name, array in {"y": y[::-1], "h_n": h_n, "c_n": c_n}.items():
        assert relative_error(array, expected[name]) <= TOLERANCE["onnxruntime"], name
