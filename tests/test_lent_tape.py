"""A tape in memory of the caller's, as a compiled program of JAX's has it: copied, moved, and made a tape again."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cases import DEEP, DEEP_PROJECTED, EVERYTHING, Case, Problem, assert_same_bits, problem_of
from cell_cases import variant_of
from fastlstm import _core
from fastlstm.cells import PLAIN
from fastlstm.functional import PackedWeights, lstm_backward, lstm_forward
from fastlstm.weights import WeightSpec

CASES = [
    Case("one_step", WeightSpec(3, 5), 1, 4),
    Case("no_steps", DEEP_PROJECTED, 0, 3),
    Case("no_rows", DEEP_PROJECTED, 4, 0),
    Case("ragged_rows", DEEP, 9, 7, lengths="any_order", reset="random", masked_output="repeat"),
    *EVERYTHING,
    variant_of("everything_at_once", Case("", WeightSpec(5, 11, 2, bidirectional=True), mask="random")),
]


def aligned(bytes: int, skew: int = 0) -> np.ndarray:
    memory = np.full(bytes + 128, 0xFF, np.uint8)  # which are no numbers
    start = -memory.ctypes.data % 64 + skew
    return memory[start : start + bytes]


def packed_of(problem: Problem) -> PackedWeights:
    return PackedWeights.of(problem.weights, cell=problem.options.get("cell", PLAIN))


def leave(
    problem: Problem, memory: np.ndarray | None = None
) -> tuple[Any, np.ndarray, tuple[Any, ...], dict[str, Any]]:
    """Weights, memory that a forward has left its tape in, and what `resume` needs to be told."""
    options, x = problem.options, problem.x
    batched, batch_first = x.ndim == 3, options["batch_first"]
    T, B = (len(x), 1) if not batched else x.shape[1::-1] if batch_first else x.shape[:2]
    weights = packed_of(problem).native
    memory = aligned(_core.tape_bytes(weights, T, B)) if memory is None else memory
    both = {name: options.get(name) for name in ("lengths", "mask", "reset")} | {
        "repeat": options["masked_output"] == "repeat",
        "return_sequence": True,
        "dropout": options.get("dropout", 0.0),
        "dropout_seed": options.get("dropout_seed", 0),
        "dropout_call": options.get("dropout_call", 0),
    }
    *_, tape = _core.forward(
        weights,
        x,
        problem.state,
        batch_first=batch_first,
        return_cells=False,
        return_gates=False,
        training=True,
        checkpoint_every=0,
        dropout_step=0,
        threads=1,
        out=None,
        memory=memory,
        **both,
    )
    assert tape is None
    return weights, memory, (T, B, batched, batch_first), both


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_copy_of_it_gives_the_same_bits(case: Case, isa: str, dtype: str) -> None:
    problem = problem_of(case).astype(dtype)
    weights, memory, sizes, options = leave(problem)
    copy = aligned(len(memory))
    copy[:] = memory
    memory[:] = 0xFF
    before = copy.copy()
    tape = _core.resume(weights, copy, *sizes, **options)
    cells = {"dcells": problem.dcells}
    *_, own = lstm_forward(problem.x, packed_of(problem), problem.state, **without_cell(problem.options))
    expected = lstm_backward(own, problem.dy, problem.dstate, **cells)
    found = lstm_backward(replace(own, native=tape), problem.dy, problem.dstate, **cells)
    assert_same_bits({"dx": found.x, **found.weights}, {"dx": expected.x, **expected.weights})
    assert_same_bits(dict(zip("hc", found.state, strict=True)), dict(zip("hc", expected.state, strict=True)))
    assert np.array_equal(copy, before)


def without_cell(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "cell"}


def test_it_lives_as_long_as_the_tape() -> None:
    weights, memory, sizes, options = leave(problem_of(CASES[0]))
    owner = weakref.ref(memory.base)
    tape = _core.resume(weights, memory, *sizes, **options)
    del memory
    assert owner() is not None
    del tape
    assert owner() is None


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        (lambda n: aligned(n + 1), ValueError, r"memory has shape .* expected"),
        (lambda n: aligned(n).view(np.int8), TypeError, "memory is no C-contiguous array of uint8"),
        (lambda n: aligned(2 * n)[::2], TypeError, "memory is no C-contiguous array of uint8"),
        (lambda n: aligned(n, skew=16), ValueError, "expected a multiple of 64 bytes"),
        (lambda n: [0] * n, TypeError, "memory is a builtins.list"),
    ],
)
def test_memory_that_will_not_do(wrong: Any, error: type[Exception], text: str) -> None:
    problem = problem_of(CASES[0])
    weights, memory, sizes, options = leave(problem)
    with pytest.raises(error, match=text):
        leave(problem, wrong(len(memory)))
    with pytest.raises(error, match=text):
        _core.resume(weights, wrong(len(memory)), *sizes, **options)
