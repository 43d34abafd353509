"""The native module of a GPU: one layer in one direction. Arrays are of any library that `device_arrays` knows."""

from collections.abc import Mapping
from typing import Any

from .device_arrays import DeviceArray

__version__: str
runtime_version: int  # CUDA's, such as 13000
architectures: str  # that it was built for, such as "sm_80 sm_90 sm_120"
panel: int  # columns of a panel of weights

class Layer:
    """Runs forward when made, and keeps the arrays alive. csrc/python/cuda.cpp names the arrays and their shapes."""

    def __init__(self, arrays: Mapping[str, DeviceArray], options: Mapping[str, Any]) -> None: ...
    @property
    def algorithm(self) -> str:
        """That ran: "step", "resident" or "persistent"."""

    def backward(self, arrays: Mapping[str, DeviceArray], truncate: int, stream: int) -> None: ...

def reason() -> str:
    """Why no GPU can be used; "" if one can."""

def mark(arrays: Mapping[str, DeviceArray], reverse: bool, device: int, stream: int) -> None:
    """Write flags `[T,B]` from lengths `[B]`, mask and reset `[T,B]`."""

def normalise(arrays: Mapping[str, DeviceArray], device: int, stream: int) -> None:
    """Layer normalisation of sums `[rows,columns]`, in place; writes inverses `[rows]` and pre `[rows,columns]`."""

def normalise_backward(arrays: Mapping[str, DeviceArray], device: int, stream: int) -> None:
    """Write d_sums `[rows,columns]` from d_pre, and from what `normalise` was given and left."""

def draw(arrays: Mapping[str, DeviceArray], options: Mapping[str, Any], kind: int, p: float) -> None:
    """Write into to `[places,rows,n]` what a kind of dropout multiplies by."""

def drop(arrays: Mapping[str, DeviceArray], options: Mapping[str, Any], p: float) -> None:
    """Drop out of y `[T,B,n]`, in place."""
