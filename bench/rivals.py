"""The LSTMs that the bench compares, one function for each; what a rival needs is imported inside its function.

A rival gets (problem, mode, threads), sets itself up outside the clock, and returns a `Runner`. It raises `Missing`
with a reason for the report if its package is not there or it cannot do the case.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np

import fastlstm
from cases import Problem
from fastlstm import functional, reference

OURS = "fastlstm"
TOO_SLOW = 6e10  # flops of one call above which the NumPy reference is not timed


class Missing(Exception):
    """This rival cannot take part; the message says why."""


class Runner(NamedTuple):
    """`run` is what the clock sees; `read` turns what it returned into arrays under the names of `named`."""

    run: Callable[[], Any]
    read: Callable[[Any], dict[str, np.ndarray]]


def named(y: Any, h_n: Any, c_n: Any, dx: Any = None, dh0: Any = None, dc0: Any = None, dw: Any = None) -> dict:
    """A rival's results under the names that all share: y, h_n, c_n, in training dx, dh0, dc0, d<weight> as well."""
    arrays = {"y": y, "h_n": h_n, "c_n": c_n, "dx": dx, "dh0": dh0, "dc0": dc0}
    arrays |= {f"d{name}": array for name, array in (dw or {}).items()}
    return {name: array for name, array in arrays.items() if array is not None}


def _read_forward(result: Any) -> dict[str, np.ndarray]:
    y, (h_n, c_n), *_ = result
    return named(y, h_n, c_n)


def _read_training(result: Any) -> dict[str, np.ndarray]:
    (y, (h_n, c_n), _), gradients = result
    return named(y, h_n, c_n, gradients.x, *gradients.state, gradients.weights)


def ours(problem: Problem, mode: str, threads: int) -> Runner:
    """The layer object with its weights packed before, in inference; in training each call packs them anew."""
    case, weights, x, state = problem.case, problem.weights, problem.x, (problem.h0, problem.c0)
    if mode == "inference":
        lstm = fastlstm.LSTM(case.I, case.H, case.layers, bidirectional=case.bidirectional, dtype=case.dtype)
        lstm.load_state_dict(weights)
        return Runner(lambda: lstm(x, state, threads=threads), _read_forward)

    def train() -> Any:
        results = functional.lstm_forward(x, weights, state, threads=threads)
        return results, functional.lstm_backward(results[2], problem.dy, threads=threads)

    return Runner(train, _read_training)


def numpy_reference(problem: Problem, mode: str, threads: int) -> Runner:
    """fastlstm.reference in the case's dtype; run.py limits the threads of NumPy's BLAS."""
    if problem.case.flops(mode) > TOO_SLOW:
        raise Missing(f"not timed above {TOO_SLOW / 1e9:.0f} GFLOP a call, to save time")
    weights, x, state = problem.weights, problem.x, (problem.h0, problem.c0)
    if mode == "inference":
        return Runner(lambda: reference.lstm_forward(x, weights, state, training=False), _read_forward)

    def train() -> Any:
        results = reference.lstm_forward(x, weights, state)
        return results, reference.lstm_backward(results[2], problem.dy)

    return Runner(train, _read_training)


def torch_eager(problem: Problem, mode: str, threads: int) -> Runner:
    """torch.nn.LSTM as its users call it: inference_mode, or forward and autograd for all gradients."""
    try:
        import torch
    except ImportError as error:
        raise Missing(f"torch cannot be imported: {error}") from None
    torch.set_num_threads(threads)
    case = problem.case
    lstm = torch.nn.LSTM(
        case.I, case.H, case.layers, bidirectional=case.bidirectional, dtype=getattr(torch, case.dtype)
    )
    lstm.load_state_dict({name: torch.tensor(array) for name, array in problem.weights.items()})
    x, h0, c0, dy = (torch.tensor(array) for array in (problem.x, problem.h0, problem.c0, problem.dy))
    if mode == "inference":

        def infer() -> Any:
            with torch.inference_mode():
                return lstm(x, (h0, c0))

        def read_inference(result: Any) -> dict[str, np.ndarray]:
            y, (h_n, c_n) = result
            return named(y.numpy(), h_n.numpy(), c_n.numpy())

        return Runner(infer, read_inference)

    weights = dict(lstm.named_parameters())
    inputs = [tensor.requires_grad_() for tensor in (x, h0, c0)] + list(weights.values())

    def train() -> Any:
        results = lstm(x, (h0, c0))
        return results, torch.autograd.grad(results[0], inputs, dy)

    def read_training(result: Any) -> dict[str, np.ndarray]:
        (y, (h_n, c_n)), gradients = result
        dx, dh0, dc0, *dw = (gradient.numpy() for gradient in gradients)
        return named(*(a.detach().numpy() for a in (y, h_n, c_n)), dx, dh0, dc0, dict(zip(weights, dw, strict=True)))

    return Runner(train, read_training)


# In the report's order. A new rival: a function above, a row here, and its package in pyproject.toml's extra `peers`.
RIVALS: dict[str, Callable[[Problem, str, int], Runner]] = {
    OURS: ours,
    "torch": torch_eager,
    "numpy": numpy_reference,
}
PACKAGES = ("numpy", "torch")  # whose versions belong into the report


def versions() -> dict[str, str | None]:
    """Of every package of `PACKAGES`; None where it is not installed."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
