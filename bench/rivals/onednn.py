"""Raw oneDNN through cpp/onednn.cpp, as a C++ user calls it: one layer, one direction, float32, arrays in place.

Of the editions on PyPI the one with OpenMP (onednn-cpu-gomp) is taken before the one with SYCL (onednn): measured side
by side they run the same kernels, and SYCL adds 10 µs to a call. onednn-devel has the headers.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import c_bool, c_char_p, c_long, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from cases import Problem
from compile import compiled
from rivals import Missing, Runner, named

# By the version in the file's name: OpenMP's edition ends with 3.2.
LIBRARIES = ("libdnnl.so.3.2", "libdnnl.so.3.*")


@cache
def library() -> ctypes.CDLL:
    """The shim, in which oneDNN's symbols are those of the library loaded before it."""
    prefix = Path(sys.prefix)
    found = [path for pattern in LIBRARIES for path in sorted((prefix / "lib").glob(pattern))]
    if not found or not (prefix / "include/oneapi/dnnl/dnnl.hpp").exists():
        raise Missing("the packages onednn-cpu-gomp (or onednn) and onednn-devel are not installed")
    try:
        ctypes.CDLL(str(found[0]), mode=ctypes.RTLD_GLOBAL)
        shim = ctypes.CDLL(str(compiled("onednn.cpp", "-fPIC", "-shared", f"-I{prefix / 'include'}")))
    except (OSError, RuntimeError) as error:
        raise Missing(str(error)) from None
    shim.last_error.restype = c_char_p
    shim.create.restype, shim.create.argtypes = c_void_p, [c_long] * 4 + [c_bool]
    shim.copy.restype, shim.copy.argtypes = c_bool, [c_void_p, c_char_p, c_void_p, c_bool, c_bool]
    shim.destroy.restype, shim.destroy.argtypes = None, [c_void_p]
    for name in ("pack", "infer", "step", "train"):
        call = getattr(shim, name)
        call.restype, call.argtypes = c_bool, [c_void_p]
    return shim


class Lstm:
    """Owns what the shim made."""

    def __init__(self, case: Any, mode: str) -> None:
        self.shim, self.stepped = library(), mode == "step"
        self.handle = self.shim.create(case.T, case.B, case.I, case.H, mode == "training")
        self.check(self.handle)

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.shim.destroy(self.handle)

    def check(self, done: Any) -> None:
        if not done:
            raise Missing(f"oneDNN: {self.shim.last_error().decode()}")

    def write(self, name: str, array: np.ndarray) -> None:
        array = np.ascontiguousarray(array)
        self.check(self.shim.copy(self.handle, name.encode(), array.ctypes.data, False, False))

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        array = np.empty(shape, np.float32)
        self.check(self.shim.copy(self.handle, name.encode(), array.ctypes.data, True, self.stepped))
        return array


def set_up(problem: Problem, mode: str, threads: int) -> Runner:
    case = problem.case
    if case.layers > 1 or case.bidirectional or case.varying or case.dtype != "float32":
        raise Missing("our shim has one layer, one direction, float32 and no options")
    lstm, w = Lstm(case, mode), problem.weights
    arrays = {"x": problem.x, "h0": problem.h0, "c0": problem.c0, "b": w["bias_ih_l0"] + w["bias_hh_l0"]}
    arrays |= {"w_x": w["weight_ih_l0"], "w_h": w["weight_hh_l0"]}
    if mode == "training":
        arrays["dy"] = problem.dy
    for name, array in arrays.items():
        lstm.write(name, array)
    lstm.check(lstm.shim.pack(lstm.handle))
    call, handle = getattr(lstm.shim, {"inference": "infer", "training": "train"}.get(mode, mode)), lstm.handle

    def read(done: bool) -> dict[str, np.ndarray]:
        lstm.check(done)
        state = problem.h0.shape
        results = named(lstm.read("y", (case.T, case.B, case.H)), lstm.read("h_n", state), lstm.read("c_n", state))
        if mode != "training":
            return results
        dw = {
            "weight_ih_l0": lstm.read("dw_x", arrays["w_x"].shape),
            "weight_hh_l0": lstm.read("dw_h", arrays["w_h"].shape),
        }
        dw |= dict.fromkeys(("bias_ih_l0", "bias_hh_l0"), lstm.read("db", arrays["b"].shape))
        dx, dh0, dc0 = lstm.read("dx", problem.x.shape), lstm.read("dh0", state), lstm.read("dc0", state)
        return results | named(None, None, None, dx, dh0, dc0, dw)

    return Runner(lambda: call(handle), read)
