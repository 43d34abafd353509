"""`CompressedLSTM`: inference with weights in half or a quarter of the memory. Arithmetic stays float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .cells import PLAIN, LSTMCellOptions
from .functional import PackedWeights
from .inference import InferenceLSTM
from .weights import WeightSpec

__all__ = ["CompressedLSTM"]

STORAGES = ("bf16", "int8")


class CompressedLSTM(InferenceLSTM):
    """An LSTM for inference with rounded weights; made by `LSTM.compress`. Its call and its stream are those of `LSTM`.

    storage "bf16": each weight rounded to the nearest of 8 significant bits, at most 2**-9 = 0.2 % of itself away.
    "int8": each row of each matrix has a scale, its largest magnitude / 127 (rounded up to 16 bits), and a weight is at
    most half a scale away. Biases and projections stay float32, and so does all arithmetic: apart from the rounding of
    the weights nothing is less exact, and the bitwise promises hold.

    `weights` gives the rounded weights. Raises TypeError for float64 weights, ValueError for weights that are not
    finite and for other storages.

    >>> import fastlstm
    >>> lstm = fastlstm.LSTM(16, 64, seed=0)
    >>> small = lstm.compress("int8")
    >>> x = np.ones((10, 2, 16), np.float32)
    >>> bool(abs(small(x)[0] - lstm(x)[0]).max() < 2e-3)
    True
    """

    def __init__(
        self, spec: WeightSpec, batch_first: bool, compact: dict[str, Any], storage: str, cell: LSTMCellOptions
    ) -> None:
        self.spec, self.cell, self.batch_first, self.storage = spec, cell, batch_first, storage
        self.dtype = np.dtype(np.float32)
        self._compact = compact
        self._packed: PackedWeights | None = None

    @classmethod
    def of(
        cls,
        spec: WeightSpec,
        batch_first: bool,
        weights: Mapping[str, np.ndarray],
        storage: str,
        cell: LSTMCellOptions = PLAIN,
    ) -> CompressedLSTM:
        """Round these weights."""
        if storage not in STORAGES:
            raise ValueError(f"storage is {storage!r}, expected one of {', '.join(map(repr, STORAGES))}")
        compact: dict[str, Any] = {}
        for name, array in weights.items():
            if array.dtype != np.float32:
                raise TypeError(f"{name} has dtype {array.dtype}: expected float32, the only one that compresses")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} contains values that are not finite: expected none, as they have no scale")
            matrix = name.startswith(("weight_ih", "weight_hh"))
            compact[name] = (to_bf16 if storage == "bf16" else to_int8)(array) if matrix else array.copy()
        return cls(spec, batch_first, compact, storage, cell)

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """The weights as they are used, float32 by torch's names: new arrays."""
        return {name: expanded(entry) for name, entry in self._compact.items()}

    @property
    def nbytes(self) -> int:
        """The size of the packed weights in memory, in bytes."""
        return self._pack().native.nbytes

    def _pack(self) -> PackedWeights:
        if self._packed is None or not self._packed.is_readable:
            self._packed = PackedWeights.of(self.weights, self.spec, cell=self.cell, storage=self.storage)
        return self._packed

    def _frozen(self) -> CompressedLSTM:
        return self  # it never changes

    def _more(self) -> str:
        return f", storage={self.storage!r}"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": None}


def to_bf16(array: np.ndarray) -> np.ndarray:
    """The upper halves of float32, rounded to nearest, ties to even, as uint16."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def to_int8(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers from -127 to 127, and the scale `[rows,1]` of each row.

    A scale has 16 bits, so that 127 times it is exact, and what was rounded once is not rounded again.
    """
    mantissa, exponent = np.frexp(np.abs(array).max(axis=1, keepdims=True, initial=0) / np.float32(127))
    scales = np.ldexp(np.ceil(np.ldexp(mantissa, 16)), exponent - 16).astype(np.float32)
    scales[scales == 0] = 1
    return np.rint(array / scales).astype(np.int8), scales


def expanded(entry: Any) -> np.ndarray:
    """float32 from what `to_bf16` or `to_int8` gave; a copy of what is float32 already."""
    if isinstance(entry, tuple):
        numbers, scales = entry
        product: np.ndarray = np.multiply(numbers, scales, dtype=np.float32)
        return product
    array: np.ndarray = np.array(entry)
    if array.dtype == np.uint16:
        bits: np.ndarray = array.astype(np.uint32) << np.uint32(16)
        array = bits.view(np.float32)
    return array
