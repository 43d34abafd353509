"""Whether a rival computes the same LSTM: its results beside fastlstm.reference in float64. Times nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cases import STEPS_CHECKED, Case, Problem, problem
from fastlstm import reference

CHECK_FLOPS = 2e9  # the float64 reference gets as many steps of a case as fit into these
# The largest max|a-b| / max|b| of an array: is it the same LSTM? (How exact it is, the test suite asks.) tf32 has as
# many bits as float16, and bfloat16 three less: 8 times the error.
TOLERANCE = {"float32": 1e-5, "float64": 1e-11, "float16": 1e-2, "tf32": 1e-2, "bfloat16": 8e-2}
# Between rivals over all steps. With few bits each result is rounded, which hides what steps add to it.
FULL_TOLERANCE = TOLERANCE | {"float32": 1e-4, "float64": 1e-10}

Results = dict[str, np.ndarray]


class Wrong(Exception):
    """A rival computes something else; the message says which array and by how much."""


def worst(got: Results, expected: Results, limit: float) -> tuple[float, str]:
    """The largest relative error of an array, and its name; raises Wrong above the limit."""
    errors = {}
    for name, array in got.items():
        if array.shape != expected[name].shape:
            raise Wrong(f"{name} has shape {array.shape}, expected {expected[name].shape}")
        errors[name] = float(np.abs(array - expected[name]).max() / np.abs(expected[name]).max())
    name = max(errors, key=lambda name: np.nan_to_num(errors[name], nan=np.inf))
    if not errors[name] <= limit:
        raise Wrong(f"{name} is {errors[name]:.1e} off, expected at most {limit:.0e}")
    return errors[name], name


def exact_results(case: Case, mode: str) -> Results:
    """The reference's, in float64. In the mode "step" the same x comes several times, and y is that of the last."""
    return solved(problem(case, "float64"), mode)


def solved(p: Problem, mode: str) -> Results:
    """The reference's results of a problem, in its dtype."""
    if mode == "step":
        p = replace(p, x=np.repeat(p.x, STEPS_CHECKED, axis=0))
    y, state, tape = reference.lstm_forward(p.x, p.weights, p.state, training=mode == "training", **p.options)
    results = {"y": y[-1:] if mode == "step" else y, "h_n": state[0], "c_n": state[1]}
    if mode == "training":
        g = reference.lstm_backward(tape, p.dy)
        results |= {"dx": g.x, "dh0": g.state[0], "dc0": g.state[1]}
        results |= {f"d{name}": array for name, array in g.weights.items()}
    return results
