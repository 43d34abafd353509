"""`fastlstm.onnx`: onnx's own node tests; models written and read; what is refused.

`test_against_onnxruntime.py` holds the numbers.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cases import TOLERANCE, relative_error
from fastlstm import LSTM, LSTMCellOptions, exchange

onnx = pytest.importorskip("onnx")
from onnx import helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

import fastlstm.onnx  # noqa: E402


def node_cases() -> dict[str, Any]:
    """onnx's own node tests of LSTM, which every backend has to pass, by name."""
    from onnx.backend.test.case import node
    from onnx.backend.test.case.node import lstm  # noqa: F401, importing it registers them

    return {case.name: case for case in node._NodeTestCases if case.name.startswith("test_lstm_")}


CASES = node_cases()


def test_onnx_has_the_node_tests_that_were_here() -> None:
    names = ("defaults", "with_initial_bias", "with_peepholes", "batchwise", "reverse", "bidirectional")
    assert {f"test_lstm_{name}" for name in names} <= CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_node(name: str) -> None:
    case = CASES[name]
    evaluator = ReferenceEvaluator(case.model, new_ops=[fastlstm.onnx.LSTM])
    for inputs, outputs in case.data_sets:
        found = evaluator.run(None, dict(zip(evaluator.input_names, inputs, strict=True)))
        for ours, expected in zip(found, outputs, strict=True):
            np.testing.assert_allclose(ours, expected, rtol=case.rtol, atol=case.atol)


def one_node(inputs: dict[str, np.ndarray], outputs: tuple[str, ...] = ("Y", "Y_h", "Y_c"), **attributes: Any) -> Any:
    """A model of one LSTM node whose weights are initializers."""
    kinds = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in inputs.items()}
    order = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
    node = helper.make_node("LSTM", [n if n in inputs else "" for n in order], outputs, "the_node", **attributes)
    x = helper.make_tensor_value_info("X", kinds["X"], inputs["X"].shape)
    results = [helper.make_tensor_value_info(name, kinds["X"], None) for name in outputs if name]
    constants = [numpy_helper.from_array(array, name) for name, array in inputs.items() if name != "X"]
    return helper.make_model(helper.make_graph([node], "g", [x], results, constants), ir_version=10)


def inputs_of(T: int = 6, B: int = 3, I: int = 4, H: int = 5, D: int = 1, dtype: Any = np.float32) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shapes = {"X": (T, B, I), "W": (D, 4 * H, I), "R": (D, 4 * H, H), "B": (D, 8 * H)}
    return {name: rng.uniform(-0.6, 0.6, shape).astype(dtype) for name, shape in shapes.items()}


def test_the_evaluator_gets_the_outputs_that_the_node_has() -> None:
    inputs = inputs_of()
    Y, _, Y_c = fastlstm.onnx.lstm(**inputs, clip=0.5)
    for outputs, expected in {("Y",): [Y], ("", "", "Y_c"): [Y_c]}.items():
        evaluator = ReferenceEvaluator(one_node(inputs, outputs, clip=0.5), new_ops=[fastlstm.onnx.LSTM])
        for found, array in zip(evaluator.run(None, {"X": inputs["X"]}), expected, strict=True):
            np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype: str) -> None:
    half = np.dtype(getattr(pytest.importorskip("ml_dtypes"), dtype) if dtype == "bfloat16" else dtype)
    inputs = inputs_of(dtype=half)
    wide = fastlstm.onnx.lstm(**{name: array.astype(np.float32) for name, array in inputs.items()})
    for found, expected in zip(fastlstm.onnx.lstm(**inputs), wide, strict=True):
        assert found.dtype == half
        np.testing.assert_array_equal(found, expected.astype(half))


def test_a_row_of_no_steps_keeps_its_state() -> None:
    inputs, state = inputs_of(), np.full((1, 3, 5), 0.25, np.float32)
    states = {"initial_h": state, "initial_c": 2 * state}
    Y, Y_h, Y_c = fastlstm.onnx.lstm(**inputs, **states, sequence_lens=np.array([6, 0, 2]), direction="reverse")
    assert not Y[:, 0, 1].any() and (Y_h[0, 1] == 0.25).all() and (Y_c[0, 1] == 0.5).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"direction": "backward"}, ValueError, "direction is 'backward', expected one of 'forward', 'reverse'"),
        ({"direction": "bidirectional"}, ValueError, r"R has shape \(1, 20, 5\), but direction is 'bidirectional'"),
        ({"activations": ["Sigmoid", "Tanh"]}, ValueError, "activations has 2 names, expected three for each"),
        ({"activations": ["Sigmoid", "Tanh", "Gelu"]}, ValueError, "activations has 'Gelu', expected one of Sigmoid,"),
        ({"activations": ["Affine", "Tanh", "Tanh"]}, ValueError, "has no alpha"),
        ({"activation_beta": [0.5]}, ValueError, "activation_beta has more values than the activations Sigmoid, Tanh"),
        ({"clip": 0.0}, ValueError, r"clip is 0\.0, expected a positive number"),
        ({"input_forget": 2}, ValueError, "input_forget is 2, expected 0 or 1"),
        ({"hidden_size": 4}, ValueError, r"hidden_size is 4, but R has shape \(1, 20, 5\)"),
        ({"layout": 2}, ValueError, "layout is 2, expected 0 or 1"),
        ({"X": np.ones((6, 4), np.float32)}, ValueError, r"X has shape \(6, 4\), expected \(T, B, I\)"),
        ({"W": np.ones((1, 20, 4))}, TypeError, "W has dtype float64, expected float32"),
        ({"R": np.ones((1, 20, 6), np.float32)}, ValueError, r"R has shape \(1, 20, 6\), expected \(num_directions"),
        ({"B": np.ones((1, 20), np.float32)}, ValueError, r"B has shape \(1, 20\), expected \(1, 40\)"),
        ({"P": np.ones((1, 20), np.float32)}, ValueError, r"P has shape \(1, 20\), expected \(1, 15\)"),
        ({"initial_h": np.ones((3, 5), np.float32)}, ValueError, r"initial_h has shape \(3, 5\), expected \(1, 3, 5\)"),
        ({"sequence_lens": [7, 1, 1]}, ValueError, r"sequence_lens\[0\] is 7, but there are 6 steps"),
        ({"sequence_lens": [1, 1]}, ValueError, r"sequence_lens has shape \(2,\), expected \(3,\)"),
        ({"X": np.ones((6, 3, 4), np.int32)}, TypeError, "expected int32"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_the_operator_refuses(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fastlstm.onnx.lstm(**inputs_of() | change)


LAYERS = {
    "one_layer": {},
    "without_bias": {"bias": False},
    "peepholes_batch_first": {"peepholes": True, "batch_first": True, "bidirectional": True},
    "three_layers": {"num_layers": 3, "bidirectional": True, "dropout": 0.5},
    "two_layers_batch_first": {"num_layers": 2, "batch_first": True},
    "another_cell": {
        "num_layers": 2,
        "cell": LSTMCellOptions(
            (("hard_sigmoid", 0.25, 0.5), ("scaled_tanh", 0.5, 1.5), ("elu", 0.25)), True, gate_clip=1.5
        ),
    },
}


@pytest.mark.parametrize("inputs", [(), ("lengths",), ("state",), ("lengths", "state")], ids=" and ".join)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_written_model_runs_in_onnxruntime(layer: str, inputs: tuple[str, ...], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    lstm = LSTM(5, 7, seed=1, **LAYERS[layer])
    model = lstm.to_onnx(tmp_path / "lstm.onnx", **dict.fromkeys(inputs, True))
    sessions = {
        "onnxruntime": onnxruntime.InferenceSession(tmp_path / "lstm.onnx", providers=["CPUExecutionProvider"]).run,
        "onnx": ReferenceEvaluator(model, new_ops=[fastlstm.onnx.LSTM]).run,
    }
    rng = np.random.default_rng(0)
    for T, B in ((1, 1), (9, 2), (4, 6)):  # one model, any T and B
        x = rng.standard_normal((B, T, 5) if lstm.batch_first else (T, B, 5), np.float32)
        rows = lstm.num_layers * lstm.spec.num_directions
        given: dict[str, Any] = {"lengths": rng.integers(1, T + 1, B, np.int32)} if "lengths" in inputs else {}
        state = tuple(rng.standard_normal((rows, B, 7), np.float32) for _ in range(2)) if "state" in inputs else None
        y, (h_n, c_n) = lstm(x, state, **given)
        feed = {"x": x} | given | ({} if state is None else {"h0": state[0], "c0": state[1]})
        for name, run in sessions.items():
            for found, ours in zip(run(["y", "h_n", "c_n"], feed), (y, h_n, c_n), strict=True):
                assert found.shape == ours.shape
                assert relative_error(found, ours) <= (TOLERANCE["onnxruntime"] if name == "onnxruntime" else 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_written_model_is_read_again(layer: str, dtype: str, tmp_path: Path) -> None:
    lstm = LSTM(5, 7, dtype=dtype, seed=1, **LAYERS[layer])
    lstm.to_onnx(tmp_path / "lstm.onnx")
    again = LSTM.from_onnx(tmp_path / "lstm.onnx")
    assert (again.spec, again.dtype, again.cell) == (lstm.spec, lstm.dtype, lstm.cell)
    assert not again.batch_first  # the nodes are time-major, as onnxruntime wants them
    for name, weight in lstm.weights.items():
        np.testing.assert_array_equal(again.weights[name], weight)


def test_a_model_says_what_it_takes() -> None:
    graph = LSTM(5, 7, batch_first=True).to_onnx(lengths=True, state=True).graph
    shapes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input}
    assert shapes == {"x": ["B", "T", 5], "lengths": ["B"], "h0": [1, "B", 7], "c0": [1, "B", 7]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proj_size": 3}, "weights has weight_hr_l0, which ONNX's LSTM has not"),
        ({"layer_norm": True}, "weights has gamma_ih_l0, which ONNX's LSTM has not"),
        ({"cell": LSTMCellOptions(cell_clip=1.0)}, "ONNX's LSTM has neither cell_clip nor zoneout"),
        ({"cell": LSTMCellOptions(zoneout_h=0.1)}, "ONNX's LSTM has neither cell_clip nor zoneout"),
    ],
)
def test_no_model_is_written_of(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        LSTM(5, 7, **options).to_onnx(tmp_path / "lstm.onnx")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="expected input_size above 0"):
        LSTM(0, 7).to_onnx()


@pytest.mark.parametrize("layers", [1, 2])
def test_reads_what_torch_writes(layers: int) -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.nn.LSTM(4, 5, layers, bidirectional=True, batch_first=True)
    file, x = io.BytesIO(), torch.randn(3, 6, 4)
    with pytest.warns(Warning):  # of torch's old exporter, which needs no other package
        torch.onnx.export(theirs, (x,), file, dynamo=False)
    ours = LSTM.from_onnx(onnx.load_from_string(file.getvalue()))
    expected, _ = theirs(x)
    y, _ = ours(np.ascontiguousarray(x.numpy().swapaxes(0, 1)))  # the nodes are time-major
    assert relative_error(y.swapaxes(0, 1), expected.detach().numpy()) <= TOLERANCE["onnxruntime"]


def test_reads_weights_that_the_model_computes_of_constants() -> None:
    """As exporters without constant folding write them."""
    inputs = inputs_of()
    model = one_node(inputs)
    graph = model.graph
    kept = {tensor.name: tensor for tensor in graph.initializer}
    graph.initializer.remove(kept["W"])
    for name, half in zip(("W0", "W1"), np.split(inputs["W"], 2, axis=1), strict=True):
        graph.node.insert(0, helper.make_node("Constant", [], [name], value=numpy_helper.from_array(half)))
    graph.node.insert(2, helper.make_node("Concat", ["W0", "W1"], ["W2"], axis=1))
    graph.node.insert(3, helper.make_node("Identity", ["W2"], ["W"]))
    whole = LSTM.from_onnx(one_node(inputs)).weights
    for name, weight in LSTM.from_onnx(model).weights.items():
        np.testing.assert_array_equal(weight, whole[name])


def test_nodes_are_chosen_by_name_output_or_number() -> None:
    model = LSTM(5, 7, num_layers=2, seed=0).to_onnx()
    first, second = LSTM.from_onnx(model, 0), LSTM.from_onnx(model, "h_n_l1")
    assert (first.input_size, second.input_size) == (5, 7)
    assert LSTM.from_onnx(model, ["lstm_l0", 1]).num_layers == 2
    for wrong in ("lstm", 2):
        with pytest.raises(ValueError, match=f"node is {wrong!r}, but the model's LSTM nodes are lstm_l0, lstm_l1"):
            LSTM.from_onnx(model, wrong)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_reads_half_precision_into_float32(dtype: str) -> None:
    half = np.dtype(getattr(pytest.importorskip("ml_dtypes"), dtype) if dtype == "bfloat16" else dtype)
    inputs = inputs_of(dtype=half)
    lstm = LSTM.from_onnx(one_node(inputs))
    W = exchange.to_onnx(lstm.state_dict())["W"]
    assert lstm.dtype == np.float32 and (W == inputs["W"].astype(np.float32)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"direction": "reverse"}, "direction of the LSTM node 'the_node' is 'reverse'"),
        ({"output_sequence": 1}, "'the_node' has the attributes output_sequence: expected those of opset 22"),
        ({"activations": ["Relu", "Tanh"]}, "activations has 2 names"),
        ({"initial_h": np.ones((1, 3, 5), np.float32)}, "initial_h of the LSTM node 'the_node' is not 0"),
    ],
)
def test_reading_refuses(change: dict[str, Any], message: str) -> None:
    arrays = {name: value for name, value in change.items() if isinstance(value, np.ndarray)}
    attributes = {name: value for name, value in change.items() if name not in arrays}
    with pytest.raises(ValueError, match=message):
        LSTM.from_onnx(one_node(inputs_of() | arrays, **attributes))


def test_reading_refuses_weights_that_are_inputs_and_nodes_that_are_no_stack() -> None:
    model = one_node(inputs_of())
    del model.graph.initializer[0]
    with pytest.raises(ValueError, match="W of the LSTM node 'the_node' depends on the model's inputs"):
        LSTM.from_onnx(model)
    two = LSTM(5, 5, num_layers=2).to_onnx()
    next(node for node in two.graph.node if node.name == "lstm_l1").input[0] = "x_l0"
    with pytest.raises(ValueError, match="LSTM nodes are lstm_l0, lstm_l1: expected one, a stack of layers, or node="):
        LSTM.from_onnx(two)
    two.graph.ClearField("node")
    with pytest.raises(ValueError, match="LSTM nodes are none"):
        LSTM.from_onnx(two)
