"""Tapes inside tensors: an operator returns nothing but tensors, and a tape has to live for as long as its tensor does.

A tape's tensor is one byte, whose memory is a NumPy array that holds the tape; its address leads back to it. A copy of
the tensor, such as `save_on_cpu` makes, has lost its tape: backward then runs forward once more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..device_forward import DeviceTape
from ..functional import Tape

__all__ = ["stacked", "tape_of", "tensor_of"]

AnyTape = Tape | DeviceTape


# By the address of the byte that stands for it.
_TAPES: dict[int, AnyTape] = {}


class _Carrier(np.ndarray):
    """The bytes of some tapes, which go with it."""

    addresses: Sequence[int] = ()

    def __del__(self) -> None:
        for address in self.addresses:
            _TAPES.pop(address, None)


def tensor_of(tape: AnyTape) -> torch.Tensor:
    """uint8 `[1]`."""
    return _carried((1,), [tape])


def tape_of(tensor: torch.Tensor) -> AnyTape | None:
    """None for a tensor that has no tape, or none any more."""
    return _TAPES.get(tensor.data_ptr())


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
    first = tensor.data_ptr()
    carrier.addresses = range(first, first + len(tapes))
    for address, tape in enumerate(tapes, first):
        _TAPES[address] = tape
    return tensor
