"""The native LSTM against the float64 reference: outputs, states, cells, all gradients, at odd sizes, every option."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest

import fastlstm
from cases import (
    DEEP,
    DEEP_PROJECTED,
    EVERYTHING,
    OPTIONS,
    SHAPES,
    SHARED,
    Case,
    Problem,
    assert_close,
    assert_same_bits,
    make_problem,
    problem_of,
    solve,
    truth_of,
)
from cell_cases import MARKS, VARIANTS, variant_of
from fastlstm import functional, reference
from fastlstm.weights import WeightSpec

VARIANT_CASES = [
    variant_of(variant, Case("", WeightSpec(3, 9, bidirectional=True), 4, 5, **MARKS)) for variant in VARIANTS
]


@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_shape(isa: str, dtype: str, case: Case) -> None:
    assert_close(solve(problem_of(case).astype(dtype), threads=1), truth_of(case), dtype)


@pytest.mark.parametrize("case", OPTIONS + EVERYTHING, ids=str)
def test_option(isa: str, dtype: str, case: Case) -> None:
    assert_close(solve(problem_of(case).astype(dtype)), truth_of(case), dtype)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("case", SHARED, ids=str)
def test_work_shared_by_threads(isa: str, dtype: str, case: Case, threads: int) -> None:
    assert_close(solve(problem_of(case).astype(dtype), threads=threads), truth_of(case), dtype)


def test_random_problems_are_not_all_the_same() -> None:
    # Each case is run once; this holds the cases to the zeros, ends and cuts that their names promise.
    ragged = next(case for case in SHARED if case.name == "ragged_rows_shared")
    lengths = problem_of(ragged).options["lengths"]
    assert {0, ragged.steps} <= set(lengths) and len(set(lengths)) > 5 and (np.diff(lengths) > 0).any()
    for case in OPTIONS:
        if case.mask == "random":
            counts = problem_of(case).options["mask"]
            assert 0 < counts.sum() < counts.size


# What a step that does not count hides


MASKED = [
    Case("lengths", DEEP, 9, 6, lengths="any_order"),
    Case("mask", DEEP, 9, 6, mask="random", masked_output="repeat"),
    Case("hoisted_mask", DEEP, 40, 2, mask="random"),
    Case("mask_of_projections", DEEP_PROJECTED, 9, 6, mask="random", reset="random", dropout=0.3),
    Case("nothing_counts", DEEP, 9, 6, mask="nothing_counts"),
    Case("shared", WeightSpec(61, 67, bidirectional=True), 5, 9, lengths="any_order", mask="random"),
]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("case", MASKED, ids=str)
def test_x_of_masked_steps_is_never_read(isa: str, dtype: str, case: Case, bad: float) -> None:
    problem = problem_of(case).astype(dtype)
    x = problem.x.copy()
    x[~problem.counts()] = bad
    assert_same_bits(solve(replace(problem, x=x)), solve(problem))


@pytest.mark.parametrize("case", [case for case in MASKED if case.masked_output == "zero"], ids=str)
def test_dy_of_masked_steps_is_never_read(isa: str, dtype: str, case: Case) -> None:
    problem = problem_of(case).astype(dtype)
    dy = problem.dy.copy()
    dy[~problem.counts()] = np.nan
    assert_same_bits(solve(replace(problem, dy=dy)), solve(problem))


@pytest.mark.parametrize("case", MASKED, ids=str)
def test_masked_steps_are_zero_in_y_and_dx(isa: str, dtype: str, case: Case) -> None:
    problem = problem_of(case).astype(dtype)
    found, masked = solve(problem), ~problem.counts()
    assert masked.any() and not found["dx"][masked].any()
    if case.masked_output == "zero":
        assert not found["y"][masked].any()


def test_initial_state_and_its_gradient_end_at_a_first_reset(isa: str, dtype: str) -> None:
    problem = make_problem(Case("", DEEP_PROJECTED, reset="first_step")).astype(dtype)
    found = solve(problem)
    rows = [0, 2]  # forward directions; the reverse ones leave the sequence at t = 0 and keep their h0
    assert not found["dh0"][rows].any() and not found["dc0"][rows].any()
    assert found["dh0"][[1, 3]].all()
    state = tuple(array.copy() for array in problem.state)
    for array in state:
        array[rows] = np.nan
    assert_same_bits(solve(replace(problem, state=state)), found)


@pytest.mark.parametrize("batch", [1, 3, 5], ids="batch_of_{}".format)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_pass_on_in_their_row_only(isa: str, dtype: str, value: float, batch: int) -> None:
    problem = make_problem(Case("", WeightSpec(5, 11), 6, batch)).astype(dtype)
    x = problem.x.copy()
    x[3, 0, 2] = value
    found, clean = solve(replace(problem, x=x)), solve(problem)
    with np.errstate(invalid="ignore"):
        truth = solve(replace(problem, x=x).astype("float64"), reference)
    np.testing.assert_array_equal(np.isnan(found["y"]), np.isnan(truth["y"]))
    assert np.isnan(found["y"][3:, 0]).any() == np.isnan(value)
    np.testing.assert_array_equal(found["y"][:3], clean["y"][:3])
    for name in ("y", "cells", "dx"):
        np.testing.assert_array_equal(found[name][:, 1:], clean[name][:, 1:])


def test_extreme_inputs_saturate_without_overflow(isa: str, dtype: str) -> None:
    problem = make_problem(Case("", WeightSpec(5, 11), 6, 5, x_scale=1e30)).astype(dtype)
    truth = solve(problem.astype("float64"), reference)
    for name, array in solve(problem).items():
        assert np.isfinite(array).all(), name
        if name in ("y", "cells", "h_n", "c_n"):  # every gate is 0 or 1: nothing is left to round but sums of ones
            np.testing.assert_allclose(array, truth[name], rtol=1e-6, atol=1e-6)


# How arrays may lie in memory


def every_second(array: np.ndarray) -> np.ndarray:
    wide = np.full(tuple(2 * n for n in array.shape), np.nan, array.dtype)
    view = wide[tuple(slice(1, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def misaligned(array: np.ndarray) -> np.ndarray:
    memory = np.zeros(array.nbytes + 1, np.uint8)
    view = memory[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


STRIDES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "fortran_order": np.asfortranarray,
    "every_second_number": every_second,
    "backwards": lambda array: np.flip(np.flip(array).copy()),
    "first_axis_backwards": lambda array: array[::-1].copy()[::-1],
    "rows_apart": lambda array: np.concatenate([array, array], axis=-1)[..., : array.shape[-1]],
    "batch_first_memory": lambda a: np.ascontiguousarray(a.swapaxes(0, 1)).swapaxes(0, 1) if a.ndim == 3 else a,
    "misaligned": misaligned,
}


@pytest.mark.parametrize("layout", ["time_major", "batch_first", "unbatched"])
@pytest.mark.parametrize("strides", STRIDES)
def test_strides_change_nothing(isa: str, dtype: str, strides: str, layout: str) -> None:
    case = Case("", DEEP_PROJECTED, 6, 1 if layout == "unbatched" else 4, layout, mask="random", reset="random")
    problem = problem_of(case).astype(dtype)
    marks = {name: STRIDES["first_axis_backwards"](problem.options[name]) for name in ("mask", "reset")}
    strided = problem.map_arrays(STRIDES[strides]).with_options(**marks)
    if strides != "batch_first_memory" or layout != "unbatched":
        assert any(not a.flags.c_contiguous or not a.flags.aligned for a in (strided.x, strided.dy, strided.dcells))
    assert_same_bits(solve(strided), solve(problem))


def test_x_of_one_number_is_read_as_its_shape_says(isa: str, dtype: str) -> None:
    problem = make_problem(Case("", WeightSpec(5, 11))).astype(dtype)
    x = np.broadcast_to(np.asarray(0.5, dtype), problem.x.shape)
    assert x.strides == (0, 0, 0)
    assert_same_bits(solve(replace(problem, x=x)), solve(replace(problem, x=x.copy())))


@pytest.mark.parametrize("case", EVERYTHING, ids=str)
def test_out_is_where_y_goes(isa: str, dtype: str, case: Case) -> None:
    problem = problem_of(case).astype(dtype)
    expected = solve(problem)["y"]
    out = np.full_like(expected, np.nan)
    y, _, _ = functional.lstm_forward(problem.x, problem.weights, problem.state, out=out, **problem.options)
    assert y is out
    assert_same_bits({"y": out}, {"y": expected})


def test_arguments_are_never_written(isa: str, dtype: str) -> None:
    problem = make_problem(EVERYTHING[0]).astype(dtype).map_arrays(np.copy)
    before = problem.map_arrays(np.copy)
    solve(problem)
    for name in ("x", "dy", "dcells"):
        np.testing.assert_array_equal(getattr(problem, name), getattr(before, name))
    for pair, old in ((problem.state, before.state), (problem.dstate, before.dstate)):
        np.testing.assert_array_equal(pair[0], old[0])
        np.testing.assert_array_equal(pair[1], old[1])
    for name, array in problem.weights.items():
        np.testing.assert_array_equal(array, before.weights[name])


# The tape


def test_backward_gives_the_same_again(isa: str, dtype: str) -> None:
    p = problem_of(EVERYTHING[0]).astype(dtype)
    *_, tape = functional.lstm_forward(p.x, p.weights, p.state, **p.options)
    first = functional.lstm_backward(tape, p.dy, p.dstate, dcells=p.dcells)
    functional.lstm_backward(tape, 2 * p.dy, None)
    again = functional.lstm_backward(tape, p.dy, p.dstate, dcells=p.dcells)
    assert_same_bits(again.weights | {"x": again.x}, first.weights | {"x": first.x})


def test_backward_needs_nothing_that_the_caller_may_change(isa: str, dtype: str) -> None:
    expected = solve(problem_of(EVERYTHING[0]).astype(dtype))
    p = problem_of(EVERYTHING[0]).astype(dtype).map_arrays(np.copy)
    options = {name: v.copy() if isinstance(v, np.ndarray) else v for name, v in p.options.items()}
    y, (h_n, c_n), tape = functional.lstm_forward(p.x, p.weights, p.state, **options)
    for array in (p.x, *p.state, *p.weights.values(), y, h_n, c_n):
        array[...] = np.nan
    for name in ("lengths", "mask", "reset"):
        options[name][...] = 0
    fastlstm.set_isa(fastlstm.build_config()["isa_runnable"][0])
    grads = functional.lstm_backward(tape, p.dy, p.dstate, dcells=p.dcells)
    found = {"dx": grads.x} | {"d" + name: array for name, array in grads.weights.items()}
    assert_same_bits(found, {name: expected[name] for name in found})


@pytest.mark.parametrize("given", ["dy", "dh_n", "dc_n", "dcells", "nothing"])
def test_gradients_that_are_not_given_are_zero(isa: str, dtype: str, given: str) -> None:
    full = problem_of(EVERYTHING[0]).astype(dtype)
    parts = {"dy": full.dy, "dh_n": full.dstate[0], "dc_n": full.dstate[1], "dcells": full.dcells}
    nones = {name: part if name == given else None for name, part in parts.items()}
    zeros = {name: part if name == given else np.zeros_like(part) for name, part in parts.items()}
    found, expected = (
        solve(replace(full, dy=p["dy"], dstate=(p["dh_n"], p["dc_n"]), dcells=p["dcells"])) for p in (nones, zeros)
    )
    assert any(array.any() for name, array in found.items() if name.startswith("d")) == (given != "nothing")
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    if given in ("dy", "dcells"):
        assert_same_bits(solve(replace(full, dy=nones["dy"], dstate=None, dcells=nones["dcells"])), found)


@pytest.mark.parametrize("module", [functional, reference])
@pytest.mark.parametrize("case", EVERYTHING + VARIANT_CASES, ids=str)
def test_gradients_that_are_not_wanted_change_no_other(case: Case, module: ModuleType) -> None:
    p = problem_of(case)
    *_, tape = module.lstm_forward(p.x, p.weights, p.state, **p.options)

    def gradients(**wanted: bool) -> dict[str, np.ndarray]:
        found = module.lstm_backward(tape, p.dy, p.dstate, **wanted)
        named = {"dx": found.x, "dh0": found.state[0], "dc0": found.state[1], **found.weights}
        return {name: array for name, array in named.items() if array is not None}

    whole = gradients()
    for want_x, want_weights in ((False, True), (True, False), (False, False)):
        part = gradients(want_x=want_x, want_weights=want_weights)
        assert len(part) == 2 + want_x + want_weights * (len(whole) - 3)
        assert_same_bits(part, {name: whole[name] for name in part})


def test_gradients_of_many_steps_are_as_exact_as_of_few(isa: str) -> None:
    # One chain over 6,000 steps would be 100 ulps off; the sums over blocks are not.
    case = Case("", WeightSpec(3, 5), 6000, 3)
    assert_close(solve(problem_of(case).astype("float32")), truth_of(case), "float32")


# Dropout


def test_dropout_of_a_row_does_not_depend_on_the_sequence_or_batch_around_it(isa: str, dtype: str) -> None:
    spec = WeightSpec(5, 11, num_layers=3)
    problem = make_problem(Case("", spec, 8, 6, dropout=0.5)).astype(dtype)
    whole = solve(problem)["y"]
    part = problem.rows(slice(0, 4)).steps(slice(0, 5))
    y, _, _ = functional.lstm_forward(part.x, part.weights, part.state, **part.options)
    assert_same_bits({"y": y}, {"y": whole[:5, :4]})


@pytest.mark.parametrize("changed", [{"dropout_seed": 1}, {"dropout_seed": 2**63}, {"dropout_call": 7}], ids=str)
def test_dropout_differs_between_seeds_and_calls(isa: str, changed: dict[str, int]) -> None:
    problem = make_problem(Case("", WeightSpec(5, 11, num_layers=2), dropout=0.5))
    problem = problem.with_options(dropout_seed=0, dropout_call=0)
    other = problem.with_options(**changed)
    assert (solve(problem)["y"] != solve(other)["y"]).any()
    assert_close(solve(other), solve(other, reference), "float64")


def test_dropout_is_for_training_only(isa: str, dtype: str) -> None:
    p = make_problem(Case("", DEEP)).astype(dtype)
    dropped = {"dropout": 0.5, "dropout_seed": 1}
    y, _, tape = functional.lstm_forward(p.x, p.weights, p.state, training=False, **dropped)
    assert tape is None
    assert_same_bits({"y": y}, {"y": solve(p)["y"]})


def test_dropout_needs_a_seed_where_it_acts() -> None:
    p = make_problem(Case("", DEEP))
    with pytest.raises(ValueError, match="dropout_seed is None, expected an integer from 0"):
        functional.lstm_forward(p.x, p.weights, dropout=0.5)
    functional.lstm_forward(p.x, p.weights, dropout=0.5, training=False)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_dropout_seed_is_64_bits(seed: int) -> None:
    p = make_problem(Case("", DEEP))
    with pytest.raises(ValueError, match=rf"dropout_seed is {seed}, expected an integer from 0 to 2\*\*64 - 1"):
        functional.lstm_forward(p.x, p.weights, dropout=0.5, dropout_seed=seed)


def test_problem_is_the_same_in_both_dtypes() -> None:
    problem: Problem = problem_of(EVERYTHING[0])
    np.testing.assert_array_equal(problem.astype("float32").x, problem.x)
