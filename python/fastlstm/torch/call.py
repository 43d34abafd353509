"""What an operator is told beside tensors: one text, which torch's compiler takes for a constant."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..cells import PLAIN, LSTMCellOptions
from ..weights import WeightSpec

__all__ = ["Call", "call_of", "layer_text"]


@dataclass(frozen=True)
class Call:
    """How a layer is called."""

    layer: str  # `layer_text`
    spec: WeightSpec
    cell: LSTMCellOptions  # that drops nothing, if nothing is drawn
    dropout: float
    batch_first: bool
    repeat: bool  # a step that does not count repeats the output before it
    return_cells: bool
    return_gates: bool
    draws: bool  # random numbers, as in training
    keeps_tape: bool  # for a backward pass

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Of the weights, in torch's order."""
        return tuple(self.spec.shapes())

    @property
    def is_training(self) -> bool:
        return self.draws or self.keeps_tape

    @functools.cached_property
    def native(self) -> tuple[bool | int, ...]:
        """Of these, the options that `forward_natively` takes; every step is kept."""
        return self.batch_first, self.repeat, True, self.return_cells, self.return_gates, self.is_training, 0

    @functools.cached_property
    def options(self) -> dict[str, Any]:
        """The same for `lstm_forward`."""
        return {
            "batch_first": self.batch_first,
            "dropout": self.dropout,
            "masked_output": "repeat" if self.repeat else "zero",
            "return_cells": self.return_cells,
            "return_gates": self.return_gates,
            "training": self.is_training,
        }


def layer_text(spec: WeightSpec, cell: LSTMCellOptions, dropout: float) -> str:
    """The sizes and options of a layer; a call's text adds the flags of `Call` in order, divided by "|".

    >>> layer = layer_text(WeightSpec(3, 5), LSTMCellOptions(weight_drop=0.5), 0.1)
    >>> call = call_of(layer + "|True|False|False|True|True|True")
    >>> call.spec.hidden_size, call.cell.weight_drop, call.dropout, call.batch_first, call.repeat
    (5, 0.5, 0.1, True, False)
    """
    options = {} if cell == PLAIN else asdict(cell)
    return json.dumps([list(asdict(spec).values()), options, dropout])


@functools.lru_cache(maxsize=1024)
def call_of(text: str) -> Call:
    layer, *flags = text.split("|")
    batch_first, repeat, cells, gates, draws, tape = (flag == "True" for flag in flags)
    sizes, options, dropout = json.loads(layer)
    cell = LSTMCellOptions(**options)
    if not draws:
        cell = replace(cell, input_dropout=0.0, recurrent_dropout=0.0, weight_drop=0.0)
    return Call(
        layer, WeightSpec(*sizes), cell, dropout if draws else 0.0, batch_first, repeat, cells, gates, draws, tape
    )
