"""fastlstm.reference, the LSTM in NumPy, in the case's dtype."""

from __future__ import annotations

from typing import Any

from cases import Problem
from fastlstm import reference
from rivals import Missing, Runner
from rivals.ours import read, read_training


def set_up(problem: Problem, mode: str, threads: int) -> Runner:
    if mode == "step":
        raise Missing("it has no object for streams")
    weights, x, state, options = problem.weights, problem.x, problem.state, problem.options
    if mode == "inference":
        return Runner(lambda: reference.lstm_forward(x, weights, state, training=False, **options), read)

    def train() -> Any:
        results = reference.lstm_forward(x, weights, state, **options)
        return results, reference.lstm_backward(results[2], problem.dy)

    return Runner(train, read_training)
