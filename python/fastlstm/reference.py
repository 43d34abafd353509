"""The LSTM in plain NumPy, to be read beside a textbook: the oracle that the native core is tested against.

Same names, arguments and results as `fastlstm.functional`, at NumPy's speed. It computes in the dtype it is given. Here
are layers, directions and layouts; `directions` has the loop over time, `cells` the equations.

Letters: T steps, B batch, I input, H hidden, P projection, D directions, L layers; Hout = P if there is a projection,
else H. Gates stand in the order i f g o in every 4H axis. Gradients have the prefix d.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .cells import PLAIN, CellNorm, LSTMCellOptions, cell_backward, cell_forward
from .directions import DirectionTape, DirectionWeights, Steps, direction_backward, direction_forward
from .dropout import Draws, drop, dropout_mask
from .gradients import Gradients
from .layouts import (
    Layout,
    check_dy,
    check_input,
    check_long_sequence,
    check_options,
    check_truncate,
    deliver,
    enter_states,
    or_zeros,
)
from .masking import check_lengths, check_mask
from .weights import WeightSpec, check_weights, weight_suffix

__all__ = ["Tape", "cell_backward", "cell_forward", "lstm_backward", "lstm_forward"]


@dataclass(frozen=True)
class Tape:
    """What `lstm_backward` needs of one `lstm_forward`: copies, which neither the caller nor backward ever writes."""

    spec: WeightSpec
    layout: Layout
    masked_output: str
    cell: LSTMCellOptions
    return_sequence: bool
    dropout: float
    dropout_seed: int | None
    dropout_call: int
    layers: list[list[DirectionTape]]  # by layer, by direction
    kept: list[np.ndarray | None]  # [T,B,D*Hout] bool for each layer: what dropout left of its input; None is all
    weight_masks: dict[str, np.ndarray]  # by name: what weight_drop multiplied them by


def lstm_forward(
    x: np.ndarray,
    weights: Mapping[str, np.ndarray],
    state: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    cell: LSTMCellOptions = PLAIN,
    batch_first: bool = False,
    dropout: float = 0.0,
    dropout_seed: int | None = None,
    dropout_call: int = 0,
    dropout_step: int = 0,
    lengths: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    reset: npt.ArrayLike | None = None,
    masked_output: str = "zero",
    return_sequence: bool = True,
    return_cells: bool = False,
    return_gates: bool = False,
    training: bool = True,
    checkpoint_every: int | str | None = None,
    threads: int | None = None,
    out: np.ndarray | None = None,
) -> tuple[Any, ...]:
    """Run an LSTM of any layers and directions: y, (h_n, c_n), then cells and gates if asked for, then tape.

    x: `[T,B,I]`, `[B,T,I]` if batch_first, or unbatched `[T,I]`, of the weights' dtype; pre-activations, D*4H for I,
    where there is no weight_ih_l0. weights: torch's names and shapes, see `WeightSpec.shapes`. state: (h0
    `[L*D,B,Hout]`, c0 `[L*D,B,H]`), zeros if None; unbatched without B. y: `[T,B,D*Hout]` laid out as x, in `out` if
    given; cells: c of every step of the last layer, `[T,B,D*H]` laid out as y, with return_cells; gates: i f g o after
    their activations, `[T,B,D*4H]`, 0 in steps that do not count, with return_gates; h_n, c_n as state. tape: for
    `lstm_backward`; None unless training.

    lengths `[B]`, mask and reset (laid out as x, without I): a step counts if mask is true and t < length. One that
    does not passes the state through, and its y is 0 ("zero") or the held h ("repeat"); its x is never read. reset
    cuts a row before step t, in both directions; beyond a row's length it is ignored. dropout, between layers and in
    training only, and what `cell` draws need a dropout_seed below 2**64; dropout_step numbers the first step, for
    pieces of one sequence. With return_sequence=False y is None. checkpoint_every and threads are for the native twin
    of this function; ignored here.

    Raises ValueError or TypeError naming argument, got and expected.

    >>> weights = {"weight_ih_l0": np.ones((4, 1)), "weight_hh_l0": np.ones((4, 1))}
    >>> y, (h_n, c_n), tape = lstm_forward(np.ones((2, 1, 1)), weights)
    >>> y.round(4).ravel(), bool(h_n[0, 0, 0] == y[-1, 0, 0])
    (array([0.3696, 0.6505]), True)
    """
    spec = WeightSpec.from_weights(weights)
    dtype = weights["weight_hh_l0"].dtype
    weights = check_weights(spec, weights, dtype)
    layout = check_input(x, spec, dtype, batch_first)
    h0, c0 = enter_states("state", ("h0", "c0"), state, spec, layout, x.dtype)
    check_options(spec, cell, masked_output, training, dropout, dropout_seed)
    check_long_sequence(return_sequence, out, checkpoint_every, training, dropout_step)
    directions = _directions(spec, layout, lengths, mask, reset)
    counts = directions[0].counts
    h_n, c_n = np.empty_like(h0), np.empty_like(c0)
    weight_masks = _weight_masks(spec, cell, weights, dropout_seed or 0, dropout_call) if training else {}
    weights |= {name: weights[name] * mask for name, mask in weight_masks.items()}
    drawn = dropout, dropout_seed, dropout_call
    tape = Tape(spec, layout, masked_output, cell, return_sequence, *drawn, [], [], weight_masks)
    output = layout.enter(x)
    for layer in range(spec.num_layers):
        kept = None
        if layer and training and dropout:
            kept = dropout_mask(
                dropout,
                dropout_seed or 0,
                dropout_call,
                layer=layer - 1,
                steps=layout.steps,
                batch=layout.batch,
                num_directions=spec.num_directions,
                units=spec.hidden_output,
                first_step=dropout_step,
            )
            output = drop(output, kept, dropout)
        layer_x = np.where(counts, output, 0)
        all_h, all_c, tapes = [], [], []
        for direction, steps in enumerate(directions):
            row = layer * spec.num_directions + direction
            w = _direction_weights(spec, weights, weight_suffix(layer, direction))
            own_x = layer_x if w.w_x is not None else np.split(layer_x, spec.num_directions, axis=-1)[direction]
            sizes = own_x.shape[-1], spec.hidden_output, spec.hidden_size
            place = {"layer": layer, "direction": direction, "first_step": dropout_step}
            size = {"steps": layout.steps, "batch": layout.batch}
            draws = Draws.of(cell, training, dropout_seed or 0, dropout_call, **place, **size, sizes=sizes, dtype=dtype)
            h, c, h_n[row], c_n[row], direction_tape = direction_forward(own_x, w, h0[row], c0[row], steps, cell, draws)
            all_h.append(h)
            all_c.append(c)
            tapes.append(direction_tape)
        output = np.concatenate(all_h, axis=-1)
        tape.layers.append(tapes)
        tape.kept.append(kept)
    if masked_output == "zero":
        output = np.where(counts, output, 0)
    y = deliver(layout.leave(output), out, x) if return_sequence else None
    more = [layout.leave(np.concatenate(all_c, axis=-1))] if return_cells else []
    if return_gates:
        gates = np.concatenate([tape.gates for tape in tapes], axis=-1)
        more.append(layout.leave(np.where(counts, gates, 0)))
    return (y, (layout.leave_state(h_n), layout.leave_state(c_n)), *more, tape if training else None)


def lstm_backward(
    tape: Tape,
    dy: np.ndarray | None = None,
    dstate: tuple[np.ndarray | None, np.ndarray | None] | None = None,
    *,
    dcells: np.ndarray | None = None,
    dgates: np.ndarray | None = None,
    truncate: int | None = None,
    threads: int | None = None,
    want_x: bool = True,
    want_weights: bool = True,
) -> Gradients:
    """The gradients of a loss with respect to x, state and weights, from those with respect to forward's results.

    dy, dstate = (dh_n, dc_n), dcells and dgates have the shape, layout and dtype of y, (h_n, c_n), cells and gates;
    each of them, and each half of dstate, may be None for zero, which dy has to be where forward returned no y.
    truncate=K: no gradient of a state crosses from t = nK to nK - 1 or back, as if each K steps were a call of their
    own. Without want_x the result's x is None, without want_weights its weights are empty. The tape is never written:
    several calls give the same. threads is for the native twin of this function; ignored here. Raises ValueError or
    TypeError naming argument, got and expected.

    Backpropagation through time (Werbos 1990) over `cell_backward`: a step that does not count passes the gradient of
    the state on, a cut stops it.

    >>> weights = {"weight_ih_l0": np.ones((4, 1)), "weight_hh_l0": np.ones((4, 1))}
    >>> y, (h_n, c_n), tape = lstm_forward(np.ones((2, 1, 1)), weights)
    >>> lstm_backward(tape, dy=np.ones_like(y)).x.round(4).ravel()
    array([0.5293, 0.2421])
    """
    if not isinstance(tape, Tape):
        raise TypeError(f"tape is a {type(tape).__qualname__}, expected the tape of a training reference.lstm_forward")
    check_dy(dy, tape.return_sequence)
    every = check_truncate(truncate)
    spec, layout, first = tape.spec, tape.layout, tape.layers[0][0]
    D, dtype = spec.num_directions, first.x.dtype
    d_output = layout.enter(or_zeros("dy", dy, layout.sequence(D * spec.hidden_output), dtype))
    d_cells = layout.enter(or_zeros("dcells", dcells, layout.sequence(D * spec.hidden_size), dtype))
    d_gates = layout.enter(or_zeros("dgates", dgates, layout.sequence(D * 4 * spec.hidden_size), dtype))
    dh_n, dc_n = enter_states("dstate", ("dh_n", "dc_n"), dstate, spec, layout, dtype)
    if tape.masked_output == "zero":
        d_output = np.where(first.steps.counts, d_output, 0)
    dh0, dc0 = np.empty_like(dh_n), np.empty_like(dc_n)
    dw: dict[str, np.ndarray] = {}
    for layer in reversed(range(spec.num_layers)):
        d_all = [np.split(d, D, axis=-1) for d in (d_output, d_cells, d_gates)]
        parts = []
        for direction, direction_tape in enumerate(tape.layers[layer]):
            row = layer * D + direction
            d_h, d_c, d_g = (d[direction] for d in d_all)
            part, dh0[row], dc0[row], dw_part = direction_backward(
                d_h, d_c, d_g, dh_n[row], dc_n[row], direction_tape, every
            )
            parts.append(part)
            dw |= _named(spec, dw_part, weight_suffix(layer, direction))
        external = not (layer or spec.input_size)
        dx = np.concatenate(parts, axis=-1) if external else sum(parts, start=np.zeros_like(parts[0]))
        kept = tape.kept[layer]
        d_output = dx if kept is None else drop(dx, kept, tape.dropout)
        d_cells, d_gates = np.zeros_like(d_cells), np.zeros_like(d_gates)  # they are the last layer's alone
    dw |= {name: dw[name] * mask for name, mask in tape.weight_masks.items()}
    dstate0 = layout.leave_state(dh0), layout.leave_state(dc0)
    weights = {name: dw[name] for name in spec.shapes()} if want_weights else {}
    return Gradients(layout.leave(d_output) if want_x else None, dstate0, weights)


def _direction_weights(spec: WeightSpec, weights: Mapping[str, np.ndarray], suffix: str) -> DirectionWeights:
    """Copies: the tape must not change when the caller updates the weights."""
    own = {name.removesuffix(suffix): array.copy() for name, array in weights.items() if name.endswith(suffix)}
    w_h = own["weight_hh"]
    b = own["bias_ih"] + own["bias_hh"] if spec.bias else np.zeros_like(w_h[:, 0])
    norm = CellNorm(own["gamma_c"], own["beta_c"]) if spec.layer_norm else None
    w_x, w_r, peephole = own.get("weight_ih"), own.get("weight_hr"), own.get("weight_peephole")
    return DirectionWeights(w_x, w_h, b, w_r, peephole, own.get("gamma_ih"), own.get("gamma_hh"), norm)


def _named(spec: WeightSpec, dw: DirectionWeights, suffix: str) -> dict[str, np.ndarray]:
    named = {"weight_ih": dw.w_x, "weight_hh": dw.w_h, "weight_hr": dw.w_r, "weight_peephole": dw.peephole}
    named |= {"gamma_ih": dw.gamma_x, "gamma_hh": dw.gamma_h}
    if spec.bias:
        named |= {"bias_ih": dw.b, "bias_hh": dw.b.copy()}
    if dw.norm is not None:
        named |= {"gamma_c": dw.norm.gamma, "beta_c": dw.norm.beta}
    return {name + suffix: array for name, array in named.items() if array is not None}


def _weight_masks(
    spec: WeightSpec, cell: LSTMCellOptions, weights: Mapping[str, np.ndarray], seed: int, call: int
) -> dict[str, np.ndarray]:
    """What weight_drop multiplies each U by, by name; a row of U is what a step is elsewhere."""
    masks: dict[str, np.ndarray] = {}
    for layer in range(spec.num_layers if cell.weight_drop else 0):
        for direction in range(spec.num_directions):
            name = "weight_hh" + weight_suffix(layer, direction)
            place = {"layer": layer, "steps": len(weights[name]), "batch": 1, "num_directions": direction + 1}
            kept = dropout_mask(cell.weight_drop, seed, call, units=spec.hidden_output, kind="weight_drop", **place)[
                :, 0, direction * spec.hidden_output :
            ]
            masks[name] = drop(np.ones_like(weights[name]), kept, cell.weight_drop)
    return masks


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
