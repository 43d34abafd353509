"""The native sLSTM against the NumPy one in float64, against differences, and against itself to the last bit."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import fastlstm
from cases import TOLERANCE, assert_close, assert_same_bits, relative_error
from fastlstm import SLSTM, slstm, slstm_reference
from fastlstm.slstm_weights import SLSTMSpec, SLSTMState
from slstm_cases import (
    EVERY_MARK,
    MARKED,
    SHAPES,
    SHARED,
    Case,
    astype,
    infer,
    map_arrays,
    outputs_of,
    problem,
    rows_of,
    solve,
    truth_of,
)

# truth


def allowed(numpy: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, float]:
    """What an array may be off in float32 where the tolerance is less, beside NumPy's results in that dtype."""
    if numpy["y"].dtype != np.float32:
        return {}
    times = TOLERANCE["times NumPy, sLSTM"]
    least = {name: times * relative_error(numpy[name], array) for name, array in expected.items() if array.any()}
    if expected["m_n"].any():  # a sum that may cancel
        least["m_n"] = max(least["m_n"], TOLERANCE["float32"] / float(np.abs(expected["m_n"]).max()))
    return least


@pytest.mark.parametrize("case", [*SHAPES, *MARKED, *SHARED], ids=str)
def test_is_the_reference(isa: str, dtype: str, case: Case) -> None:
    p, options = case.problem()
    p = astype(p, dtype)
    expected = truth_of(case)
    assert_close(solve(p, slstm, **options), expected, dtype, least=allowed(solve(p, **options), expected))


def test_gates_far_out_are_the_reference_and_stay_finite(isa: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.choice([-1e4, -80.0, -1.0, 0.0, 1.0, 80.0, 1e4], (50, 4, 4 * 6))
    p = {"weights": {"weight_hh": np.zeros((24, 3))}, "x": x, "state": None, "dy": np.ones((50, 4, 6)), "dstate": None}
    found, expected = solve(astype(p, dtype), slstm), solve(p)
    assert np.abs(found["y"]).max() <= 1 + 1e-6 and found["n_n"].min() >= 1
    assert_close(found, expected, dtype, least=allowed(solve(astype(p, dtype)), expected))


@pytest.mark.parametrize("repeated", ["zero", "repeat"])
@pytest.mark.parametrize("spec", [SLSTMSpec(2, 6, 2), SLSTMSpec(0, 3, 1, bias=False)], ids=str)
def test_gradients_are_slopes(isa: str, spec: SLSTMSpec, repeated: str) -> None:
    p, options = Case("", spec, 5, 3, masked_output=repeated, **EVERY_MARK).problem()
    p, step = map_arrays(p, np.copy), 1e-3

    def loss() -> float:
        found = infer(p, **options)
        parts = zip(p["dstate"], "hcnm", strict=True)
        return float((found["y"] * p["dy"]).sum() + sum((found[f"{name}_n"] * d).sum() for d, name in parts))

    def slopes(array: np.ndarray) -> np.ndarray:
        slope = np.empty_like(array)
        for i in range(array.size):
            before, sides = array.flat[i], []
            for h in (step, -step, 2 * step, -2 * step):
                array.flat[i] = before + h
                sides.append(loss())
            array.flat[i] = before
            slope.flat[i] = (8 * (sides[0] - sides[1]) - (sides[2] - sides[3])) / (12 * step)
        return slope

    found = solve(p, slstm, **options)
    arrays = {"dx": p["x"]} | {f"d{part}0": array for part, array in p["state"]._asdict().items()}
    arrays |= {"d" + name: array for name, array in p["weights"].items()}
    for name, array in arrays.items():
        assert relative_error(found[name], slopes(array)) <= TOLERANCE["finite differences"], name


def test_each_gradient_may_be_left_out(isa: str) -> None:
    p = problem(SLSTMSpec(5, 22, 2))
    _, _, tape = slstm.slstm_forward(p["x"], p["weights"], p["state"])
    zeros = SLSTMState(*(np.zeros_like(part) for part in p["dstate"]))
    given = [
        (slstm.slstm_backward(tape, p["dy"]), slstm.slstm_backward(tape, p["dy"], zeros)),
        (slstm.slstm_backward(tape, None, p["dstate"]), slstm.slstm_backward(tape, 0 * p["dy"], p["dstate"])),
        (slstm.slstm_backward(tape), slstm.slstm_backward(tape, 0 * p["dy"], zeros)),
    ]
    for left_out, zero in given:
        np.testing.assert_array_equal(left_out.x, zero.x)
        np.testing.assert_array_equal(left_out.state, zero.state)


# to the last bit


@pytest.mark.parametrize("case", SHARED, ids=str)
def test_any_number_of_threads(isa: str, dtype: str, case: Case) -> None:
    p, options = case.problem()
    p = astype(p, dtype)
    one, one_inferred = solve(p, slstm, threads=1, **options), infer(p, threads=1, **options)
    for threads in (2, 3, 4):
        assert_same_bits(solve(p, slstm, threads=threads, **options), one)
        assert_same_bits(infer(p, threads=threads, **options), one_inferred)


@pytest.mark.parametrize("marks", [{}, EVERY_MARK], ids=["plain", "marked"])
@pytest.mark.parametrize("spec", [SLSTMSpec(9, 74, 2), SLSTMSpec(0, 9, 3)], ids=str)
def test_any_batch_around_a_row(isa: str, dtype: str, spec: SLSTMSpec, marks: dict[str, str]) -> None:
    p, options = Case("", spec, 7, 71, **marks).problem()
    p = astype(p, dtype)
    whole, inferred = solve(p, slstm, **options), infer(p, **options)
    by_row = [name for name in whole if not name.startswith(("dweight", "dbias"))]
    rng = np.random.default_rng(1)
    for batch in (1, 2, 3, 4, 6, 7, 13, 49, 71):
        rows = rng.permutation(71)[:batch]
        part, part_options = rows_of(p, options, rows)
        found = solve(part, slstm, **part_options)
        assert_same_bits({name: found[name] for name in by_row}, {name: whole[name][:, rows] for name in by_row})
        assert_same_bits(infer(part, **part_options), {name: array[:, rows] for name, array in inferred.items()})


@pytest.mark.parametrize("case", [*SHAPES, *MARKED], ids=str)
def test_training_gives_what_inference_gives(isa: str, dtype: str, case: Case) -> None:
    p, options = case.problem()
    p = astype(p, dtype)
    assert_same_bits(solve(p, slstm, **options), infer(p, **options))


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("batch", [1, 3, 50])
def test_piece_by_piece_is_the_whole_sequence(isa: str, dtype: str, batch: int, size: int) -> None:
    p, options = Case("", SLSTMSpec(9, 74, 2), 19, batch, mask="random", reset="random").problem()
    p = astype(p, dtype)
    whole, packed, state, ys = infer(p, **options), slstm.PackedSLSTMWeights.of(p["weights"]), p["state"], []
    for start in range(0, 19, size):
        steps = slice(start, start + size)
        part = options | {name: options[name][steps] for name in ("mask", "reset")}
        y, state, _ = slstm.slstm_forward(p["x"][steps], packed, state, **part)
        ys.append(y)
    assert_same_bits(outputs_of(np.concatenate(ys), state), whole)


def test_layouts_strides_and_marks_that_say_the_same(isa: str, dtype: str) -> None:
    p, options = Case("", SLSTMSpec(9, 74, 2), 9, 6, lengths="any_order").problem()
    p = astype(p, dtype)
    expected = solve(p, slstm, **options)
    inside = np.arange(9)[:, None] < options["lengths"]
    assert_same_bits(solve(p, slstm, mask=inside), expected)
    swapped = p | {name: np.ascontiguousarray(p[name].swapaxes(0, 1)) for name in ("x", "dy")}
    found = solve(swapped, slstm, batch_first=True, **options)
    assert_same_bits(found | {name: found[name].swapaxes(0, 1) for name in ("y", "dx")}, expected)
    strided = map_arrays(p, lambda array: np.repeat(array, 2, axis=-1)[..., ::2])
    assert_same_bits(solve(strided, slstm, **options), expected)
    row, row_options = rows_of(p, options, np.array([2]))
    alone = map_arrays(row, lambda array: array[:, 0] if array.ndim == 3 else array)
    batched, found = solve(row, slstm, **row_options), solve(alone, slstm, lengths=int(row_options["lengths"][0]))
    assert_same_bits(found, {name: a[:, 0] if a.ndim == 3 else a for name, a in batched.items()})


def test_backward_repeats_and_ignores_what_the_caller_changed(isa: str) -> None:
    p, options = Case("", SLSTMSpec(5, 22, 2), mask="random").problem()
    p = map_arrays(p, np.copy)
    _, _, tape = slstm.slstm_forward(p["x"], p["weights"], p["state"], **options)
    first = slstm.slstm_backward(tape, p["dy"], p["dstate"])
    for array in (p["x"], *p["weights"].values(), *p["state"], options["mask"]):
        array[...] = 0
    second = slstm.slstm_backward(tape, p["dy"], p["dstate"])
    assert_same_bits(second.weights | {"x": second.x}, first.weights | {"x": first.x})
    assert tape.nbytes > 0


def test_what_does_not_count_is_never_read(isa: str, dtype: str) -> None:
    p, options = Case("", SLSTMSpec(5, 22, 2), 9, 6, **EVERY_MARK).problem()
    p = map_arrays(astype(p, dtype), np.copy)
    expected = solve(p, slstm, **options)
    counts = (np.arange(9)[:, None] < options["lengths"]) & options["mask"]
    p["x"][~counts], p["dy"][~counts] = np.nan, np.nan
    assert_same_bits(solve(p, slstm, **options), expected)


def test_nan_is_not_swallowed(isa: str, dtype: str) -> None:
    for gate in range(4):
        p = astype(problem(SLSTMSpec(0, 22, 2), 6, 3), dtype)
        p["x"][2, 1, gate * 22 + 5] = np.nan
        y = infer(p)["y"]
        assert np.isnan(y[2, 1, 5]) and np.isfinite(y[:, [0, 2]]).all() and np.isfinite(y[:2]).all()
        assert np.isnan(y[3:, 1, :11]).all() and np.isfinite(y[:, 1, 11:]).all()  # of its head, all units


# the layer


def test_layer_computes_what_its_weights_say(isa: str, dtype: str) -> None:
    layer = SLSTM(5, 22, 2, batch_first=True, dtype=dtype, seed=0)
    x = np.random.default_rng(0).standard_normal((3, 6, 5)).astype(dtype)
    weights = {name: array + np.asarray(0.1, dtype) for name, array in layer.weights.items()}
    layer(x)  # packs the first weights
    with layer.updating() as drafts:
        for name in drafts:
            drafts[name][...] = weights[name]
    y, state, tape = layer.forward(x, mask=np.ones((3, 6)))
    expected, last, _ = slstm.slstm_forward(x, weights, batch_first=True)
    assert_same_bits(outputs_of(y, state), outputs_of(expected, last))
    assert_same_bits(outputs_of(*layer(x)), outputs_of(expected, last))
    out = np.empty_like(y)
    assert layer(x, out=out)[0] is out and (out == y).all()
    layer.weights["bias"] = np.zeros_like(weights["bias"])  # backward is of the weights that forward used
    assert (layer.backward(tape, dy=y).x == slstm.slstm_backward(tape, y).x).all()
    assert (layer(x)[0] != y).any()


def test_layer_copies_and_pickles() -> None:
    layer = SLSTM(5, 22, 2, bias=False, dtype="float64", seed=0)
    x = np.ones((4, 2, 5))
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert repr(twin) == repr(layer) == "SLSTM(5, 22, num_heads=2, bias=False, dtype=float64)"
        assert_same_bits(outputs_of(*twin(x)), outputs_of(*layer(x)))
    other = SLSTM(5, 22, 2, bias=False, dtype="float64", seed=1)
    other.load_state_dict(layer.state_dict())
    assert_same_bits(outputs_of(*other(x)), outputs_of(*layer(x)))


def test_layer_packs_for_the_active_instruction_set() -> None:
    layer, x = SLSTM(5, 22, 2, seed=0), np.ones((4, 2, 5), np.float32)
    for isa in fastlstm.build_config()["isa_runnable"]:
        fastlstm.set_isa(isa)
        layer(x)
        assert layer._pack().native.isa == isa


# bad input


def arguments(**change: Any) -> dict[str, Any]:
    p = problem(SLSTMSpec(4, 6, 3))
    return {name: p[name] for name in ("x", "weights", "state")} | change


ZEROS = np.zeros((1, 3, 6))
BAD_CALLS = {
    "x_of_another_size": ({"x": np.zeros((6, 3, 5))}, ValueError, r"x has shape \(6, 3, 5\).* need input size 4"),
    "x_of_another_dtype": ({"x": np.zeros((6, 3, 4), np.float32)}, TypeError, "x has dtype float32.*float64"),
    "x_of_four_axes": ({"x": np.zeros((1, 6, 3, 4))}, ValueError, "x has shape .*expected"),
    "x_a_list": ({"x": [[[0.0]]]}, TypeError, "x is a .*list.*expected"),
    "state_of_two": ({"state": (None, None)}, ValueError, r"state has 2 entries: expected four \(h, c, n, m\)"),
    "state_an_array": ({"state": ZEROS}, TypeError, r"state is a numpy.ndarray: expected four \(h, c, n, m\)"),
    "state_of_another_shape": (
        {"state": (None, None, None, np.zeros((3, 6)))},
        ValueError,
        r"state\[3\] \(m0\) has shape \(3, 6\): expected \(1, 3, 6\)",
    ),
    "lengths_too_long": ({"lengths": [9, 0, 0]}, ValueError, r"lengths\[0\] is 9"),
    "mask_of_another_shape": ({"mask": np.ones((3, 6))}, ValueError, r"mask has shape \(3, 6\): expected \(6, 3\)"),
    "reset_of_words": ({"reset": np.full((6, 3), "no")}, TypeError, "reset has dtype"),
    "masked_output": ({"masked_output": "hold"}, ValueError, "masked_output is 'hold', expected"),
    "batch_first": ({"batch_first": 1}, TypeError, "batch_first is 1, .*expected True or False"),
    "training": ({"training": "yes"}, TypeError, "training is 'yes', .*expected True or False"),
    "threads": ({"threads": 0}, ValueError, "threads is 0: expected"),
    "out_of_another_shape": ({"out": np.zeros((6, 3, 5))}, ValueError, r"out has shape .*expected \(6, 3, 6\)"),
    "no_weight_hh": ({"weights": {"weight_ih": np.zeros((24, 4))}}, ValueError, "no weight_hh"),
    "weight_hh_of_another_shape": (
        {"weights": {"weight_hh": np.zeros((24, 4))}},
        ValueError,
        r"weight_hh has shape \(24, 4\)",
    ),
    "an_unknown_weight": ({"weights": {"weight_hh": np.zeros((24, 3)), "weight_hr": 0}}, ValueError, "weight_hr"),
    "weights_of_integers": ({"weights": {"weight_hh": np.zeros((24, 3), int)}}, TypeError, "dtype int64, expected"),
    "weights_of_two_dtypes": (
        {"weights": {"weight_hh": np.zeros((24, 3)), "bias": np.zeros(24, np.float32)}},
        TypeError,
        "bias has dtype float32",
    ),
}


@pytest.mark.parametrize(("change", "error", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_wrong_argument_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        slstm.slstm_forward(**arguments(**change))


@pytest.mark.parametrize("name", ["x", *(f"state[{i}] ({part}0)" for i, part in enumerate("hcnm"))])
def test_out_may_overlap_no_input(name: str) -> None:
    p = problem(SLSTMSpec(6, 6, 3))
    memory = np.zeros(p["x"].size + 6 * 3 * 6)
    shared = memory[: p["x"].size] if name == "x" else memory[: 3 * 6]
    out = memory[shared.size - 1 :][: 6 * 3 * 6].reshape(6, 3, 6)
    if name == "x":
        p["x"] = shared.reshape(6, 3, 6)
    else:
        p["state"] = tuple(shared.reshape(1, 3, 6) if f"({part}0)" in name else None for part in "hcnm")
    with pytest.raises(ValueError, match="out overlaps") as raised:
        slstm.slstm_forward(p["x"], p["weights"], p["state"], out=out)
    assert f"out overlaps {name}:" in str(raised.value)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tape": None}, TypeError, "tape is a NoneType, expected the tape of a training slstm_forward"),
        ({"dy": np.zeros((6, 3, 5))}, ValueError, r"dy has shape \(6, 3, 5\): expected \(6, 3, 6\)"),
        ({"dy": np.zeros((6, 3, 6), np.float32)}, TypeError, "dy has dtype float32"),
        ({"dstate": (ZEROS, ZEROS)}, ValueError, "dstate has 2 entries: expected four"),
        ({"dstate": (ZEROS, ZEROS[0], None, None)}, ValueError, r"dstate\[1\] \(c_n\) has shape \(3, 6\)"),
        ({"threads": 1.5}, TypeError, "threads is a .*float.*expected a positive integer"),
    ],
)
def test_wrong_argument_of_backward_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    _, _, tape = slstm.slstm_forward(**arguments())
    with pytest.raises(error, match=message):
        slstm.slstm_backward(**({"tape": tape} | change))


def test_the_tape_of_the_reference_is_none_of_ours() -> None:
    _, _, tape = slstm_reference.slstm_forward(**arguments())
    with pytest.raises(TypeError, match="tape is a SLSTMTape, expected"):
        slstm.slstm_backward(tape)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_heads": 5}, ValueError, "num_heads is 5, but hidden_size is 6: expected a divisor"),
        ({"dtype": "float16"}, TypeError, "dtype is float16, expected float32 or float64"),
        ({"bias": False, "forget_bias": 1.0}, ValueError, "forget_bias is 1.0, but bias is False"),
    ],
)
def test_wrong_argument_of_the_layer_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SLSTM(**({"input_size": 4, "hidden_size": 6, "num_heads": 2} | change))


def test_weights_are_the_layers_own() -> None:
    layer = SLSTM(4, 6, 3, seed=0)
    with pytest.raises(ValueError, match="read-only"):
        layer.weights["bias"][0] = 1
    with pytest.raises(KeyError, match="no weight of this layer"):
        layer.weights["weight_ih_l0"] = np.zeros((24, 4), np.float32)
    with pytest.raises(ValueError, match="lacks bias"):
        layer.load_state_dict({name: layer.weights[name] for name in ("weight_ih", "weight_hh")})
