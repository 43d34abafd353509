"""Models in ONNX's format: `from_model` reads LSTM nodes into a layer, `to_model` writes a layer as LSTM nodes.

Letters: T steps, B batch, I input, H hidden, D directions, L layers.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from .. import exchange
from ..cells import TEXTBOOK, LSTMCellOptions
from ..layers import LSTM
from .operator import cells, onnx_name, parameters

__all__ = ["from_model", "to_model"]

OPSET, IR_VERSION = 14, 8  # of 2021: what runs a model of today runs these
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
# What may stand between two layers, as exporters write them.
BETWEEN = {"Cast", "Concat", "Dropout", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}

# Reading


def from_model(
    model: onnx.ModelProto | str | os.PathLike[str], node: str | int | Sequence[str | int] | None = None
) -> LSTM:
    """The layer that LSTM nodes of a model are. float16 and bfloat16 weights become float32, which holds them exactly.

    node: the name of a node, or of one of its outputs, or its number among the model's LSTM nodes; several, in order,
    are the layers of one LSTM. None takes all LSTM nodes, if each is fed by the one before it.

    A node of layout 0 is a time-major layer; what the model transposes before it is not looked at (`lstm.batch_first`
    may be set). An initial state and sequence_lens that the model computes or is given are arguments of the layer's
    call. Raises ValueError for what a layer cannot be: the direction "reverse" alone, other activations in each
    direction, weights that depend on the model's inputs, an initial state that is a constant other than 0.
    """
    if not isinstance(model, onnx.ModelProto):
        model = onnx.load(os.fspath(model))
    nodes = _nodes(model.graph, node)
    weights: dict[str, np.ndarray] = {}
    options = []
    for layer, one in enumerate(nodes):
        inputs = dict(zip(INPUTS, one.input, strict=False))
        arrays = {
            name: _constant(model, of) for name, of in inputs.items() if of and name not in ("X", "sequence_lens")
        }
        where = f"the LSTM node {one.name or one.output[0]!r}"
        for name in ("W", "R", "B", "P"):
            if name in arrays and arrays[name] is None:
                raise ValueError(f"{name} of {where} depends on the model's inputs: expected constants")
        for name in ("initial_h", "initial_c"):
            if (state := arrays.pop(name, None)) is not None and state.any():
                raise ValueError(f"{name} of {where} is not 0: expected to be given the state at the call, as h0 or c0")
        weights |= exchange.from_onnx(**arrays, layer=layer)  # type: ignore[arg-type]
        options.append(_options(one, where))
    if any(own != options[0] for own in options):
        raise ValueError(f"the nodes have the options {options}: expected the same of all layers, or one node")
    cell, layout = options[0]
    return LSTM.from_weights(weights, batch_first=layout == 1, cell=cell)


def _nodes(graph: onnx.GraphProto, chosen: str | int | Sequence[str | int] | None) -> list[onnx.NodeProto]:
    found = [node for node in graph.node if node.op_type == "LSTM" and node.domain in ("", "ai.onnx")]
    names = ", ".join(node.name or node.output[0] for node in found) or "none"
    if chosen is None:
        if not found or not all(_feeds(graph, *pair) for pair in itertools.pairwise(found)):
            raise ValueError(f"the model's LSTM nodes are {names}: expected one, a stack of layers, or node=")
        return found
    nodes = []
    for one in [chosen] if isinstance(chosen, (str, int)) else chosen:
        fits = [node for n, node in enumerate(found) if one in (n, node.name, *node.output)]
        if not fits:
            raise ValueError(f"node is {one!r}, but the model's LSTM nodes are {names}: expected one of these")
        nodes.append(fits[0])
    return nodes


def _feeds(graph: onnx.GraphProto, first: onnx.NodeProto, second: onnx.NodeProto) -> bool:
    """Whether the second's X is the first's Y, rearranged."""
    makers = {name: node for node in graph.node if node.op_type in BETWEEN for name in node.output}
    names = [second.input[0]]
    for name in names:  # which grows
        names.extend(makers[name].input if name in makers else ())
    return first.output[0] in names


def _constant(model: onnx.ModelProto, name: str) -> np.ndarray | None:
    """The value of a tensor of the graph; None if it depends on the model's inputs."""
    graph = model.graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    needed = [name]
    for one in needed:  # which grows
        if one and one not in initializers:
            if one not in makers:
                return None
            needed.extend(of for of in makers[one].input if of not in needed)
    if name in initializers:
        array = numpy_helper.to_array(initializers[name])
    else:
        nodes = [node for node in graph.node if set(node.output) & set(needed)]
        result = helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None)
        part = helper.make_graph(
            nodes, "constants", [], [result], [initializers[n] for n in needed if n in initializers]
        )
        array = ReferenceEvaluator(helper.make_model(part, opset_imports=model.opset_import)).run(None, {})[0]
    return np.asarray(array if array.dtype.name in ("float32", "float64") else array.astype(np.float32))


def _options(node: onnx.NodeProto, where: str) -> tuple[LSTMCellOptions, int]:
    """The cell and the layout of a node."""
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    values = {name: _text(value) for name, value in values.items()}
    direction, layout = values.pop("direction", "forward"), values.pop("layout", 0)
    values.pop("hidden_size", None)
    if direction == "reverse":
        raise ValueError(f"direction of {where} is 'reverse': expected 'forward' or 'bidirectional', or onnx.lstm")
    try:
        options = cells(direction, **values)
    except TypeError:
        raise ValueError(f"{where} has the attributes {', '.join(values)}: expected those of opset 22") from None
    if options[0] != options[-1]:
        raise ValueError(f"activations of {where} differ by direction: expected the same, or onnx.lstm")
    return options[0], layout


def _text(value: Any) -> Any:
    return (
        value.decode() if isinstance(value, bytes) else [_text(v) for v in value] if isinstance(value, list) else value
    )


# Writing


def to_model(
    lstm: LSTM, path: str | os.PathLike[str] | None = None, *, lengths: bool = False, state: bool = False
) -> onnx.ModelProto:
    """A model of the layer's inference, one LSTM node a layer, for any T and B; written where a path is given.

    Input x and outputs y, h_n, c_n are laid out as the layer's own. lengths: it takes `lengths`, int32 `[B]`, too;
    state: h0 and c0, too. Raises ValueError for what ONNX's LSTM has not: projection, layer normalisation, zoneout,
    a clip of c, pre-activations as x.
    """
    spec, cell = lstm.spec, lstm.cell
    if cell.cell_clip is not None or cell.zoneout_h or cell.zoneout_c:
        raise ValueError(f"cell is {cell}, but ONNX's LSTM has neither cell_clip nor zoneout: expected none")
    D, L, H = spec.num_directions, spec.num_layers, spec.hidden_size
    make, weights = helper.make_node, lstm.state_dict()
    tensors = {"shape": np.array([0, 0, D * H])}
    layers = [f"_l{layer}" for layer in range(L)]
    nodes = [make("Transpose", ["x"], ["x_l0"], perm=[1, 0, 2] if lstm.batch_first else [0, 1, 2])]
    if state:
        tensors["directions"] = np.full(L, D)
        for name in ("h0", "c0"):
            nodes.append(make("Split", [name, "directions"], [name + end for end in layers], axis=0))
    attributes = _attributes(cell, D) | {"hidden_size": H, "direction": "bidirectional" if D == 2 else "forward"}
    for layer, end in enumerate(layers):
        arrays = exchange.to_onnx(weights, layer)
        tensors |= {name + end: array for name, array in arrays.items()}
        given = {name: name + end for name in arrays} | {"X": "x" + end}
        given |= {"sequence_lens": "lengths"} if lengths else {}
        given |= {"initial_h": "h0" + end, "initial_c": "c0" + end} if state else {}
        outputs = ["Y" + end, "h_n" + end, "c_n" + end]
        nodes.append(make("LSTM", [given.get(name, "") for name in INPUTS], outputs, "lstm" + end, **attributes))
        last = layer == L - 1
        perm = [2, 0, 1, 3] if last and lstm.batch_first else [0, 2, 1, 3]
        nodes.append(make("Transpose", ["Y" + end], ["Y_by_step" + end], perm=perm))
        nodes.append(make("Reshape", ["Y_by_step" + end, "shape"], ["y" if last else f"x_l{layer + 1}"]))
    nodes += [make("Concat", [name + end for end in layers], [name], axis=0) for name in ("h_n", "c_n")]
    model = _model(lstm, nodes, tensors, lengths, state)
    if path is not None:
        onnx.save(model, os.fspath(path))
    return model


def _model(
    lstm: LSTM, nodes: list[onnx.NodeProto], tensors: dict[str, np.ndarray], lengths: bool, state: bool
) -> onnx.ModelProto:
    kind = helper.np_dtype_to_tensor_dtype(lstm.dtype)
    sequence = ["B", "T"] if lstm.batch_first else ["T", "B"]
    states = [lstm.num_layers * lstm.spec.num_directions, "B", lstm.hidden_size]
    shapes = {"x": [*sequence, lstm.input_size]} | ({"h0": states, "c0": states} if state else {})
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()]
    if lengths:
        inputs.insert(1, helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"]))
    results = {"y": [*sequence, lstm.spec.output_size], "h_n": states, "c_n": states}
    outputs = [helper.make_tensor_value_info(name, kind, shape) for name, shape in results.items()]
    constants = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "lstm", inputs, outputs, constants)
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="fastlstm")
    onnx.checker.check_model(model)
    return model


def _attributes(cell: LSTMCellOptions, D: int) -> dict[str, Any]:
    attributes: dict[str, Any] = {"input_forget": int(cell.coupled_input_forget)}
    if cell.gate_clip is not None:
        attributes["clip"] = cell.gate_clip
    if cell.activations != TEXTBOOK:
        functions = [*cell.activations] * D
        attributes["activations"] = [onnx_name(function.name) for function in functions]
        for place, which in enumerate(("activation_alpha", "activation_beta")):
            values = [function[1 + place] for function in functions if parameters(function.name)[place]]
            attributes |= {which: values} if values else {}
    return attributes
