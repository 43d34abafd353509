"""Hypothesis draws sizes, options and patterns; whatever they are, the native LSTM is the reference.

The examples are the same in every run. HYPOTHESIS_PROFILE=explore draws new ones, and more of them.
"""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from cases import LENGTHS, MASKS, RESETS, Case, Problem, assert_close, assert_same_bits, make_problem, solve
from fastlstm import reference
from fastlstm.weights import WeightSpec

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import strategies as st  # noqa: E402

# Fixtures only set what is the same for every example; an example's time says nothing on a busy machine.
COMMON = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.function_scoped_fixture]}
hypothesis.settings.register_profile("ci", derandomize=True, database=None, max_examples=60, **COMMON)
hypothesis.settings.register_profile("explore", max_examples=2000, **COMMON)
PROFILE = hypothesis.settings.get_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

sizes = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 31, 33, 48, 64, 65]))
batches = st.one_of(st.integers(0, 8), st.sampled_from([12, 13, 47, 49, 61, 97]))


@st.composite
def specs(draw: st.DrawFn) -> WeightSpec:
    hidden = draw(sizes)
    proj_size = draw(st.one_of(st.just(0), st.integers(0, hidden - 1)))
    return WeightSpec(draw(sizes), hidden, draw(st.integers(1, 3)), draw(st.booleans()), draw(st.booleans()), proj_size)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    layout = draw(st.sampled_from(["time_major", "batch_first", "unbatched"]))
    case = Case(
        "",
        draw(specs()),
        steps=draw(st.one_of(st.integers(0, 9), st.integers(10, 60))),
        batch=1 if layout == "unbatched" else draw(batches),
        layout=layout,
        state=draw(st.booleans()),
        lengths=draw(st.sampled_from([None, *LENGTHS])),
        mask=draw(st.sampled_from([None, *MASKS])),
        reset=draw(st.sampled_from([None, *RESETS])),
        masked_output=draw(st.sampled_from(["zero", "repeat"])),
        dropout=draw(st.sampled_from([0.0, 0.0, 0.1, 0.5, 1.0])),
    )
    hypothesis.note(str(case))
    if case.steps == 0 and case.lengths == "longest_first":
        case = replace(case, lengths="all_zero")
    problem = make_problem(case, draw(st.integers(0, 2**16)))
    given = draw(st.tuples(*[st.booleans()] * 4))
    return replace(
        problem,
        dy=problem.dy if given[0] else None,
        dstate=tuple(part if use else None for part, use in zip(problem.dstate, given[1:3], strict=True)),
        dcells=problem.dcells if given[3] else None,
    )


@PROFILE
@hypothesis.given(problem=problems(), threads=st.integers(1, 3))
def test_any_problem_in_float64(isa: str, problem: Problem, threads: int) -> None:
    assert_close(solve(problem, threads=threads), solve(problem, reference), "float64")


@PROFILE
@hypothesis.given(problem=problems(), threads=st.integers(1, 3))
def test_threads_change_no_bit_of_any_problem(isa: str, problem: Problem, threads: int) -> None:
    float32 = problem.astype("float32")
    assert_same_bits(solve(float32, threads=threads), solve(float32, threads=1))


@PROFILE
@hypothesis.given(
    problem=problems(), flip=st.tuples(*[st.booleans()] * 3), rows=st.lists(st.integers(0, 96), min_size=1, max_size=9)
)
def test_strides_and_order_of_rows_change_no_bit(
    isa: str, problem: Problem, flip: tuple[bool, ...], rows: list[int]
) -> None:
    def strided(array: np.ndarray) -> np.ndarray:
        axes = [axis for axis, flipped in zip(range(array.ndim), flip, strict=False) if flipped]
        return np.flip(np.flip(array, axes).copy(), axes)

    expected = solve(problem)
    assert_same_bits(solve(problem.map_arrays(strided)), expected)
    if (
        problem.x.ndim == 3
        and not problem.options["batch_first"]
        and problem.x.shape[1]
        and "dropout" not in problem.options
    ):
        chosen = np.array(rows) % problem.x.shape[1]
        found = solve(problem.rows(chosen))
        by_rows = ("y", "h_n", "c_n", "cells", "dx", "dh0", "dc0")
        assert_same_bits({n: found[n] for n in by_rows}, {n: expected[n][:, chosen] for n in by_rows})
