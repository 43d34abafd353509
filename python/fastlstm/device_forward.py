"""The forward pass on arrays of a GPU: CuPy's or torch's. `functional` calls it; users need not.

Products over all steps at once are the array library's; the native module `_cuda` runs the loop over time. Letters: T
steps, B batch, I input, H hidden, n = P if there is a projection, else H; D directions, L layers; G places where a
mask is drawn: 4 if each gate has its own, else 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from .cells import LSTMCellOptions
from .cuda import native
from .device_arrays import WIDE, ArrayLibrary, DeviceArray
from .device_layouts import check_on_gpu, columns_of, enter, flags_of, layout_of, leave_state, states_of
from .device_weights import DeviceWeights, DirectionWeights, interleaved, panels
from .dropout import KINDS
from .layouts import Layout
from .weights import WeightSpec

__all__ = ["DeviceTape", "DirectionTape", "device_forward"]


class NormTape(NamedTuple):
    """What layer normalisation made of the sums of all steps, and the inverses of their deviations."""

    normalised: DeviceArray  # [T*B,4H], interleaved
    inverses: DeviceArray  # [T*B]


class DirectionTape(NamedTuple):
    """What the backward pass of one layer and direction needs beside its weights."""

    layer: Any  # _cuda.Layer
    weights: DirectionWeights  # as they ran: U after weight_drop
    options: dict[str, Any]
    x: DeviceArray  # [T,B,I], 0 where a step does not count
    h: DeviceArray  # [T,B,n] before each step
    x_scales: DeviceArray  # [G,B,I]
    h_scales: DeviceArray  # [G,B,n]
    u_scales: DeviceArray  # [4H,n], interleaved
    norm_x: NormTape | None  # of x . W
    norm_h: NormTape | None  # of h . U


@dataclass(frozen=True)
class DeviceTape:
    """What `device_backward` needs of one `device_forward`: it has copies of all it needs, and is never written."""

    spec: WeightSpec
    cell: LSTMCellOptions
    library: ArrayLibrary
    layout: Layout
    dtype: str
    x: DeviceArray  # for its device
    dropout: float
    has_y: bool
    directions: list[DirectionTape]  # [L*D]


class _Call(NamedTuple):
    """What all layers of one call share."""

    weights: DeviceWeights
    layout: Layout
    like: DeviceArray
    flags: tuple[DeviceArray, ...]  # [T,B] of each direction
    counts: DeviceArray  # [T,B,1] bool
    training: bool
    random: dict[str, int]
    algo: str
    tf32: bool

    def options(self, row: int, repeat: bool = False) -> dict[str, Any]:
        """What `_cuda` is told of one layer and direction, in numbers."""
        spec, library = self.weights.spec, self.weights.library
        D = spec.num_directions
        return {
            "cell": self.weights.cell,
            "proj_size": spec.proj_size,
            "reverse": row % D == 1,
            "repeat": repeat,
            "training": self.training,
            "algo": self.algo,
            "tf32": self.tf32,
            "layer": row // D,
            "direction": row % D,
            "device": library.device(self.like),
            "stream": library.stream(self.like),
            **self.random,
        }

    def empty(self, *shape: int, wide: bool = False) -> DeviceArray:
        dtype = self.weights.dtype
        return self.weights.library.empty(shape, WIDE[dtype] if wide else dtype, self.like)

    def scales(self, row: int, kind: str, p: float, *shape: int) -> DeviceArray:
        """What a kind of dropout multiplies by, [places,rows,n]; None for nothing."""
        if not (self.training and p):
            return None
        to = self.empty(*shape)
        native().draw({"to": to}, self.options(row), KINDS.index(kind), p)
        return to


def device_forward(
    x: DeviceArray,
    weights: DeviceWeights,
    state: tuple[DeviceArray, DeviceArray] | None,
    *,
    batch_first: bool,
    lengths: Any,
    mask: Any,
    reset: Any,
    repeat: bool,
    return_sequence: bool,
    return_cells: bool,
    return_gates: bool,
    training: bool,
    dropout: float,
    random: dict[str, int],
    algo: str,
    tf32: bool,
    out: DeviceArray,
) -> tuple[Any, ...]:
    """As `functional.lstm_forward`, whose checks have been made: y, (h_n, c_n), cells, gates, tape."""
    spec, library = weights.spec, weights.library
    if tf32 and weights.dtype != "float32":
        raise ValueError(f"tf32 is True, but x has dtype {weights.dtype}: expected float32")
    layout = layout_of(x, weights, batch_first)
    D, L, n, H = spec.num_directions, spec.num_layers, spec.hidden_output, spec.hidden_size
    flags = tuple(flags_of(library, x, layout, lengths, mask, reset, direction == 1) for direction in range(D))
    counts = None if flags[0] is None else (flags[0][..., None] & 1) == 0
    call = _Call(weights, layout, x, flags, counts, training, random, algo, tf32)
    h0, c0 = states_of("state", ("h0", "c0"), state, spec, layout, weights.dtype, x)
    h_n, c_n = call.empty(L * D, layout.batch, n), call.empty(L * D, layout.batch, H)
    if out is not None:
        check_on_gpu("out", out, layout.sequence(D * n), weights.dtype, x)
    y = None if not return_sequence else out if out is not None else call.empty(*layout.sequence(D * n))
    cells = call.empty(*layout.sequence(D * H)) if return_cells else None
    gates = call.empty(*layout.sequence(D * 4 * H)) if return_gates else None

    outputs = {"y": (y, n), "cells": (cells, H), "gates": (gates, 4 * H)}
    entered = {name: (enter(library, layout, array), size) for name, (array, size) in outputs.items()}
    states = {"h0": h0, "c0": c0, "h_n": h_n, "c_n": c_n}
    tapes = _layers_forward(call, x, entered, states, repeat, dropout)
    tape = None
    if training:
        tape = DeviceTape(spec, weights.cell, library, layout, weights.dtype, x, dropout, return_sequence, tapes)
    last = leave_state(layout, h_n), leave_state(layout, c_n)
    return (y, last, *([cells] if return_cells else []), *([gates] if return_gates else []), tape)


def _layers_forward(
    call: _Call,
    x: DeviceArray,
    entered: dict[str, tuple[DeviceArray, int]],
    states: dict[str, DeviceArray],
    repeat: bool,
    dropout: float,
) -> list[DirectionTape]:
    """The tapes `[L*D]`, none in inference. entered: the last layer's results, [T,B,D*size] each with its size."""
    library, layout, spec = call.weights.library, call.layout, call.weights.spec
    D, n = spec.num_directions, spec.hidden_output
    tapes: list[DirectionTape] = []
    inside = library.contiguous(enter(library, layout, x))
    for layer in range(spec.num_layers):
        is_last = layer == spec.num_layers - 1
        outputs = entered if is_last else {"y": (call.empty(layout.steps, layout.batch, D * n), n)}
        for direction in range(D):
            row = layer * D + direction
            arrays = {name: columns_of(array, direction, size) for name, (array, size) in outputs.items()}
            arrays |= {name: None if array is None else array[row] for name, array in states.items()}
            tapes.append(_direction_forward(call, row, inside, arrays, repeat and is_last))
            if not call.training:
                tapes.clear()  # its memory serves the next one
            elif dropout and not is_last:
                native().drop({"y": arrays["y"]}, call.options(row), dropout)
        inside = outputs["y"][0]
    return tapes


def _direction_forward(
    call: _Call,
    row: int,
    x: DeviceArray,
    ends_and_results: dict[str, DeviceArray],
    repeat: bool,
) -> DirectionTape:
    library, spec, cell = call.weights.library, call.weights.spec, call.weights.cell
    T, B, H, n = call.layout.steps, call.layout.batch, spec.hidden_size, spec.hidden_output
    w, options = call.weights.directions[row], call.options(row, repeat)
    direction, gates = options["direction"], 4 if cell.dropout_per_gate else 1
    x_scales = (
        call.scales(row, "input_dropout", cell.input_dropout, gates, B, x.shape[-1]) if w.w_x is not None else None
    )
    h_scales = call.scales(row, "recurrent_dropout", cell.recurrent_dropout, gates, B, n)
    u_scales = call.scales(row, "weight_drop", cell.weight_drop, 4 * H, 1, n)
    if u_scales is not None:
        u_scales = interleaved(library, u_scales.reshape(4 * H, n))
        w_h = w.w_h * u_scales
        w = w._replace(w_h=w_h, recurrent=panels(library, w_h))
    if call.counts is not None:
        x = library.where(call.counts, x)
    pre, norm_x = _pre_activations(call, w, x, direction, x_scales)
    arrays = {
        **ends_and_results,
        "flags": call.flags[direction],
        "pre": pre,
        "saved": pre if call.training else None,  # the gates take the place of what they were computed from
        "recurrent": w.recurrent,
        "projection": w.projection,
        "m": None if w.w_p is None else call.empty(B, H),
        "h": call.empty(T + 1, B, n),
        "c": call.empty(T + 1 if call.training else 2, B, H, wide=True),
        "peepholes": w.peepholes,
        "h_scales": h_scales,
        "failed": library.zeros((1,), "int32", call.like),
    }
    norm_h = None
    if w.norm is not None:
        arrays |= {"norm_gains": w.norm.of_h, "norm_output": w.norm.of_c}
        arrays |= {"norm_sums": call.empty(B, 4 * H, wide=True), "norm_c": call.empty(B, H, wide=True)}
        if call.training:
            norm_h = NormTape(call.empty(T * B, 4 * H), call.empty(T * B, wide=True))
            arrays["normalised"] = norm_h.normalised.reshape(T, B, 4 * H)
            arrays["inverses"] = norm_h.inverses.reshape(T, B)
    layer = native().Layer(arrays, options)
    h = arrays["h"][1:] if options["reverse"] else arrays["h"][:-1]
    return DirectionTape(layer, w, options, x, h, x_scales, h_scales, u_scales, norm_x, norm_h)


def _pre_activations(
    call: _Call, w: DirectionWeights, x: DeviceArray, direction: int, scales: DeviceArray
) -> tuple[DeviceArray, NormTape | None]:
    """b + x . W, [T,B,H,4]: new memory; x . W may be normalised before."""
    library = call.weights.library
    T, B, H = call.layout.steps, call.layout.batch, call.weights.spec.hidden_size
    if w.w_x is None:
        of_direction = columns_of(x, direction, 4 * H).reshape(T, B, 4, H)
        pre = library.copied(library.contiguous(library.permuted(of_direction, (0, 1, 3, 2))))
    elif scales is None or len(scales) == 1:
        rows = (x if scales is None else x * scales[0]).reshape(T * B, x.shape[-1])
        pre = (rows @ library.permuted(w.w_x, (1, 0))).reshape(T, B, H, 4)
    else:
        pre = call.empty(T, B, H, 4)
        for gate, scale in enumerate(scales):
            w_gate = library.permuted(w.w_x.reshape(H, 4, -1)[:, gate], (1, 0))
            pre[..., gate] = ((x * scale).reshape(T * B, x.shape[-1]) @ w_gate).reshape(T, B, H)
    if w.norm is None:
        return pre if w.bias is None else pre + w.bias.reshape(H, 4), None
    sums = library.contiguous(pre).reshape(T * B, 4 * H)
    tape, pre = NormTape(sums, call.empty(T * B, wide=True)), call.empty(T, B, H, 4)
    arrays = {"sums": sums, "inverses": tape.inverses, "pre": pre.reshape(T * B, 4 * H)}
    place = library.device(call.like), library.stream(call.like)
    native().normalise(arrays | {"gains": w.norm.of_x, "bias": w.bias}, *place)
    return pre, tape
