"""torch's tensors on the emulated GPU: in the CPU's memory, which they hand over by DLPack as a GPU's. For bfloat16."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch

from fastlstm.device_arrays import LIBRARIES, Torch

_DLPACK_CPU, _DLPACK_CUDA = 1, 2
_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


class EmulatedTensor(torch.Tensor):
    """Operations keep the class, as torch does for all that inherit from its tensors."""

    is_cpu = False

    def __dlpack_device__(self) -> tuple[int, int]:
        return _DLPACK_CUDA, 0

    def __dlpack__(self, *, stream: int | None = None) -> Any:  # as before version 1
        capsule = self.as_subclass(torch.Tensor).__dlpack__()
        kind = ctypes.c_int32.from_address(_pointer_of(capsule, b"dltensor") + ctypes.sizeof(ctypes.c_void_p))
        assert kind.value == _DLPACK_CPU
        kind.value = _DLPACK_CUDA
        return capsule


def emulated(array: np.ndarray) -> EmulatedTensor:
    """A copy on the emulated GPU."""
    return torch.from_numpy(np.array(array)).as_subclass(EmulatedTensor)


class EmulatedTorch(Torch):
    def __init__(self) -> None:
        super().__init__(torch)

    def device(self, array: Any) -> int:
        return 0

    def stream(self, like: Any) -> int:
        return 0

    def is_capturing(self, like: Any) -> bool:
        return False

    def at(self, device: int | None) -> EmulatedTensor:
        return emulated(np.zeros(0, np.float32))

    def empty(self, shape: tuple[int, ...], dtype: str, like: Any) -> EmulatedTensor:
        """Poisoned: NaN in every format, not all ones, and no 0 or 1 for a flag."""
        tensor = super().empty(shape, dtype, like)
        of_bytes = tensor.view(torch.uint8).reshape(-1)
        of_bytes[0::2], of_bytes[1::2] = 0xFE, 0xFF
        return tensor.as_subclass(EmulatedTensor)

    def zeros(self, shape: tuple[int, ...], dtype: str, like: Any) -> EmulatedTensor:
        return super().zeros(shape, dtype, like).as_subclass(EmulatedTensor)

    def put(self, array: np.ndarray, like: Any) -> EmulatedTensor:
        return super().put(np.array(array), like).as_subclass(EmulatedTensor)


LIBRARIES["emulated_torch"] = EmulatedTorch
