"""fastlstm's cell variants: functional calls, with weights packed before in inference and in each call of training."""

from __future__ import annotations

from typing import Any

import numpy as np

from cells import cell_problem
from fastlstm.functional import PackedWeights, lstm_backward, lstm_forward
from rivals import Runner, named


def set_up(problem: Any, mode: str, threads: int) -> Runner:
    p = cell_problem(problem)
    packed = PackedWeights.of(p.weights, cell=p.variant.cell)

    def infer() -> Any:
        return lstm_forward(p.x, packed, p.state, training=False, threads=threads, **p.options), None

    def train() -> Any:
        results = lstm_forward(p.x, p.weights, p.state, threads=threads, **p.options)
        return results, lstm_backward(results[-1], p.dy, dgates=p.dgates, threads=threads)

    return Runner(train if mode == "training" else infer, read)


def read(result: Any) -> dict[str, np.ndarray]:
    (y, (h_n, c_n), *gates, _), gradients = result
    of_gates = {"gates": gates[0]} if gates else {}
    if gradients is None:
        return named(y, h_n, c_n) | of_gates
    return named(y, h_n, c_n, gradients.x, *gradients.state, gradients.weights) | of_gates
