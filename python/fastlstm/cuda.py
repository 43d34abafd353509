"""The two functions of `functional` on arrays of a GPU: CuPy's or torch's. `functional` calls this; users need not.

Products over all steps at once are the array library's; the native module `_cuda` runs the loop over time. Letters: T
steps, B batch, I input, H hidden, n = P if there is a projection, else H; D directions, L layers. Inside, the four
gates of a unit are neighbours: "interleaved" rows are [H,4] where torch's are [4,H].
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from .cells import LSTMCellOptions
from .device_arrays import WIDE, ArrayLibrary, DeviceArray, library_of, on_gpu
from .dropout import KINDS
from .gradients import Gradients
from .layouts import Layout, check_cell, check_truncate
from .masking import check_lengths, check_mask
from .weights import WeightSpec, spec_and_arrays, weight_suffix

__all__ = ["DeviceTape", "DeviceWeights", "device_backward", "device_forward", "native", "reason"]


def native() -> ModuleType:
    """The module `_cuda`; RuntimeError naming the cause and the cure where it is missing or has no GPU."""
    if why := reason():
        raise RuntimeError(f"arrays on a GPU were given, but {why}")
    return _module()


def reason() -> str:
    """Why there is no CUDA, "" if there is."""
    try:
        return str(_module().reason())
    except ImportError:
        return (
            "this fastlstm was built without CUDA: with nvcc 12.8 or newer, and from its sources, run "
            "pip install . --config-settings=cmake.define.FASTLSTM_CUDA=ON"
        )


def build() -> dict[str, Any]:
    """What `fastlstm.build_config` says of the module."""
    try:
        module = _module()
    except ImportError:
        return {"cuda_architectures": "", "cuda_runtime": 0}
    return {"cuda_architectures": module.architectures, "cuda_runtime": module.runtime_version}


def _module() -> ModuleType:
    return importlib.import_module("fastlstm._cuda")


# Weights


class DirectionArrays(NamedTuple):
    """The weights of one layer and direction: copies, interleaved."""

    w_x: DeviceArray  # [4H,I]; None where x holds the pre-activations
    w_h: DeviceArray  # [4H,n]
    bias: DeviceArray  # [4H]
    w_p: DeviceArray  # [P,H]
    peepholes: DeviceArray  # [3H]


@dataclass(frozen=True)
class DeviceWeights:
    """Weights in the order in which the kernels read them: copies, never written again."""

    spec: WeightSpec
    cell: LSTMCellOptions
    library: ArrayLibrary
    dtype: str
    directions: list[DirectionArrays]  # [L*D]

    @classmethod
    def of(cls, weights: Mapping[str, DeviceArray], cell: LSTMCellOptions) -> DeviceWeights:
        """From a mapping with torch's names and shapes; raises ValueError or TypeError naming the weight."""
        spec, arrays = spec_and_arrays(weights)
        if spec.layer_norm:
            raise ValueError("layer_norm is True: expected False on a GPU, whose kernels do not have it")
        check_cell(spec, cell)
        named = dict(zip(spec.shapes(), arrays, strict=True))
        library = library_of("weight_hh_l0", named["weight_hh_l0"])
        dtype = library.dtype(named["weight_hh_l0"])
        for name, array in named.items():
            if not on_gpu(array) or library.dtype(array) != dtype:
                raise TypeError(f"{name} is {_kind(array)}, expected {_kind(named['weight_hh_l0'])} as weight_hh_l0 is")
        if dtype not in WIDE:
            raise TypeError(f"the weights have dtype {dtype}, expected one of {', '.join(WIDE)}")
        rows = []
        for row in range(spec.num_layers * spec.num_directions):
            suffix = weight_suffix(row // spec.num_directions, row % spec.num_directions)
            own = {name.removesuffix(suffix): array for name, array in named.items() if name.endswith(suffix)}
            w_x, w_p, peepholes = own.get("weight_ih"), own.get("weight_hr"), own.get("weight_peephole")
            bias = own["bias_ih"] + own["bias_hh"] if spec.bias else None
            rows.append(
                DirectionArrays(
                    None if w_x is None else _interleaved(library, w_x),
                    _interleaved(library, own["weight_hh"]),
                    None if bias is None else _interleaved(library, bias[:, None])[:, 0],
                    None if w_p is None else w_p * 1,
                    None if peepholes is None else peepholes * 1,
                )
            )
        return cls(spec, cell, library, dtype, rows)


def _kind(array: object) -> str:
    return f"a {type(array).__qualname__} of {getattr(array, 'dtype', 'no dtype')}"


def _interleaved(library: ArrayLibrary, rows: DeviceArray) -> DeviceArray:
    """[4H,k] -> the same rows, the four of a unit together: a copy."""
    H, k = rows.shape[0] // 4, rows.shape[1]
    copy = rows * 1 if H == 1 else library.contiguous(library.permuted(rows.reshape(4, H, k), (1, 0, 2)))
    return copy.reshape(4 * H, k)


def _by_gate(library: ArrayLibrary, rows: DeviceArray) -> DeviceArray:
    """The inverse of `_interleaved`."""
    H, k = rows.shape[0] // 4, rows.shape[1]
    return library.contiguous(library.permuted(rows.reshape(H, 4, k), (1, 0, 2))).reshape(4 * H, k)


def _panels(library: ArrayLibrary, columns: DeviceArray, like: DeviceArray) -> DeviceArray:
    """[n,depth] -> [panels,depth,64], n padded with zeros: the operand of the kernels' product."""
    n, depth = columns.shape
    width = native().panel
    padded = library.zeros((-(-n // width) * width, depth), library.dtype(like), like)
    padded[:n] = columns
    return library.contiguous(library.permuted(padded.reshape(-1, width, depth), (0, 2, 1)))


# Forward


class DirectionTape(NamedTuple):
    """What the backward pass of one layer and direction needs beside its weights."""

    layer: Any  # _cuda.Layer
    weights: DirectionArrays  # as they ran: U after weight_drop
    options: dict[str, Any]
    x: DeviceArray  # [T,B,I], 0 where a step does not count
    h: DeviceArray  # [T,B,n] before each step
    x_scales: DeviceArray  # [G,B,I]
    h_scales: DeviceArray  # [G,B,n]
    u_scales: DeviceArray  # [4H,n], interleaved


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
    layout = _layout(x, weights, batch_first)
    D, L, n, H = spec.num_directions, spec.num_layers, spec.hidden_output, spec.hidden_size
    flags = tuple(_flags(library, x, layout, lengths, mask, reset, direction == 1) for direction in range(D))
    counts = None if flags[0] is None else (flags[0][..., None] & 1) == 0
    call = _Call(weights, layout, x, flags, counts, training, random, algo, tf32)
    h0, c0 = _states("state", ("h0", "c0"), state, spec, layout, weights.dtype, library)
    h_n, c_n = call.empty(L * D, layout.batch, n), call.empty(L * D, layout.batch, H)
    if out is not None:
        _check("out", out, layout.sequence(D * n), weights.dtype, library)
    y = None if not return_sequence else out if out is not None else call.empty(*layout.sequence(D * n))
    cells = call.empty(*layout.sequence(D * H)) if return_cells else None
    gates = call.empty(*layout.sequence(D * 4 * H)) if return_gates else None

    inside = library.contiguous(_enter(library, layout, x))
    tapes: list[DirectionTape] = []
    for layer in range(L):
        last = layer == L - 1
        layer_y = (
            (_enter(library, layout, y) if y is not None else None)
            if last
            else call.empty(layout.steps, layout.batch, D * n)
        )
        more = {"cells": (cells, H), "gates": (gates, 4 * H)} if last else {}
        for direction in range(D):
            row = layer * D + direction
            results = {"y": _part(layer_y, direction, n)}
            results |= {
                name: _part(None if array is None else _enter(library, layout, array), direction, size)
                for name, (array, size) in more.items()
            }
            results |= {"h_n": h_n[row], "c_n": c_n[row]}
            first = {"h0": None if h0 is None else h0[row], "c0": None if c0 is None else c0[row]}
            tapes.append(_direction_forward(call, row, inside, first, results, repeat and last))
            if not last and training and dropout:
                native().drop({"y": results["y"]}, call.options(row), dropout)
        inside = layer_y
    tape = None
    if training:
        tape = DeviceTape(spec, weights.cell, library, layout, weights.dtype, x, dropout, return_sequence, tapes)
    states = _leave_state(layout, h_n), _leave_state(layout, c_n)
    return (y, states, *([cells] if return_cells else []), *([gates] if return_gates else []), tape)


def _direction_forward(
    call: _Call,
    row: int,
    x: DeviceArray,
    first: dict[str, DeviceArray],
    results: dict[str, DeviceArray],
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
        u_scales = _interleaved(library, u_scales.reshape(4 * H, n))
        w = w._replace(w_h=w.w_h * u_scales)
    if call.counts is not None:
        x = library.where(call.counts, x)
    pre = _pre_activations(call, w, x, direction, x_scales)
    slots = T + 1 if call.training else 2
    arrays = {
        **first,
        **results,
        "flags": call.flags[direction],
        "pre": pre,
        "saved": pre if call.training else None,  # the gates take the place of what they were computed from
        "recurrent": _panels(library, w.w_h, call.like),
        "projection": None if w.w_p is None else _panels(library, w.w_p, call.like),
        "m": None if w.w_p is None else call.empty(B, H),
        "h": call.empty(slots, B, n),
        "c": call.empty(slots, B, H, wide=True),
        "peepholes": w.peepholes,
        "h_scales": h_scales,
        "barrier": library.zeros((2,), "int32", call.like),
    }
    layer = native().Layer(arrays, options)
    h = arrays["h"][1:] if options["reverse"] else arrays["h"][:-1]
    return DirectionTape(layer, w, options, x, h, x_scales, h_scales, u_scales)


def _pre_activations(
    call: _Call, w: DirectionArrays, x: DeviceArray, direction: int, scales: DeviceArray
) -> DeviceArray:
    """b + x . W, [T,B,H,4]: new memory."""
    library = call.weights.library
    T, B, H = call.layout.steps, call.layout.batch, call.weights.spec.hidden_size
    if w.w_x is None:
        of_direction = _part(x, direction, 4 * H).reshape(T, B, 4, H)
        pre = library.contiguous(library.permuted(of_direction, (0, 1, 3, 2)) * 1)
    elif scales is None or len(scales) == 1:
        rows = (x if scales is None else x * scales[0]).reshape(T * B, x.shape[-1])
        pre = (rows @ library.permuted(w.w_x, (1, 0))).reshape(T, B, H, 4)
    else:
        pre = call.empty(T, B, H, 4)
        for gate, scale in enumerate(scales):
            w_gate = library.permuted(w.w_x.reshape(H, 4, -1)[:, gate], (1, 0))
            pre[..., gate] = ((x * scale).reshape(T * B, x.shape[-1]) @ w_gate).reshape(T, B, H)
    return pre if w.bias is None else pre + w.bias.reshape(H, 4)


# Backward


def device_backward(
    tape: DeviceTape,
    dy: DeviceArray,
    dstate: tuple[DeviceArray, DeviceArray] | None,
    *,
    dcells: DeviceArray,
    dgates: DeviceArray,
    truncate: int | None,
) -> Gradients:
    """As `functional.lstm_backward`."""
    spec, layout, library = tape.spec, tape.layout, tape.library
    D, L, n, H = spec.num_directions, spec.num_layers, spec.hidden_output, spec.hidden_size
    if dy is not None and not tape.has_y:
        raise ValueError("dy is given: expected None, since forward ran with return_sequence=False")
    every = check_truncate(truncate)
    sequences = {"dy": (dy, n), "dcells": (dcells, H), "dgates": (dgates, 4 * H)}
    for name, (array, size) in sequences.items():
        if array is not None:
            _check(name, array, layout.sequence(D * size), tape.dtype, library)
    entered = {
        name: (None if array is None else _enter(library, layout, library.contiguous(array)), size)
        for name, (array, size) in sequences.items()
    }
    dh_n, dc_n = _states("dstate", ("dh_n", "dc_n"), dstate, spec, layout, tape.dtype, library)
    dh0 = library.empty((L * D, layout.batch, n), tape.dtype, tape.x)
    dc0 = library.empty((L * D, layout.batch, H), tape.dtype, tape.x)
    dw: dict[str, DeviceArray] = {}
    dx: DeviceArray = None
    for layer in reversed(range(L)):
        parts = []
        for direction in range(D):
            row = layer * D + direction
            arrays = {name: _part(array, direction, size) for name, (array, size) in entered.items()}
            arrays |= {"dh_n": None if dh_n is None else dh_n[row], "dc_n": None if dc_n is None else dc_n[row]}
            arrays |= {"dh0": dh0[row], "dc0": dc0[row]}
            part, named = _direction_backward(tape, row, arrays, every)
            parts.append(part)
            dw |= {name + weight_suffix(layer, direction): array for name, array in named.items()}
        if layer or spec.input_size:
            dx = parts[0] if D == 1 else parts[0] + parts[1]
        else:
            dx = library.empty((layout.steps, layout.batch, spec.x_size), tape.dtype, tape.x)
            for direction, part in enumerate(parts):
                _part(dx, direction, 4 * H)[...] = part
        if layer and tape.dropout:
            for direction in range(D):
                options = tape.directions[(layer - 1) * D + direction].options
                native().drop({"y": _part(dx, direction, n)}, _now(tape, options), tape.dropout)
        entered = {"dy": (dx, n)}
    dx = library.contiguous(library.permuted(dx, (1, 0, 2))) if layout.batch_first and not layout.unbatched else dx
    dstate0 = _leave_state(layout, dh0), _leave_state(layout, dc0)
    return Gradients(dx[:, 0] if layout.unbatched else dx, dstate0, {name: dw[name] for name in spec.shapes()})


def _now(tape: DeviceTape, options: dict[str, Any]) -> dict[str, Any]:
    return options | {"stream": tape.library.stream(tape.x)}


def _direction_backward(
    tape: DeviceTape, row: int, arrays: dict[str, DeviceArray], truncate: int
) -> tuple[DeviceArray, dict[str, DeviceArray]]:
    """The gradients of x `[T,B,I]` and of the weights, by their names without suffix."""
    spec, library, own = tape.spec, tape.library, tape.directions[row]
    T, B, H, n = tape.layout.steps, tape.layout.batch, spec.hidden_size, spec.hidden_output
    w, wide = own.weights, WIDE[tape.dtype]
    arrays |= {
        "recurrent": _panels(library, library.permuted(w.w_h, (1, 0)), tape.x),
        "dh": library.empty((B, n), wide, tape.x),
        "dc": library.empty((B, H), wide, tape.x),
        "d_pre": library.empty((T, B, H, 4), tape.dtype, tape.x),
        "barrier": library.zeros((2,), "int32", tape.x),
    }
    if w.w_p is not None:
        arrays["projection"] = _panels(library, library.permuted(w.w_p, (1, 0)), tape.x)
        arrays["dh_out"] = library.empty((T, B, n), tape.dtype, tape.x)
        arrays["m"] = library.empty((T, B, H), tape.dtype, tape.x)
    if w.peepholes is not None:
        arrays["d_peepholes"] = library.zeros((B, H, 3), wide, tape.x)
    own.layer.backward(arrays, truncate, library.stream(tape.x))

    d_pre = arrays["d_pre"].reshape(T * B, 4 * H)
    dw = {"weight_hh": _weight_gradient(library, d_pre, own.h, own.h_scales)}
    if own.u_scales is not None:
        dw["weight_hh"] = dw["weight_hh"] * own.u_scales
    if w.w_x is not None:
        dw["weight_ih"] = _weight_gradient(library, d_pre, own.x, own.x_scales)
    if spec.bias:
        db = library.sum_of_rows(d_pre)[:, None]
        dw |= {"bias_ih": db, "bias_hh": db}
    dw = {name: _by_gate(library, array) for name, array in dw.items()}
    if spec.bias:
        dw |= {name: dw[name][:, 0] for name in ("bias_ih", "bias_hh")}
    if w.w_p is not None:
        dw["weight_hr"] = library.permuted(arrays["dh_out"].reshape(T * B, n), (1, 0)) @ arrays["m"].reshape(T * B, H)
    if w.peepholes is not None:
        terms = library.permuted(library.sum_of_rows(arrays["d_peepholes"]), (1, 0))
        dw["weight_peephole"] = library.cast(library.contiguous(terms).reshape(3 * H), tape.dtype)
    return _input_gradient(tape, own, d_pre), dw


def _weight_gradient(library: ArrayLibrary, d_pre: DeviceArray, a: DeviceArray, scales: DeviceArray) -> DeviceArray:
    """[4H,k], interleaved, from d_pre `[T*B,4H]` and a `[T,B,k]`."""
    k = a.shape[-1]
    if scales is None or len(scales) == 1:
        rows = (a if scales is None else a * scales[0]).reshape(len(d_pre), k)
        return library.permuted(d_pre, (1, 0)) @ rows
    units = d_pre.shape[1] // 4
    by_gate = d_pre.reshape(len(d_pre), units, 4)
    to = library.empty((units, 4, k), library.dtype(a), a)
    for gate, scale in enumerate(scales):
        to[:, gate] = library.permuted(by_gate[..., gate], (1, 0)) @ (a * scale).reshape(len(d_pre), k)
    return to.reshape(4 * units, k)


def _input_gradient(tape: DeviceTape, own: DirectionTape, d_pre: DeviceArray) -> DeviceArray:
    """`[T,B,I]`, or of the pre-activations that x holds, `[T,B,4H]`."""
    library, w, H = tape.library, own.weights, tape.spec.hidden_size
    T, B = tape.layout.steps, tape.layout.batch
    if w.w_x is None:
        return library.permuted(d_pre.reshape(T, B, H, 4), (0, 1, 3, 2)).reshape(T, B, 4 * H)
    if own.x_scales is None or len(own.x_scales) == 1:
        dx = (d_pre @ w.w_x).reshape(T, B, w.w_x.shape[1])
        return dx if own.x_scales is None else dx * own.x_scales[0]
    d_gates, w_gates = d_pre.reshape(T * B, H, 4), w.w_x.reshape(H, 4, -1)
    parts = [
        (d_gates[..., gate] @ w_gates[:, gate]).reshape(T, B, w.w_x.shape[1]) * scale
        for gate, scale in enumerate(own.x_scales)
    ]
    return parts[0] + parts[1] + parts[2] + parts[3]


# The caller's arrays


def _part(array: DeviceArray, direction: int, size: int) -> DeviceArray:
    """One direction's columns of a sequence [T,B,D*size]."""
    return None if array is None else array[..., direction * size : (direction + 1) * size]


def _enter(library: ArrayLibrary, layout: Layout, array: DeviceArray) -> DeviceArray:
    """A view [T,B,..] of a sequence as the caller has it."""
    if layout.unbatched:
        return array[:, None]
    return library.permuted(array, (1, 0, 2)) if layout.batch_first else array


def _leave_state(layout: Layout, state: DeviceArray) -> DeviceArray:
    return state[:, 0] if layout.unbatched else state


def _layout(x: DeviceArray, weights: DeviceWeights, batch_first: bool) -> Layout:
    batched, size = ("(B, T, {0})" if batch_first else "(T, B, {0})"), weights.spec.x_size
    shape = tuple(x.shape)
    if len(shape) not in (2, 3) or shape[-1] != size:
        raise ValueError(
            f"x has shape {shape}, but the weights need input size {size}: "
            f"expected {batched.format(size)}, or (T, {size}) unbatched"
        )
    library = library_of("x", x)
    if type(library) is not type(weights.library):
        raise TypeError(f"x is {_kind(x)}, but the weights are of another library: expected one library for both")
    if library.dtype(x) != weights.dtype:
        raise TypeError(f"x has dtype {library.dtype(x)}, but the weights have {weights.dtype}: expected the same")
    steps, batch = (shape[0], 1) if len(shape) == 2 else shape[1::-1] if batch_first else shape[:2]
    return Layout(steps, batch, batch_first, unbatched=len(shape) == 2)


def _check(name: str, array: DeviceArray, shape: tuple[int, ...], dtype: str, library: ArrayLibrary) -> None:
    if not on_gpu(array):
        raise TypeError(f"{name} is {_kind(array)}, expected an array on the GPU where x is")
    if tuple(array.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(array.shape)}, expected {shape}")
    if library.dtype(array) != dtype:
        raise TypeError(f"{name} has dtype {library.dtype(array)}, expected {dtype}")


def _states(
    name: str,
    names: tuple[str, str],
    states: tuple[DeviceArray, DeviceArray] | None,
    spec: WeightSpec,
    layout: Layout,
    dtype: str,
    library: ArrayLibrary,
) -> tuple[DeviceArray, DeviceArray]:
    """Both halves as contiguous `[L*D,B,..]`, None where None."""
    if states is None:
        return None, None
    if not isinstance(states, (tuple, list)) or len(states) != 2:
        raise TypeError(f"{name} is a {type(states).__qualname__}, expected a pair ({names[0]}, {names[1]})")
    rows, entered = spec.num_layers * spec.num_directions, []
    for part, array, size in zip(names, states, (spec.hidden_output, spec.hidden_size), strict=True):
        if array is not None:
            _check(part, array, layout.state(rows, size), dtype, library)
            array = library.contiguous(array)
        entered.append(array[:, None] if layout.unbatched and array is not None else array)
    return entered[0], entered[1]


def _flags(
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
            array = _enter(library, layout, array[..., None])
        marks[name] = array
    flags = library.empty((layout.steps, layout.batch), "uint8", x)
    native().mark(marks | {"flags": flags}, reverse, library.device(x), library.stream(x))
    return flags
