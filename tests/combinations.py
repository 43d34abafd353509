"""What tests run on: every instruction set of this machine in each dtype, or a part of these combinations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

import fastlstm

CONFIG = fastlstm.build_config()
# x86_v3_wide is the source of x86_v4 for machines that cannot run that.
RUNNABLE = [name for name in CONFIG["isa_runnable"] if name != "x86_v3_wide" or "x86_v4" not in CONFIG["isa_runnable"]]
DTYPES = ["float32", "float64"]


def in_turns(**parameters: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrize a test by `isa`, `dtype` and these: all their combinations in both dtypes, each dtype on one isa.

    The next value of any parameter has the next isa. Of three instruction sets that leaves a third of all runs, in
    which every parameter's value still meets each isa in each dtype, and every other parameter's value. All rows of
    kernels are one source: what goes unseen is a fault of one isa that needs two of the values at once.
    """
    places = [
        (isa, dtype, isa_place + dtype_place)
        for isa_place, isa in enumerate(RUNNABLE)
        for dtype_place, dtype in enumerate(DTYPES)
    ]
    chosen: list[tuple[tuple[Any, ...], int]] = [((), 0)]
    for values in parameters.values():
        chosen = [((*had, value), at + place) for had, at in chosen for place, value in enumerate(values)]
    rows = [
        pytest.param(isa, dtype, *values, id="-".join(map(str, (isa, dtype, *values))))
        for isa, dtype, place in places
        for values, at in chosen
        if (at + place) % len(RUNNABLE) == 0
    ]
    return pytest.mark.parametrize(["isa", "dtype", *parameters], rows, indirect=["isa"])
