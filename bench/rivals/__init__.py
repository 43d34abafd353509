"""The systems that the bench compares: one module for each, which alone imports it, in a process of its own.

A module has `set_up(problem, mode, threads, **options) -> Runner`, outside the clock. It raises `Missing` with a reason
for the report if its package is not there or it cannot do the case.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

OURS = "fastlstm"


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


def suffixes(case: Any) -> list[str]:
    """How torch's names end, by layer and within it by direction."""
    return [f"_l{layer}{way}" for layer in range(case.layers) for way in ("", "_reverse")[: case.directions]]


@dataclass(frozen=True)
class Rival:
    """A row of the table below."""

    module: str
    packages: tuple[str, ...] = ()  # whose versions belong into the report
    options: dict[str, Any] = field(default_factory=dict)  # for `set_up`
    env: dict[str, str] = field(default_factory=dict)  # of its process; {threads} is filled in
    modes: tuple[str, ...] = ("inference", "training", "step")
    where: tuple[str, ...] = ("grid", "real", "extra", "tiny*")  # the groups and cases that it takes part in
    tolerance: float = 1.0  # how many times the bench's own: for lighter weights
    set_up: float = 0.2  # seconds, about, that setting up one case takes: compilers are slow


INFERS = ("inference", "step")
SMALL = ("step_64", "row_128", "batch32_128", "digits", "tiny*")  # enough to see what is far behind
ONE_ROW = ("step_*", "row_*", "vad_*", "tiny")
LIB = Path(sys.prefix) / "lib"
TENSORFLOW = {"TF_NUM_INTRAOP_THREADS": "{threads}", "TF_NUM_INTEROP_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
XLA = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}


def _keras(backend: str, **more: Any) -> Rival:
    env = {"KERAS_BACKEND": backend, **TENSORFLOW, **XLA}
    packages = ("keras", "tensorflow-cpu" if backend == "tensorflow" else backend)
    return Rival("rivals.keras", packages, env=env, modes=("inference", "training"), set_up=3.0, **more)


# In the report's order. A new rival: a module, a row, and its package in pyproject.toml's extra `peers`.
RIVALS: dict[str, Rival] = {
    OURS: Rival("rivals.ours", ("fastlstm",), where=("*",)),
    "fastlstm_bf16": Rival("rivals.ours", options={"compress": "bf16"}, modes=INFERS, where=ONE_ROW, tolerance=1000.0),
    "fastlstm_int8": Rival("rivals.ours", options={"compress": "int8"}, modes=INFERS, where=ONE_ROW, tolerance=5000.0),
    "torch": Rival("rivals.torch", ("torch",), where=("*",)),
    "torch_packed": Rival("rivals.torch", options={"packed": True}, where=("padded", "tiny_lengths")),
    "torch_loop": Rival("rivals.torch", options={"loop": True}, where=("ppo_update", "tiny_reset")),
    "torch_compile": Rival("rivals.torch", options={"compiled": True}, where=SMALL, set_up=1.0),
    "onnxruntime": Rival("rivals.onnxruntime", ("onnxruntime", "onnx"), modes=INFERS, where=("*",)),
    "openvino": Rival("rivals.openvino", ("openvino", "onnx"), modes=INFERS),
    "onednn": Rival(
        "rivals.onednn",
        ("onednn-cpu-gomp", "onednn"),
        env={"LD_LIBRARY_PATH": str(LIB), "OCL_ICD_FILENAMES": str(LIB / "libintelocl.so")},  # for its SYCL edition
        where=("grid", "real", "digits", "tiny*"),
    ),
    "jax": Rival("rivals.jax", ("jax",), env=XLA, modes=("inference", "training"), set_up=2.5),
    "keras_tensorflow_xla": _keras("tensorflow", options={"jit": True}, where=("grid", "tiny*")),
    "keras_tensorflow": _keras("tensorflow", where=(*SMALL, "keras_mask")),
    "keras_torch": _keras("torch", where=(*SMALL, "keras_mask")),
    "keras_jax": _keras("jax", options={"jit": True}, where=(*SMALL, "keras_mask")),
    "numpy": Rival("rivals.reference", ("numpy",), where=SMALL),
}


def versions() -> dict[str, str | None]:
    """Of every rival's packages; None where one is not installed."""
    found: dict[str, str | None] = {}
    for package in dict.fromkeys(package for rival in RIVALS.values() for package in rival.packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
