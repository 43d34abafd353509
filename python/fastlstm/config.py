"""How the library was built and how it runs: instruction set, threads. Public names are re-exported by ``fastlstm``."""

from typing import TypedDict, cast

from . import _core
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


def build_config() -> BuildConfig:
    """Say how this copy of fastlstm was built and what it runs on.

    >>> import fastlstm
    >>> config = fastlstm.build_config()
    >>> config["isa_active"] in config["isa_runnable"]
    True
    >>> set(config["isa_runnable"]) <= set(config["isa_compiled"])
    True
    """
    return cast(BuildConfig, _core.build_config())
