"""Tapes inside tensors: an operator returns nothing but tensors, and a tape has to live for as long as its tensor does.

A tape's tensor is one byte, whose memory is a NumPy array that holds the tape; its address leads back to it. A copy of
the tensor, such as `vmap` and `save_on_cpu` make, has lost its tape: backward then runs forward once more.
"""

from __future__ import annotations

import weakref

import numpy as np
import torch

from ..device_forward import DeviceTape
from ..functional import Tape

__all__ = ["tape_of", "tensor_of"]


class _Carrier(np.ndarray):
    tape: Tape | DeviceTape


_CARRIERS: weakref.WeakValueDictionary[int, _Carrier] = weakref.WeakValueDictionary()


def tensor_of(tape: Tape | DeviceTape) -> torch.Tensor:
    carrier = np.zeros(1, np.uint8).view(_Carrier)
    carrier.tape = tape
    tensor = torch.from_numpy(carrier)
    _CARRIERS[tensor.data_ptr()] = carrier
    return tensor


def tape_of(tensor: torch.Tensor) -> Tape | DeviceTape | None:
    """None for a tensor that has no tape, or none any more."""
    carrier = _CARRIERS.get(tensor.data_ptr())
    return None if carrier is None else carrier.tape
