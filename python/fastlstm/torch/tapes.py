"""Tapes inside tensors: an operator returns nothing but tensors, and a tape has to live for as long as its tensor does.

A tape's tensor is one byte, whose memory is a NumPy array that holds the tape; its address leads back to it. A copy of
the tensor, such as `save_on_cpu` makes, has lost its tape: backward then runs forward once more.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import numpy as np
import torch

from ..device_forward import DeviceTape
from ..functional import Tape

__all__ = ["stacked", "tape_of", "tensor_of"]

AnyTape = Tape | DeviceTape


class _Carrier(np.ndarray):
    tapes: Sequence[AnyTape]  # one for each byte
    address: int


# By the address of each byte.
_CARRIERS: weakref.WeakValueDictionary[int, _Carrier] = weakref.WeakValueDictionary()


def tensor_of(tape: AnyTape) -> torch.Tensor:
    """uint8 `[1]`."""
    return _carried((1,), [tape])


def tape_of(tensor: torch.Tensor) -> AnyTape | None:
    """None for a tensor that has no tape, or none any more."""
    address = tensor.data_ptr()
    carrier = _CARRIERS.get(address)
    return None if carrier is None else carrier.tapes[address - carrier.address]


def stacked(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """As torch.stack, but each slice has its tensor's tape, if all have one."""
    try:
        tapes = [tape for tape in map(tape_of, tensors) if tape is not None]
    except RuntimeError:  # tensors without memory, as compilers trace with
        tapes = []
    return _carried((len(tapes), 1), tapes) if len(tapes) == len(tensors) else torch.stack(list(tensors))


def _carried(shape: tuple[int, ...], tapes: Sequence[AnyTape]) -> torch.Tensor:
    carrier = _Carrier(shape, np.uint8)
    carrier.fill(0)
    tensor = torch.from_numpy(carrier)
    carrier.tapes, carrier.address = tapes, tensor.data_ptr()
    for byte in range(len(tapes)):
        _CARRIERS[carrier.address + byte] = carrier
    return tensor
