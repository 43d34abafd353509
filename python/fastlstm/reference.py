"""The LSTM in plain NumPy, to be read beside a textbook: the oracle that the native core is tested against.

Same names, arguments and results as `fastlstm.functional`, at NumPy's speed. It computes in the dtype it is given.

Letters: T steps, B batch, I input, H hidden, P projection, D directions, L layers; Hout = P if there is a projection,
else H. Gates stand in the order i f g o in every 4H axis. Gradients have the prefix d.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .cells import sigmoid
from .dropout import drop, dropout_mask
from .gradients import Gradients
from .layouts import Layout, check_input, check_options, deliver, enter_states, or_zeros
from .masking import check_lengths, check_mask
from .weights import WeightSpec, check_weights, weight_suffix

__all__ = ["Tape", "cell_backward", "cell_forward", "lstm_backward", "lstm_forward"]


# One cell: csrc/cell.h has the same equations, in the same order and under the same names.


def cell_forward(pre: np.ndarray, c_prev: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One step of the cell (Gers, Schmidhuber and Cummins 2000; torch.nn.LSTM's equations).

    pre `[B,4H]`, c_prev `[B,H]` -> gates `[B,4H]` after their activations, c `[B,H]`, h `[B,H]` before any projection.

    >>> gates, c, h = cell_forward(np.zeros((1, 4)), np.ones((1, 1)))
    >>> gates.tolist(), c.item(), round(h.item(), 6)
    ([[0.5, 0.5, 0.0, 0.5]], 0.5, 0.231059)
    """
    i, f, g, o = np.split(pre, 4, axis=-1)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    c = f * c_prev + i * g
    h = o * np.tanh(c)
    return np.concatenate([i, f, g, o], axis=-1), c, h


def cell_backward(
    dh: np.ndarray, dc: np.ndarray, gates: np.ndarray, c_prev: np.ndarray, c: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The chain rule through `cell_forward`: dh, dc `[B,H]` of its results -> d_pre `[B,4H]`, dc_prev `[B,H]`.

    >>> gates, c, h = cell_forward(np.zeros((1, 4)), np.ones((1, 1)))
    >>> d_pre, dc_prev = cell_backward(np.zeros((1, 1)), np.ones((1, 1)), gates, np.ones((1, 1)), c)
    >>> d_pre.tolist(), dc_prev.item()
    ([[0.0, 0.25, 0.5, 0.0]], 0.5)
    """
    i, f, g, o = np.split(gates, 4, axis=-1)
    tanh_c = np.tanh(c)
    do = dh * tanh_c
    dc = dc + dh * o * (1 - tanh_c * tanh_c)
    di = dc * g
    df = dc * c_prev
    dg = dc * i
    dc_prev = dc * f
    d_pre = np.concatenate([di * i * (1 - i), df * f * (1 - f), dg * (1 - g * g), do * o * (1 - o)], axis=-1)
    return d_pre, dc_prev


# One direction of one layer: the only loops over time.


class DirectionWeights(NamedTuple):
    """The weights of one layer and direction, or their gradients. torch's two biases are one here, their sum."""

    w_x: np.ndarray  # [4H,I]
    w_h: np.ndarray  # [4H,Hout]
    b: np.ndarray  # [4H], zeros without bias
    w_r: np.ndarray | None  # [P,H], the projection


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
    h_prev: np.ndarray  # [T,B,Hout], the state that the step began with
    c_prev: np.ndarray  # [T,B,H]
    gates: np.ndarray  # [T,B,4H]
    c: np.ndarray  # [T,B,H]


def direction_forward(
    x: np.ndarray, w: DirectionWeights, h: np.ndarray, c: np.ndarray, steps: Steps
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, DirectionTape]:
    """x `[T,B,I]` from the state h `[B,Hout]`, c `[B,H]` -> h and c after every step `[T,B,..]`, h_n, c_n, tape."""
    T, (B, Hout), H = len(x), h.shape, c.shape[1]
    all_h, all_c = np.empty((T, B, Hout), x.dtype), np.empty((T, B, H), x.dtype)
    tape = DirectionTape(x, w, steps, *(np.empty((T, B, size), x.dtype) for size in (Hout, H, 4 * H, H)))
    for t in steps.in_order():
        h, c = np.where(steps.cut[t], 0, h), np.where(steps.cut[t], 0, c)
        tape.h_prev[t], tape.c_prev[t] = h, c
        pre = x[t] @ w.w_x.T + h @ w.w_h.T + w.b
        tape.gates[t], tape.c[t], h_new = cell_forward(pre, c)
        if w.w_r is not None:
            h_new = h_new @ w.w_r.T
        h, c = np.where(steps.counts[t], h_new, h), np.where(steps.counts[t], tape.c[t], c)
        all_h[t], all_c[t] = h, c
    return all_h, all_c, h, c, tape


def direction_backward(
    d_all_h: np.ndarray, d_all_c: np.ndarray, dh: np.ndarray, dc: np.ndarray, tape: DirectionTape
) -> tuple[np.ndarray, np.ndarray, np.ndarray, DirectionWeights]:
    """The gradients of `direction_forward`'s results, dh and dc those of h_n and c_n -> dx, dh0, dc0, dw."""
    x, w, steps = tape.x, tape.w, tape.steps
    d_pre, dh_new = np.empty_like(tape.gates), np.empty_like(tape.h_prev)
    for t in steps.in_order()[::-1]:
        dh, dc = dh + d_all_h[t], dc + d_all_c[t]
        dh_new[t] = dh
        dh_cell = dh if w.w_r is None else dh @ w.w_r
        d_pre_t, dc_prev = cell_backward(dh_cell, dc, tape.gates[t], tape.c_prev[t], tape.c[t])
        d_pre[t] = np.where(steps.counts[t], d_pre_t, 0)
        dh, dc = np.where(steps.counts[t], d_pre[t] @ w.w_h, dh), np.where(steps.counts[t], dc_prev, dc)
        dh, dc = np.where(steps.cut[t], 0, dh), np.where(steps.cut[t], 0, dc)
    # The sums over all N steps that count, at once: products and pairwise sums stay exact where a long chain drifts.
    used = steps.counts[:, :, 0]
    by_step = d_pre[used]  # [N,4H]
    dw_x, dw_h = by_step.T @ x[used], by_step.T @ tape.h_prev[used]
    db = np.ascontiguousarray(by_step.T).sum(axis=1)
    dw_r = None
    if w.w_r is not None:
        o = np.split(tape.gates[used], 4, axis=-1)[3]
        dw_r = dh_new[used].T @ (o * np.tanh(tape.c[used]))
    return d_pre @ w.w_x, dh, dc, DirectionWeights(dw_x, dw_h, db, dw_r)


# The whole net: layers, directions and layouts.


@dataclass(frozen=True)
class Tape:
    """What `lstm_backward` needs of one `lstm_forward`: copies, which neither the caller nor backward ever writes."""

    spec: WeightSpec
    layout: Layout
    masked_output: str
    dropout: float
    dropout_seed: int | None
    dropout_call: int
    layers: list[list[DirectionTape]]  # by layer, by direction
    kept: list[np.ndarray | None]  # [T,B,D*Hout] bool for each layer: what dropout left of its input; None is all


def lstm_forward(
    x: np.ndarray,
    weights: Mapping[str, np.ndarray],
    state: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    batch_first: bool = False,
    dropout: float = 0.0,
    dropout_seed: int | None = None,
    dropout_call: int = 0,
    lengths: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    reset: npt.ArrayLike | None = None,
    masked_output: str = "zero",
    return_cells: bool = False,
    training: bool = True,
    threads: int | None = None,
    out: np.ndarray | None = None,
) -> tuple[Any, ...]:
    """Run an LSTM of any layers and directions: y, (h_n, c_n), tape, or with return_cells y, (h_n, c_n), cells, tape.

    x: `[T,B,I]`, `[B,T,I]` if batch_first, or unbatched `[T,I]`, of the weights' dtype. weights: torch's names and
    shapes, see `WeightSpec.shapes`. state: (h0 `[L*D,B,Hout]`, c0 `[L*D,B,H]`), zeros if None; unbatched without B.
    y: `[T,B,D*Hout]` laid out as x, in `out` if given; cells: c of every step of the last layer, `[T,B,D*H]` laid out
    as y; h_n, c_n as state. tape: for `lstm_backward`; None unless training.

    lengths `[B]`, mask and reset (laid out as x, without I): a step counts if mask is true and t < length. One that
    does not passes the state through, and its y is 0 ("zero") or the held h ("repeat"); its x is never read. reset
    cuts a row before step t, in both directions; beyond a row's length it is ignored. dropout, between layers and in
    training only, needs a dropout_seed below 2**64. threads is for the native twin of this function; ignored here.

    Raises ValueError or TypeError naming argument, got and expected.

    >>> weights = {"weight_ih_l0": np.ones((4, 1)), "weight_hh_l0": np.ones((4, 1))}
    >>> y, (h_n, c_n), tape = lstm_forward(np.ones((2, 1, 1)), weights)
    >>> y.round(4).ravel(), bool(h_n[0, 0, 0] == y[-1, 0, 0])
    (array([0.3696, 0.6505]), True)
    """
    spec = WeightSpec.from_weights(weights)
    weights = check_weights(spec, weights, weights["weight_ih_l0"].dtype)
    layout = check_input(x, weights["weight_ih_l0"], batch_first)
    h0, c0 = enter_states("state", ("h0", "c0"), state, spec, layout, x.dtype)
    check_options(spec, masked_output, training, dropout, dropout_seed)
    directions = _directions(spec, layout, lengths, mask, reset)
    counts = directions[0].counts
    h_n, c_n = np.empty_like(h0), np.empty_like(c0)
    tape = Tape(spec, layout, masked_output, dropout, dropout_seed, dropout_call, [], [])
    output = layout.enter(x)
    for layer in range(spec.num_layers):
        kept = None
        if layer and training and dropout:
            place = {"layer": layer - 1, "steps": layout.steps, "batch": layout.batch}
            units = {"num_directions": spec.num_directions, "units": spec.hidden_output}
            kept = dropout_mask(dropout, dropout_seed or 0, dropout_call, **place, **units)
            output = drop(output, kept, dropout)
        layer_x = np.where(counts, output, 0)
        all_h, all_c, tapes = [], [], []
        for direction, steps in enumerate(directions):
            row = layer * spec.num_directions + direction
            w = _direction_weights(spec, weights, weight_suffix(layer, direction))
            h, c, h_n[row], c_n[row], direction_tape = direction_forward(layer_x, w, h0[row], c0[row], steps)
            all_h.append(h)
            all_c.append(c)
            tapes.append(direction_tape)
        output = np.concatenate(all_h, axis=-1)
        tape.layers.append(tapes)
        tape.kept.append(kept)
    if masked_output == "zero":
        output = np.where(counts, output, 0)
    y = deliver(layout.leave(output), out, x)
    cells = [layout.leave(np.concatenate(all_c, axis=-1))] if return_cells else []
    return (y, (layout.leave_state(h_n), layout.leave_state(c_n)), *cells, tape if training else None)


def lstm_backward(
    tape: Tape,
    dy: np.ndarray | None = None,
    dstate: tuple[np.ndarray | None, np.ndarray | None] | None = None,
    *,
    dcells: np.ndarray | None = None,
    threads: int | None = None,
) -> Gradients:
    """The gradients of a loss with respect to x, state and weights, from those with respect to forward's results.

    dy, dstate = (dh_n, dc_n) and dcells have the shape, layout and dtype of y, (h_n, c_n) and cells; each of them, and
    each half of dstate, may be None for zero. The tape is never written: several calls give the same. threads is for
    the native twin of this function; ignored here. Raises ValueError or TypeError naming argument, got and expected.

    Backpropagation through time (Werbos 1990) over `cell_backward`: a step that does not count passes the gradient of
    the state on, a cut stops it.

    >>> weights = {"weight_ih_l0": np.ones((4, 1)), "weight_hh_l0": np.ones((4, 1))}
    >>> y, (h_n, c_n), tape = lstm_forward(np.ones((2, 1, 1)), weights)
    >>> lstm_backward(tape, dy=np.ones_like(y)).x.round(4).ravel()
    array([0.5293, 0.2421])
    """
    if not isinstance(tape, Tape):
        raise TypeError(f"tape is a {type(tape).__qualname__}, expected the tape of a training reference.lstm_forward")
    spec, layout, first = tape.spec, tape.layout, tape.layers[0][0]
    D, dtype = spec.num_directions, first.x.dtype
    d_output = layout.enter(or_zeros("dy", dy, layout.sequence(D * spec.hidden_output), dtype))
    d_cells = layout.enter(or_zeros("dcells", dcells, layout.sequence(D * spec.hidden_size), dtype))
    dh_n, dc_n = enter_states("dstate", ("dh_n", "dc_n"), dstate, spec, layout, dtype)
    if tape.masked_output == "zero":
        d_output = np.where(first.steps.counts, d_output, 0)
    dh0, dc0 = np.empty_like(dh_n), np.empty_like(dc_n)
    dw: dict[str, np.ndarray] = {}
    for layer in reversed(range(spec.num_layers)):
        d_all_h, d_all_c = np.split(d_output, D, axis=-1), np.split(d_cells, D, axis=-1)
        dx = np.zeros_like(tape.layers[layer][0].x)
        for direction, direction_tape in enumerate(tape.layers[layer]):
            row = layer * D + direction
            part, dh0[row], dc0[row], dw_part = direction_backward(
                d_all_h[direction], d_all_c[direction], dh_n[row], dc_n[row], direction_tape
            )
            dx += part
            dw |= _named(spec, dw_part, weight_suffix(layer, direction))
        kept = tape.kept[layer]
        d_output = dx if kept is None else drop(dx, kept, tape.dropout)
        d_cells = np.zeros_like(d_cells)  # cells are the last layer's alone
    dstate0 = layout.leave_state(dh0), layout.leave_state(dc0)
    return Gradients(layout.leave(d_output), dstate0, {name: dw[name] for name in spec.shapes()})


def _direction_weights(spec: WeightSpec, weights: Mapping[str, np.ndarray], suffix: str) -> DirectionWeights:
    """Copies: the tape must not change when the caller updates the weights."""
    w_x, w_h = weights["weight_ih" + suffix].copy(), weights["weight_hh" + suffix].copy()
    b = weights["bias_ih" + suffix] + weights["bias_hh" + suffix] if spec.bias else np.zeros_like(w_x[:, 0])
    return DirectionWeights(w_x, w_h, b, weights["weight_hr" + suffix].copy() if spec.proj_size else None)


def _named(spec: WeightSpec, dw: DirectionWeights, suffix: str) -> dict[str, np.ndarray]:
    named = {"weight_ih": dw.w_x, "weight_hh": dw.w_h}
    if spec.bias:
        named |= {"bias_ih": dw.b, "bias_hh": dw.b.copy()}
    if dw.w_r is not None:
        named["weight_hr"] = dw.w_r
    return {name + suffix: array for name, array in named.items()}


def _directions(
    spec: WeightSpec,
    layout: Layout,
    lengths: npt.ArrayLike | None,
    mask: npt.ArrayLike | None,
    reset: npt.ArrayLike | None,
) -> list[Steps]:
    """The `Steps` of each direction, the same in every layer."""
    inside = np.ones((layout.steps, layout.batch), bool)
    if lengths is not None:
        rows = check_lengths(lengths, () if layout.unbatched else (layout.batch,), layout.steps)
        inside &= np.arange(layout.steps)[:, None] < rows
    counts, cut = inside, np.zeros_like(inside)
    if mask is not None:
        counts = inside & layout.enter(check_mask("mask", mask, layout.sequence()))
    if reset is not None:
        cut = inside & layout.enter(check_mask("reset", reset, layout.sequence()))
    # A reset at t lies between t-1 and t: the reverse direction meets it on its way from t to t-1.
    cut_reverse = np.concatenate([cut[1:], np.zeros_like(cut[:1])])
    both = [(cut, False), (cut_reverse, True)]
    return [Steps(counts[..., None], cuts[..., None], reverse) for cuts, reverse in both[: spec.num_directions]]
