"""What runs on the host: forward and backward on NumPy arrays with the memory of XLA's buffers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _core
from ..functional import PackedWeights, Tape, lstm_backward
from .call import Call

__all__ = ["backward", "forward", "tape_bytes"]

Arrays = Sequence[np.ndarray]


def forward(call: Call, results: Arrays, operands: Arrays) -> None:
    """Fills what the call returns from its operands."""
    given, wanted = dict(zip(call.operands, operands, strict=True)), dict(zip(call.results, results, strict=True))
    _, (h_n, c_n), cells, gates, _ = _core.forward(
        _packed(call, given),
        given["x"],
        (given["h0"], given["c0"]) if call.has_state else None,
        batch_first=call.layout.batch_first,
        return_cells=call.return_cells,
        return_gates=call.return_gates,
        training=call.draws or call.keeps_tape,
        checkpoint_every=0,
        dropout_step=0,
        threads=call.threads,
        out=wanted.get("y"),
        memory=wanted.get("tape"),
        **_options(call, given),
    )
    found = {"h_n": h_n, "c_n": c_n, "cells": cells, "gates": gates}
    for name, result in wanted.items():
        if name in found:
            result[...] = found[name]


def backward(call: Call, results: Arrays, operands: Arrays) -> None:
    """As forward."""
    given = dict(zip(call.operands, operands, strict=True))
    layout = call.layout
    tape = _core.resume(
        _packed(call, given),
        given["tape"],
        layout.steps,
        layout.batch,
        batched=not layout.unbatched,
        batch_first=layout.batch_first,
        **_options(call, given),
    )
    found = lstm_backward(
        Tape(call.spec, tape),
        given.get("dy"),
        (given.get("dh_n"), given.get("dc_n")),
        dcells=given.get("dcells"),
        dgates=given.get("dgates"),
        threads=call.threads,
        want_x=call.wants_x,
        want_weights=call.wants_weights,
    )
    dweights = list(found.weights.values())
    if call.transposed_weights:
        dweights = [_core.transposed(array) if array.ndim == 2 else array for array in dweights]
    arrays = [*([found.x] * call.wants_x), *(found.state * call.has_state), *dweights]
    for result, array in zip(results, arrays, strict=True):
        result[...] = array


def _packed(call: Call, given: dict[str, np.ndarray]) -> _core.Weights:
    weights = {name: given[name].T if call.transposed_weights else given[name] for name in call.names}
    native = PackedWeights.of(weights, call.spec, cell=call.cell, threads=call.threads).native
    if native.isa != call.isa and (call.keeps_tape or "tape" in given):
        raise RuntimeError(f"a gradient was traced for {call.isa}, but {native.isa} is active: expected the same")
    return native


def _options(call: Call, given: dict[str, np.ndarray]) -> dict[str, Any]:
    """What forward and resume have to be told alike."""
    high, low, number = map(int, given.get("seed", (0, 0, 0)))
    return {
        "lengths": given.get("lengths"),
        "mask": given.get("mask"),
        "reset": given.get("reset"),
        "repeat": call.repeat,
        "return_sequence": call.return_sequence,
        "dropout": call.dropout,
        "dropout_seed": high << 32 | low,
        "dropout_call": number,
    }


@functools.lru_cache(maxsize=1024)
def tape_bytes(call: Call) -> int:
    """The size of the call's tape, which weights of any values tell."""
    zeros = {name: np.broadcast_to(np.zeros((), call.dtype), shape) for name, shape in call.weight_shapes.items()}
    return _core.tape_bytes(_packed(call, zeros), call.layout.steps, call.layout.batch)
