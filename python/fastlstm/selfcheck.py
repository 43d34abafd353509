"""Checks the native kernels against `fastlstm.reference` in a few seconds; `python -m fastlstm` prints what it finds.

It asks whether this copy works on this machine, and needs NumPy alone; it does not replace the test suite.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import functional, reference
from .config import active_isa, build_config, set_isa
from .weights import WeightSpec, initial_weights

# The largest max|a - b| / max|b| that an array may show, as in the suite. The bias gradients are the longest sums.
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
BIAS_TOLERANCE = {"float32": 2e-6, "float64": 1e-12}


class Case(NamedTuple):
    """What to compute: the weights' sizes, T and B, and which options to switch on."""

    name: str
    spec: WeightSpec
    steps: int
    batch: int
    patterns: bool = False  # random lengths, mask and resets; held outputs; dropout


class Check(NamedTuple):
    """How one case fared on one instruction set: `array` is the one with the largest part of its tolerance used up."""

    case: str
    isa: str
    dtype: str
    array: str
    error: float  # max|a - b| / max|b|
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # NaN does not pass


CASES = (
    Case("batch of rows", WeightSpec(12, 24), steps=5, batch=19),
    Case("one row, two layers", WeightSpec(5, 13, num_layers=2), steps=20, batch=1),
    Case("projection, no bias", WeightSpec(7, 18, bias=False, proj_size=5), steps=9, batch=6),
    Case("every option", WeightSpec(6, 11, num_layers=2, bidirectional=True), steps=9, batch=5, patterns=True),
)


def run() -> list[Check]:
    """Compare every case on every instruction set that can run here, in both dtypes. The active one is restored.

    >>> from fastlstm import selfcheck
    >>> [check for check in selfcheck.run() if not check.passed]
    []
    """
    active = active_isa()
    exact = {case: _solve(reference, case, np.dtype(np.float64)) for case in CASES}
    checks = []
    try:
        for isa in build_config()["isa_runnable"]:
            set_isa(isa)
            for dtype in (np.dtype(np.float32), np.dtype(np.float64)):
                checks += [_compare(case, isa, dtype, _solve(functional, case, dtype), exact[case]) for case in CASES]
    finally:
        set_isa(active)
    return checks


def _solve(module: ModuleType, case: Case, dtype: np.dtype[np.floating]) -> dict[str, NDArray[np.floating]]:
    """Forward and backward by `module` (functional or reference): every output and gradient, by name."""
    rng = np.random.default_rng(20)

    def draw(*shape: int) -> NDArray[np.floating]:
        return rng.standard_normal(shape, np.float32).astype(dtype)  # the same values in both dtypes

    spec, steps, batch = case.spec, case.steps, case.batch
    rows = spec.num_layers * spec.num_directions
    cells_size = spec.num_directions * spec.hidden_size
    weights = {name: array.astype(dtype) for name, array in initial_weights(spec, dtype=np.float32, rng=rng).items()}
    x = draw(steps, batch, spec.input_size)
    state = draw(rows, batch, spec.hidden_output), draw(rows, batch, spec.hidden_size)
    patterns = {
        "lengths": rng.integers(0, steps + 1, batch),
        "mask": rng.random((steps, batch)) < 0.8,
        "reset": rng.random((steps, batch)) < 0.2,
        "masked_output": "repeat",
        "dropout": 0.5,
        "dropout_seed": 7,
    }
    y, (h_n, c_n), cells, tape = module.lstm_forward(
        x, weights, state, return_cells=True, **(patterns if case.patterns else {})
    )
    gradients = module.lstm_backward(
        tape,
        draw(steps, batch, spec.output_size),
        (draw(*h_n.shape), draw(*c_n.shape)),
        dcells=draw(steps, batch, cells_size),
    )
    arrays = {"y": y, "h_n": h_n, "c_n": c_n, "cells": cells, "dx": gradients.x}
    arrays |= zip(("dh0", "dc0"), gradients.state, strict=True)
    return arrays | {f"d{name}": array for name, array in gradients.weights.items()}


def _compare(
    case: Case,
    isa: str,
    dtype: np.dtype[np.floating],
    ours: dict[str, NDArray[np.floating]],
    exact: dict[str, NDArray[np.floating]],
) -> Check:
    checks = []
    for name, expected in exact.items():
        error = float(np.max(np.abs(ours[name] - expected)) / np.max(np.abs(expected)))
        tolerance = (BIAS_TOLERANCE if name.startswith("dbias") else TOLERANCE)[dtype.name]
        checks.append(Check(case.name, isa, dtype.name, name, error, tolerance))
    return worst(checks)


def worst(checks: list[Check]) -> Check:
    """The check that is farthest over, or else nearest to, its tolerance; NaN is worse than any number."""
    return max(checks, key=lambda check: np.nan_to_num(check.error / check.tolerance, nan=np.inf))
