"""What a layer of Keras's asks of the kernels, and that on NumPy arrays: the numpy and the tensorflow backend's work.

Letters: T steps, B batch, I input, H hidden (Keras's units).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _core
from ..cells import LSTMCellOptions
from ..functional import Tape, lstm_backward, lstm_forward
from ..weights import WeightSpec

__all__ = ["Call", "backward", "forward"]

Arrays = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Call:
    """All of a call that is no tensor."""

    spec: WeightSpec
    cell: LSTMCellOptions  # that drops nothing, if nothing is drawn
    sequence: bool  # y of every step is wanted
    repeat: bool  # y of a step that does not count is the one before it, not 0
    keeps_tape: bool  # a backward pass is to be expected

    @property
    def draws(self) -> bool:
        """Whether the kernels draw random numbers, from a seed."""
        return self.cell.draws

    def weights(self, kernel: Any, recurrent_kernel: Any, bias: Any = None, *, as_they_lie: bool = False) -> list[Any]:
        """Of Keras's weights `[I,4H]`, `[H,4H]` and `[4H]`: ours, turned as torch has them or not; of two biases."""
        matrices = [kernel, recurrent_kernel] if as_they_lie else [kernel.T, recurrent_kernel.T]
        return matrices + ([] if bias is None else [bias, 0 * bias])


def forward(
    call: Call,
    x: np.ndarray,
    state: Arrays,
    weights: Sequence[np.ndarray],
    mask: np.ndarray | None,
    seed: np.ndarray | None,
) -> tuple[Arrays, Tape | None]:
    """x `[B,T,I]`, state: h0 and c0 `[B,H]`, mask `[B,T]`, seed: two words of 32 bits if the call draws.

    Returns y `[B,T,H]` where it is wanted, h_n and c_n `[B,H]`; and the tape, if training.
    """
    h0, c0 = state
    y, (h_n, c_n), tape = lstm_forward(
        x,
        dict(zip(call.spec.shapes(), call.weights(*weights), strict=True)),
        (h0[None], c0[None]),
        cell=call.cell,
        batch_first=True,
        mask=mask,
        masked_output="repeat" if call.repeat else "zero",
        return_sequence=call.sequence,
        training=call.keeps_tape or call.draws,
        dropout_seed=None if seed is None else int(seed[0]) + (int(seed[1]) << 32),
    )
    return (*([y] if call.sequence else []), h_n[0], c_n[0]), tape


def backward(tape: Tape, grads: Sequence[np.ndarray]) -> Arrays:
    """From the gradients of `forward`'s results those of x, h0, c0 and the weights, laid out as Keras's."""
    *dy, dh_n, dc_n = grads
    found = lstm_backward(tape, dy[0] if dy else None, (dh_n[None], dc_n[None]))
    dw_x, dw_h, *biases = found.weights.values()
    dh0, dc0 = found.state
    return (found.x, dh0[0], dc0[0], _core.transposed(dw_x), _core.transposed(dw_h), *biases[:1])
