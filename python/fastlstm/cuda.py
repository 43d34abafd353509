"""The native module `_cuda`, there where fastlstm was built with CUDA, and loaded when it is needed."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

__all__ = ["build", "native", "reason"]


def native() -> ModuleType:
    """The module `_cuda`; RuntimeError naming the cause and the cure where it is missing or has no GPU."""
    if why := reason():
        raise RuntimeError(f"a GPU is asked for, but {why}")
    return _module()


def reason() -> str:
    """Why there is no CUDA, "" if there is."""
    try:
        return str(_module().reason())
    except ImportError:
        return (
            "this fastlstm was built without CUDA: with nvcc 12.8 or newer, and from its sources, run "
            "pip install . --config-settings=cmake.define.FASTLSTM_CUDA=ON"
        )


def build() -> dict[str, Any]:
    """What `fastlstm.build_config` says of the module."""
    try:
        module = _module()
    except ImportError:
        return {"cuda_architectures": "", "cuda_runtime": 0}
    return {"cuda_architectures": module.architectures, "cuda_runtime": module.runtime_version}


def _module() -> ModuleType:
    return importlib.import_module("fastlstm._cuda")
