"""All random numbers of training, for the reference: whether a unit is kept is a pure function of its place, so that no
layout, batch, thread or device can change a mask. csrc/philox.h is its native twin.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .cells import LSTMCellOptions

__all__ = ["Draws", "drop", "dropout_mask", "philox4x32"]

# What is drawn. Each kind has a key of its own: the seed plus the golden ratio times its place here.
KINDS = ("between layers", "input_dropout", "recurrent_dropout", "zoneout_h", "zoneout_c", "weight_drop")


def philox4x32(counter: tuple[npt.ArrayLike, ...], key: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): 4 words in, 4 words out.

    counter: four arrays of integers below 2**32 that broadcast together; key: two such integers. uint32 comes out.

    >>> [f"{word:08x}" for word in philox4x32((0, 0, 0, 0), (0, 0))]  # Random123's known answer
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    low = np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(word, np.uint64) for word in counter))
    k0, k1 = key
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1 = (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0), p1 & low
        c2, c3 = (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1), p0 & low
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return tuple(word.astype(np.uint32) for word in (c0, c1, c2, c3))


def dropout_mask(
    dropout: float,
    seed: int,
    call: int,
    *,
    layer: int,
    steps: int,
    batch: int,
    num_directions: int,
    units: int,
    kind: str = "between layers",
    first_step: int = 0,
) -> np.ndarray:
    """Which outputs of a layer are kept: bool `[T,B,D*units]`, the same whatever T, B, layout, threads or device.

    The key is the two halves of the kind's seed, the counter is (layer << 21 | direction << 20 | unit >> 2, t, b,
    call); a unit takes word `unit & 3` and is kept if that is at least floor(dropout * 2**32). t counts from
    first_step.

    >>> dropout_mask(0.5, seed=7, call=0, layer=0, steps=1, batch=2, num_directions=1, units=5)[0].astype(int)
    array([[1, 1, 0, 0, 0],
           [0, 0, 0, 0, 1]])
    """
    call, quads = operator.index(call), -(-units // 4)
    seed = (operator.index(seed) + KINDS.index(kind) * 0x9E3779B97F4A7C15) % 2**64
    place = layer << 21 | np.arange(num_directions)[:, None] << 20 | np.arange(quads)  # [D,quads]
    t, b = (first_step + np.arange(steps)[:, None, None, None]) & 0xFFFFFFFF, np.arange(batch)[:, None, None]
    words = np.stack(philox4x32((place, t, b, call & 0xFFFFFFFF), (seed & 0xFFFFFFFF, seed >> 32)), axis=-1)
    by_unit = words.reshape(steps, batch, num_directions, 4 * quads)[..., :units]
    kept: np.ndarray = by_unit.astype(np.uint64) >= np.uint64(float(dropout) * 2**32)
    return kept.reshape(steps, batch, num_directions * units)


def drop(a: np.ndarray, kept: np.ndarray, dropout: float) -> np.ndarray:
    """Forward and backward alike: what is kept grows by 1 / (1 - dropout), the rest is 0."""
    one = a.dtype.type(1)
    scale = one / (one - a.dtype.type(dropout)) if dropout < 1 else 0
    return np.where(kept, a * scale, 0)


class Draws(NamedTuple):
    """What the options of a cell draw for one layer and direction of a call."""

    x_scales: np.ndarray  # [G,B,I], G = 4 for masks by gate, else 1: 0 where dropped, else 1 / (1 - p)
    h_scales: np.ndarray  # [G,B,Hout]
    keep_h: np.ndarray  # [T,B,Hout]: 1 where a unit keeps its state, in inference the probability of that
    keep_c: np.ndarray  # [T,B,H]

    @classmethod
    def of(
        cls,
        options: LSTMCellOptions,
        training: bool,
        seed: int,
        call: int,
        *,
        layer: int,
        direction: int,
        first_step: int,
        steps: int,
        batch: int,
        sizes: tuple[int, int, int],
        dtype: np.dtype[Any],
    ) -> Draws:
        """sizes: I, Hout, H."""
        place = {"layer": layer, "batch": batch, "num_directions": direction + 1}
        gates = 4 if options.dropout_per_gate else 1

        def kept(kind: str, p: float, steps: int, units: int, first_step: int = 0) -> np.ndarray:
            mask = dropout_mask(p, seed, call, first_step=first_step, steps=steps, units=units, kind=kind, **place)
            return mask[..., direction * units :]

        def scales(kind: str, p: float, units: int) -> np.ndarray:
            if not (training and p):
                return np.ones((1, 1, 1), dtype)
            mask = kept(kind, p, gates, units)
            return drop(np.ones(mask.shape, dtype), mask, p)

        def keeps(kind: str, p: float, units: int) -> np.ndarray:
            if not (training and p):
                return np.full((steps, 1, 1), p, dtype)
            return (~kept(kind, p, steps, units, first_step)).astype(dtype)

        I, Hout, H = sizes
        return cls(
            scales("input_dropout", options.input_dropout, I),
            scales("recurrent_dropout", options.recurrent_dropout, Hout),
            keeps("zoneout_h", options.zoneout_h, Hout),
            keeps("zoneout_c", options.zoneout_c, H),
        )
