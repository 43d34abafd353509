"""Weights as the kernels read them, kept from one inference call to the next for as long as nobody has changed them.

torch has no sure sign of a change: fused optimizers, `.data` and NumPy views write without counting `_version` up. So a
pack is used again only if address, shape, strides and version of each weight are what they were, and a sample of its
values, too. A write that changes no sampled value and no version is the one that goes unseen: `drop` is for it.
Calls that keep a graph pack anew, and keep only NumPy's view of the memory, while the weights lie where they lay.
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
from ..weights import checked_arrays
from .call import Call

__all__ = ["array_of", "drop", "kept", "packed"]

SAMPLES = 64  # of each weight: to copy and compare them takes a third of a microsecond


@dataclass
class _Pack:
    weights: PackedWeights
    isa: str
    versions: list[int]
    samples: list[np.ndarray]
    values: list[bytes]


@dataclass
class _Loan:
    """The memory of a layer's weights as NumPy arrays, which may be read only while their places are what they were."""

    layer: str
    first: weakref.ref[torch.Tensor]
    places: list[tuple[Any, ...]]
    arrays: list[np.ndarray]  # checked
    pack: _Pack | None = None


# By the id of the first weight; a loan goes when that tensor does.
_LOANS: dict[int, _Loan] = {}


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
        size = tensor.element_size()
        strides = tuple(stride * size for stride in tensor.stride())
        memory = {"data": (tensor.data_ptr(), False), "shape": tuple(tensor.shape), "strides": strides}
        self.__array_interface__ = {**memory, "typestr": kind, "version": 3}


_KINDS = {torch.float32: np.dtype(np.float32).str, torch.float64: np.dtype(np.float64).str}


def _array_of_weight(weight: torch.Tensor) -> Any:
    kind = _KINDS.get(weight.dtype)
    return array_of(weight) if kind is None or weight.is_neg() else np.asarray(_Lent(weight, kind))


def packed(weights: list[torch.Tensor], call: Call, threads: int | None) -> PackedWeights | DeviceWeights:
    """Packed now."""
    if threads is None:
        return DeviceWeights.of(dict(zip(call.names, weights, strict=True)), call.spec, cell=call.cell)
    return _pack(_borrow(weights, call), call, threads)


def kept(weights: list[torch.Tensor], call: Call, threads: int | None) -> PackedWeights | DeviceWeights:
    """Packed before, if the weights are as they were; else now, as always on a GPU, which a sample would wait for."""
    if threads is None or not all(weight.is_contiguous() for weight in weights):
        return packed(weights, call, threads)
    loan, versions = _borrow(weights, call), _versions(weights)
    pack = loan.pack
    if (
        pack is not None
        and pack.versions == versions
        and [sample.tobytes() for sample in pack.samples] == pack.values
        and pack.isa == active_isa()
    ):
        return pack.weights
    samples = [_sample(array) for array in loan.arrays]
    values = [sample.tobytes() for sample in samples]  # before packing: another thread may be writing
    loan.pack = _Pack(_pack(loan, call, threads), active_isa(), versions, samples, values)
    return loan.pack.weights


def drop(first: object) -> None:
    """Forget the pack of the weights of which this is the first."""
    _LOANS.pop(id(first), None)


def _borrow(weights: list[torch.Tensor], call: Call) -> _Loan:
    places = [(weight.data_ptr(), weight.shape, weight.stride(), weight.dtype, weight.is_neg()) for weight in weights]
    loan = _LOANS.get(id(weights[0]))
    if loan is not None and loan.places == places and loan.layer == call.layer and loan.first() is weights[0]:
        return loan
    lent = [_array_of_weight(weight) for weight in weights]
    _, arrays = checked_arrays(dict(zip(call.names, lent, strict=True)), call.spec)
    key = id(weights[0])
    loan = _Loan(call.layer, weakref.ref(weights[0], lambda _: _LOANS.pop(key, None)), places, arrays)
    if not any(weight.is_neg() for weight in weights):  # whose arrays are copies
        _LOANS[key] = loan
    return loan


def _pack(loan: _Loan, call: Call, threads: int) -> PackedWeights:
    return PackedWeights.of_checked(loan.arrays, call.spec, call.cell, "whole", threads)


def _versions(weights: list[torch.Tensor]) -> list[int]:
    try:
        return [weight._version for weight in weights]
    except RuntimeError:  # of inference tensors, which have no version
        return []


def _sample(array: np.ndarray) -> np.ndarray:
    flat = array.reshape(-1)
    step = max(1, flat.size // SAMPLES) | 1  # odd, so that it meets other columns in each row
    return flat[::step]
