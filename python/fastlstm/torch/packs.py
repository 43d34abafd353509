"""Weights as the kernels read them, kept from one inference call to the next for as long as nobody has changed them.

torch has no sure sign of a change: fused optimizers, `.data` and NumPy views write without counting `_version` up. So a
pack is used again only if address, shape, strides and version of each weight are what they were, and a sample of its
values, too. A write that changes no sampled value and no version is the one that goes unseen: `drop` is for it.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..config import active_isa
from ..device_weights import DeviceWeights
from ..functional import PackedWeights
from .call import Call

__all__ = ["array_of", "drop", "kept", "packed"]

SAMPLES = 64  # of each weight: to copy and compare them takes a third of a microsecond


@dataclass
class _Pack:
    weights: PackedWeights | DeviceWeights
    layer: str
    isa: str
    first: weakref.ref[torch.Tensor]
    identities: list[tuple[Any, ...]]
    samples: list[np.ndarray]  # views of the weights' own memory, read only while the weights are there
    values: list[bytes]


# By the id of the first weight; a pack goes when that tensor does.
_PACKS: dict[int, _Pack] = {}


def array_of(tensor: torch.Tensor) -> Any:
    """What `functional` takes: a tensor on a GPU as it is, else the NumPy array with the tensor's memory."""
    try:
        return (tensor.detach() if tensor.requires_grad else tensor).numpy() if tensor.is_cpu else tensor
    except TypeError:  # NumPy has no such numbers
        got, expected = f"{tensor.dtype}, {tensor.layout}", "float32 or float64 on the CPU, torch.strided"
        raise TypeError(f"a tensor is {got}: expected {expected}") from None
    except RuntimeError:
        if not tensor.is_neg():
            raise
        return array_of(tensor.resolve_neg())  # numbers whose sign is still to be turned, as of z.conj().imag


class _Lent:
    """A tensor's memory, for NumPy. After `Tensor.numpy` torch could not free it, as sharded training does."""

    def __init__(self, tensor: torch.Tensor, kind: str) -> None:
        self.tensor, size = tensor, tensor.element_size()
        strides = tuple(stride * size for stride in tensor.stride())
        memory = {"data": (tensor.data_ptr(), False), "shape": tuple(tensor.shape), "strides": strides}
        self.__array_interface__ = {**memory, "typestr": kind, "version": 3}


_KINDS = {torch.float32: np.dtype(np.float32).str, torch.float64: np.dtype(np.float64).str}


def _array_of_weight(weight: torch.Tensor) -> Any:
    kind = _KINDS.get(weight.dtype)
    return array_of(weight) if kind is None or not weight.is_cpu or weight.is_neg() else np.asarray(_Lent(weight, kind))


def packed(weights: list[torch.Tensor], call: Call, threads: int | None) -> PackedWeights | DeviceWeights:
    """Packed now."""
    arrays = dict(zip(call.names, map(_array_of_weight, weights), strict=True))
    if threads is None:
        return DeviceWeights.of(arrays, call.spec, cell=call.cell)
    return PackedWeights.of(arrays, call.spec, cell=call.cell, threads=threads)


def kept(weights: list[torch.Tensor], call: Call, threads: int | None) -> PackedWeights | DeviceWeights:
    """Packed before, if the weights are as they were; else now, as always on a GPU, which a sample would wait for."""
    pack = _PACKS.get(id(weights[0]))
    identities = _identities(weights)
    if (
        pack is not None
        and pack.first() is weights[0]
        and pack.layer == call.layer
        and pack.identities == identities  # before the samples: their memory is still there
        and [sample.tobytes() for sample in pack.samples] == pack.values
        and pack.isa == active_isa()
    ):
        return pack.weights
    if threads is None or not all(weight.is_contiguous() and not weight.is_neg() for weight in weights):
        return packed(weights, call, threads)
    samples = [_sample(weight) for weight in weights]
    values = [sample.tobytes() for sample in samples]  # before packing: another thread may be writing
    fresh, key = packed(weights, call, threads), id(weights[0])
    first = weakref.ref(weights[0], lambda _: _PACKS.pop(key, None))
    _PACKS[key] = _Pack(fresh, call.layer, active_isa(), first, identities, samples, values)
    return fresh


def drop(first: object) -> None:
    """Forget the pack of the weights of which this is the first."""
    _PACKS.pop(id(first), None)


def _identities(weights: list[torch.Tensor]) -> list[tuple[Any, ...]]:
    try:
        return [(weight.data_ptr(), weight._version, weight.shape, weight.stride()) for weight in weights]
    except RuntimeError:  # of inference tensors, which have no version
        return [(weight.data_ptr(), weight.shape, weight.stride()) for weight in weights]


def _sample(weight: torch.Tensor) -> np.ndarray:
    flat = _array_of_weight(weight.detach()).reshape(-1)  # which must not keep the weight itself
    step = max(1, flat.size // SAMPLES) | 1  # odd, so that it meets other columns in each row
    sample: np.ndarray = flat[::step]
    return sample
