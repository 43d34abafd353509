"""`fastlstm.LSTM`: its arguments, how its weights change, copies, dropout; and that it is `functional` with them."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import numpy as np
import pytest

from cases import EVERYTHING, Case, Problem, assert_same_bits, problem_of, solve
from fastlstm import LSTM, functional
from fastlstm.weights import WeightSpec

X = np.random.default_rng(0).standard_normal((6, 4, 5), np.float32)


def small(**options: Any) -> LSTM:
    return LSTM(5, 7, num_layers=2, bidirectional=True, seed=3, **options)


def layer_of(case: Case, dtype: str) -> LSTM:
    s = case.spec
    sizes = (s.input_size, s.hidden_size, s.num_layers, s.bias, case.layout == "batch_first", case.dropout)
    lstm = LSTM(*sizes, s.bidirectional, s.proj_size, dtype=dtype)
    lstm.load_state_dict(problem_of(case).astype(dtype).weights)
    return lstm


def call_options(problem: Problem) -> dict[str, Any]:
    ours = ("lengths", "mask", "reset", "masked_output")
    return {name: value for name, value in problem.options.items() if name in ours}


def same_weights(a: LSTM, b: LSTM) -> bool:
    return all(np.array_equal(a.weights[name], b.weights[name]) for name in a.weights)


# Computing


@pytest.mark.parametrize("case", EVERYTHING, ids=str)
def test_layer_is_functional_with_its_own_weights(isa: str, dtype: str, case: Case) -> None:
    problem = problem_of(case).astype(dtype).with_options(dropout_call=0)
    lstm, seed, options = layer_of(case, dtype), problem.options["dropout_seed"], call_options(problem)
    p, expected = problem, solve(problem)
    y, (h_n, c_n), cells, tape = lstm.forward(p.x, p.state, return_cells=True, dropout_seed=seed, **options)
    g = lstm.backward(tape, p.dy, p.dstate, dcells=p.dcells)
    found = {"y": y, "h_n": h_n, "c_n": c_n, "cells": cells, "dx": g.x, "dh0": g.state[0], "dc0": g.state[1]}
    assert_same_bits(found | {"d" + name: array for name, array in g.weights.items()}, expected)
    y, (h_n, c_n), cells = lstm(p.x, p.state, return_cells=True, threads=1, **options)
    expected = solve(p.with_options(dropout=0.0))
    assert_same_bits(
        {"y": y, "h_n": h_n, "c_n": c_n, "cells": cells}, {n: expected[n] for n in ("y", "h_n", "c_n", "cells")}
    )


def test_results_have_cells_only_if_asked() -> None:
    lstm = small()
    assert len(lstm(X)) == 2 and len(lstm(X, return_cells=True)) == 3
    assert len(lstm.forward(X)) == 3 and len(lstm.forward(X, return_cells=True)) == 4


def test_out_is_where_y_goes() -> None:
    lstm, out = small(), np.empty((6, 4, 14), np.float32)
    assert lstm(X, out=out)[0] is out
    training_out = np.empty_like(out)
    assert lstm.forward(X, out=training_out)[0] is training_out
    np.testing.assert_array_equal(out, training_out)


def test_backward_is_of_the_weights_that_forward_used() -> None:
    lstm = small()
    y, _, tape = lstm.forward(X)
    before = lstm.backward(tape, np.ones_like(y))
    with lstm.updating() as weights:
        for array in weights.values():
            array[...] = 0
    after = lstm.backward(tape, np.ones_like(y))
    assert_same_bits(after.weights | {"x": after.x}, before.weights | {"x": before.x})


# Weights


def test_weights_are_torch_s_names_in_torch_s_order_and_read_only() -> None:
    lstm = small()
    assert {name: array.shape for name, array in lstm.weights.items()} == lstm.spec.shapes()
    assert list(lstm.weights) == list(lstm.spec.shapes()) and len(lstm.weights) == 16
    for array in lstm.weights.values():
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    assert "weight_hh_l1_reverse (28, 7) float32" in repr(lstm.weights)


def test_assigned_weights_are_used_by_the_next_call() -> None:
    lstm, other = small(), LSTM(5, 7, num_layers=2, bidirectional=True, seed=4)
    before = lstm(X)[0]
    view = lstm.weights["bias_hh_l1_reverse"]
    for name, array in other.weights.items():
        seen = lstm(X)[0]
        lstm.weights[name] = array
        assert (lstm(X)[0] != seen).any(), name
    np.testing.assert_array_equal(view, other.weights["bias_hh_l1_reverse"])
    assert_same_bits({"y": lstm(X)[0]}, {"y": other(X)[0]})
    assert (lstm(X)[0] != before).any()


def test_assigned_weights_are_copied_whatever_their_strides() -> None:
    lstm = small()
    array = np.asfortranarray(np.full((28, 5), 0.5, np.float32))
    lstm.weights["weight_ih_l0"] = array[::-1]
    y = lstm(X)[0]
    array[...] = 9
    np.testing.assert_array_equal(lstm.weights["weight_ih_l0"], np.full((28, 5), 0.5))
    assert_same_bits({"y": lstm(X)[0]}, {"y": y})


@pytest.mark.parametrize(
    ("name", "array", "error", "message"),
    [
        ("weight_ih_l2", np.zeros((28, 5), np.float32), KeyError, "weight_ih_l2.* is no weight.*weight_ih_l0"),
        (
            "weight_ih_l0",
            np.zeros((28, 6), np.float32),
            ValueError,
            r"weight_ih_l0 has shape \(28, 6\), expected \(28, 5\)",
        ),
        ("weight_ih_l0", np.zeros(5, np.float32), ValueError, r"weight_ih_l0 has shape \(5,\), expected \(28, 5\)"),
        ("weight_ih_l0", np.zeros((28, 5)), TypeError, r"weight_ih_l0 has dtype float64, expected float32.*astype"),
        ("weight_ih_l0", [[0.0] * 5] * 28, TypeError, "weight_ih_l0 is a list, expected a numpy.ndarray"),
    ],
    ids=["unknown_name", "wrong_shape", "shape_that_would_broadcast", "wrong_dtype", "no_array"],
)
def test_assigning_a_wrong_weight_changes_nothing(name: str, array: Any, error: type[Exception], message: str) -> None:
    lstm = small()
    with pytest.raises(error, match=message):
        lstm.weights[name] = array
    assert same_weights(lstm, small())


def test_weights_cannot_be_deleted() -> None:
    lstm = small()
    for name in list(lstm.weights):
        with pytest.raises(TypeError, match=f"'{name}' cannot be deleted"):
            del lstm.weights[name]
    with pytest.raises(TypeError):
        lstm.weights.clear()
    assert same_weights(lstm, small())


def test_updating_takes_effect_on_leaving() -> None:
    lstm = small()
    before = lstm(X)[0]
    with lstm.updating() as weights:
        for array in weights.values():
            array *= 2
        assert_same_bits({"y": lstm(X)[0]}, {"y": before})
        assert same_weights(lstm, small())
    for name, array in small().weights.items():
        np.testing.assert_array_equal(lstm.weights[name], 2 * array)
    assert (lstm(X)[0] != before).any()


def test_updating_takes_an_array_put_in_place_of_another() -> None:
    lstm = small()
    with lstm.updating() as weights:
        weights["bias_ih_l0"] = np.full(28, 0.25, np.float32)
    np.testing.assert_array_equal(lstm.weights["bias_ih_l0"], np.full(28, 0.25))


def test_arrays_of_updating_are_no_longer_the_layer_s_after_it() -> None:
    lstm = small()
    with lstm.updating() as weights:
        pass
    weights["bias_ih_l0"][...] = 9
    assert same_weights(lstm, small())


def test_updating_changes_nothing_on_an_error() -> None:
    lstm = small()
    before = lstm(X)[0]
    with pytest.raises(ZeroDivisionError), lstm.updating() as weights:
        weights["bias_ih_l0"][...] = 9
        raise ZeroDivisionError
    assert same_weights(lstm, small())
    assert_same_bits({"y": lstm(X)[0]}, {"y": before})


@pytest.mark.parametrize("wrong", ["missing", "unexpected", "shape", "dtype"])
def test_state_dict_is_loaded_whole_or_not_at_all(wrong: str) -> None:
    lstm = small()
    state_dict = LSTM(5, 7, num_layers=2, bidirectional=True, seed=4).state_dict()
    name = list(state_dict)[-1]
    if wrong == "missing":
        del state_dict[name]
    else:
        changes = {
            "shape": state_dict[name][1:],
            "dtype": state_dict[name].astype(np.float64),
            "unexpected": state_dict[name],
        }
        name = "weight_ih_l2" if wrong == "unexpected" else name
        state_dict[name] = changes[wrong]
    with pytest.raises(TypeError if wrong == "dtype" else ValueError, match=name):
        lstm.load_state_dict(state_dict)
    assert same_weights(lstm, small())


def test_state_dict_is_a_copy_that_any_order_loads() -> None:
    lstm = small()
    state_dict = lstm.state_dict()
    assert list(state_dict) == list(lstm.spec.shapes())
    other = LSTM(5, 7, num_layers=2, bidirectional=True, seed=4)
    other.load_state_dict(dict(reversed(state_dict.items())))
    state_dict["weight_ih_l0"][...] = 9
    assert same_weights(lstm, small()) and same_weights(other, lstm)
    assert_same_bits({"y": other(X)[0]}, {"y": lstm(X)[0]})


@pytest.mark.parametrize(
    "spec", [WeightSpec(5, 7), WeightSpec(5, 7, 3, True, True, 2)], ids=["one_layer", "deep_projected"]
)
def test_forget_bias_is_on_every_layer_and_direction(dtype: str, spec: WeightSpec) -> None:
    sizes = (5, 7, spec.num_layers, True, False, 0.0, spec.bidirectional, spec.proj_size)
    lstm = LSTM(*sizes, forget_bias=1.5, dtype=dtype, seed=0)
    plain = LSTM(*sizes, dtype=dtype, seed=0)
    biases = [name for name in lstm.weights if name.startswith("bias")]
    assert len(biases) == 2 * spec.num_layers * spec.num_directions
    for name in biases:
        expected = plain.weights[name].copy()
        expected[7:14] = 1.5 if "_ih_" in name else 0
        np.testing.assert_array_equal(lstm.weights[name], expected)


def test_forget_bias_needs_a_bias() -> None:
    with pytest.raises(ValueError, match=r"forget_bias is 1\.0, but bias is False"):
        LSTM(5, 7, bias=False, forget_bias=1.0)


# Arguments


def test_arguments_are_in_torch_s_order_and_kept() -> None:
    lstm = LSTM(5, 7, 2, False, True, 0.25, True, 3)
    names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional", "proj_size")
    assert [getattr(lstm, name) for name in names] == [5, 7, 2, False, True, 0.25, True, 3]
    assert lstm.dtype == np.float32


def test_repr_says_what_differs_from_the_defaults() -> None:
    assert repr(LSTM(5, 7)) == "LSTM(5, 7)"
    lstm = LSTM(5, 7, 2, False, True, 0.25, True, 3, dtype="float64")
    expected = "LSTM(5, 7, num_layers=2, bias=False, batch_first=True, dropout=0.25, bidirectional=True, proj_size=3"
    assert repr(lstm) == expected + ", dtype=float64)"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input_size": -1}, ValueError, "input_size is -1, expected an integer of at least 0"),
        ({"hidden_size": 2.5}, TypeError, "hidden_size is 2.5, expected an integer"),
        ({"num_layers": True}, TypeError, "num_layers is True, expected an integer"),
        ({"bidirectional": 1}, TypeError, "bidirectional is 1, expected True or False"),
        ({"proj_size": 7}, ValueError, "proj_size is 7, but hidden_size is 7"),
        ({"dropout": 1.5}, ValueError, "dropout is 1.5, expected a number from 0 to 1"),
        ({"dropout": np.nan}, ValueError, "dropout is nan, expected a number from 0 to 1"),
        ({"dropout": "much"}, TypeError, "dropout is 'much', expected a number from 0 to 1"),
        ({"dtype": np.float16}, TypeError, "dtype is float16, expected float32 or float64"),
        ({"dtype": int}, TypeError, "dtype is int64, expected float32 or float64"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, dict) else "",
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LSTM(**{"input_size": 5, "hidden_size": 7} | arguments)


def test_seed_fixes_the_weights_in_both_dtypes() -> None:
    assert same_weights(small(), small())
    assert not same_weights(LSTM(5, 7), LSTM(5, 7))
    wide = small(dtype=np.float64)
    for name, array in small().weights.items():
        np.testing.assert_array_equal(array, wide.weights[name].astype(np.float32))


# Dropout


def dropped(lstm: LSTM, **options: int) -> np.ndarray:
    return lstm.forward(X, **options)[0]


def test_dropout_is_drawn_anew_by_each_call_and_repeated_by_each_layer_of_a_seed() -> None:
    lstm, twin = small(dropout=0.5), small(dropout=0.5)
    calls = [dropped(lstm) for _ in range(3)]
    assert (calls[0] != calls[1]).any() and (calls[1] != calls[2]).any()
    for expected in calls:
        np.testing.assert_array_equal(dropped(twin), expected)
    assert (dropped(LSTM(5, 7, num_layers=2, bidirectional=True, dropout=0.5, seed=4)) != calls[0]).any()


def test_dropout_can_be_repeated_from_the_tape() -> None:
    lstm = small(dropout=0.5)
    tapes, outputs = [], []
    for _ in range(2):
        y, _, tape = lstm.forward(X)
        tapes.append(tape)
        outputs.append(y)
    assert [tape.dropout_call for tape in tapes] == [0, 1] and tapes[0].dropout_seed == tapes[1].dropout_seed
    for tape, expected in zip(tapes, outputs, strict=True):
        seeded = {"dropout": 0.5, "dropout_seed": tape.dropout_seed, "dropout_call": tape.dropout_call}
        np.testing.assert_array_equal(functional.lstm_forward(X, lstm.weights, **seeded)[0], expected)


def test_dropout_seed_fixes_one_call_and_counts_none() -> None:
    lstm, twin = small(dropout=0.5), small(dropout=0.5)
    seeded = dropped(lstm, dropout_seed=11)
    np.testing.assert_array_equal(dropped(lstm, dropout_seed=11), seeded)
    assert (dropped(lstm, dropout_seed=12) != seeded).any()
    np.testing.assert_array_equal(dropped(lstm), dropped(twin))


def test_dropout_is_not_in_inference() -> None:
    np.testing.assert_array_equal(small(dropout=0.5)(X)[0], small()(X)[0])


# Copies


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_keeps_weights_arguments_and_dropout(protocol: int) -> None:
    lstm = small(dropout=0.5)
    dropped(lstm)
    again = pickle.loads(pickle.dumps(lstm, protocol))
    assert repr(again) == repr(lstm) and same_weights(again, lstm)
    np.testing.assert_array_equal(again(X)[0], lstm(X)[0])
    np.testing.assert_array_equal(dropped(again), dropped(lstm))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy], ids=["deepcopy", "copy"])
def test_copies_give_the_same_and_live_on_their_own(duplicate: Any) -> None:
    lstm = small(dropout=0.5)
    before = lstm(X)[0]
    other = duplicate(lstm)
    np.testing.assert_array_equal(other(X)[0], before)
    with other.updating() as weights:
        weights["weight_ih_l0"][...] = 0
    assert same_weights(lstm, small()) and (other(X)[0] != before).any()
    np.testing.assert_array_equal(lstm(X)[0], before)


# Threads of Python


def test_several_python_threads_use_one_layer_at_once(dtype: str) -> None:
    lstm = LSTM(30, 40, num_layers=2, dropout=0.5, dtype=dtype, seed=0)  # not packed yet: they all come to that at once
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((12, 16, 30)).astype(dtype) for _ in range(4)]
    start, found = threading.Barrier(4), [[] for _ in range(4)]

    def work(i: int) -> None:
        start.wait(timeout=60)
        for _ in range(5):
            y, _, tape = lstm.forward(inputs[i], dropout_seed=i)
            g = lstm.backward(tape, np.ones_like(y))
            found[i].append({"y": y, "inferred": lstm(inputs[i])[0], "dx": g.x} | g.weights)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    alone = LSTM(30, 40, num_layers=2, dropout=0.5, dtype=dtype, seed=0)
    for i, results in enumerate(found):
        y, _, tape = alone.forward(inputs[i], dropout_seed=i)
        g = alone.backward(tape, np.ones_like(y))
        assert len(results) == 5
        for result in results:
            assert_same_bits(result, {"y": y, "inferred": alone(inputs[i])[0], "dx": g.x} | g.weights)


def test_python_threads_count_every_dropout_call() -> None:
    lstm, calls = small(dropout=0.5), []

    def work() -> None:
        for _ in range(25):
            calls.append(lstm.forward(X)[2].dropout_call)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert sorted(calls) == list(range(100))
