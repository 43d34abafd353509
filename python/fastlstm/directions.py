"""One direction of one layer in NumPy, for the reference: the only loops over time.

Letters: T steps, B batch, I input, H hidden, P projection; Hout = P if there is a projection, else H. Gates stand in
the order i f g o in every 4H axis. Gradients have the prefix d.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .cells import CellNorm, LSTMCellOptions, cell_backward, cell_forward, layer_norm, layer_norm_backward
from .dropout import Draws


class DirectionWeights(NamedTuple):
    """The weights of one layer and direction, or their gradients. torch's two biases are one here, their sum."""

    w_x: np.ndarray | None  # [4H,I]; None where x holds the pre-activations
    w_h: np.ndarray  # [4H,Hout]
    b: np.ndarray  # [4H], zeros without bias
    w_r: np.ndarray | None  # [P,H], the projection
    peephole: np.ndarray | None  # [3H]
    gamma_x: np.ndarray | None  # [4H], as gamma_h: of the layer normalisation of x . W and of h . U
    gamma_h: np.ndarray | None
    norm: CellNorm | None


class Steps(NamedTuple):
    """The steps of one direction: which of them count, and before which, in walking order, the state is zeroed."""

    counts: np.ndarray  # [T,B,1] bool
    cut: np.ndarray  # [T,B,1] bool
    reverse: bool

    def in_order(self) -> range:
        steps = range(len(self.counts))
        return steps[::-1] if self.reverse else steps


class DirectionTape(NamedTuple):
    """What `direction_backward` needs of `direction_forward`; what stands in steps that do not count is not used."""

    x: np.ndarray  # [T,B,I]
    w: DirectionWeights
    steps: Steps
    options: LSTMCellOptions
    draws: Draws
    h_prev: np.ndarray  # [T,B,Hout], the state that the step began with
    c_prev: np.ndarray  # [T,B,H]
    gates: np.ndarray  # [T,B,4H]
    m: np.ndarray  # [T,B,H], h before the projection


def product(a: np.ndarray, w: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """(a * scale) . w^T, a `[..,B,n]`, w `[4H,n]`, scales `[1,B,n]`, or `[4,B,n]`: one for each gate's rows of w."""
    parts = zip(np.split(w, len(scales)), scales, strict=True)
    return np.concatenate([(a * scale) @ part.T for part, scale in parts], axis=-1)


def product_backward(d: np.ndarray, w: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The gradient of `product`'s a."""
    parts = zip(np.split(d, len(scales), axis=-1), np.split(w, len(scales)), scales, strict=True)
    da: np.ndarray = np.add.reduce([d_part @ part * scale for d_part, part, scale in parts])
    return da


def weight_gradient(d: np.ndarray, a: np.ndarray, scales: np.ndarray, used: np.ndarray) -> np.ndarray:
    """The gradient of `product`'s w over all N steps that are used: d, a `[T,B,..]`, used `[T,B]` bool."""
    parts = zip(np.split(d[used], len(scales), axis=-1), scales, strict=True)
    return np.concatenate([d_part.T @ (a * scale)[used] for d_part, scale in parts])


def pre_activations(
    x: np.ndarray, h: np.ndarray, w: DirectionWeights, draws: Draws
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """pre `[B,4H]` of one step, and x . W (x itself where it is that) and h . U of it before any normalisation."""
    by_x = x if w.w_x is None else product(x, w.w_x, draws.x_scales)
    by_h = product(h, w.w_h, draws.h_scales)
    if w.gamma_x is None or w.gamma_h is None:
        return by_x + by_h + w.b, by_x, by_h
    return layer_norm(by_x)[0] * w.gamma_x + layer_norm(by_h)[0] * w.gamma_h + w.b, by_x, by_h


def zoneout(keep: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """What a state becomes in one step: `before` with probability, or in the part, `keep` (Krueger et al. 2017)."""
    blended: np.ndarray = np.where(keep == 0, after, keep * before + (1 - keep) * after)
    return blended


def direction_forward(
    x: np.ndarray,
    w: DirectionWeights,
    h: np.ndarray,
    c: np.ndarray,
    steps: Steps,
    options: LSTMCellOptions,
    draws: Draws,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, DirectionTape]:
    """x `[T,B,I]` from the state h `[B,Hout]`, c `[B,H]` -> h and c after every step `[T,B,..]`, h_n, c_n, tape."""
    T, (B, Hout), H = len(x), h.shape, c.shape[1]
    all_h, all_c = np.empty((T, B, Hout), x.dtype), np.empty((T, B, H), x.dtype)
    saved = (np.empty((T, B, size), x.dtype) for size in (Hout, H, 4 * H, H))
    tape = DirectionTape(x, w, steps, options, draws, *saved)
    for t in steps.in_order():
        h, c = np.where(steps.cut[t], 0, h), np.where(steps.cut[t], 0, c)
        tape.h_prev[t], tape.c_prev[t] = h, c
        pre, _, _ = pre_activations(x[t], h, w, draws)
        tape.gates[t], c_new, h_new = cell_forward(pre, c, options, w.peephole, w.norm)
        tape.m[t] = h_new
        if w.w_r is not None:
            h_new = h_new @ w.w_r.T
        h_new, c_new = zoneout(draws.keep_h[t], h, h_new), zoneout(draws.keep_c[t], c, c_new)
        h, c = np.where(steps.counts[t], h_new, h), np.where(steps.counts[t], c_new, c)
        all_h[t], all_c[t] = h, c
    return all_h, all_c, h, c, tape


def direction_backward(
    d_all_h: np.ndarray,
    d_all_c: np.ndarray,
    d_gates: np.ndarray,
    dh: np.ndarray,
    dc: np.ndarray,
    tape: DirectionTape,
    truncate: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, DirectionWeights]:
    """The gradients of `direction_forward`'s results, dh and dc those of h_n and c_n -> dx, dh0, dc0, dw.

    truncate: no gradient of the state crosses a border of so many steps; 0: all do.
    """
    w, steps, draws = tape.w, tape.steps, tape.draws
    d_pre, dh_new = np.zeros_like(tape.gates), np.zeros_like(tape.h_prev)
    by_x, by_h = (np.zeros_like(tape.gates) for _ in range(2))  # gradients of x . W and h . U
    d_peephole = np.zeros((*tape.gates.shape[:2], 3 * tape.m.shape[2]), dh.dtype)
    d_gamma_x, d_gamma_h, d_gamma, d_beta = (np.zeros_like(a) for a in (by_x, by_h, tape.m, tape.m))
    for t in steps.in_order()[::-1]:
        dh, dc = dh + d_all_h[t], dc + d_all_c[t]
        counts, keep_h, keep_c = steps.counts[t], draws.keep_h[t], draws.keep_c[t]
        dh_new[t] = dh * (1 - keep_h)
        dh_cell = dh_new[t] if w.w_r is None else dh_new[t] @ w.w_r
        d = cell_backward(
            dh_cell, dc * (1 - keep_c), tape.gates[t], tape.c_prev[t], tape.options, w.peephole, w.norm, d_gates[t]
        )
        d_pre[t] = by_x[t] = by_h[t] = np.where(counts, d.d_pre, 0)
        d_peephole[t], d_gamma[t], d_beta[t] = d.d_peephole, d.d_gamma, d.d_beta
        if w.gamma_x is not None and w.gamma_h is not None:
            _, *sums = pre_activations(tape.x[t], tape.h_prev[t], w, draws)
            for by, gamma, d_gamma_by, a in zip(
                (by_x, by_h), (w.gamma_x, w.gamma_h), (d_gamma_x, d_gamma_h), sums, strict=True
            ):
                normalised, inverse_deviation = layer_norm(a)
                d_gamma_by[t] = d_pre[t] * normalised
                by[t] = layer_norm_backward(d_pre[t] * gamma, normalised, inverse_deviation)
        dh = np.where(counts, product_backward(by_h[t], w.w_h, draws.h_scales) + dh * keep_h, dh)
        dc = np.where(counts, d.dc_prev + dc * keep_c, dc)
        dh, dc = np.where(steps.cut[t], 0, dh), np.where(steps.cut[t], 0, dc)
        border = t + steps.reverse  # between this step and the one before it in walking order
        if truncate and border % truncate == 0 and 0 < border < len(tape.x):
            dh, dc = np.zeros_like(dh), np.zeros_like(dc)
    # The sums over all N steps that count, at once: products and pairwise sums stay exact where a long chain drifts.
    used = steps.counts[:, :, 0]

    def total(by_step: np.ndarray) -> np.ndarray:
        sums: np.ndarray = np.ascontiguousarray(by_step[used].T).sum(axis=1)
        return sums

    dw = DirectionWeights(
        w_x=None if w.w_x is None else weight_gradient(by_x, tape.x, draws.x_scales, used),
        w_h=weight_gradient(by_h, tape.h_prev, draws.h_scales, used),
        b=total(d_pre),
        w_r=None if w.w_r is None else dh_new[used].T @ tape.m[used],
        peephole=None if w.peephole is None else total(d_peephole),
        gamma_x=None if w.gamma_x is None else total(d_gamma_x),
        gamma_h=None if w.gamma_h is None else total(d_gamma_h),
        norm=None if w.norm is None else CellNorm(total(d_gamma), total(d_beta)),
    )
    return d_pre if w.w_x is None else product_backward(by_x, w.w_x, draws.x_scales), dh, dc, dw
