"""The variants of the cell that the tests solve: each option alone, every activation in each place, and together."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from cases import TOLERANCE, Case, problem_of, relative_error, solve
from fastlstm import reference
from fastlstm.activations import ACTIVATIONS
from fastlstm.cells import PLAIN, LSTMCellOptions
from fastlstm.weights import WeightSpec

# alpha and beta of every activation: none is its default, so that one which gets lost is seen. Small for those that are
# not bounded, so that a cell stays small over the steps of a test.
PARAMETERS = {
    "hard_sigmoid": (0.3, 0.4),
    "affine": (0.4, 0.1),
    "leaky_relu": (0.2,),
    "elu": (0.7,),
    "scaled_tanh": (0.9, 0.6),
    "thresholded_relu": (0.3,),
}
KINDS = [(kind, *PARAMETERS.get(kind, ())) for kind in ACTIVATIONS]


def cell(**options: Any) -> dict[str, Any]:
    return {"cell": LSTMCellOptions(**options)}


def by_place(first: int) -> dict[str, Any]:
    """Three activations of different kinds; over all `first`, each kind stands once in each place."""
    return cell(activations=tuple(KINDS[(first + step) % len(KINDS)] for step in (0, 7, 4)))


# What differs from the textbook's cell: fields of a WeightSpec, and of a Case.
ALONE: dict[str, dict[str, Any]] = {
    "gates_of_the_textbook": {},
    "peepholes": {"peepholes": True},
    "coupled_input_forget": cell(coupled_input_forget=True),
    "gate_clip": cell(gate_clip=0.3),
    "cell_clip": cell(cell_clip=0.4),
    "zoneout_of_h": cell(zoneout_h=0.3),
    "zoneout_of_c": cell(zoneout_c=0.2),
    "zoneout_of_all": cell(zoneout_h=1.0, zoneout_c=1.0),
    "layer_norm": {"layer_norm": True},
    "pre_activations": {"input_size": 0},
    "input_dropout": cell(input_dropout=0.3),
    "input_dropout_per_gate": cell(input_dropout=0.3, dropout_per_gate=True),
    "recurrent_dropout": cell(recurrent_dropout=0.4),
    "recurrent_dropout_per_gate": cell(recurrent_dropout=0.4, dropout_per_gate=True),
    "dropout_of_all": cell(input_dropout=1.0, recurrent_dropout=1.0),
    "weight_drop": cell(weight_drop=0.3),
}
ACTIVATED = {f"activations_from_{kind}": by_place(first) for first, kind in enumerate(ACTIVATIONS)}
EXACT = {  # of what draws nothing, all but layer_norm
    "activations": (("hard_sigmoid", 0.3, 0.4), ("scaled_tanh", 0.9, 0.6), "softsign"),
    "coupled_input_forget": True,
    "gate_clip": 0.9,
    "cell_clip": 0.5,
}
ZONED = {"zoneout_h": 0.3, "zoneout_c": 0.2}
DROPPED = {"input_dropout": 0.3, "recurrent_dropout": 0.4, "dropout_per_gate": True, "weight_drop": 0.2}
TOGETHER: dict[str, dict[str, Any]] = {
    "peepholes_under_clips": {"peepholes": True} | cell(gate_clip=0.5, cell_clip=0.4),
    "coupled_peepholes": {"peepholes": True} | cell(coupled_input_forget=True, cell_clip=0.6),
    "both_zoneouts": cell(**ZONED),
    "zoneout_under_clips": cell(**ZONED, gate_clip=0.5, cell_clip=0.4),
    "all_that_is_exact": {"peepholes": True} | cell(**EXACT),
    "all_but_norms_and_dropouts": {"peepholes": True} | cell(**EXACT, **ZONED),
    "norms_with_peepholes_under_clips": {"layer_norm": True, "peepholes": True} | cell(gate_clip=0.9, cell_clip=0.8),
    "norms_with_zoneout": {"layer_norm": True} | cell(**ZONED),
    "pre_activations_with_peepholes": {"input_size": 0, "peepholes": True} | cell(**EXACT),
    "pre_activations_with_dropouts": {"input_size": 0} | cell(**ZONED, recurrent_dropout=0.4, weight_drop=0.2),
    "all_dropouts": cell(**DROPPED),
    "everything_at_once": {"peepholes": True, "layer_norm": True} | cell(**EXACT, **ZONED, **DROPPED),
}
VARIANTS = ALONE | ACTIVATED | TOGETHER


NORMAL = 2  # with the seed 0, one case in three layers has deviations so small that a last digit becomes a thousandth


def cell_of(variant: str) -> LSTMCellOptions:
    cell: LSTMCellOptions = VARIANTS[variant].get("cell", PLAIN)
    return cell


def variant_of(variant: str, case: Case) -> Case:
    """The case with another cell, and with gates."""
    given = {name: value for name, value in VARIANTS[variant].items() if name != "cell"}
    seed = NORMAL if "layer_norm" in given else case.seed
    return replace(case, name=variant, spec=replace(case.spec, **given), cell=cell_of(variant), gates=True, seed=seed)


@functools.cache
def own_errors(case: Case, dtype: str, how: Callable[..., dict[str, np.ndarray]] = solve) -> dict[str, float]:
    """What normalisation lets pass: it divides by deviations, and where one is small, what was rounded grows.

    How far the case lets it grow is seen in the reference, in float32 against float64.
    """
    if not case.spec.layer_norm:
        return {}
    # For float64, too, float32 tells: there is nothing more exact to hold it against.
    found, exact = how(problem_of(case).astype("float32"), reference), how(problem_of(case), reference)
    digits = np.finfo(dtype).eps / np.finfo(np.float32).eps
    worst = max(relative_error(array, exact[name]) for name, array in found.items())
    return dict.fromkeys(found, TOLERANCE["times NumPy, normalised"] * digits * worst)


DEEP_PROJECTED = WeightSpec(5, 11, num_layers=2, bidirectional=True, proj_size=3)
MARKS = {"lengths": "any_order", "mask": "random", "reset": "random"}

# Sizes at which the kernels change their path, and every way to lie, to be masked and to be cut.
SHAPES = [
    Case("one_unit", WeightSpec(1, 1), 4, 7),
    Case("one_row_of_one_step", WeightSpec(2, 19), 1, 1),
    Case("one_step", WeightSpec(3, 5), 1, 4),
    Case("primes", WeightSpec(7, 13), 11, 3),
    Case("more_than_a_panel", WeightSpec(3, 67), 3, 2),
    Case("one_row_over_more_steps_than_are_hoisted", WeightSpec(5, 9), 40, 1),
    Case("two_rows_hoisted", WeightSpec(5, 9, 2), 33, 2, mask="random"),
    Case("rows_of_three_blocks", WeightSpec(5, 9), 3, 97),
    Case("backward_in_three_chunks", WeightSpec(5, 7), 70, 8),
    Case("no_steps", DEEP_PROJECTED, 0, 3),
    Case("no_rows", DEEP_PROJECTED, 4, 0),
    Case("no_bias", WeightSpec(5, 11, 2, bias=False), state=False),
    Case("both_directions", WeightSpec(5, 11, bidirectional=True)),
    Case("projection", WeightSpec(5, 11, proj_size=4)),
    Case("lengths", WeightSpec(5, 17, bidirectional=True), lengths="any_order"),
    Case("batch_first", DEEP_PROJECTED, 9, 6, "batch_first", **MARKS, masked_output="repeat"),
    Case("unbatched", DEEP_PROJECTED, 9, 1, "unbatched", mask="alternating_integers", reset="random"),
    Case("in_every_way", WeightSpec(5, 11, 3, True, True, 4), 13, 9, **MARKS, dropout=0.25),
    Case("in_every_way_without_projection", WeightSpec(5, 11, 3, True, True), 13, 9, **MARKS, masked_output="repeat"),
]
# Sizes at which threads share rows, units, or the work that is hoisted.
SHARED = [
    Case("ragged_rows_shared", WeightSpec(30, 41), 5, 40, lengths="any_order", reset="random"),
    Case("units_shared", WeightSpec(61, 67), 4, 5),
    Case("units_shared_hoisted", WeightSpec(91, 99), 18, 3),
    Case("projection_shared", WeightSpec(61, 67, proj_size=21), 5, 7, lengths="any_order", mask="random"),
    Case("deep_shared", WeightSpec(40, 48, 2, True, True), 4, 30, lengths="any_order", dropout=0.3),
]
# Backward sums 256 rows at once, and checkpoints are as far apart at least.
LONG = [
    Case("deep", DEEP_PROJECTED, 70, 9, **MARKS, dropout=0.25, masked_output="repeat"),
    Case("one_direction", WeightSpec(5, 11, 2), 70, 9, mask="random"),
    Case("one_row", WeightSpec(5, 11, bidirectional=True), 530, 1),
]
