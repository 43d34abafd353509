"""The backward pass on arrays of a GPU, from the tape of `device_forward`. `functional` calls it; users need not.

Letters: T steps, B batch, I input, H hidden, n = P if there is a projection, else H; D directions, L layers.
"""

from __future__ import annotations

from typing import Any

from .cuda import native
from .device_arrays import WIDE, ArrayLibrary, DeviceArray
from .device_forward import DeviceTape, DirectionTape
from .device_layouts import check_on_gpu, columns_of, enter, leave_state, states_of
from .device_weights import by_gate, panels
from .gradients import Gradients
from .layouts import check_truncate
from .weights import weight_suffix

__all__ = ["device_backward"]


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
            check_on_gpu(name, array, layout.sequence(D * size), tape.dtype, tape.x)
    entered = {
        name: (enter(library, layout, None if array is None else library.contiguous(array)), size)
        for name, (array, size) in sequences.items()
    }
    dh_n, dc_n = states_of("dstate", ("dh_n", "dc_n"), dstate, spec, layout, tape.dtype, tape.x)
    dh0 = library.empty((L * D, layout.batch, n), tape.dtype, tape.x)
    dc0 = library.empty((L * D, layout.batch, H), tape.dtype, tape.x)
    dw: dict[str, DeviceArray] = {}
    dx: DeviceArray = None
    for layer in reversed(range(L)):
        parts = []
        for direction in range(D):
            row = layer * D + direction
            arrays = {name: columns_of(array, direction, size) for name, (array, size) in entered.items()}
            arrays |= {"dh_n": None if dh_n is None else dh_n[row], "dc_n": None if dc_n is None else dc_n[row]}
            arrays |= {"dh0": dh0[row], "dc0": dc0[row]}
            dx, named = _direction_backward(tape, row, arrays, every)
            parts.append(dx)
            dw |= {name + weight_suffix(layer, direction): array for name, array in named.items()}
        if layer or spec.input_size:
            dx = parts[0] if D == 1 else parts[0] + parts[1]
        else:
            dx = library.empty((layout.steps, layout.batch, spec.x_size), tape.dtype, tape.x)
            for direction, of_direction in enumerate(parts):
                columns_of(dx, direction, 4 * H)[...] = of_direction
        if layer and tape.dropout:
            for direction in range(D):
                options = tape.directions[(layer - 1) * D + direction].options
                native().drop({"y": columns_of(dx, direction, n)}, _now(tape, options), tape.dropout)
        entered = {"dy": (dx, n)}
    dx = library.contiguous(library.permuted(dx, (1, 0, 2))) if layout.batch_first and not layout.unbatched else dx
    dstate0 = leave_state(layout, dh0), leave_state(layout, dc0)
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
        "recurrent": panels(library, library.permuted(w.w_h, (1, 0))),
        "dh": library.empty((B, n), wide, tape.x),
        "dc": library.empty((B, H), wide, tape.x),
        "d_pre": library.empty((T, B, H, 4), tape.dtype, tape.x),
        "failed": library.zeros((1,), "int32", tape.x),
    }
    if w.w_p is not None:
        arrays["projection"] = panels(library, library.permuted(w.w_p, (1, 0)))
        arrays["dh_out"] = library.empty((T, B, n), tape.dtype, tape.x)
        arrays["m"] = library.empty((T, B, H), tape.dtype, tape.x)
    if w.peepholes is not None:
        arrays["d_peepholes"] = library.zeros((B, H, 3), wide, tape.x)
    if own.norm_h is not None:
        arrays |= {name: library.empty((B, H), wide, tape.x) for name in ("norm_dh", "norm_c", "norm_d")}
        arrays["d_output"] = library.zeros((B, 2 * H), wide, tape.x)
        arrays["d_sums"] = library.empty((T * B, 4 * H), tape.dtype, tape.x)
    own.layer.backward(arrays, truncate, library.stream(tape.x))

    d_pre = d_x = d_h = arrays["d_pre"].reshape(T * B, 4 * H)  # gradients of x . W and of h . U
    if own.norm_h is not None:
        d_x, d_h = _input_sums_gradient(tape, own, d_pre), arrays["d_sums"]
    dw = {"weight_hh": _weight_gradient(library, d_h, own.h, own.h_scales)}
    if own.u_scales is not None:
        dw["weight_hh"] = dw["weight_hh"] * own.u_scales
    if w.w_x is not None:
        dw["weight_ih"] = _weight_gradient(library, d_x, own.x, own.x_scales)
    dw = {name: by_gate(library, array) for name, array in dw.items()}
    rows = {"bias_ih": d_pre} if spec.bias else {}
    if own.norm_x is not None and own.norm_h is not None:
        rows |= {"gamma_ih": d_pre * own.norm_x.normalised, "gamma_hh": d_pre * own.norm_h.normalised}
        of_c = library.cast(library.sum_of_rows(arrays["d_output"]), tape.dtype)
        dw |= {"gamma_c": of_c[:H], "beta_c": of_c[H:]}
    dw |= {name: by_gate(library, library.sum_of_rows(terms)[:, None])[:, 0] for name, terms in rows.items()}
    if spec.bias:
        dw["bias_hh"] = library.copied(dw["bias_ih"])
    if w.w_p is not None:
        dw["weight_hr"] = library.permuted(arrays["dh_out"].reshape(T * B, n), (1, 0)) @ arrays["m"].reshape(T * B, H)
    if w.peepholes is not None:
        terms = library.permuted(library.sum_of_rows(arrays["d_peepholes"]), (1, 0))
        dw["weight_peephole"] = library.cast(library.contiguous(terms).reshape(3 * H), tape.dtype)
    return _input_gradient(tape, own, d_x), dw


def _input_sums_gradient(tape: DeviceTape, own: DirectionTape, d_pre: DeviceArray) -> DeviceArray:
    """Of x . W before it was normalised, `[T*B,4H]`."""
    library, norm = tape.library, own.norm_x
    assert norm is not None and own.weights.norm is not None
    arrays = {"d_pre": d_pre, "gains": own.weights.norm.of_x, "normalised": norm.normalised, "inverses": norm.inverses}
    d_sums = library.empty(tuple(d_pre.shape), tape.dtype, tape.x)
    native().normalise_backward(arrays | {"d_sums": d_sums}, library.device(tape.x), library.stream(tape.x))
    return d_sums


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
