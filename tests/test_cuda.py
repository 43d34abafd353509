"""The LSTM on a GPU, emulated or real, against the float64 reference: the cases of the CPU, forward and backward."""

from __future__ import annotations

import numpy as np
import pytest

import fastlstm
from cases import (
    EVERYTHING,
    OPTIONS,
    SHAPES,
    SHARED,
    TOLERANCE,
    Case,
    assert_close,
    assert_same_bits,
    problem_of,
    truth_of,
)
from cell_cases import MARKS, VARIANTS, variant_of
from gpus import Gpu

WITHOUT_NORM = [variant for variant in VARIANTS if "norm" not in variant]


@pytest.mark.parametrize("case", [*SHAPES, *SHARED, *OPTIONS, *EVERYTHING], ids=str)
def test_case(gpu: Gpu, dtype: str, case: Case) -> None:
    assert_close(gpu.solve(problem_of(case).astype(dtype)), truth_of(case), dtype)
