"""`fastlstm.onnx.lstm` against onnxruntime's operator LSTM: hundreds of random nodes of what ONNX's cell can do."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from cases import TOLERANCE, relative_error
from fastlstm import LSTMCellOptions, reference

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
from fastlstm.onnx import lstm  # noqa: E402

MODELS = 100  # of each feature
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
OUTPUTS = ("Y", "Y_h", "Y_c")
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
TEXTBOOK = (("sigmoid",), ("tanh",), ("tanh",))
FEATURES = ["plain", "clip", "input_forget", "peepholes", "lengths", "activations", "all"]


class Node(NamedTuple):
    """One random node: its attributes, its inputs, and the cell of each direction."""

    attributes: dict[str, Any]
    inputs: dict[str, np.ndarray]
    cells: list[LSTMCellOptions]


def any_activation(rng: Random) -> tuple[Any, ...]:
    name = str(rng.choice(list(NAMES)))
    return name, *(float(np.float32(rng.uniform(*limits))) for limits in NAMES[name][1:])


def random_node(rng: Random, feature: str) -> Node:
    def has(name: str) -> bool:
        return feature in (name, "all")

    T, B, I, H = (int(rng.integers(1, most)) for most in (12, 7, 20, 35))
    direction = str(rng.choice(["forward", "reverse", "bidirectional"]))
    D = 1 + (direction == "bidirectional")
    attributes: dict[str, Any] = {"hidden_size": H, "direction": direction}
    functions = [any_activation(rng) if has("activations") else TEXTBOOK[n % 3] for n in range(3 * D)]
    if has("activations"):
        attributes["activations"] = [NAMES[name][0] for name, *_ in functions]
        for place, which in enumerate(("activation_alpha", "activation_beta"), 1):
            if values := [function[place] for function in functions if len(function) > place]:
                attributes[which] = values
    clip = float(np.float32(rng.uniform(0.5, 2))) if has("clip") else None
    attributes |= {} if clip is None else {"clip": clip}
    coupled = bool(rng.integers(2)) if feature == "all" else has("input_forget")
    attributes |= {"input_forget": 1} if coupled else {}

    shapes = {"W": (4 * H, I), "R": (4 * H, H), "B": (8 * H,), "P": (3 * H,)}
    inputs = {name: rng.uniform(-0.6, 0.6, (D, *shape)).astype(np.float32) for name, shape in shapes.items()}
    inputs |= {name: rng.standard_normal((D, B, H), np.float32) for name in ("initial_h", "initial_c")}
    inputs |= {"X": rng.standard_normal((T, B, I), np.float32), "sequence_lens": rng.integers(1, T + 1, B, np.int32)}
    left_out = {name for name in ("B", "initial_h", "initial_c") if rng.random() < 0.2}
    left_out |= {name for name, what in (("P", "peepholes"), ("sequence_lens", "lengths")) if not has(what)}
    triples = [functions[3 * d : 3 * d + 3] for d in range(D)]
    cells = [LSTMCellOptions(tuple(triple), coupled, gate_clip=clip) for triple in triples]
    return Node(attributes, {name: array for name, array in inputs.items() if name not in left_out}, cells)


def by_onnxruntime(node: Node) -> list[np.ndarray]:
    make = onnx.helper
    names = [name if name in node.inputs else "" for name in INPUTS]
    kinds = {name: make.np_dtype_to_tensor_dtype(array.dtype) for name, array in node.inputs.items()}
    given = [make.make_tensor_value_info(name, kinds[name], array.shape) for name, array in node.inputs.items()]
    results = [make.make_tensor_value_info(name, kinds["X"], None) for name in OUTPUTS]
    graph = make.make_graph([make.make_node("LSTM", names, OUTPUTS, **node.attributes)], "lstm", given, results)
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 14)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, node.inputs)


def doubled(node: Node) -> Node:
    floats = {n: array.astype(np.float64) for n, array in node.inputs.items() if array.dtype == np.float32}
    return node._replace(inputs=node.inputs | floats)


def by_reference(node: Node) -> list[np.ndarray]:
    """The float64 truth, direction by direction and row by row; gates i o f c become i f g o, peepholes i o f i f o."""
    a = doubled(node).inputs
    T, B, _ = a["X"].shape
    H = a["R"].shape[2]
    Y, (Y_h, Y_c) = np.zeros((T, len(node.cells), B, H)), np.zeros((2, len(node.cells), B, H))
    for d, cell in enumerate(node.cells):
        gates = {"weight_ih_l0": a["W"][d], "weight_hh_l0": a["R"][d]}
        if "B" in a:
            gates |= {"bias_ih_l0": a["B"][d, : 4 * H], "bias_hh_l0": a["B"][d, 4 * H :]}
        blocks = {name: np.split(array, 4) for name, array in gates.items()}
        weights = {name: np.concatenate([i, f, g, o]) for name, (i, o, f, g) in blocks.items()}
        if "P" in a:
            i, o, f = np.split(a["P"][d], 3)
            weights["weight_peephole_l0"] = np.concatenate([i, f, o])
        order = -1 if d == 1 or node.attributes["direction"] == "reverse" else 1
        for b in range(B):
            own = slice(None, a["sequence_lens"][b] if "sequence_lens" in a else T)
            state = tuple(a[name][d, b][None] if name in a else np.zeros((1, H)) for name in ("initial_h", "initial_c"))
            x = a["X"][own, b][::order]
            y, (h, c), _ = reference.lstm_forward(x, weights, state, cell=cell, training=False)
            Y[own, d, b], Y_h[d, b], Y_c[d, b] = y[::order], h[0], c[0]
    return [Y, Y_h, Y_c]


def random_nodes(feature: str, count: int) -> list[tuple[Node, list[np.ndarray]]]:
    """Nodes with onnxruntime's results. Gates without a bound let a cell explode, and its errors with it: not those."""
    rng = np.random.default_rng(FEATURES.index(feature))
    nodes: list[tuple[Node, list[np.ndarray]]] = []
    while len(nodes) < count:
        node = random_node(rng, feature)
        if abs((expected := by_onnxruntime(node))[2]).max() < 100:
            nodes.append((node, expected))
    return nodes


@pytest.mark.parametrize("feature", FEATURES)
def test_random_models(feature: str) -> None:
    for node, expected in random_nodes(feature, MODELS):
        for n, (found, theirs) in enumerate(zip(lstm(**node.inputs, **node.attributes), expected, strict=True)):
            assert found.shape == theirs.shape and found.dtype == theirs.dtype
            if relative_error(found, theirs) > TOLERANCE["onnxruntime"]:
                # Then the model makes much of each rounding: who is nearer to the truth?
                exact = by_reference(node)[n]
                assert relative_error(found, exact) <= 10 * relative_error(theirs, exact), (OUTPUTS[n], node.attributes)


@pytest.mark.parametrize("feature", FEATURES)
def test_float64_and_both_layouts(feature: str) -> None:
    swapped = ("X", "initial_h", "initial_c")
    for node, _ in random_nodes(feature, 10):
        inputs = doubled(node).inputs
        found = lstm(**inputs, **node.attributes)
        for name, ours, exact in zip(OUTPUTS, found, by_reference(node), strict=True):
            assert relative_error(ours, exact) <= TOLERANCE["float64"], (name, node.attributes)
        batch_first = {n: array.swapaxes(0, 1) if n in swapped else array for n, array in inputs.items()}
        Y, Y_h, Y_c = lstm(**batch_first, **node.attributes, layout=1)
        np.testing.assert_array_equal(Y.transpose(1, 2, 0, 3), found[0])
        np.testing.assert_array_equal(Y_h.swapaxes(0, 1), found[1])
        np.testing.assert_array_equal(Y_c.swapaxes(0, 1), found[2])
