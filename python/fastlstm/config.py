"""How the library was built and how it runs: instruction set, threads. Public names are re-exported by ``fastlstm``."""

from typing import TypedDict, cast

from . import _core, cuda
from ._core import active_isa, get_num_threads, release_memory, set_isa, set_num_threads

__all__ = [
    "BuildConfig",
    "active_isa",
    "build_config",
    "get_num_threads",
    "release_memory",
    "set_isa",
    "set_num_threads",
]


class BuildConfig(TypedDict):
    """What :func:`build_config` returns."""

    version: str
    compiler: str
    isa_compiled: list[str]  # in order of preference
    isa_runnable: list[str]  # of those, what this CPU and operating system can run
    isa_active: str
    openmp: str  # the date of the OpenMP standard, such as "201511"; "" without OpenMP
    num_threads: int
    cuda: bool
    cuda_reason: str  # why there is no CUDA; "" if there is
    cuda_architectures: str  # that the module was built for, such as "sm_80 sm_90 sm_120"; "" without the module
    cuda_runtime: int  # CUDA's version, such as 13000; 0 without the module


def build_config() -> BuildConfig:
    """Say how this copy of fastlstm was built and what it runs on.

    >>> import fastlstm
    >>> config = fastlstm.build_config()
    >>> config["isa_active"] in config["isa_runnable"]
    True
    >>> set(config["isa_runnable"]) <= set(config["isa_compiled"])
    True
    """
    reason = cuda.reason()
    config = _core.build_config() | {"cuda": not reason, "cuda_reason": reason} | cuda.build()
    return cast(BuildConfig, config)
