"""The backend jax, by `fastlstm.jax.lstm`: inside XLA's programs, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..jax import lstm
from .call import Call

__all__ = ["LEADING_ZEROS", "run"]

LEADING_ZEROS = False  # the output of a masked step before the first is the initial state


def run(layer: Any, call: Call, x: Any, state: Any, weights: Sequence[Any], mask: Any, seed: Any) -> Any:
    y, (h_n, c_n) = lstm(
        x,
        dict(zip(call.spec.shapes(), call.weights(*weights, as_they_lie=True), strict=True)),
        (state[0][None], state[1][None]),
        cell=call.cell,
        batch_first=True,
        mask=mask,
        masked_output="repeat" if call.repeat else "zero",
        return_sequence=call.sequence,
        transposed_weights=True,
        training=call.draws,
        dropout_seed=seed,
    )
    return (*([y] if call.sequence else []), h_n[0], c_n[0])
