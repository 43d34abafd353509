"""What is promised to the last bit: threads, the batch around a row, training, and step by step change nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cases import (
    DEEP,
    DEEP_PROJECTED,
    EVERYTHING,
    SHARED,
    Case,
    Problem,
    assert_same_bits,
    make_problem,
    problem_of,
    solve,
)
from fastlstm import functional
from fastlstm.weights import WeightSpec

MARKS = {"lengths": "any_order", "mask": "random", "reset": "random", "masked_output": "repeat"}
THREADED = [
    *SHARED,
    Case("dropout_shared", WeightSpec(30, 40, 3), 7, 39, dropout=0.5),
    Case("long_sums_shared", WeightSpec(33, 47), 61, 41),
    Case("one_row_of_wide_weights", WeightSpec(150, 260), 7, 1),
]
# (the row's own size, the batch around it): every path by rows, from hoisted single ones to blocks shared by threads
NETS = {
    "one_layer": WeightSpec(9, 37),
    "wide": WeightSpec(61, 67),
    "projection": WeightSpec(9, 37, proj_size=13),
    "both_directions": WeightSpec(9, 21, num_layers=2, bidirectional=True),
    "everything": WeightSpec(9, 21, 2, False, True, 5),
}


def infer(problem: Problem, threads: int | None = None) -> dict[str, np.ndarray]:
    """The outputs alone, without a tape."""
    p = problem
    options = p.options | {"training": False, "threads": threads, "return_cells": True}
    y, (h_n, c_n), cells, _ = functional.lstm_forward(p.x, p.weights, p.state, **options)
    return {"y": y, "h_n": h_n, "c_n": c_n, "cells": cells}


def outputs(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: found[name] for name in ("y", "h_n", "c_n", "cells")}


def by_row(found: dict[str, np.ndarray], rows: np.ndarray | slice) -> dict[str, np.ndarray]:
    """Some rows of every array that has rows: all but the weights' gradients, which are sums over the batch."""
    names = ("y", "h_n", "c_n", "cells", "dx", "dh0", "dc0")
    return {name: found[name][:, rows] for name in names if name in found}


@pytest.mark.parametrize("case", THREADED, ids=str)
def test_any_number_of_threads(isa: str, dtype: str, case: Case) -> None:
    problem = problem_of(case).astype(dtype)
    one, one_inferred = solve(problem, threads=1), infer(problem, threads=1)
    for threads in (2, 3):
        assert_same_bits(solve(problem, threads=threads), one)
        assert_same_bits(infer(problem, threads=threads), one_inferred)
    assert_same_bits(solve(problem, threads=3, backward_threads=2), one)


@pytest.mark.parametrize("marks", [{}, MARKS], ids=["plain", "marked"])
@pytest.mark.parametrize("net", NETS)
def test_any_batch_around_a_row(isa: str, dtype: str, net: str, marks: dict[str, str]) -> None:
    problem = make_problem(Case("", NETS[net], 7, 71, **marks)).astype(dtype)
    whole, whole_inferred = solve(problem), infer(problem)
    rng = np.random.default_rng(1)
    for batch in (1, 2, 3, 4, 6, 7, 13, 49, 71):
        rows = rng.permutation(71)[:batch]
        part = problem.rows(rows)
        assert_same_bits(by_row(solve(part), slice(None)), by_row(whole, rows))
        assert_same_bits(infer(part), by_row(whole_inferred, rows))


# Backward of one step transposes the weights while it reads them, and stores dW at once, for 16 rows at most.
@pytest.mark.parametrize("spec", [WeightSpec(5, 11), WeightSpec(70, 67), WeightSpec(150, 130)], ids=str)
def test_a_single_step_of_few_rows_and_of_more(isa: str, dtype: str, spec: WeightSpec) -> None:
    problem = make_problem(Case("", spec, 1, 17)).astype(dtype)
    for gradient in (problem.dy, problem.dcells, *problem.dstate):
        gradient[:, 16] = 0
    few, more = solve(problem.rows(np.arange(16))), solve(problem)
    assert_same_bits(by_row(few, slice(None)), by_row(more, np.arange(16)))
    sums = [{name: found[name] for name in found if name.startswith("dweight")} for found in (few, more)]
    assert_same_bits(*sums)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [1, 3, 8, 50], ids="batch_of_{}".format)
@pytest.mark.parametrize("marks", [{}, MARKS], ids=["plain", "marked"])
@pytest.mark.parametrize("net", NETS)
def test_training_gives_what_inference_gives(
    isa: str, dtype: str, net: str, marks: dict[str, str], batch: int, threads: int
) -> None:
    problem = make_problem(Case("", NETS[net], 18, batch, **marks)).astype(dtype)
    assert_same_bits(infer(problem, threads), outputs(solve(problem, threads=threads)))


@pytest.mark.parametrize("case", EVERYTHING, ids=str)
def test_inference_leaves_out_dropout_alone(isa: str, dtype: str, case: Case) -> None:
    problem = problem_of(case).astype(dtype)
    assert_same_bits(infer(problem), outputs(solve(problem.with_options(dropout=0.0))))


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("batch", [1, 3, 8, 50], ids="batch_of_{}".format)
@pytest.mark.parametrize("marks", [{}, {"mask": "random", "reset": "random"}], ids=["plain", "marked"])
@pytest.mark.parametrize("net", ["one_layer", "wide", "projection"])
def test_step_by_step_is_the_whole_sequence(
    isa: str, dtype: str, net: str, marks: dict[str, str], batch: int, training: bool
) -> None:
    spec = replace(NETS[net], num_layers=2)
    problem = make_problem(Case("", spec, 19, batch, masked_output="repeat", **marks)).astype(dtype)
    whole, packed = infer(problem), functional.PackedWeights.of(problem.weights)
    for size in (1, 4):
        parts, state = [], problem.state
        for start in range(0, 19, size):
            part = replace(problem.steps(slice(start, start + size)), state=state)
            y, state, cells, _ = functional.lstm_forward(
                part.x, packed, part.state, return_cells=True, training=training, **part.options
            )
            parts.append((y, cells))
        y, cells = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        assert_same_bits({"y": y, "cells": cells, "h_n": state[0], "c_n": state[1]}, whole)


@pytest.mark.parametrize("spec", [DEEP, DEEP_PROJECTED], ids=["deep", "projected"])
def test_layouts_and_marks_that_say_the_same(isa: str, dtype: str, spec: WeightSpec) -> None:
    problem = make_problem(Case("", spec, 9, 6, lengths="any_order")).astype(dtype)
    expected = solve(problem)
    options = {name: value for name, value in problem.options.items() if name != "lengths"}
    by_mask = replace(problem, options=options | {"mask": problem.counts()})
    assert_same_bits(solve(by_mask), expected)
    swapped = problem.map_arrays(lambda a: np.ascontiguousarray(a.swapaxes(0, 1)) if a.ndim == 3 else a)
    swapped = replace(swapped, state=problem.state, dstate=problem.dstate).with_options(batch_first=True)
    found = solve(swapped)
    for name in ("y", "cells", "dx"):
        found[name] = found[name].swapaxes(0, 1)
    assert_same_bits(found, expected)


@pytest.mark.parametrize("net", NETS)
def test_gradients_of_rows_that_get_none_are_zero(isa: str, dtype: str, net: str) -> None:
    # A row's gradients come from its own outputs: the others' must not touch them, not even by rounding.
    problem = make_problem(Case("", NETS[net], 7, 13)).astype(dtype)
    others = np.arange(13) != 4
    dy, dcells = problem.dy.copy(), problem.dcells.copy()
    dstate = tuple(array.copy() for array in problem.dstate)
    for array in (dy, dcells, *dstate):
        array[:, others] = 0
    found = by_row(solve(replace(problem, dy=dy, dcells=dcells, dstate=dstate)), slice(None))
    assert not any(found[name][:, others].any() for name in ("dx", "dh0", "dc0"))
    expected = by_row(solve(problem), slice(4, 5))
    assert_same_bits(by_row(found, slice(4, 5)), expected)
