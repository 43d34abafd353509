"""The backend numpy, which has no gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .call import Call, forward

__all__ = ["LEADING_ZEROS", "run"]

LEADING_ZEROS = False  # the output of a masked step before the first is the initial state


def run(layer: Any, call: Call, x: Any, state: Any, weights: Sequence[Any], mask: Any, seed: Any) -> Any:
    # A float64 variable of Keras's may hold float32, and its cast leaves that: it asks the variable, not the array.
    weights = [np.asarray(weight, x.dtype) for weight in weights]
    results, _ = forward(replace(call, keeps_tape=False), x, state, weights, mask, seed)
    return results
