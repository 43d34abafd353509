"""Arrays on an emulated GPU: NumPy's, in memory that the emulated kernels read and write.

The smallest array library that `fastlstm.device_arrays` can be told of.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastlstm.device_arrays import LIBRARIES, NumPyLike


class EmulatedArray(np.ndarray):
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        interface = self.__array_interface__
        return {
            "shape": self.shape,
            "strides": self.strides,
            "typestr": self.dtype.str,
            "data": (interface["data"][0] if self.size else 0, not self.flags.writeable),  # as allocators on a GPU do
            "version": 3,
            "stream": None,
        }


def emulated(array: np.ndarray) -> EmulatedArray:
    """A copy on the emulated GPU."""
    return np.array(array).view(EmulatedArray)


def _poisoned(shape: tuple[int, ...], dtype: Any) -> EmulatedArray:
    """Memory that nothing has been written to: NaN in every format, not all ones, and no 0 or 1 for a flag."""
    array = np.empty(shape, dtype)
    poison = np.resize(np.array([0xFE, 0xFF], np.uint8), array.nbytes)
    return poison.view(dtype).reshape(shape).view(EmulatedArray)


class EmulatedLibrary(NumPyLike):
    def __init__(self) -> None:
        super().__init__(
            SimpleNamespace(
                empty=_poisoned,
                zeros=lambda shape, dtype: np.zeros(shape, dtype).view(EmulatedArray),
                asarray=emulated,
                ascontiguousarray=lambda array: np.ascontiguousarray(array).view(EmulatedArray),
                where=lambda *arrays: np.where(*arrays).view(EmulatedArray),
            )
        )

    def device(self, array: Any) -> int:
        return int(getattr(array, "number", 0))  # which tests write

    def current(self, like: Any) -> AbstractContextManager[Any]:
        return nullcontext()

    def at(self, device: int | None) -> EmulatedArray:
        array = self.module.empty(0, "float32")
        array.number = device or 0
        return array

    def get(self, array: Any) -> np.ndarray:
        return np.array(array)

    def stream(self, like: Any) -> int:
        return 0

    def is_capturing(self, like: Any) -> bool:
        return False


LIBRARIES["emulated_arrays"] = EmulatedLibrary
