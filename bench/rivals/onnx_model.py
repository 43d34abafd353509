"""The ONNX model of a case, which onnxruntime and openvino read: an LSTM node a layer, and what joins them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from cases import Problem
from rivals import Missing


def feeds(problem: Problem) -> dict[str, np.ndarray]:
    arrays = {"x": problem.x, "h0": problem.h0, "c0": problem.c0}
    if "lengths" in problem.options:
        arrays["lengths"] = problem.options["lengths"].astype(np.int32)
    return arrays


def model(problem: Problem) -> onnx.ModelProto:
    """Inputs as `feeds`; outputs y, h_n and c_n with torch's shapes. Sizes are fixed, as an exporter would fix them."""
    case = problem.case
    if case.varying not in ("", "lengths"):
        raise Missing(f"ONNX's LSTM has no {case.varying}")
    if case.dtype != "float32":
        raise Missing("its LSTM computes in float32 alone")
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(case.dtype))
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds(problem).items()
    ]
    rows = (case.layers * case.directions, case.B, case.H)
    shapes = {"y": (case.T, case.B, case.directions * case.H), "h_n": rows, "c_n": rows}
    outputs = [helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()]
    nodes, constants = [], [numpy_helper.from_array(np.array([0, 0, -1]), "joined")]
    if case.layers > 1:  # each layer's part of the states
        for state in ("h0", "c0"):
            parts = [f"{state}_{layer}" for layer in range(case.layers)]
            nodes.append(helper.make_node("Split", [state], parts, axis=0, num_outputs=case.layers))
    x = "x"
    for layer in range(case.layers):
        own, new = weights(problem, layer), f"y_{layer}"
        constants += [numpy_helper.from_array(array, f"{name}_{layer}") for name, array in own.items()]
        h0, c0 = (f"{state}_{layer}" if case.layers > 1 else state for state in ("h0", "c0"))
        h_n, c_n = (f"{state}_{layer}" if case.layers > 1 else state for state in ("h_n", "c_n"))
        lengths = "lengths" if "lengths" in problem.options else ""
        arguments = [x, *(f"{name}_{layer}" for name in own), lengths, h0, c0]
        way = "bidirectional" if case.bidirectional else "forward"
        nodes.append(helper.make_node("LSTM", arguments, [new, h_n, c_n], hidden_size=case.H, direction=way))
        # Y is [T,D,B,H]; the next layer and the user want [T,B,D*H]
        x = "y" if layer == case.layers - 1 else f"x_{layer + 1}"
        nodes.append(helper.make_node("Transpose", [new], [f"{new}_t"], perm=[0, 2, 1, 3]))
        nodes.append(helper.make_node("Reshape", [f"{new}_t", "joined"], [x]))
    if case.layers > 1:
        for state in ("h_n", "c_n"):
            parts = [f"{state}_{layer}" for layer in range(case.layers)]
            nodes.append(helper.make_node("Concat", parts, [state], axis=0))
    graph = helper.make_graph(nodes, "lstm", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def weights(problem: Problem, layer: int) -> dict[str, np.ndarray]:
    """W [D,4H,I], R [D,4H,H] and B [D,8H], whose gates ONNX orders i o f g."""

    def permuted(array: np.ndarray) -> np.ndarray:
        i, f, g, o = np.split(array, 4)
        return np.concatenate([i, o, f, g])

    ways = [f"_l{layer}{way}" for way in ("", "_reverse")[: problem.case.directions]]
    stacks: dict[str, list[np.ndarray]] = {"W": [], "R": [], "B": []}
    for suffix in ways:
        w_x, w_h, b_x, b_h = (
            permuted(problem.weights[f"{name}{suffix}"]) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        stacks["W"].append(w_x)
        stacks["R"].append(w_h)
        stacks["B"].append(np.concatenate([b_x, b_h]))
    return {name: np.stack(arrays) for name, arrays in stacks.items()}
