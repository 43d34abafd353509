"""The native gradients against five-point differences of the native forward, in float64: each number of each array."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from cases import TOLERANCE, Case, Problem, make_problem, relative_error, solve
from fastlstm import LSTMCellOptions, functional
from fastlstm.cells import PLAIN
from fastlstm.weights import WeightSpec

STEP = 1e-3


def loss(problem: Problem, weights: functional.PackedWeights) -> float:
    """The sum of all outputs, each times what is to be its gradient."""
    p = problem
    y, (h_n, c_n), cells, *gates, _ = functional.lstm_forward(
        p.x, weights, p.state, return_cells=True, return_gates=p.dgates is not None, threads=1, **p.options
    )
    total = (y * p.dy).sum() + (h_n * p.dstate[0]).sum() + (c_n * p.dstate[1]).sum() + (cells * p.dcells).sum()
    return float(total + ((gates[0] * p.dgates).sum() if gates else 0))


def differences(
    problem: Problem, array: np.ndarray, weights: functional.PackedWeights | None, step: float
) -> Iterator[float]:
    """d loss / d each number of `array`, which is one of the problem's own; weights are packed before, or each time."""
    for i in range(array.size):
        before, sides = array.flat[i], []
        for h in (step, -step, 2 * step, -2 * step):
            array.flat[i] = before + h
            sides.append(loss(problem, weights or packed(problem)))
        array.flat[i] = before
        yield (8 * (sides[0] - sides[1]) - (sides[2] - sides[3])) / (12 * step)


def packed(problem: Problem) -> functional.PackedWeights:
    return functional.PackedWeights.of(problem.weights, cell=problem.options.get("cell", PLAIN))


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
    assert_slopes(problem, found)


def assert_slopes(problem: Problem, found: dict[str, np.ndarray], step: float = STEP) -> None:
    weights = packed(problem)
    inputs = {"dx": problem.x, "dh0": problem.state[0], "dc0": problem.state[1]}
    slopes = {name: list(differences(problem, array, weights, step)) for name, array in inputs.items()}
    slopes |= {"d" + name: list(differences(problem, array, None, step)) for name, array in problem.weights.items()}
    for name, expected in slopes.items():
        assert np.any(expected), name
        assert relative_error(found[name].ravel(), np.array(expected)) <= TOLERANCE["finite differences"], name


# The limits are such that about half of the numbers are clipped. A function has no slope at a kink: no number of these
# cases comes within a step of one. Steps are shorter here, for their sake, and since normalisation bends sharply.
SHORT = 1e-4
SMOOTH = {
    "peepholes": {"peepholes": True},
    "coupled": {"cell": LSTMCellOptions(coupled_input_forget=True), "peepholes": True},
    "clips": {"cell": LSTMCellOptions(gate_clip=0.4, cell_clip=0.3), "peepholes": True},
    "activations": {"cell": LSTMCellOptions(activations=("softsign", ("elu", 0.7), ("scaled_tanh", 0.9, 0.6)))},
    "activations_with_kinks": {"cell": LSTMCellOptions(activations=("hard_sigmoid", ("leaky_relu", 0.2), "softplus"))},
    "zoneout": {"cell": LSTMCellOptions(zoneout_h=0.3, zoneout_c=0.4)},
    "dropout": {"cell": LSTMCellOptions(input_dropout=0.3, recurrent_dropout=0.4)},
    "dropout_per_gate": {"cell": LSTMCellOptions(input_dropout=0.3, recurrent_dropout=0.4, dropout_per_gate=True)},
    "weight_drop": {"cell": LSTMCellOptions(weight_drop=0.4)},
    "layer_norm": {"layer_norm": True},
    "pre_activations": {"input_size": 0, "cell": LSTMCellOptions(recurrent_dropout=0.4, dropout_per_gate=True)},
    "together": {
        "layer_norm": True,
        "peepholes": True,
        "cell": LSTMCellOptions(
            activations=("sigmoid", "softsign", "tanh"),
            cell_clip=0.9,
            zoneout_h=0.2,
            zoneout_c=0.3,
            input_dropout=0.2,
            recurrent_dropout=0.3,
            dropout_per_gate=True,
            weight_drop=0.2,
        ),
    },
}


@pytest.mark.parametrize("proj_size", [0, 3], ids=["", "projected"])
@pytest.mark.parametrize("variant", SMOOTH)
def test_gradients_of_variants_are_slopes(isa: str, variant: str, proj_size: int) -> None:
    own = dict(SMOOTH[variant])
    cell = own.pop("cell", PLAIN)
    spec = replace(WeightSpec(2, 5, 1, True, True, proj_size), **own)
    case = Case(variant, spec, 4, 3, mask="random", cell=cell, gates=True)
    problem = make_problem(case).map_arrays(np.copy)
    assert_slopes(problem, solve(problem), step=SHORT)
