"""What runs on the host: forward and backward on NumPy arrays with the memory of XLA's buffers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..functional import PackedWeights, Tape, lstm_backward, lstm_forward
from .call import Call

__all__ = ["backward", "forward"]

Arrays = Sequence[np.ndarray]


def forward(call: Call, results: Arrays, operands: Arrays) -> None:
    """Fills the call's results. operands: x, the state's, the weights, the marks."""
    _forward(call, results, operands, call.draws)


def backward(call: Call, results: Arrays, operands: Arrays) -> None:
    """Fills dx if wanted, those of the state if it was given, those of the weights if wanted.

    operands: forward's, then the gradients. Forward runs once more.
    """
    count = len(operands) - len(call.grads)
    tape = _forward(call, None, operands[:count], True)
    assert tape is not None
    given = dict(zip(call.grads, operands[count:], strict=True))
    found = lstm_backward(
        tape,
        given.get("y"),
        (given.get("h_n"), given.get("c_n")),
        dcells=given.get("cells"),
        dgates=given.get("gates"),
        threads=call.threads,
        want_x=call.wants_x,
        want_weights=call.wants_weights,
    )
    _fill(results, [*([found.x] * call.wants_x), *(found.state * call.has_state), *found.weights.values()])


def _forward(call: Call, results: Arrays | None, operands: Arrays, training: bool) -> Tape | None:
    x, state, weights, marks = call.split(operands)
    packed = PackedWeights.of(
        dict(zip(call.names, weights, strict=True)), call.spec, cell=call.cell, threads=call.threads
    )
    given = dict(zip(call.marks, marks, strict=True))
    if (seed := given.pop("seed", None)) is not None:
        high, low, number = map(int, seed)
        given |= {"dropout_seed": high << 32 | low, "dropout_call": number}
    out = results[0] if results and call.return_sequence else None
    tape: Tape | None
    _, (h_n, c_n), *more, tape = lstm_forward(
        x, packed, tuple(state) or None, training=training, out=out, **given, **call.options
    )
    if results:
        _fill(results[call.return_sequence :], [h_n, c_n, *more])
    return tape


def _fill(results: Arrays, arrays: Sequence[np.ndarray]) -> None:
    for result, array in zip(results, arrays, strict=True):
        result[...] = array
