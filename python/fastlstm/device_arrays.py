"""What `cuda` asks of a library of arrays on a GPU: CuPy's, torch's, or any that looks like NumPy. Computes no LSTM.

Whatever is done here runs on the library's current stream and takes memory from its allocator.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np

DeviceArray = Any
_DLPACK_GPUS = (2, 13)  # CUDA's memory, and its managed memory

# What numbers of a dtype are summed in.
WIDE = {"float16": "float32", "bfloat16": "float32", "float32": "float32", "float64": "float64"}


class ArrayLibrary(Protocol):
    """One library; `like` tells the device."""

    def dtype(self, array: DeviceArray) -> str: ...
    def device(self, array: DeviceArray) -> int: ...
    def stream(self, like: DeviceArray) -> int: ...
    def is_capturing(self, like: DeviceArray) -> bool:
        """Whether what runs now is not done, but becomes part of a CUDA graph."""

    def current(self, like: DeviceArray) -> AbstractContextManager[Any]:
        """Where all else runs: on its device, whose memory and stream CuPy then takes; unseen by torch's autograd."""

    def at(self, device: int | None) -> DeviceArray:
        """An array without elements on the device of this number, or on the current one."""

    def empty(self, shape: tuple[int, ...], dtype: str, like: DeviceArray) -> DeviceArray: ...
    def zeros(self, shape: tuple[int, ...], dtype: str, like: DeviceArray) -> DeviceArray: ...
    def put(self, array: np.ndarray, like: DeviceArray) -> DeviceArray: ...
    def get(self, array: DeviceArray) -> np.ndarray:
        """On the CPU; waits for the GPU."""

    def copied(self, array: DeviceArray) -> DeviceArray: ...
    def permuted(self, array: DeviceArray, axes: tuple[int, ...]) -> DeviceArray: ...
    def contiguous(self, array: DeviceArray) -> DeviceArray: ...
    def cast(self, array: DeviceArray, dtype: str) -> DeviceArray: ...
    def where(self, condition: DeviceArray, array: DeviceArray) -> DeviceArray: ...
    def sum_of_rows(self, array: DeviceArray) -> DeviceArray: ...


class NumPyLike:
    """CuPy, or another module with NumPy's names and `cuda.get_current_stream`."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def dtype(self, array: DeviceArray) -> str:
        return str(array.dtype)

    def device(self, array: DeviceArray) -> int:
        return int(array.device.id)

    def stream(self, like: DeviceArray) -> int:
        return int(self.module.cuda.get_current_stream().ptr)

    def is_capturing(self, like: DeviceArray) -> bool:
        return bool(self.module.cuda.get_current_stream().is_capturing())

    def current(self, like: DeviceArray) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self.module.cuda.Device(self.device(like))
        return context

    def at(self, device: int | None) -> DeviceArray:
        with nullcontext() if device is None else self.module.cuda.Device(device):
            return self.module.empty(0)

    def empty(self, shape: tuple[int, ...], dtype: str, like: DeviceArray) -> DeviceArray:
        return self.module.empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: str, like: DeviceArray) -> DeviceArray:
        return self.module.zeros(shape, dtype)

    def put(self, array: np.ndarray, like: DeviceArray) -> DeviceArray:
        return self.module.asarray(array)

    def get(self, array: DeviceArray) -> np.ndarray:
        return np.asarray(array.get())

    def copied(self, array: DeviceArray) -> DeviceArray:
        return array.copy()

    def permuted(self, array: DeviceArray, axes: tuple[int, ...]) -> DeviceArray:
        return array.transpose(axes)

    def contiguous(self, array: DeviceArray) -> DeviceArray:
        return self.module.ascontiguousarray(array)

    def cast(self, array: DeviceArray, dtype: str) -> DeviceArray:
        return array.astype(dtype)

    def where(self, condition: DeviceArray, array: DeviceArray) -> DeviceArray:
        return self.module.where(condition, array, array.dtype.type(0))

    def sum_of_rows(self, array: DeviceArray) -> DeviceArray:
        """In the dtype that is summed in, rounded once."""
        return array.sum(axis=0, dtype=WIDE[str(array.dtype)]).astype(array.dtype)


class Torch:
    """torch's CUDA tensors. They leave autograd: the gradients are `lstm_backward`'s."""

    def __init__(self, torch: Any) -> None:
        self.torch = torch

    def dtype(self, array: DeviceArray) -> str:
        return str(array.dtype).removeprefix("torch.")

    def device(self, array: DeviceArray) -> int:
        return int(array.device.index)

    def stream(self, like: DeviceArray) -> int:
        return int(self.torch.cuda.current_stream(like.device).cuda_stream)

    def is_capturing(self, like: DeviceArray) -> bool:
        return bool(self.torch.cuda.is_current_stream_capturing())

    def current(self, like: DeviceArray) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self.torch.no_grad()  # each operation runs where its tensors are
        return context

    def at(self, device: int | None) -> DeviceArray:
        return self.torch.empty(0, device="cuda" if device is None else f"cuda:{device}")

    def empty(self, shape: tuple[int, ...], dtype: str, like: DeviceArray) -> DeviceArray:
        return self.torch.empty(shape, dtype=getattr(self.torch, dtype), device=like.device)

    def zeros(self, shape: tuple[int, ...], dtype: str, like: DeviceArray) -> DeviceArray:
        return self.torch.zeros(shape, dtype=getattr(self.torch, dtype), device=like.device)

    def put(self, array: np.ndarray, like: DeviceArray) -> DeviceArray:
        # From pageable memory this returns when the array has been read, and does not wait for the copy.
        return self.torch.from_numpy(np.ascontiguousarray(array)).to(like.device, non_blocking=True)

    def get(self, array: DeviceArray) -> np.ndarray:
        return np.asarray(array.detach().cpu().numpy())

    def copied(self, array: DeviceArray) -> DeviceArray:
        return array.detach().clone()

    def permuted(self, array: DeviceArray, axes: tuple[int, ...]) -> DeviceArray:
        return array.permute(axes)

    def contiguous(self, array: DeviceArray) -> DeviceArray:
        return array.detach().contiguous()  # DLPack takes none that requires a gradient

    def cast(self, array: DeviceArray, dtype: str) -> DeviceArray:
        return array.to(getattr(self.torch, dtype))

    def where(self, condition: DeviceArray, array: DeviceArray) -> DeviceArray:
        return self.torch.where(condition, array, self.torch.zeros((), dtype=array.dtype, device=array.device))

    def sum_of_rows(self, array: DeviceArray) -> DeviceArray:
        return array.sum(0, dtype=getattr(self.torch, WIDE[self.dtype(array)])).to(array.dtype)


# By the first part of the name of the module that an array's type is from.
LIBRARIES: dict[str, Callable[[], ArrayLibrary]] = {
    "cupy": lambda: NumPyLike(importlib.import_module("cupy")),
    "torch": lambda: Torch(importlib.import_module("torch")),
}


def on_gpu(array: object) -> bool:
    """Whether it is an array on a GPU, of any library that says so by DLPack or the CUDA array interface.

    >>> on_gpu(np.zeros(3)), on_gpu([1.0])
    (False, False)
    """
    if type(array) is np.ndarray or not hasattr(array, "__dlpack_device__"):
        return False
    return array.__dlpack_device__()[0] in _DLPACK_GPUS or hasattr(array, "__cuda_array_interface__")


def library_of(name: str, array: DeviceArray) -> ArrayLibrary:
    """The library of an array on a GPU; TypeError for one that is not known."""
    module = type(array).__module__.partition(".")[0]
    if module not in LIBRARIES:
        kind = type(array)
        raise TypeError(f"{name} is a {kind.__module__}.{kind.__qualname__}, expected a CuPy array or a torch tensor")
    return LIBRARIES[module]()


def check_device(name: str, array: DeviceArray, like: DeviceArray) -> None:
    """Raises TypeError for an array of another library than `like`, a layer's weight, or on another device."""
    library, expected = library_of(name, array), library_of("a weight", like)
    if type(library) is not type(expected):
        raise TypeError(f"{name} is {kind_of(array)}, but the weights are of another library: expected {kind_of(like)}")
    devices = library.device(array), expected.device(like)
    if devices[0] != devices[1]:
        raise TypeError(
            f"{name} is on cuda:{devices[0]}, but the weights are on cuda:{devices[1]}: expected both on one device"
        )


def kind_of(array: object) -> str:
    return f"a {type(array).__qualname__} of {getattr(array, 'dtype', 'no dtype')}"
