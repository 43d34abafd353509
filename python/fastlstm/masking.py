"""Missing values and padding: masks from NaNs and lengths, and fills for NaNs. NumPy only; none changes its input.

Letters: T steps, B batch, I features. Arrays are time-major `[T,B,I]` as the layer's x, `[B,T,I]` with
`batch_first=True`, or unbatched `[T,I]`; masks have the same shape without I, and True is a step that counts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .weights import check_array


def mask_from_nan(x: np.ndarray, *, missing: str = "any") -> np.ndarray:
    """The mask of the steps that x has values for: bool, of x's shape without its last axis, in any layout.

    A step is missing if `"any"` of its features is NaN, or only if `"all"` are. Raises TypeError if x is not a
    floating-point array, ValueError for an x without a feature axis or another `missing`.

    >>> x = np.array([[1.0, 2.0], [np.nan, 4.0], [np.nan, np.nan]])  # [T,I]
    >>> mask_from_nan(x)
    array([ True, False, False])
    >>> mask_from_nan(x, missing="all")
    array([ True,  True, False])
    """
    if missing not in ("any", "all"):
        raise ValueError(f'missing is {missing!r}, expected "any" or "all"')
    nan = np.isnan(_check_floats(x))
    if x.ndim < 1:
        raise ValueError("x has shape (), expected one whose last axis holds the features")
    counts: np.ndarray = ~(nan.any(axis=-1) if missing == "any" else nan.all(axis=-1))
    return counts


def forward_fill(x: np.ndarray, *, batch_first: bool = False, initial: float = np.nan) -> np.ndarray:
    """x with every NaN replaced by the last value before it of the same row and feature; x's shape and dtype.

    `initial` stands before a row's first value; the default leaves those NaNs for another fill. Raises TypeError if
    x is not a floating-point array, ValueError if it is not `[T,B,I]`, `[B,T,I]` or `[T,I]`.

    >>> x = np.array([[np.nan, 5.0], [1.0, np.nan], [np.nan, 7.0]])  # [T,I]
    >>> forward_fill(x, initial=0.0)
    array([[0., 5.],
           [1., 5.],
           [1., 7.]])
    """
    axis = _time_axis(x, batch_first)
    last, _ = _neighbours(x, axis)
    return np.where(last < 0, x.dtype.type(initial), np.take_along_axis(x, np.maximum(last, 0), axis))


def mean_fill(x: np.ndarray, *, mean: npt.ArrayLike | None = None) -> np.ndarray:
    """x with every NaN replaced by its feature's mean over all rows and steps; x's shape and dtype, any layout.

    `mean` `[I]` is used instead where given: the training set's, for a test set. Raises TypeError if x is not a
    floating-point array, ValueError for a `mean` of another shape and for a feature that has no value at all.

    >>> x = np.array([[np.nan, 5.0], [1.0, np.nan], [3.0, 7.0]])  # [T,I]
    >>> mean_fill(x)
    array([[2., 5.],
           [1., 6.],
           [3., 7.]])
    >>> mean_fill(x, mean=[0.0, 9.0])[:2]
    array([[0., 5.],
           [1., 9.]])
    """
    nan = np.isnan(_check_floats(x))
    if x.ndim < 1:
        raise ValueError("x has shape (), expected one whose last axis holds the features")
    if mean is not None:
        fill = np.asarray(mean, dtype=x.dtype)
        if fill.shape != x.shape[-1:]:
            raise ValueError(f"mean has shape {fill.shape}, but x has shape {x.shape}: expected {x.shape[-1:]}")
        return np.where(nan, fill, x)
    others = tuple(range(x.ndim - 1))
    counts = (~nan).sum(axis=others)
    empty = np.flatnonzero((counts == 0) & nan.any(axis=others))
    if empty.size:
        raise ValueError(f"x has no value of feature {empty[0]} but NaN: expected mean= for it")
    sums = np.where(nan, 0, x).sum(axis=others, dtype=np.float64)
    return np.where(nan, (sums / np.maximum(counts, 1)).astype(x.dtype), x)


def linear_fill(x: np.ndarray, *, batch_first: bool = False) -> np.ndarray:
    """x with every NaN replaced by linear interpolation over time in its row and feature; x's shape and dtype.

    Steps are one apart. Before the first value and after the last, that value is held, as `np.interp` does; a row and
    feature without any value stays NaN. Raises TypeError if x is not a floating-point array, ValueError if it is not
    `[T,B,I]`, `[B,T,I]` or `[T,I]`. It looks ahead: for a forecast, prefer `forward_fill`.

    >>> x = np.array([[np.nan], [1.0], [np.nan], [np.nan], [4.0], [np.nan]])  # [T,I]
    >>> linear_fill(x).ravel()
    array([1., 1., 2., 3., 4., 4.])
    """
    axis = _time_axis(x, batch_first)
    steps = x.shape[axis]
    last, following = _neighbours(x, axis)
    before = np.where(last >= 0, last, np.where(following < steps, following, 0))
    after = np.where(following < steps, following, before)
    low, high = np.take_along_axis(x, before, axis), np.take_along_axis(x, after, axis)
    share = ((_step_numbers(x, axis) - before) / np.maximum(after - before, 1)).astype(x.dtype)
    with np.errstate(invalid="ignore"):  # an infinity times a share of 0, where the value is held
        between = low * (1 - share) + high * share
    return np.where(before < after, between, low)


def lengths_to_mask(lengths: npt.ArrayLike, steps: int | None = None, *, batch_first: bool = False) -> np.ndarray:
    """The right-padded mask t < length: bool `[T,B]`, or `[B,T]` with batch_first, or `[T]` for a single length.

    lengths: `[B]` integers, 0 legal, in any order; steps: T, the largest length by default. Raises TypeError for
    lengths that are not integers, ValueError for one that is negative or above T.

    >>> lengths_to_mask([2, 0, 3], batch_first=True).astype(int)
    array([[1, 1, 0],
           [0, 0, 0],
           [1, 1, 1]])
    """
    lengths = np.asarray(lengths)
    if lengths.ndim > 1:
        raise ValueError(f"lengths has shape {lengths.shape}, expected (B,), or () for a single row")
    if steps is None:
        steps = int(lengths.max(initial=0))
    mask: np.ndarray = np.arange(steps)[:, None] < np.atleast_1d(check_lengths(lengths, lengths.shape, steps))
    return mask[:, 0] if lengths.ndim == 0 else mask.T.copy() if batch_first else mask


def mask_to_lengths(mask: npt.ArrayLike, *, batch_first: bool = False) -> np.ndarray:
    """The lengths of a right-padded mask: int64 `[B]`, or `[]` (0-d) for a mask `[T]`.

    mask: bool or 0/1, `[T,B]`, or `[B,T]` with batch_first, or `[T]`. Raises TypeError for a mask of another kind,
    ValueError for another shape or value, and for a mask that no lengths describe, naming a row and step of it.

    >>> mask_to_lengths([[True, True], [True, False], [False, False]])
    array([2, 1])
    >>> mask_to_lengths([True, False, True])
    Traceback (most recent call last):
    ValueError: mask counts step 2 of row 0 after a step that does not count: only a right-padded mask has lengths
    """
    mask = np.asarray(mask)
    if mask.ndim not in (1, 2):
        raise ValueError(f"mask has shape {mask.shape}, expected {'(B, T)' if batch_first else '(T, B)'} or (T,)")
    mask = check_mask("mask", mask, mask.shape)
    rows = mask[None] if mask.ndim == 1 else mask if batch_first else mask.T  # [B,T]
    late = np.argwhere(~rows[:, :-1] & rows[:, 1:])
    if len(late):
        raise ValueError(
            f"mask counts step {late[0, 1] + 1} of row {late[0, 0]} after a step that does not count: "
            "only a right-padded mask has lengths"
        )
    return np.asarray(rows.sum(axis=1, dtype=np.int64) if mask.ndim == 2 else mask.sum(dtype=np.int64))


def check_mask(name: str, mask: npt.ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """`mask` as a bool array of this shape; 0/1 numbers are accepted. Raises TypeError or ValueError naming it.

    >>> check_mask("reset", [0, 1, 0], (3,))
    array([False,  True, False])
    """
    array = np.asarray(mask)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} has dtype {array.dtype}, expected bool, or numbers that are 0 or 1")
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
    other = array[(array != 0) & (array != 1)]
    if other.size:
        raise ValueError(f"{name} holds {other[0]}, expected bool, or numbers that are 0 or 1")
    return array.astype(bool, copy=False)


def check_lengths(lengths: npt.ArrayLike, shape: tuple[int, ...], steps: int, name: str = "lengths") -> np.ndarray:
    """`lengths` as an int64 array of this shape, `(B,)` or `()`, with 0 <= length <= steps; else an error naming it.

    >>> check_lengths([2, 5], (2,), 4)
    Traceback (most recent call last):
    ValueError: lengths[1] is 5, but there are 4 steps: expected a length from 0 to 4
    """
    array = np.asarray(lengths)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name} has dtype {array.dtype}, expected integers")
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
    for row in np.argwhere((array < 0) | (array > steps))[:1]:
        which = f"{name}[{row[0]}]" if array.ndim else name
        raise ValueError(
            f"{which} is {array[tuple(row)]}, but there are {steps} steps: expected a length from 0 to {steps}"
        )
    return array.astype(np.int64)


def _check_floats(x: np.ndarray) -> np.ndarray:
    if check_array("x", x).dtype.kind != "f":
        raise TypeError(f"x has dtype {x.dtype}, expected a floating-point one, which can hold NaN")
    return x


def _time_axis(x: np.ndarray, batch_first: bool) -> int:
    if _check_floats(x).ndim not in (2, 3):
        raise ValueError(f"x has shape {x.shape}, expected {'(B, T, I)' if batch_first else '(T, B, I)'} or (T, I)")
    return 1 if batch_first and x.ndim == 3 else 0


def _step_numbers(x: np.ndarray, axis: int) -> np.ndarray:
    """The step t of every element of x along the time axis; broadcasts against x."""
    steps: np.ndarray = np.arange(x.shape[axis]).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    return steps


def _neighbours(x: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """For every element, the step of the last value at or before it (-1: none) and of the next one (T: none)."""
    steps, missing, t = x.shape[axis], np.isnan(x), _step_numbers(x, axis)
    last = np.maximum.accumulate(np.where(missing, -1, t), axis=axis)
    following = np.flip(np.minimum.accumulate(np.flip(np.where(missing, steps, t), axis), axis=axis), axis)
    return last, following
