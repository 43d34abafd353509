"""The GPUs that the tests run on: one emulated by the CPU, and a real one through CuPy or torch where it is there."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from cases import Problem, solve
from emulated_arrays import emulated

CUPY, TORCH = ([pytest.param(name, marks=pytest.mark.gpu)] for name in ("cupy", "torch"))
REAL = CUPY + TORCH


@dataclass(frozen=True)
class Gpu:
    """One way of having arrays on a GPU."""

    name: str

    def put(self, array: np.ndarray) -> Any:
        if self.name == "emulated":
            return emulated(array)
        if self.name == "emulated_torch":
            return importlib.import_module(self.name).emulated(array)
        if self.name == "cupy":
            return importlib.import_module("cupy").asarray(array)
        return importlib.import_module("torch").from_numpy(np.array(array)).cuda()

    def get(self, array: Any) -> np.ndarray:
        if self.name == "emulated":
            return np.array(array).view(np.ndarray)
        return array.get() if self.name == "cupy" else array.cpu().numpy()

    def solve(self, problem: Problem, algo: str | None = None, tf32: bool = False) -> dict[str, np.ndarray]:
        """`cases.solve` on the GPU."""
        found = solve(problem.map_arrays(self.put).with_options(algo=algo, tf32=tf32))
        return {name: self.get(array) for name, array in found.items()}


def why_not(name: str) -> str:
    """Why this GPU cannot be used; "" if it can."""
    if name.startswith("emulated"):
        return ""
    try:
        module = importlib.import_module(name)
    except ImportError:
        return f"{name} is not installed"
    if module.cuda.is_available():
        return ""
    return f"{name} sees no GPU"
