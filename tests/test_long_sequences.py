"""Long sequences: checkpoints, no y, truncated gradients, and pieces instead of the whole."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import fastlstm
from cases import (
    DEEP,
    DEEP_PROJECTED,
    EVERYTHING,
    SHARED,
    Case,
    Problem,
    assert_close,
    assert_same_bits,
    make_problem,
    problem_of,
    solve,
)
from fastlstm import functional, reference
from fastlstm.weights import WeightSpec

# Backward sums 256 rows at once, and segments are whole such chunks: 28 steps of 9 rows, 1 of 300, 256 of one.
EVERY_OPTION = {"lengths": "any_order", "mask": "random", "reset": "random", "dropout": 0.25}
LONG = [
    Case("plain", WeightSpec(5, 11), 100, 9),
    Case("three_layers", WeightSpec(5, 11, 3), 100, 9, dropout=0.4),
    Case("both_directions", DEEP, 100, 9),
    Case("projection", WeightSpec(5, 11, 3, proj_size=4), 100, 9),
    Case("no_state", DEEP, 100, 9, state=False),
    Case("lengths", DEEP, 100, 9, lengths="any_order", masked_output="repeat"),
    Case("lengths_of_one_direction", WeightSpec(5, 11, 2), 100, 9, lengths="any_order", masked_output="repeat"),
    Case("lengths_without_state", DEEP, 100, 9, lengths="any_order", masked_output="repeat", state=False),
    Case("mask_trailing", DEEP_PROJECTED, 100, 9, mask="trailing", reset="random"),
    Case("nothing_counts", DEEP, 100, 9, mask="nothing_counts"),
    Case("reset_at_every_step", DEEP, 70, 9, lengths="any_order", reset="every_step"),
    Case("more_rows_than_a_chunk", DEEP_PROJECTED, 7, 300, **EVERY_OPTION),
    Case("one_row", DEEP, 600, 1),
    Case("two_rows_hoisted", WeightSpec(5, 11, 2), 301, 2, mask="random"),
    Case("batch_first", DEEP, 100, 9, "batch_first", **EVERY_OPTION),
    Case("unbatched", DEEP_PROJECTED, 600, 1, "unbatched", **EVERY_OPTION),
    Case("one_direction_in_every_way", WeightSpec(5, 11, 3, True, False, 4), 100, 9, **EVERY_OPTION),
    Case("in_every_way", WeightSpec(5, 11, 3, True, True, 4), 100, 9, **EVERY_OPTION, masked_output="repeat"),
]
STEPS = [1, 40, "auto", 10**6]


def tape_of(problem: Problem, **options: Any) -> functional.Tape:
    p = problem
    *_, tape = functional.lstm_forward(p.x, p.weights, p.state, **(p.options | options))
    return tape


# Checkpoints


@pytest.mark.parametrize("case", LONG, ids=str)
def test_checkpoints_change_no_bit(isa: str, dtype: str, case: Case) -> None:
    problem = problem_of(case).astype(dtype)
    expected, whole = solve(problem), tape_of(problem).nbytes
    for every in STEPS:
        assert_same_bits(solve(problem.with_options(checkpoint_every=every)), expected)
        fewer = (
            every == "auto" or every < case.steps
        ) and case.mask != "nothing_counts"  # steps without rows are all one chunk
        assert (tape_of(problem, checkpoint_every=every).nbytes < whole) == fewer


@pytest.mark.parametrize("case", [*EVERYTHING, *SHARED], ids=str)
def test_checkpoints_change_no_bit_of_short_sequences(isa: str, dtype: str, case: Case) -> None:
    problem = problem_of(case).astype(dtype)
    assert_same_bits(solve(problem.with_options(checkpoint_every=1)), solve(problem))


@pytest.mark.parametrize("steps, batch", [(0, 3), (4, 0), (0, 0), (1, 1), (1, 300)])
def test_checkpoints_of_nearly_nothing(isa: str, dtype: str, steps: int, batch: int) -> None:
    problem = make_problem(Case("", DEEP_PROJECTED, steps, batch)).astype(dtype)
    for every in STEPS:
        assert_same_bits(solve(problem.with_options(checkpoint_every=every)), solve(problem))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("spec", [WeightSpec(30, 40, 2), WeightSpec(61, 67, 2, True, True)], ids=["rows", "units"])
def test_checkpoints_under_any_number_of_threads(isa: str, dtype: str, spec: WeightSpec, threads: int) -> None:
    problem = problem_of(Case("", spec, 21, 41, lengths="any_order", reset="random", dropout=0.5)).astype(dtype)
    expected = solve(problem, threads=1)
    assert_same_bits(solve(problem.with_options(checkpoint_every=7), threads=threads), expected)
    few = problem_of(Case("", replace(spec, proj_size=0), 110, 5, mask="random")).astype(dtype)
    assert_same_bits(solve(few.with_options(checkpoint_every=7), threads=threads), solve(few, threads=1))


def test_checkpoints_give_the_same_again_whatever_the_caller_changes(isa: str, dtype: str) -> None:
    case = next(case for case in LONG if case.name == "in_every_way")
    expected = solve(problem_of(case).astype(dtype))
    p = problem_of(case).astype(dtype).map_arrays(np.copy)
    options = {name: v.copy() if isinstance(v, np.ndarray) else v for name, v in p.options.items()}
    y, (h_n, c_n), tape = functional.lstm_forward(p.x, p.weights, p.state, checkpoint_every=30, **options)
    for array in (p.x, *p.state, *p.weights.values(), y, h_n, c_n):
        array[...] = np.nan
    for name in ("lengths", "mask", "reset"):
        options[name][...] = 0
    for _ in range(2):
        grads = functional.lstm_backward(tape, p.dy, p.dstate, dcells=p.dcells)
        found = {"dx": grads.x} | {"d" + name: array for name, array in grads.weights.items()}
        assert_same_bits(found, {name: expected[name] for name in found})


def test_checkpoints_hide_what_masked_steps_hold(isa: str, dtype: str) -> None:
    problem = problem_of(Case("", DEEP, 100, 9, lengths="any_order", mask="random")).astype(dtype)
    x, dy = problem.x.copy(), problem.dy.copy()
    x[~problem.counts()] = dy[~problem.counts()] = np.nan
    found = solve(replace(problem, x=x, dy=dy).with_options(checkpoint_every=20))
    assert_same_bits(found, solve(problem))


def test_a_tape_of_checkpoints_grows_with_the_square_root() -> None:
    # Beside the copy of x: states every K steps.
    weights = fastlstm.LSTM(1, 64, seed=0).weights

    def states(T: int, every: int | str) -> int:
        problem = np.zeros((T, 1, 1), np.float32)
        *_, tape = functional.lstm_forward(problem, weights, checkpoint_every=every, return_sequence=False)
        return tape.nbytes - problem.nbytes

    assert states(65536, "auto") == 255 * 2 * 64 * 4
    assert states(65536 * 16, "auto") == 1023 * 2 * 64 * 4
    assert states(65536, 4096) == 15 * 2 * 64 * 4


@pytest.mark.parametrize("every", [0, -5, "often", "AUTO"], ids=str)
def test_checkpoint_every_is_a_number_of_steps(every: Any) -> None:
    p = problem_of(LONG[0])
    for module in (functional, reference):
        with pytest.raises(ValueError, match=r'checkpoint_every is .*expected .* or "auto", or None'):
            module.lstm_forward(p.x, p.weights, checkpoint_every=every)


@pytest.mark.parametrize("every", [2.0, True, (1,)], ids=str)
def test_checkpoint_every_of_another_type(every: Any) -> None:
    p = problem_of(LONG[0])
    for module in (functional, reference):
        with pytest.raises(TypeError, match=r'checkpoint_every is .*, expected a number of steps or "auto", or None'):
            module.lstm_forward(p.x, p.weights, checkpoint_every=every)


def test_checkpoints_are_for_training() -> None:
    p = problem_of(LONG[0])
    for module in (functional, reference):
        with pytest.raises(ValueError, match="checkpoint_every is 'auto', but training is False: expected None"):
            module.lstm_forward(p.x, p.weights, checkpoint_every="auto", training=False)


def test_checkpoint_every_of_any_integer() -> None:
    p = problem_of(LONG[0])
    for every in (np.int8(40), 2**80):
        assert_same_bits(solve(p.with_options(checkpoint_every=every)), solve(p))


# No y


@pytest.mark.parametrize("every", [None, 30])
@pytest.mark.parametrize("case", LONG, ids=str)
def test_without_y_all_else_is_the_same(isa: str, dtype: str, case: Case, every: int | None) -> None:
    p = replace(problem_of(case).astype(dtype), dy=None)
    expected = solve(p)
    del expected["y"]
    options = p.options | {"return_sequence": False, "return_cells": True}
    y, (h_n, c_n), cells, tape = functional.lstm_forward(p.x, p.weights, p.state, checkpoint_every=every, **options)
    grads = functional.lstm_backward(tape, None, p.dstate, dcells=p.dcells)
    assert y is None
    found = {"h_n": h_n, "c_n": c_n, "cells": cells, "dx": grads.x, "dh0": grads.state[0], "dc0": grads.state[1]}
    assert_same_bits(found | {"d" + name: array for name, array in grads.weights.items()}, expected)


@pytest.mark.parametrize("case", LONG, ids=str)
def test_without_y_in_inference(isa: str, dtype: str, case: Case) -> None:
    p = problem_of(case).astype(dtype)
    options = p.options | {"training": False, "return_cells": True}
    found, expected = (
        functional.lstm_forward(p.x, p.weights, p.state, **options, return_sequence=wanted) for wanted in (False, True)
    )
    assert found[0] is None
    assert_same_bits(*({"h_n": h_n, "c_n": c_n, "cells": cells} for _, (h_n, c_n), cells, _ in (found, expected)))


def test_without_y_there_is_no_dy_and_no_out() -> None:
    p = problem_of(LONG[0])
    for module in (functional, reference):
        y, _, tape = module.lstm_forward(p.x, p.weights, return_sequence=False)
        assert y is None
        with pytest.raises(ValueError, match="dy is given: expected None, since forward ran"):
            module.lstm_backward(tape, p.dy)
        with pytest.raises(ValueError, match="out is given, but return_sequence is False: expected None"):
            module.lstm_forward(p.x, p.weights, return_sequence=False, out=np.empty_like(p.dy))
    with pytest.raises(TypeError, match="return_sequence is 0, a int: expected True or False"):
        functional.lstm_forward(p.x, p.weights, return_sequence=0)


# Truncated gradients


@functools.cache
def truncated_truth(case: Case, truncate: int) -> dict[str, np.ndarray]:
    p = problem_of(case)
    *_, tape = reference.lstm_forward(p.x, p.weights, p.state, **p.options)
    return named(reference.lstm_backward(tape, p.dy, p.dstate, dcells=p.dcells, truncate=truncate))


@pytest.mark.parametrize("truncate", [1, 7, 28, 1000])
@pytest.mark.parametrize("case", LONG, ids=str)
def test_truncated_gradients(isa: str, dtype: str, case: Case, truncate: int) -> None:
    p, found = problem_of(case).astype(dtype), {}
    for every in (None, 30):
        tape = tape_of(p, checkpoint_every=every)
        found[every] = named(functional.lstm_backward(tape, p.dy, p.dstate, dcells=p.dcells, truncate=truncate))
    assert_same_bits(found[30], found[None])
    assert_close(found[None], truncated_truth(case, truncate), dtype)


def named(grads: functional.Gradients) -> dict[str, np.ndarray]:
    found = {"dx": grads.x, "dh0": grads.state[0], "dc0": grads.state[1]}
    return found | {"d" + name: array for name, array in grads.weights.items()}


def added(total: dict[str, np.ndarray], part: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The sum, array by array; what only `total` has stays."""
    return total | {name: total[name] + array if name in total else array for name, array in part.items()}


def piece_of(problem: Problem, steps: slice, state: Any) -> Problem:
    piece = replace(problem.steps(steps), state=state, dy=problem.dy[steps], dcells=problem.dcells[steps])
    return piece.with_options(dropout_step=steps.start)


PIECES = [
    Case("plain", WeightSpec(5, 11), 50, 4),
    Case("deep", WeightSpec(5, 11, 3, proj_size=4), 50, 4, mask="random", reset="random", dropout=0.3),
    Case("repeated", WeightSpec(5, 11, 2), 50, 4, mask="random", masked_output="repeat", dropout=0.3),
    Case("shared", WeightSpec(61, 67, 2), 50, 30, mask="random", dropout=0.3),
]


@pytest.mark.parametrize("case", PIECES, ids=str)
@pytest.mark.parametrize("module", [functional, reference], ids=["native", "reference"])
def test_truncated_is_pieces_with_a_detached_state(module: Any, dtype: str, case: Case) -> None:
    p = problem_of(case).astype(dtype)
    *_, tape = module.lstm_forward(p.x, p.weights, p.state, **p.options)
    whole = named(module.lstm_backward(tape, p.dy, p.dstate, dcells=p.dcells, truncate=20))
    state, dx, sums = p.state, [], {}
    for start in range(0, case.steps, 20):
        piece = piece_of(p, slice(start, start + 20), state)
        _, state, tape = module.lstm_forward(piece.x, p.weights, piece.state, **piece.options)
        dstate = p.dstate if start + 20 >= case.steps else None
        grads = named(module.lstm_backward(tape, piece.dy, dstate, dcells=piece.dcells))
        dx.append(grads.pop("dx"))
        initial = {name: grads.pop(name) for name in ("dh0", "dc0")}
        sums = added(sums, grads) if start else grads | initial
    found = sums | {"dx": np.concatenate(dx)}
    if module is functional:
        assert_same_bits({"dx": found["dx"]}, {"dx": whole["dx"]})
    assert_close(found, whole, dtype)


@pytest.mark.parametrize("truncate, error", [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("auto", TypeError)])
def test_truncate_is_a_number_of_steps(truncate: Any, error: type[Exception]) -> None:
    p = problem_of(LONG[0])
    for module in (functional, reference):
        *_, tape = module.lstm_forward(p.x, p.weights)
        with pytest.raises(error, match=r"truncate is .*, expected .*, or None"):
            module.lstm_backward(tape, p.dy, truncate=truncate)


# Pieces


@pytest.mark.parametrize("case", PIECES, ids=str)
@pytest.mark.parametrize("module", [functional, reference], ids=["native", "reference"])
def test_pieces_are_the_whole(module: Any, dtype: str, case: Case) -> None:
    p = problem_of(case).astype(dtype)
    expected = solve(p, module)
    starts = range(0, case.steps, 20)
    states, ys = [p.state], []
    for start in starts:
        piece = piece_of(p, slice(start, start + 20), states[-1])
        y, state, _ = module.lstm_forward(piece.x, p.weights, piece.state, **piece.options)  # the tape goes
        ys.append(y)
        states.append(state)
    dstate, dx, sums = p.dstate, [], {}
    for start in reversed(starts):
        piece = piece_of(p, slice(start, start + 20), states[start // 20])
        *_, tape = module.lstm_forward(piece.x, p.weights, piece.state, **piece.options)
        grads = module.lstm_backward(tape, piece.dy, dstate, dcells=piece.dcells)
        dstate = grads.state
        dx.insert(0, grads.x)
        sums = added(sums, {"d" + name: array for name, array in grads.weights.items()})
    exact = {"y": np.concatenate(ys), "h_n": states[-1][0], "c_n": states[-1][1]}
    exact |= {"dx": np.concatenate(dx), "dh0": dstate[0], "dc0": dstate[1]}
    if module is functional:
        assert_same_bits(exact, {name: expected[name] for name in exact})
    assert_close(exact | sums, {name: expected[name] for name in exact | sums}, dtype)


@pytest.mark.parametrize("step, error", [(-1, ValueError), (0.5, TypeError), (True, TypeError)])
def test_dropout_step_is_an_integer(step: Any, error: type[Exception]) -> None:
    p = problem_of(LONG[0])
    for module in (functional, reference):
        with pytest.raises(error, match=f"dropout_step is {step}, expected"):
            module.lstm_forward(p.x, p.weights, dropout_step=step)


def test_dropout_steps_beyond_32_bits_begin_again(isa: str) -> None:
    problem = problem_of(next(case for case in PIECES if case.name == "deep"))
    for step in (2**32 - 10, 2**32 + 5):
        found = solve(problem.with_options(dropout_step=step))
        assert_close(found, solve(problem.with_options(dropout_step=step), reference), "float64")
    assert_same_bits(found, solve(problem.with_options(dropout_step=5)))
    assert (found["y"] != solve(problem)["y"]).any()


def test_the_layer_passes_it_all_on() -> None:
    lstm = fastlstm.LSTM(5, 11, 2, dropout=0.5, seed=0)
    x = np.random.default_rng(0).standard_normal((300, 2, 5), np.float32)
    y, _, tape = lstm.forward(x, dropout_seed=1)
    first, state, _ = lstm.forward(x[:200], dropout_seed=1)
    second, _, _ = lstm.forward(x[200:], state, dropout_seed=1, dropout_step=200)
    assert_same_bits({"y": np.concatenate([first, second])}, {"y": y})
    none, _, small = lstm.forward(x, dropout_seed=1, checkpoint_every="auto", return_sequence=False)
    assert none is None and small.nbytes < tape.nbytes / 2
    dstate = np.ones((2, 2, 11), np.float32), None
    grads = [lstm.backward(kept, dstate=dstate, truncate=100).x for kept in (tape, small)]
    assert_same_bits({"dx": grads[0]}, {"dx": grads[1]})
    assert not grads[0][:200].any() and grads[0][200:].all()
    assert lstm(x, return_sequence=False)[0] is None
    assert lstm.compress("int8")(x, return_sequence=False)[0] is None
