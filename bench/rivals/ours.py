"""fastlstm: the layer object with its weights packed before; in training, where they change, each call packs them."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastlstm
from cases import Problem
from fastlstm import functional
from rivals import Missing, Runner, named


def set_up(problem: Problem, mode: str, threads: int, compress: str = "") -> Runner:
    case, weights, x, state, options = problem.case, problem.weights, problem.x, problem.state, problem.options
    if mode == "training":

        def train() -> Any:
            results = functional.lstm_forward(x, weights, state, threads=threads, **options)
            return results, functional.lstm_backward(results[2], problem.dy, threads=threads)

        return Runner(train, read_training)
    lstm: Any = fastlstm.LSTM(case.I, case.H, case.layers, bidirectional=case.bidirectional, dtype=case.dtype)
    lstm.load_state_dict(weights)
    if compress:
        if not hasattr(lstm, "compress"):
            raise Missing("this fastlstm has no LSTM.compress")
        lstm = lstm.compress(compress)
    if mode == "inference":
        return Runner(lambda: lstm(x, state, threads=threads, **options), read)
    if not hasattr(lstm, "stream"):
        raise Missing("this fastlstm has no LSTM.stream")
    stream, step = lstm.stream(batch_size=case.B, state=state, threads=threads), x[0]

    def read_step(y: np.ndarray) -> dict[str, np.ndarray]:
        return named(y[None], *stream.state)

    return Runner(lambda: stream(step), read_step)


def read(result: Any) -> dict[str, np.ndarray]:
    y, (h_n, c_n), *_ = result
    return named(y, h_n, c_n)


def read_training(result: Any) -> dict[str, np.ndarray]:
    (y, (h_n, c_n), _), gradients = result
    return named(y, h_n, c_n, gradients.x, *gradients.state, gradients.weights)
