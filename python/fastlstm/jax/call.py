"""What the host is told beside arrays: a constant of the compiled program."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..cells import LSTMCellOptions
from ..weights import WeightSpec

__all__ = ["Call"]


@dataclass(frozen=True)
class Call:
    """How the LSTM is called, and which arrays go in and come out."""

    spec: WeightSpec
    cell: LSTMCellOptions  # that drops nothing, if nothing is drawn
    dropout: float
    batch_first: bool
    repeat: bool  # a step that does not count repeats the output before it
    return_sequence: bool
    return_cells: bool
    return_gates: bool
    draws: bool  # random numbers, as in training
    threads: int | None
    has_state: bool
    marks: tuple[str, ...]  # of lengths, mask, reset and seed (high and low word, call), those that are given
    # Of a backward call
    grads: tuple[str, ...] = ()  # of `results`, those with a gradient that is not zero
    wants_x: bool = True
    wants_weights: bool = True

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Of the weights, in torch's order."""
        return tuple(self.spec.shapes())

    @functools.cached_property
    def results(self) -> tuple[str, ...]:
        """Of forward, in order."""
        wanted = {"y": self.return_sequence, "cells": self.return_cells, "gates": self.return_gates}
        return tuple(name for name in ("y", "h_n", "c_n", "cells", "gates") if wanted.get(name, True))

    @functools.cached_property
    def options(self) -> dict[str, Any]:
        """Of these, the ones that `lstm_forward` takes."""
        return {
            "batch_first": self.batch_first,
            "dropout": self.dropout,
            "masked_output": "repeat" if self.repeat else "zero",
            "return_sequence": self.return_sequence,
            "return_cells": self.return_cells,
            "return_gates": self.return_gates,
            "threads": self.threads,
        }

    def split(self, operands: Sequence[Any]) -> tuple[Any, Sequence[Any], Sequence[Any], Sequence[Any]]:
        """x, the state's, the weights and the marks, which stand in this order."""
        x, *others = operands
        state = 2 * self.has_state
        end = state + len(self.names)
        return x, others[:state], others[state:end], others[end:]
