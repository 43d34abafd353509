"""The named workloads that the bench times, and the arrays of each. Knows no rival and no clock."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import NamedTuple

import numpy as np

import fastlstm

MODES = ("inference", "training")  # training: forward, and the gradients of x, state and every weight


@dataclass(frozen=True)
class Case:
    """One workload. Its name says who runs it, or what it is hard for."""

    name: str
    T: int
    B: int
    I: int
    H: int
    layers: int = 1
    bidirectional: bool = False
    dtype: str = "float32"

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    def flops(self, mode: str) -> float:
        """Of the matrix products alone: two for each weight, row and step; training has three such products."""
        inputs = [self.I] + [self.directions * self.H] * (self.layers - 1)
        weights = sum(4 * self.H * (size + self.H) * self.directions for size in inputs)
        return 2.0 * self.T * self.B * weights * (3 if mode == "training" else 1)

    def shortened(self, flops: float, mode: str) -> Case:
        """The same with as many steps as fit into `flops`, but at least two."""
        steps = int(flops / (self.flops(mode) / self.T))
        return replace(self, T=min(self.T, max(2, steps)))


# The grid of shared/CPU.md: its first column, in its order.
GRID = (
    Case("step_64", 1, 1, 64, 64),
    Case("step_256", 1, 1, 256, 256),
    Case("step_512", 1, 1, 512, 512),
    Case("row_128", 100, 1, 64, 128),
    Case("row_256", 100, 1, 256, 256),
    Case("row_512", 100, 1, 512, 512),
    Case("row_1024", 50, 1, 1024, 1024),
    Case("batch32_128", 100, 32, 64, 128),
    Case("batch32_256", 100, 32, 256, 256),
    Case("batch64_512", 100, 64, 512, 512),
    Case("batch64_1024", 50, 64, 1024, 1024),
    Case("batch256_256", 50, 256, 256, 256),
    Case("batch256_512", 50, 256, 512, 512),
    Case("long_256", 2000, 8, 128, 256),
    Case("year_64", 365, 256, 8, 64),
    Case("year_256", 365, 256, 30, 256),
)

# What the grid leaves out: other options, and sizes that fill no vector or tile.
EXTRA = (
    Case("digits", 8, 32, 8, 128),  # examples/digits.py
    Case("digits_float64", 8, 32, 8, 128, dtype="float64"),
    Case("batch32_128_float64", 50, 32, 64, 128, dtype="float64"),
    Case("batch32_128_two_layers", 50, 32, 64, 128, layers=2),
    Case("batch32_128_both_directions", 50, 32, 64, 128, bidirectional=True),
    Case("narrow_audio", 1000, 50, 1, 16),  # guitar amplifiers: one input, few units, many steps
    Case("odd_sizes", 37, 13, 29, 51),
)

TINY = Case("tiny", 5, 3, 4, 6)  # for tests of the bench; in no default run
CASES = GRID + EXTRA
QUICK = ("step_64", "row_128", "batch32_128", "digits")


def choose(patterns: list[str]) -> list[Case]:
    """The cases that any shell pattern (`row_*`) names, in the order of the table. A pattern without a match raises."""
    every = (*CASES, TINY)
    for pattern in patterns:
        if not any(fnmatch(case.name, pattern) for case in every):
            raise ValueError(f"no case is named {pattern}, expected some of {', '.join(case.name for case in every)}")
    return [case for case in every if any(fnmatch(case.name, pattern) for pattern in patterns)]


class Problem(NamedTuple):
    """What every rival of a case gets: the same values, whatever the case's dtype."""

    case: Case
    weights: dict[str, np.ndarray]  # by torch's names
    x: np.ndarray  # [T,B,I]
    h0: np.ndarray  # [L*D,B,H]
    c0: np.ndarray  # [L*D,B,H]
    dy: np.ndarray  # [T,B,D*H]


def problem(case: Case, dtype: str | None = None) -> Problem:
    """The arrays of `case`, in its own dtype unless another is given."""
    rng = np.random.default_rng(7)
    wanted = np.dtype(dtype or case.dtype)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32).astype(wanted)

    sizes = {"num_layers": case.layers, "bidirectional": case.bidirectional, "seed": 7}
    weights = fastlstm.LSTM(case.I, case.H, **sizes).state_dict()
    rows = case.layers * case.directions
    return Problem(
        case=case,
        weights={name: array.astype(wanted) for name, array in weights.items()},
        x=draw(case.T, case.B, case.I),
        h0=draw(rows, case.B, case.H),
        c0=draw(rows, case.B, case.H),
        dy=draw(case.T, case.B, case.directions * case.H),
    )
