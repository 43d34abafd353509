"""What gpu.py times on a GPU: each algorithm of ours, graphs of its launches, and cuDNN. Knows no clock.

A system is a function of a `Task` that returns a `Runner`; it raises `Missing` for what it cannot do, or, from the
library, ValueError.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from cases import Problem
from check import Results
from fastlstm import functional
from fastlstm.cells import PLAIN
from gpu_arrays import Gpu
from rivals import Missing, Runner, named

CHECKED = 8  # steps that are compared with the reference; of all steps, the last of y and the first of dx


@dataclass(frozen=True)
class Precision:
    """What numbers are stored as, and what products may round them to."""

    name: str
    dtype: str
    tf32: bool = False

    def tolerance(self, of: dict[str, float]) -> float:
        return of["tf32" if self.tf32 else self.dtype]


PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("fp16", "float16"),
        Precision("bf16", "bfloat16"),
        Precision("fp32", "float32"),
        Precision("tf32", "float32", tf32=True),
    )
}


class Task(NamedTuple):
    """What every system of a row gets."""

    gpu: Gpu
    problem: Problem  # in any dtype: `put` rounds to the precision's
    mode: str
    precision: Precision


def ours(task: Task, algo: str | None = None) -> Runner:
    """As rivals/ours.py: weights are prepared before inference, and within each call of training, where they change."""
    given = {"algo": algo, "tf32": task.precision.tf32}
    x, weights, state, dy = arrays(task)
    if task.mode == "inference":
        packed = functional.DeviceWeights.of(weights, cell=PLAIN)
        run = functools.partial(functional.lstm_forward, x, packed, state, training=False, **given)
        return Runner(run, functools.partial(read, task.gpu))

    def train() -> Any:
        results = functional.lstm_forward(x, weights, state, **given)
        return *results, functional.lstm_backward(results[-1], dy)

    return Runner(train, functools.partial(read, task.gpu, names=tuple(weights)))


def arrays(task: Task) -> tuple[Any, dict[str, Any], tuple[Any, Any], Any]:
    put, p = functools.partial(task.gpu.put, dtype=task.precision.dtype), task.problem
    return put(p.x), {name: put(w) for name, w in p.weights.items()}, (put(p.h0), put(p.c0)), put(p.dy)


def read(gpu: Gpu, result: Any, names: tuple[str, ...] = ()) -> Results:
    y, states, *_, last = result
    found = named(y, *states)
    if names:
        found |= named(None, None, None, last.x, *last.state, {name: last.weights[name] for name in names})
    return {name: gpu.get(array) for name, array in ends(found).items()}


def ends(found: dict[str, Any]) -> dict[str, Any]:
    """Of sequences, the end at which all steps have left their trace."""
    parts = {"y": slice(-CHECKED, None), "dx": slice(CHECKED)}
    return {name: array[parts.get(name, slice(None))] for name, array in found.items()}


def graph(task: Task, algo: str | None) -> Runner:
    runner = ours(task, algo)
    return Runner(task.gpu.graph(runner.run), runner.read)


def taken(task: Task) -> str:
    """The algorithm of the automatic choice, forward."""
    x, weights, state, _ = arrays(task)
    *_, tape = functional.lstm_forward(x, weights, state, tf32=task.precision.tf32)
    return tape.directions[0].layer.algorithm


def cudnn(task: Task) -> Runner:
    try:
        from rivals import torch as rival
    except ImportError as reason:
        raise Missing("torch is not installed") from reason
    device = getattr(task.gpu, "device", None)
    if device is None:
        raise Missing(f"the arrays are those of {task.gpu.name}: cuDNN's LSTM is torch's")
    given = replace(task.problem, case=replace(task.problem.case, dtype=task.precision.dtype))
    return rival.set_up(given, task.mode, os.cpu_count() or 1, device=device)


OURS = {"auto": None, "step": "step", "resident": "resident", "persistent": "persistent"}
SYSTEMS: dict[str, Callable[[Task], Runner]] = {
    **{name: functools.partial(ours, algo=algo) for name, algo in OURS.items()},
    "auto graph": functools.partial(graph, algo=None),
    "step graph": functools.partial(graph, algo="step"),
    "cudnn": cudnn,
}
