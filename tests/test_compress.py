"""Compressed weights: exact arithmetic on rounded weights, and what the rounding costs a trained net."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest

import fastlstm
from cases import (
    DEEP,
    EVERYTHING,
    OPTIONS,
    SHAPES,
    SHARED,
    TOLERANCE,
    Case,
    Problem,
    assert_close,
    make_problem,
    problem_of,
    relative_error,
)
from cell_cases import ALONE, VARIANTS, variant_of
from fastlstm import LSTM, functional, optim, reference
from fastlstm.cells import PLAIN
from fastlstm.compressed import CompressedLSTM, expanded, to_bf16, to_int8
from fastlstm.weights import WeightSpec

STORAGES = ["bf16", "int8"]
WIDE = [
    Case("inputs_of_several_chains", WeightSpec(301, 259), 5, 2),
    Case("rows_of_wide_weights", WeightSpec(301, 259), 3, 50),
]
CASES = [case for case in (*SHAPES, *SHARED, *OPTIONS, *EVERYTHING, *WIDE) if not case.dropout]
OTHER_CELLS = [variant_of(name, Case("", WeightSpec(7, 37, 2), 9, 5, mask="random")) for name in VARIANTS]
OTHER_CELLS += [variant_of(name, Case("", WeightSpec(7, 37), 9, 1)) for name in ALONE]


def compressed(problem: Problem, storage: str) -> CompressedLSTM:
    spec = WeightSpec.from_weights(problem.weights)
    batch_first, cell = bool(problem.options.get("batch_first")), problem.options.get("cell", PLAIN)
    return CompressedLSTM.of(spec, batch_first, problem.weights, storage, cell)


def infer(lstm: CompressedLSTM, problem: Problem, threads: int | None = None) -> dict[str, np.ndarray]:
    options = {name: value for name, value in problem.options.items() if name in MARKS}
    y, (h_n, c_n), cells = lstm(problem.x, problem.state, return_cells=True, threads=threads, **options)
    return {"y": y, "h_n": h_n, "c_n": c_n, "cells": cells}


MARKS = ("lengths", "mask", "reset", "masked_output")


def truth(lstm: CompressedLSTM, problem: Problem, dtype: str = "float64") -> dict[str, np.ndarray]:
    """The reference in float64, with the weights as they were rounded."""
    weights = {name: array.astype(dtype) for name, array in lstm.weights.items()}
    problem = problem.astype(dtype)
    options = {name: value for name, value in problem.options.items() if name in (*MARKS, "batch_first", "cell")}
    options |= {"return_cells": True, "training": False}
    y, (h_n, c_n), cells, _ = reference.lstm_forward(problem.x, weights, problem.state, **options)
    return {"y": y, "h_n": h_n, "c_n": c_n, "cells": cells}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bf16_is_the_reference_on_rounded_weights(isa: str, case: Case) -> None:
    problem = problem_of(case).astype("float32")
    lstm = compressed(problem, "bf16")
    assert_close(infer(lstm, problem), truth(lstm, problem), "float32")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_int8_is_the_reference_on_rounded_weights_but_for_16_bits_of_h(isa: str, case: Case) -> None:
    problem = problem_of(case).astype("float32")
    lstm = compressed(problem, "int8")
    found, expected = infer(lstm, problem), truth(lstm, problem)
    for name, array in expected.items():
        if array.size:
            assert relative_error(found[name], array) <= TOLERANCE["16-bit activations"], name


@pytest.mark.parametrize("case", OTHER_CELLS, ids=str)
@pytest.mark.parametrize("storage", STORAGES)
def test_other_cells(isa: str, storage: str, case: Case) -> None:
    problem = problem_of(case).astype("float32")
    lstm = compressed(problem, storage)
    found, expected, rounded = infer(lstm, problem), truth(lstm, problem), truth(lstm, problem, "float32")
    one = infer(lstm, problem, threads=1)
    # Normalisation makes more of what is rounded, as much more as of what NumPy rounds in float32.
    grown = max(1.0, max(relative_error(rounded[name], expected[name]) for name in expected) / TOLERANCE["float32"])
    allowed = TOLERANCE["16-bit activations"] if storage == "int8" else 4 * TOLERANCE["float32"]
    for name, array in expected.items():
        assert relative_error(found[name], array) <= allowed * (20 * grown if case.spec.layer_norm else 1), name
        assert found[name].tobytes() == one[name].tobytes(), name


def levels(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows as whole numbers up to 32767, as the kernels round them, and what a level stands for."""
    magnitude = np.abs(a).max(axis=1, keepdims=True)
    per_level = np.where(magnitude >= 1e-30, np.float32(32767) / np.maximum(magnitude, np.float32(1e-30)), 0)
    return np.rint(a * per_level.astype(np.float32)).astype(np.int64), magnitude * (np.float32(1) / np.float32(32767))


@pytest.mark.parametrize(("inputs", "hidden"), [(9, 37), (1, 3), (301, 140)])
def test_int8_is_what_its_rounding_says(isa: str, inputs: int, hidden: int) -> None:
    """One layer step by step on whole numbers, with the rounding of x and h: as exact as float32 elsewhere."""
    problem = make_problem(Case("", WeightSpec(inputs, hidden), 6, 3)).astype("float32")
    lstm = compressed(problem, "int8")
    (w_x, s_x), (w_h, s_h) = (to_int8(problem.weights[f"weight_{kind}_l0"]) for kind in ("ih", "hh"))
    b = problem.weights["bias_ih_l0"].astype(np.float64) + problem.weights["bias_hh_l0"]
    h, c = (array[0] for array in problem.state)
    for step in problem.x:
        pre = b
        for a, w, scale in ((step, w_x, s_x), (h.astype(np.float32), w_h, s_h)):
            whole, worth = levels(a)
            pre = pre + (whole @ w.T.astype(np.int64)) * worth.astype(np.float64) * scale.T
        _, c, h = reference.cell_forward(pre, c.astype(np.float64))
    _, (h_n, c_n) = lstm(problem.x, problem.state)
    assert relative_error(h_n[0], h) <= TOLERANCE["float32"] + TOLERANCE["a level that rounds the other way"]
    assert relative_error(c_n[0], c) <= TOLERANCE["float32"] + TOLERANCE["a level that rounds the other way"]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("case", [*SHARED, *WIDE], ids=str)
def test_any_number_of_threads_and_any_batch(isa: str, storage: str, case: Case) -> None:
    problem = problem_of(replace(case, dropout=0.0)).astype("float32")
    lstm = compressed(problem, storage)
    one = infer(lstm, problem, threads=1)
    for threads in (2, 3):
        for name, array in infer(lstm, problem, threads=threads).items():
            assert array.tobytes() == one[name].tobytes(), name
    for row in (0, case.batch - 1):
        part = problem.rows(np.array([row]))
        for name, array in infer(lstm, part).items():
            assert array.tobytes() == np.ascontiguousarray(one[name][:, row : row + 1]).tobytes(), name


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_row(isa: str, storage: str, value: float) -> None:
    problem = make_problem(Case("", DEEP, 6, 4)).astype("float32")
    lstm = compressed(problem, storage)
    expected = infer(lstm, problem)["y"]
    x = problem.x.copy()
    x[2, 1, 3] = value
    y = infer(lstm, replace(problem, x=x))["y"]
    others = [0, 2, 3]
    assert (y[:, others] == expected[:, others]).all()
    if np.isnan(value):
        assert np.isnan(y[2:, 1]).any(axis=-1).all()


def test_rounding_to_bf16_is_to_the_nearest_even() -> None:
    exact = np.array([0, 1, -1, 1.5, 2**-126, 3.3895314e38], np.float32)
    assert (expanded(to_bf16(exact)) == exact).all()
    halfway = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20], np.float32)
    assert (expanded(to_bf16(halfway)) == np.array([1, 1 + 2**-6, 1 + 2**-7], np.float32)).all()
    a = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    assert (abs(expanded(to_bf16(a)) - a) <= abs(a) * 2**-8).all()


def test_rounding_to_int8_is_to_half_a_scale_and_happens_once() -> None:
    a = np.random.default_rng(0).standard_normal((200, 31)).astype(np.float32) * np.float32(10.0) ** np.arange(
        -100, 100
    )[:, None].clip(-30, 30)
    a[7] = 0
    numbers, scales = to_int8(a)
    assert numbers.dtype == np.int8 and abs(numbers.astype(int)).max() == 127
    assert (abs(expanded((numbers, scales)) - a) <= scales * np.float32(0.50001)).all()
    again = to_int8(expanded((numbers, scales)))
    assert (again[0] == numbers).all() and (again[1] == scales).all()


@pytest.mark.parametrize("storage", STORAGES)
def test_a_copy_computes_the_same_bits(isa: str, storage: str) -> None:
    lstm = LSTM(9, 37, 2, bidirectional=True, batch_first=True, seed=0).compress(storage)
    x = np.random.default_rng(0).standard_normal((3, 5, 9)).astype(np.float32)
    for other in (pickle.loads(pickle.dumps(lstm)), copy.deepcopy(lstm)):
        assert other(x)[0].tobytes() == lstm(x)[0].tobytes()
        assert other.batch_first and other.storage == storage
    refreshed = LSTM(9, 37, 2, bidirectional=True, batch_first=True)
    refreshed.load_state_dict(lstm.weights)
    assert refreshed.compress(storage)(x)[0].tobytes() == lstm(x)[0].tobytes()


def test_sizes_and_words() -> None:
    lstm = LSTM(256, 256, seed=0)
    whole = lstm._pack().native.nbytes
    sizes = {storage: lstm.compress(storage).nbytes for storage in STORAGES}
    assert sizes["bf16"] < 0.51 * whole and sizes["int8"] < 0.27 * whole
    assert repr(lstm.compress("int8")) == "CompressedLSTM(256, 256, storage='int8')"
    assert not hasattr(lstm.compress("int8"), "forward")


def test_bad_arguments() -> None:
    lstm = LSTM(3, 5, seed=0)
    with pytest.raises(ValueError, match="storage is 'fp8', expected one of 'bf16', 'int8'"):
        lstm.compress("fp8")
    with pytest.raises(TypeError, match="weight_ih_l0 has dtype float64: expected float32"):
        LSTM(3, 5, dtype=np.float64).compress("bf16")
    weights = lstm.state_dict()
    weights["weight_hh_l0"][3, 2] = np.inf
    lstm.load_state_dict(weights)
    with pytest.raises(ValueError, match="weight_hh_l0 contains values that are not finite"):
        lstm.compress("int8")
    packed = functional.PackedWeights.of(LSTM(3, 5, seed=0).state_dict(), storage="bf16")
    with pytest.raises(ValueError, match="training is True"):
        functional.lstm_forward(np.zeros((2, 1, 3), np.float32), packed)
    with pytest.raises(ValueError, match="storage is 'x'"):
        functional.PackedWeights.of(LSTM(3, 5, seed=0).state_dict(), storage="x")
    with pytest.raises(TypeError, match="expected float32"):
        functional.PackedWeights.of(LSTM(3, 5, dtype="f8", seed=0).state_dict(), storage="int8")
    with pytest.raises(ValueError, match="x has shape"):
        LSTM(3, 5).compress("bf16")(np.zeros((2, 1, 4), np.float32))


# What the rounding costs nets that have learnt something

COST = {  # the most that compressing may change: of the forecast, relative to its spread; of the digits read right
    "bf16": {"forecast": 0.01, "accuracy": 0.004},
    "int8": {"forecast": 0.015, "accuracy": 0.004},
}


@pytest.fixture(scope="module")
def forecaster():
    """A layer of 48 units and a line that learnt to say the next value of noisy waves: (lstm, line, x, errors)."""
    rng = np.random.default_rng(0)
    phase, period = rng.uniform(0, 6.3, (1, 256)), rng.uniform(8, 30, (1, 256))
    t = np.arange(61)[:, None]
    waves = (np.sin(phase + 6.283 * t / period) + 0.05 * rng.standard_normal((61, 256))).astype(np.float32)[..., None]
    lstm, line = LSTM(1, 48, forget_bias=1, seed=0), {"w": rng.standard_normal((48, 1)).astype(np.float32) / 7}
    adam = optim.Adam(lr=0.01)
    for _ in range(150):
        rows = rng.permutation(192)[:64]
        x, target = waves[:-1, rows], waves[1:, rows]
        y, _, tape = lstm.forward(x)
        error = (y @ line["w"] - target) / np.float32(target.size)
        gradients = lstm.backward(tape, dy=error @ line["w"].T).weights | {"w": np.einsum("tbh,tbo->ho", y, error)}
        with lstm.updating() as weights:
            both = weights | line
            adam.step(both, gradients)
    return lstm, line["w"], waves[:, 192:]


@pytest.mark.parametrize("storage", STORAGES)
def test_cost_to_a_trained_forecaster(forecaster, storage: str) -> None:
    lstm, w, waves = forecaster
    exact, rounded = (model(waves[:-1])[0] @ w for model in (lstm, lstm.compress(storage)))
    mistake = np.sqrt(np.mean((exact - waves[1:]) ** 2)) / waves.std()
    assert mistake < 0.3, "it has not learnt: the test shows nothing"
    assert np.abs(exact - rounded).max() / waves.std() < COST[storage]["forecast"]
    after = np.sqrt(np.mean((rounded - waves[1:]) ** 2)) / waves.std()
    assert after < 1.01 * mistake


@pytest.fixture(scope="module")
def reader():
    """A layer of 64 units and a softmax that learnt to read digits row by row: (lstm, w, images, labels)."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(images))
    images, labels = (images[order].reshape(-1, 8, 8) / 8 - 1).astype(np.float32), labels[order]
    lstm, dense = LSTM(8, 64, batch_first=True, seed=0), {"w": np.zeros((64, 10), np.float32)}
    adam = optim.Adam(lr=0.01)
    for start in 32 * np.tile(np.arange(40), 5):
        x, label = images[start : start + 32], labels[start : start + 32]
        _, (h_n, _), tape = lstm.forward(x)
        p = np.exp(h_n[0] @ dense["w"])
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(32), label] -= 1
        p /= 32
        gradients = lstm.backward(tape, dstate=((p @ dense["w"].T)[None], None)).weights | {"w": h_n[0].T @ p}
        with lstm.updating() as weights:
            adam.step(weights | dense, gradients)
    return lstm, dense["w"], images[1280:], labels[1280:]


@pytest.mark.parametrize("storage", STORAGES)
def test_cost_to_a_trained_reader_of_digits(reader, storage: str) -> None:
    lstm, w, images, labels = reader
    right = [np.mean((m(images)[1][0][0] @ w).argmax(axis=1) == labels) for m in (lstm, lstm.compress(storage))]
    assert right[0] > 0.9, "it has not learnt: the test shows nothing"
    assert right[1] >= right[0] - COST[storage]["accuracy"]


def test_the_layer_itself_is_not_changed() -> None:
    lstm = LSTM(3, 5, seed=0)
    before = lstm.state_dict()
    lstm.compress("int8").weights["weight_ih_l0"][:] = 0
    assert all((lstm.weights[name] == array).all() for name, array in before.items())
    assert fastlstm.CompressedLSTM is CompressedLSTM
