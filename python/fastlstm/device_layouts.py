"""How a caller's arrays on a GPU lie, and what they must be; `layouts` is the same for NumPy's."""

from __future__ import annotations

from typing import Any

import numpy as np

from .cuda import native
from .device_arrays import ArrayLibrary, DeviceArray, check_device, kind_of, library_of, on_gpu
from .device_weights import DeviceWeights
from .layouts import Layout
from .masking import check_lengths, check_mask
from .weights import WeightSpec

__all__ = ["check_on_gpu", "columns_of", "enter", "flags_of", "layout_of", "leave_state", "states_of"]


def columns_of(array: DeviceArray, direction: int, size: int) -> DeviceArray:
    """One direction's columns of a sequence [T,B,D*size]."""
    return None if array is None else array[..., direction * size : (direction + 1) * size]


def enter(library: ArrayLibrary, layout: Layout, array: DeviceArray) -> DeviceArray:
    """A view [T,B,..] of a sequence as the caller has it; None where None."""
    if array is None or not (layout.unbatched or layout.batch_first):
        return array
    return array[:, None] if layout.unbatched else library.permuted(array, (1, 0, 2))


def leave_state(layout: Layout, state: DeviceArray) -> DeviceArray:
    return state[:, 0] if layout.unbatched else state


def layout_of(x: DeviceArray, weights: DeviceWeights, batch_first: bool) -> Layout:
    batched, size = ("(B, T, {0})" if batch_first else "(T, B, {0})"), weights.spec.x_size
    shape = tuple(x.shape)
    if len(shape) not in (2, 3) or shape[-1] != size:
        raise ValueError(
            f"x has shape {shape}, but the weights need input size {size}: "
            f"expected {batched.format(size)}, or (T, {size}) unbatched"
        )
    check_device("x", x, weights.like)
    if weights.library.dtype(x) != weights.dtype:
        raise TypeError(
            f"x has dtype {weights.library.dtype(x)}, but the weights have {weights.dtype}: expected the same"
        )
    steps, batch = (shape[0], 1) if len(shape) == 2 else shape[1::-1] if batch_first else shape[:2]
    return Layout(steps, batch, batch_first, unbatched=len(shape) == 2)


def check_on_gpu(name: str, array: DeviceArray, shape: tuple[int, ...], dtype: str, like: DeviceArray) -> None:
    """Raises TypeError or ValueError naming the array, if it is not of this shape and dtype where `like` is."""
    if not on_gpu(array):
        raise TypeError(f"{name} is {kind_of(array)}, expected an array on the GPU where x is")
    check_device(name, array, like)
    library = library_of(name, array)
    if tuple(array.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(array.shape)}, expected {shape}")
    if library.dtype(array) != dtype:
        raise TypeError(f"{name} has dtype {library.dtype(array)}, expected {dtype}")


def states_of(
    name: str,
    names: tuple[str, str],
    states: tuple[DeviceArray, DeviceArray] | None,
    spec: WeightSpec,
    layout: Layout,
    dtype: str,
    like: DeviceArray,
) -> tuple[DeviceArray, DeviceArray]:
    """Both halves as contiguous `[L*D,B,..]`, None where None."""
    if states is None:
        return None, None
    if not isinstance(states, (tuple, list)) or len(states) != 2:
        raise TypeError(f"{name} is a {type(states).__qualname__}, expected a pair ({names[0]}, {names[1]})")
    rows, entered = spec.num_layers * spec.num_directions, []
    for part, array, size in zip(names, states, (spec.hidden_output, spec.hidden_size), strict=True):
        if array is not None:
            check_on_gpu(part, array, layout.state(rows, size), dtype, like)
            array = library_of(part, array).contiguous(array)
        entered.append(array[:, None] if layout.unbatched and array is not None else array)
    return entered[0], entered[1]


def flags_of(
    library: ArrayLibrary, x: DeviceArray, layout: Layout, lengths: Any, mask: Any, reset: Any, reverse: bool
) -> DeviceArray:
    """[T,B]: what happens to each row around each step; None where every step counts."""
    if lengths is None and mask is None and reset is None:
        return None
    if lengths is not None and not on_gpu(lengths):
        shape = () if layout.unbatched else (layout.batch,)
        lengths = library.put(np.asarray(check_lengths(lengths, shape, layout.steps), np.int64).reshape(-1), x)
    marks = {"lengths": lengths if lengths is None else lengths.reshape(layout.batch)}
    for name, array in (("mask", mask), ("reset", reset)):
        if array is not None:
            if not on_gpu(array):
                array = library.put(check_mask(name, array, layout.sequence()), x)
            elif tuple(array.shape) != layout.sequence():
                raise ValueError(f"{name} has shape {tuple(array.shape)}, expected {layout.sequence()}")
            array = enter(library, layout, array[..., None])
        marks[name] = array
    flags = library.empty((layout.steps, layout.batch), "uint8", x)
    native().mark(marks | {"flags": flags}, reverse, library.device(x), library.stream(x))
    return flags
