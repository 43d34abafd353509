"""A GPU for bench/gpu.py that is emulated: its arrays, and the host's clock. Imported beside the bench's modules."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import emulated_cuda
import gpu_arrays
from emulated_arrays import emulated
from rivals import Missing


class EmulatedGpu:
    name = "emulated"
    device = "cpu"  # of torch's LSTM beside it

    def put(self, array: np.ndarray, dtype: str) -> Any:
        if dtype == "bfloat16":
            raise Missing("NumPy has no bfloat16")
        return emulated(np.asarray(array, dtype))

    def get(self, array: Any) -> np.ndarray:
        return np.array(array, np.float64)

    def use_tf32(self, allowed: bool) -> None:
        """NumPy has no such products."""

    def time(self, run: Callable[[], Any], calls: int) -> tuple[float, float]:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        seconds = (time.perf_counter() - start) / calls
        return seconds, seconds

    def graph(self, run: Callable[[], Any]) -> Callable[[], Any]:
        raise Missing("the emulator has no graphs")

    def release(self) -> None:
        """Nothing is kept."""

    def facts(self) -> dict[str, Any]:
        return {"library": "numpy", "name": "emulated", "compute_capability": "9.0", "processors": 4}


def install(module: str) -> None:
    """From now on this is the one GPU that there is."""
    sys.modules["fastlstm._cuda"] = emulated_cuda.load(Path(module))
    gpu_arrays.LIBRARIES = {"emulated": EmulatedGpu}
