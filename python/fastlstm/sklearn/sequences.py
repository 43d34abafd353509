"""What an estimator's LSTM reads: sequences of one length or of several, without NaNs, or with steps that do not count.

Letters: N sequences, T steps, I features.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import masking

__all__ = ["MISSING", "Sequences", "mean_of", "padded", "without_missing"]

MISSING = ("error", "skip", "forward", "mean", "linear")


class Sequences(NamedTuple):
    """What the LSTM reads: rows of it are a batch."""

    x: np.ndarray  # [N,T,I]
    lengths: np.ndarray | None  # [N]
    mask: np.ndarray | None  # [N,T]

    def rows(self, rows: Any) -> Sequences:
        if self.lengths is None:
            return Sequences(self.x[rows], None, None if self.mask is None else self.mask[rows])
        lengths = self.lengths[rows]
        steps = slice(lengths.max(initial=0))  # what is padding for all of them is not computed
        return Sequences(self.x[rows, steps], lengths, None if self.mask is None else self.mask[rows, steps])


def padded(arrays: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """`[N,T,I]`, NaN beyond each one's length, and the lengths."""
    sizes = {array.shape[1] for array in arrays}
    if len(sizes) != 1:
        raise ValueError(f"X has sequences of {', '.join(map(str, sorted(sizes)))} features, expected the same in all")
    lengths = np.array([len(array) for array in arrays])
    x = np.full((len(arrays), lengths.max(), sizes.pop()), np.nan, np.result_type(*arrays))
    for row, array in zip(x, arrays, strict=True):
        row[: len(array)] = array
    return x, lengths


def without_missing(x: np.ndarray, lengths: np.ndarray | None, missing: str, mean: np.ndarray | None) -> Sequences:
    """x `[N,T,I]` with its NaNs filled, for "mean" by mean `[I]`, or with the steps that have one masked."""
    if missing == "skip":
        return Sequences(x, lengths, masking.mask_from_nan(x))
    if missing == "forward":
        x = masking.forward_fill(x, batch_first=True, initial=0.0)
    elif missing == "mean":
        x = masking.mean_fill(x, mean=mean)
    elif missing == "linear":
        x = masking.linear_fill(x, batch_first=True)
        x = np.where(np.isnan(x), 0, x)  # of sequences without any value
    return Sequences(x, lengths, None)


def mean_of(x: np.ndarray) -> np.ndarray:
    """The mean of each feature's values, `[I]`; 0 where it has none."""
    known = ~np.isnan(x)
    sums: np.ndarray = np.where(known, x, 0).sum(axis=(0, 1)) / np.maximum(known.sum(axis=(0, 1)), 1)
    return sums
