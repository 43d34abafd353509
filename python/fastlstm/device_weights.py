"""Weights in the order in which the kernels of a GPU read them; `functional.PackedWeights` is the CPU's.

The four gates of a unit are neighbours there: "interleaved" rows are [H,4] where torch's are [4,H]. Letters: I input,
H hidden, n = P if there is a projection, else H; D directions, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from .cells import PLAIN, LSTMCellOptions
from .cuda import native
from .device_arrays import WIDE, ArrayLibrary, DeviceArray, check_device, kind_of, library_of, on_gpu
from .layouts import check_cell
from .weights import WeightSpec, spec_and_arrays, weight_suffix

__all__ = ["DeviceWeights", "DirectionWeights", "by_gate", "interleaved", "panels"]


class NormWeights(NamedTuple):
    """Gains and bias of layer normalisation: those of sums interleaved."""

    of_x: DeviceArray  # [4H], of x . W
    of_h: DeviceArray  # [4H], of h . U
    of_c: DeviceArray  # [2,H]: gain and bias


class DirectionWeights(NamedTuple):
    """The weights of one layer and direction: copies, interleaved, and the operands of the kernels' products."""

    w_x: DeviceArray  # [4H,I]; None where x holds the pre-activations
    w_h: DeviceArray  # [4H,n]
    bias: DeviceArray  # [4H]
    w_p: DeviceArray  # [P,H]
    peepholes: DeviceArray  # [3H]
    recurrent: DeviceArray  # panels of w_h
    projection: DeviceArray  # panels of w_p
    norm: NormWeights | None


@dataclass(frozen=True)
class DeviceWeights:
    """Weights in the order in which the kernels read them: copies, never written again."""

    spec: WeightSpec
    cell: LSTMCellOptions
    library: ArrayLibrary
    dtype: str
    directions: list[DirectionWeights]  # [L*D]
    stream: int | None  # that they were packed on; None if into a CUDA graph

    @property
    def is_readable(self) -> bool:
        """Whether they surely are in memory when the current stream comes to read them."""
        with self.library.current(self.like):
            return self.stream is not None and self.stream == _stream(self.library, self.like)

    @property
    def like(self) -> DeviceArray:
        """An array on the device of the weights."""
        return self.directions[0].w_h

    @classmethod
    def of(
        cls, weights: Mapping[str, DeviceArray], spec: WeightSpec | None = None, *, cell: LSTMCellOptions = PLAIN
    ) -> DeviceWeights:
        """Pack a mapping with torch's names and shapes; raises ValueError or TypeError naming the weight."""
        spec, arrays = spec_and_arrays(weights, spec)
        check_cell(spec, cell)
        named = dict(zip(spec.shapes(), arrays, strict=True))
        like = named["weight_hh_l0"]
        library = library_of("weight_hh_l0", like)
        dtype = library.dtype(like)
        for name, array in named.items():
            if not on_gpu(array) or library.dtype(array) != dtype:
                raise TypeError(f"{name} is {kind_of(array)}, expected {kind_of(like)} as weight_hh_l0 is")
            check_device(name, array, like)
        if dtype not in WIDE:
            raise TypeError(f"the weights have dtype {dtype}, expected one of {', '.join(WIDE)}")
        with library.current(like):
            directions = [
                _direction(library, spec, named, weight_suffix(row // spec.num_directions, row % spec.num_directions))
                for row in range(spec.num_layers * spec.num_directions)
            ]
            return cls(spec, cell, library, dtype, directions, _stream(library, like))


def _stream(library: ArrayLibrary, like: DeviceArray) -> int | None:
    return None if library.is_capturing(like) else library.stream(like)


def _direction(
    library: ArrayLibrary, spec: WeightSpec, named: Mapping[str, DeviceArray], suffix: str
) -> DirectionWeights:
    own = {name.removesuffix(suffix): array for name, array in named.items() if name.endswith(suffix)}
    w_x, w_p, peepholes = own.get("weight_ih"), own.get("weight_hr"), own.get("weight_peephole")
    w_h, bias = interleaved(library, own["weight_hh"]), own["bias_ih"] + own["bias_hh"] if spec.bias else None
    return DirectionWeights(
        None if w_x is None else interleaved(library, w_x),
        w_h,
        None if bias is None else interleaved(library, bias[:, None])[:, 0],
        None if w_p is None else library.copied(w_p),
        None if peepholes is None else library.copied(peepholes),
        panels(library, w_h),
        None if w_p is None else panels(library, w_p),
        _norm_weights(library, own) if spec.layer_norm else None,
    )


def _norm_weights(library: ArrayLibrary, own: Mapping[str, DeviceArray]) -> NormWeights:
    of_x, of_h = (interleaved(library, own[name][:, None])[:, 0] for name in ("gamma_ih", "gamma_hh"))
    of_c = library.empty((2, len(own["gamma_c"])), library.dtype(of_x), of_x)
    of_c[0], of_c[1] = own["gamma_c"], own["beta_c"]
    return NormWeights(of_x, of_h, of_c)


def interleaved(library: ArrayLibrary, rows: DeviceArray) -> DeviceArray:
    """[4H,k] -> the same rows, the four of a unit together: a copy."""
    return _regrouped(library, rows, (4, rows.shape[0] // 4))


def by_gate(library: ArrayLibrary, rows: DeviceArray) -> DeviceArray:
    """The inverse of `interleaved`."""
    return _regrouped(library, rows, (rows.shape[0] // 4, 4))


def _regrouped(library: ArrayLibrary, rows: DeviceArray, groups: tuple[int, int]) -> DeviceArray:
    if 1 in groups:  # nothing to move, and contiguous() would not copy
        return library.copied(rows)
    k = rows.shape[1]
    return library.contiguous(library.permuted(rows.reshape(*groups, k), (1, 0, 2))).reshape(-1, k)


def panels(library: ArrayLibrary, columns: DeviceArray) -> DeviceArray:
    """[n,depth] -> [panels,depth,64], n padded with zeros: the operand of the kernels' product."""
    n, depth = columns.shape
    width = native().panel
    padded = library.zeros((-(-n // width) * width, depth), library.dtype(columns), columns)
    padded[:n] = columns
    return library.contiguous(library.permuted(padded.reshape(-1, width, depth), (0, 2, 1)))
