"""The native gradients against five-point differences of the native forward, in float64: each number of each array."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from cases import TOLERANCE, Case, Problem, make_problem, relative_error, solve
from fastlstm import functional
from fastlstm.weights import WeightSpec

STEP = 1e-3


def loss(problem: Problem, weights: functional.PackedWeights) -> float:
    """The sum of all outputs, each times what is to be its gradient."""
    p = problem
    y, (h_n, c_n), cells, _ = functional.lstm_forward(p.x, weights, p.state, return_cells=True, threads=1, **p.options)
    return float((y * p.dy).sum() + (h_n * p.dstate[0]).sum() + (c_n * p.dstate[1]).sum() + (cells * p.dcells).sum())


def differences(problem: Problem, array: np.ndarray, weights: functional.PackedWeights | None) -> Iterator[float]:
    """d loss / d each number of `array`, which is one of the problem's own; weights are packed before, or each time."""
    for i in range(array.size):
        before, sides = array.flat[i], []
        for h in (STEP, -STEP, 2 * STEP, -2 * STEP):
            array.flat[i] = before + h
            sides.append(loss(problem, weights or functional.PackedWeights.of(problem.weights)))
        array.flat[i] = before
        yield (8 * (sides[0] - sides[1]) - (sides[2] - sides[3])) / (12 * STEP)


CASES = [
    Case("plain", WeightSpec(3, 5), 5, 3),
    Case("one_row_hoisted", WeightSpec(3, 5), 9, 1),
    *(
        Case(
            f"every_option_{masked_output}{'_projected' * bool(proj_size)}",
            WeightSpec(2, 5, 2, True, True, proj_size),
            5,
            3,
        )
        for masked_output in ("zero", "repeat")
        for proj_size in (0, 3)
    ),
]
EVERY_OPTION = {"lengths": "any_order", "mask": "random", "reset": "random", "dropout": 0.3}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_slopes(isa: str, case: Case) -> None:
    if case.name.startswith("every_option"):
        masked_output = "repeat" if "repeat" in case.name else "zero"
        case = replace(case, **EVERY_OPTION, masked_output=masked_output)
    problem = make_problem(case, seed=2).map_arrays(np.copy)
    if "mask" in problem.options:  # else too little of so small a problem would be left to differ
        problem = problem.with_options(lengths=np.array([5, 4, 2]))
    found = solve(problem)
    packed = functional.PackedWeights.of(problem.weights)
    inputs = {"dx": problem.x, "dh0": problem.state[0], "dc0": problem.state[1]}
    slopes = {name: list(differences(problem, array, packed)) for name, array in inputs.items()}
    slopes |= {"d" + name: list(differences(problem, array, None)) for name, array in problem.weights.items()}
    for name, expected in slopes.items():
        assert np.any(expected), name
        assert relative_error(found[name].ravel(), np.array(expected)) <= TOLERANCE["finite differences"], name
