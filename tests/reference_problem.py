"""Random problems for `fastlstm.reference`, and all that it computes of one, by name."""

import numpy as np
import pytest

from fastlstm import reference
from fastlstm.weights import WeightSpec, initial_weights

SPECS = [
    pytest.param(WeightSpec(3, 5), id="one_layer"),
    pytest.param(WeightSpec(1, 1), id="one_unit"),
    pytest.param(WeightSpec(3, 5, bias=False), id="no_bias"),
    pytest.param(WeightSpec(3, 4, num_layers=3), id="three_layers"),
    pytest.param(WeightSpec(4, 3, bidirectional=True), id="both_directions"),
    pytest.param(WeightSpec(3, 5, proj_size=2), id="projection"),
    pytest.param(WeightSpec(2, 5, 2, True, True, 3), id="two_layers_both_directions_projection"),
    pytest.param(WeightSpec(2, 4, 2, False, True), id="two_layers_both_directions_no_bias"),
]
DEEP = WeightSpec(3, 4, num_layers=2, bidirectional=True)
DEEP_PROJECTED = WeightSpec(3, 4, num_layers=2, bidirectional=True, proj_size=2)
LAYOUTS = ["time_major", "batch_first", "unbatched"]


class Problem:
    """Random inputs, weights and output gradients, time-major; `unbatched` is the problem's first row."""

    def __init__(self, spec, steps=6, batch=4, seed=0, dtype=np.float64):
        rng = np.random.default_rng(seed)

        def draw(*shape):
            return rng.standard_normal(shape).astype(dtype)

        rows, self.spec, self.steps, self.batch = spec.num_layers * spec.num_directions, spec, steps, batch
        self.weights = {name: 2 * w for name, w in initial_weights(spec, dtype=dtype, rng=rng).items()}
        self.x = draw(steps, batch, spec.input_size)
        self.state = draw(rows, batch, spec.hidden_output), draw(rows, batch, spec.hidden_size)
        self.dy = draw(steps, batch, spec.output_size)
        self.dstate = draw(rows, batch, spec.hidden_output), draw(rows, batch, spec.hidden_size)
        self.dcells = draw(steps, batch, spec.num_directions * spec.hidden_size)
        self.lengths = rng.integers(0, steps + 1, batch)
        self.lengths[: 2 * (batch > 1)] = (0, steps)[: min(batch, 2)]
        self.mask = rng.random((steps, batch)) < 0.6
        self.reset = rng.random((steps, batch)) < 0.35

    def options(self, *names):
        return {name: getattr(self, name) for name in names}


def laid_out(a, layout):
    """A sequence `[T,B,..]` in this layout; unbatched is its first row."""
    return a if layout == "time_major" else a.swapaxes(0, 1) if layout == "batch_first" else a[:, 0]


def solve(problem, layout="time_major", dcells=False, **options):
    """Every output and gradient by name, as reference computes them in this layout."""
    first_row = layout == "unbatched"
    pair = tuple(s[:, 0] if first_row else s for s in problem.state)
    dpair = tuple(s[:, 0] if first_row else s for s in problem.dstate)
    y, (h_n, c_n), cells, tape = reference.lstm_forward(
        laid_out(problem.x, layout),
        problem.weights,
        pair,
        batch_first=layout == "batch_first",
        return_cells=True,
        **options,
    )
    grads = reference.lstm_backward(
        tape, laid_out(problem.dy, layout), dpair, dcells=laid_out(problem.dcells, layout) if dcells else None
    )
    found = {"y": y, "h_n": h_n, "c_n": c_n, "cells": cells, "dx": grads.x}
    return found | {"dh0": grads.state[0], "dc0": grads.state[1]} | {"d" + n: g for n, g in grads.weights.items()}


def assert_agree(found, expected, tolerance=1e-12):
    """max|a - b| <= tolerance * max|b| for every array of `expected`, with its shape and dtype."""
    for name, b in expected.items():
        a = found[name]
        assert a.shape == b.shape and a.dtype == b.dtype, name
        scale = np.abs(b).max(initial=0)
        assert np.isfinite(scale), name
        error = np.abs(a - b).max(initial=0)
        assert error <= tolerance * scale, f"{name}: {error} against {scale}"
