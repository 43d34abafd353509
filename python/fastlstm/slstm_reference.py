"""The sLSTM in plain NumPy, to be read beside its paper: the oracle that the native one is tested against.

sLSTM is xLSTM's scalar cell (Beck et al. 2024, "xLSTM: Extended Long Short-Term Memory", section 2.2): exponential
gates, a normaliser n, a stabiliser m, and heads that do not see each other's h. Results are those of the vanilla cell
of the package xlstm, whose order of gates and states this keeps. One thing follows its CUDA kernel: whether a unit has
a past is asked of that unit, not of the whole batch, so that a row's results do not depend on the others.

Letters: T steps, B batch, I input, H hidden, N heads, K = H/N the size of a head. Gates stand in the order i f z o in
every 4H axis, each in the order of the units; a unit's place in H is head * K + its place in the head. Gradients have
the prefix d. The twin of the cell: csrc/slstm_cell.h.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .layouts import Layout, deliver, or_zeros
from .masking import check_lengths, check_mask
from .slstm_weights import SLSTMGradients, SLSTMSpec, SLSTMState, check_slstm_weights
from .weights import check_array

__all__ = ["SLSTMCellTape", "SLSTMTape", "slstm_backward", "slstm_cell_backward", "slstm_cell_forward", "slstm_forward"]


# One cell. Every row and every unit stands for itself.


class SLSTMCellTape(NamedTuple):
    """What `slstm_cell_backward` needs of one step; `[B,H]` each."""

    i: np.ndarray  # the gates as they multiply: i and f are divided by e^(m' - m), the larger one is 1
    f: np.ndarray
    z: np.ndarray
    o: np.ndarray
    f_slope: np.ndarray  # 1 - sigmoid of f's pre-activation: the derivative of log sigmoid
    follows_i: np.ndarray  # bool: m' is i's pre-activation, not f's exponent
    c_prev: np.ndarray
    n_prev: np.ndarray
    c: np.ndarray
    n: np.ndarray


def slstm_cell_forward(
    pre: np.ndarray, c_prev: np.ndarray, n_prev: np.ndarray, m_prev: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, SLSTMCellTape]:
    """One step of the cell: pre `[B,4H]`, c, n, m `[B,H]` before it -> h, c, n, m `[B,H]` after it, tape.

    The textbook's i = e^(i~) and f = sigmoid(f~) accumulate without bound; c and n here are those divided by e^m:

        m = max(i~, m' + log sigmoid(f~))   i = e^(i~ - m)   f = e^(m' + log sigmoid(f~) - m)
        c = f c' + i tanh(z~)               n = f n' + i     h = sigmoid(o~) c / n

    where ' is the step before. A unit that has no past, n' = 0, takes m = i~. n is at least 1 after every step that
    started from zero, so that nothing else keeps it from 0.

    >>> h, c, n, m, _ = slstm_cell_forward(np.array([[2.0, 0.0, 0.5, 0.0]]), *np.zeros((3, 1, 1)))
    >>> round(h.item(), 6), n.item(), m.item()
    (0.231059, 1.0, 2.0)
    """
    i, f, z, o = np.split(pre, 4, axis=-1)
    decay = np.exp(-np.abs(f))
    log_sigmoid = np.minimum(f, 0) - np.log1p(decay)
    f_slope = np.where(f > 0, decay, 1) / (1 + decay)
    kept = m_prev + log_sigmoid
    follows_i = (n_prev == 0) | (i >= kept)
    m = np.where(follows_i, i, kept)
    i, f = np.exp(np.minimum(i - m, 0)), np.exp(np.minimum(kept - m, 0))
    z, o = np.tanh(z), _sigmoid(o)
    c, n = f * c_prev + i * z, f * n_prev + i
    return o * c / n, c, n, m, SLSTMCellTape(i, f, z, o, f_slope, follows_i, c_prev, n_prev, c, n)


class SLSTMCellGradient(NamedTuple):
    """The gradients of one step."""

    d_pre: np.ndarray  # [B,4H]
    dc_prev: np.ndarray  # [B,H] each
    dn_prev: np.ndarray
    scale_prev: np.ndarray


def slstm_cell_backward(
    dh: np.ndarray, dc: np.ndarray, dn: np.ndarray, scale: np.ndarray, tape: SLSTMCellTape
) -> SLSTMCellGradient:
    """The chain rule through `slstm_cell_forward`: from dh, dc, dn, scale `[B,H]` of its results.

    h does not depend on m, by which c and n are divided alike: most of dm is what c and n make of it, and only the rest
    is carried, scale = dm - dc c - dn n. It is 0 in a training whose loss sees h alone, where nothing cancels then.
    """
    i, f, z, o, f_slope, follows_i, c_prev, n_prev, c, n = tape
    y = c / n
    do = dh * y
    dc = dc + dh * o / n
    dn = dn - do * o / n
    through_i = (dc * z + dn) * i  # gradients of the exponents, m standing still
    through_f = (dc * c_prev + dn * n_prev) * f
    limited = (n_prev == 0) & (f == 1)  # min(f, 1) of a unit that has no past, see slstm_cell_forward
    d_f = np.where(limited, 0, through_f)
    d_i, d_f, scale_prev = (
        np.where(follows_i, through_i + scale, through_i),
        np.where(follows_i, d_f, d_f + scale),
        np.where(follows_i, d_f - through_f, scale),
    )
    d_pre = np.concatenate([d_i, d_f * f_slope, dc * i * (1 - z * z), do * o * (1 - o)], axis=-1)
    return SLSTMCellGradient(d_pre, dc * f, dn * f, scale_prev)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    decay = np.exp(-np.abs(x))
    y: np.ndarray = np.where(x > 0, 1, decay) / (1 + decay)
    return y


# Heads


def recurrent_product(h: np.ndarray, w_h: np.ndarray) -> np.ndarray:
    """h `[B,H]`, w_h `[4H,K]` -> `[B,4H]`: each head's h with its own rows of each gate.

    >>> recurrent_product(np.array([[1.0, 2.0]]), np.ones((8, 1))).tolist()
    [[1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0]]
    """
    blocks = _blocks(w_h)
    heads = h.reshape(len(h), blocks.shape[1], blocks.shape[3])
    product: np.ndarray = np.einsum("bnk,gnjk->bgnj", heads, blocks).reshape(len(h), len(w_h))
    return product


def recurrent_product_backward(d: np.ndarray, w_h: np.ndarray) -> np.ndarray:
    """The gradient of `recurrent_product`'s h, `[B,H]`, from that of its result."""
    blocks = _blocks(w_h)
    dh: np.ndarray = np.einsum("bgnj,gnjk->bnk", d.reshape(len(d), *blocks.shape[:3]), blocks)
    return dh.reshape(len(d), len(w_h) // 4)


def recurrent_weight_gradient(d: np.ndarray, h: np.ndarray, w_h: np.ndarray) -> np.ndarray:
    """The gradient of `recurrent_product`'s w_h, from that of its result: d `[rows,4H]`, h `[rows,H]`."""
    gates, heads, size, _ = _blocks(w_h).shape
    of_heads = d.reshape(-1, gates, heads, size), h.reshape(-1, heads, size)
    dw: np.ndarray = np.einsum("rgnj,rnk->gnjk", *of_heads, optimize=True)
    return dw.reshape(w_h.shape)


def _blocks(w_h: np.ndarray) -> np.ndarray:
    """w_h as `[4,N,K,K]`: by gate, by head."""
    K = w_h.shape[1]
    return w_h.reshape(4, -1, K, K)


# The loop over time


@dataclass(frozen=True)
class SLSTMTape:
    """What `slstm_backward` needs of one `slstm_forward`: copies, which neither the caller nor backward ever writes."""

    spec: SLSTMSpec
    layout: Layout
    masked_output: str
    weights: dict[str, np.ndarray]
    x: np.ndarray  # [T,B,I]
    h_prev: np.ndarray  # [T,B,H], the state that the step began with
    counts: np.ndarray  # [T,B,1] bool
    cut: np.ndarray  # [T,B,1] bool
    cells: list[SLSTMCellTape]
    first: SLSTMState  # [B,H] each, before all steps
    last: SLSTMState  # after them


def slstm_forward(
    x: np.ndarray,
    weights: Mapping[str, np.ndarray],
    state: tuple[np.ndarray | None, ...] | None = None,
    *,
    batch_first: bool = False,
    lengths: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    reset: npt.ArrayLike | None = None,
    masked_output: str = "zero",
    training: bool = True,
    threads: int | None = None,
    out: np.ndarray | None = None,
) -> tuple[np.ndarray, SLSTMState, SLSTMTape | None]:
    """Run an sLSTM: y `[T,B,H]` laid out as x, the last state, tape.

    x: `[T,B,I]`, `[B,T,I]` if batch_first, or unbatched `[T,I]`, of the weights' dtype; pre-activations, 4H for I,
    where there is no weight_ih. weights: see `SLSTMSpec.shapes`. state: (h, c, n, m) as `SLSTMState`, zeros if None.

    lengths `[B]`, mask and reset (laid out as x, without I): a step counts if mask is true and t < length. One that
    does not passes the state through, and its y is 0 ("zero") or the held h ("repeat"); its x is never read. reset
    zeroes the state before step t; beyond a row's length it is ignored. threads is for the native twin; ignored here.

    Raises ValueError or TypeError naming argument, got and expected.

    >>> weights = {"weight_ih": np.ones((4, 1)), "weight_hh": np.ones((4, 1))}
    >>> y, state, tape = slstm_forward(np.ones((2, 1, 1)), weights)
    >>> y.round(4).ravel(), bool(state.h[0, 0, 0] == y[-1, 0, 0])
    (array([0.5568, 0.7149]), True)
    """
    spec = SLSTMSpec.from_weights(weights)
    dtype = weights["weight_hh"].dtype
    weights = {name: array.copy() for name, array in check_slstm_weights(spec, weights, dtype).items()}
    layout = _check_input(x, spec, dtype, batch_first)
    if masked_output not in ("zero", "repeat"):
        raise ValueError(f'masked_output is {masked_output!r}, expected "zero" or "repeat"')
    first = _enter_states("state", ("h0", "c0", "n0", "m0"), state, spec, layout, dtype)
    h, c, n, m = first
    counts, cut = _marks(layout, lengths, mask, reset)
    inside = np.where(counts, layout.enter(x), 0)
    y, h_prev, cells = np.empty((*inside.shape[:2], spec.hidden_size), dtype), [], []
    for t in range(layout.steps):
        h, c, n, m = (np.where(cut[t], 0, part) for part in (h, c, n, m))
        h_prev.append(h)
        pre = inside[t] @ weights["weight_ih"].T if spec.input_size else inside[t]
        pre = pre + recurrent_product(h, weights["weight_hh"])
        *new, cell = slstm_cell_forward(pre + weights["bias"] if spec.bias else pre, c, n, m)
        h, c, n, m = (np.where(counts[t], after, before) for before, after in zip((h, c, n, m), new, strict=True))
        y[t] = h if masked_output == "repeat" else np.where(counts[t], h, 0)
        cells.append(cell)
    last = SLSTMState(h, c, n, m)
    all_h = np.array(h_prev, dtype).reshape(y.shape)
    tape = SLSTMTape(spec, layout, masked_output, weights, inside.copy(), all_h, counts, cut, cells, first, last)
    return deliver(layout.leave(y), out, x), _leave_states(last, layout), tape if training else None


def slstm_backward(
    tape: SLSTMTape,
    dy: np.ndarray | None = None,
    dstate: tuple[np.ndarray | None, ...] | None = None,
    *,
    threads: int | None = None,
) -> SLSTMGradients:
    """The gradients of a loss with respect to x, state and weights, from those with respect to y and the last state.

    dy, dstate = (dh, dc, dn, dm) have the shape, layout and dtype of y and the state; each may be None for zero. The
    tape is never written. threads is for the native twin; ignored here.

    Backpropagation through time (Werbos 1990) over `slstm_cell_backward`: a step that does not count passes the
    gradient of the state on, a cut stops it.

    >>> weights = {"weight_ih": np.ones((4, 1)), "weight_hh": np.ones((4, 1))}
    >>> y, state, tape = slstm_forward(np.ones((2, 1, 1)), weights)
    >>> slstm_backward(tape, dy=np.ones_like(y)).x.round(4).ravel()
    array([0.6496, 0.2386])
    """
    if not isinstance(tape, SLSTMTape):
        raise TypeError(f"tape is a {type(tape).__qualname__}, expected the tape of a training slstm_forward")
    spec, layout, dtype = tape.spec, tape.layout, tape.x.dtype
    d_y = layout.enter(or_zeros("dy", dy, layout.sequence(spec.hidden_size), dtype))
    if tape.masked_output == "zero":
        d_y = np.where(tape.counts, d_y, 0)
    dh, dc, dn, dm = _enter_states("dstate", ("dh_n", "dc_n", "dn_n", "dm_n"), dstate, spec, layout, dtype)
    scale = dm - dc * tape.last.c - dn * tape.last.n
    d_pre = np.zeros((*tape.x.shape[:2], 4 * spec.hidden_size), dtype)
    for t in reversed(range(layout.steps)):
        dh, counts = dh + d_y[t], tape.counts[t]
        d = slstm_cell_backward(dh, dc, dn, scale, tape.cells[t])
        d_pre[t] = np.where(counts, d.d_pre, 0)
        before = recurrent_product_backward(d_pre[t], tape.weights["weight_hh"]), *d[1:]
        dh, dc, dn, scale = (
            np.where(tape.cut[t], 0, np.where(counts, new, old))
            for old, new in zip((dh, dc, dn, scale), before, strict=True)
        )
    used = tape.counts[:, :, 0]
    dw = {"weight_hh": recurrent_weight_gradient(d_pre[used], tape.h_prev[used], tape.weights["weight_hh"])}
    if spec.input_size:
        dw["weight_ih"] = d_pre[used].T @ tape.x[used]
    if spec.bias:
        dw["bias"] = np.ascontiguousarray(d_pre[used].T).sum(axis=1)
    dx = d_pre @ tape.weights["weight_ih"] if spec.input_size else d_pre
    dstate0 = SLSTMState(dh, dc, dn, scale + dc * tape.first.c + dn * tape.first.n)
    return SLSTMGradients(layout.leave(dx), _leave_states(dstate0, layout), {name: dw[name] for name in spec.shapes()})


# The caller's arrays


def _check_input(x: np.ndarray, spec: SLSTMSpec, dtype: np.dtype[np.floating], batch_first: bool) -> Layout:
    batched, size = ("(B, T, {0})" if batch_first else "(T, B, {0})"), spec.x_size
    if check_array("x", x).ndim not in (2, 3) or x.shape[-1] != size:
        raise ValueError(
            f"x has shape {x.shape}, but the weights need input size {size}: "
            f"expected {batched.format(size)}, or (T, {size}) unbatched"
        )
    if dtype.kind != "f":
        raise TypeError(f"the weights have dtype {dtype}, expected float32 or float64")
    check_array("x", x, dtype=dtype)
    steps, batch = (len(x), 1) if x.ndim == 2 else x.shape[1::-1] if batch_first else x.shape[:2]
    return Layout(steps, batch, batch_first, unbatched=x.ndim == 2)


def _enter_states(
    name: str,
    names: tuple[str, ...],
    states: tuple[np.ndarray | None, ...] | None,
    spec: SLSTMSpec,
    layout: Layout,
    dtype: np.dtype[np.floating],
) -> SLSTMState:
    """Copies of the four parts as `[B,H]`; None is zeros."""
    if states is None:
        states = (None,) * 4
    if not isinstance(states, (tuple, list)) or len(states) != 4:
        raise TypeError(f"{name} is a {type(states).__qualname__}, expected four: ({', '.join(names)})")
    shape = layout.state(1, spec.hidden_size)
    parts = [or_zeros(part, array, shape, dtype) for part, array in zip(names, states, strict=True)]
    return SLSTMState(*(layout.enter_state(part)[0].copy() for part in parts))


def _leave_states(state: SLSTMState, layout: Layout) -> SLSTMState:
    return SLSTMState(*(layout.leave_state(part[None]).copy() for part in state))


def _marks(
    layout: Layout, lengths: npt.ArrayLike | None, mask: npt.ArrayLike | None, reset: npt.ArrayLike | None
) -> tuple[np.ndarray, np.ndarray]:
    """Which steps count, and before which the state is zeroed: bool `[T,B,1]`."""
    inside = np.ones((layout.steps, layout.batch), bool)
    if lengths is not None:
        rows = check_lengths(lengths, () if layout.unbatched else (layout.batch,), layout.steps)
        inside &= np.arange(layout.steps)[:, None] < rows
    counts, cut = inside, np.zeros_like(inside)
    if mask is not None:
        counts = inside & layout.enter(check_mask("mask", mask, layout.sequence()))
    if reset is not None:
        cut = inside & layout.enter(check_mask("reset", reset, layout.sequence()))
    return counts[..., None], cut[..., None]
