"""What the host is told beside arrays: a constant of the compiled program."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from ..cells import LSTMCellOptions
from ..layouts import Layout
from ..weights import WeightSpec

__all__ = ["Call"]


@dataclass(frozen=True)
class Call:
    """How the LSTM is called, and which arrays go in and come out."""

    spec: WeightSpec
    cell: LSTMCellOptions  # that drops nothing, if nothing is drawn
    layout: Layout
    dtype: str
    isa: str  # for which a tape is laid out
    dropout: float
    repeat: bool  # a step that does not count repeats the output before it
    return_sequence: bool
    return_cells: bool
    return_gates: bool
    transposed_weights: bool  # matrices are [I,4H], [H,4H] and [H,P]
    draws: bool  # random numbers, as in training
    threads: int | None
    has_state: bool
    marks: tuple[str, ...]  # of lengths, mask, reset and seed (high and low word, call), those that are given
    keeps_tape: bool = False  # for a backward pass
    # Of a backward pass
    grads: tuple[str, ...] | None = None  # of forward's results, those with a gradient that is not zero
    wants_x: bool = True
    wants_weights: bool = True

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Of the weights, in torch's order."""
        return tuple(self.weight_shapes)

    @functools.cached_property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """As they are given; that of a vector reads the same from either end."""
        order = -1 if self.transposed_weights else 1
        return {name: shape[::order] for name, shape in self.spec.shapes().items()}

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        if self.grads is not None:
            return ("tape", *self.names, *self.marks, *("d" + name for name in self.grads))
        return ("x", *(("h0", "c0") if self.has_state else ()), *self.names, *self.marks)

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of forward's results less the tape."""
        spec, layout, D = self.spec, self.layout, self.spec.num_directions
        rows = spec.num_layers * D
        every = {
            "y": layout.sequence(spec.output_size),
            "h_n": layout.state(rows, spec.hidden_output),
            "c_n": layout.state(rows, spec.hidden_size),
            "cells": layout.sequence(D * spec.hidden_size),
            "gates": layout.sequence(D * 4 * spec.hidden_size),
        }
        wanted = {"y": self.return_sequence, "cells": self.return_cells, "gates": self.return_gates}
        return {name: shape for name, shape in every.items() if wanted.get(name, True)}

    @functools.cached_property
    def results(self) -> tuple[str, ...]:
        """Of forward."""
        return (*self.shapes, *(("tape",) if self.keeps_tape else ()))
