"""What an operator is told beside tensors: one text, which torch's compiler takes for a constant."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass, replace

from ..cells import LSTMCellOptions
from ..weights import WeightSpec

__all__ = ["Call", "call_of", "layer_text"]


@dataclass(frozen=True)
class Call:
    """How a layer is called."""

    layer: str  # `layer_text`
    spec: WeightSpec
    cell: LSTMCellOptions  # one that drops nothing, if nothing is drawn
    dropout: float
    batch_first: bool
    repeat: bool  # a step that does not count repeats the output before it
    return_cells: bool
    return_gates: bool
    draws: bool  # random numbers, as in training
    keeps_tape: bool  # for a backward pass


def layer_text(spec: WeightSpec, cell: LSTMCellOptions) -> str:
    """The sizes and the cell of a layer; a call's text adds, divided by "|", dropout and the flags of `Call` in order.

    >>> layer = layer_text(WeightSpec(3, 5), LSTMCellOptions(weight_drop=0.5))
    >>> call = call_of(layer + "|0.1|True|False|False|True|True|True")
    >>> call.spec.hidden_size, call.cell.weight_drop, call.dropout, call.batch_first, call.repeat
    (5, 0.5, 0.1, True, False)
    """
    return json.dumps([asdict(spec), asdict(cell)])


@functools.lru_cache(maxsize=1024)
def call_of(text: str) -> Call:
    layer, dropout, *flags = text.split("|")
    batch_first, repeat, cells, gates, draws, tape = (flag == "True" for flag in flags)
    sizes, options = json.loads(layer)
    cell = LSTMCellOptions(**options)
    if not draws:
        cell = replace(cell, input_dropout=0.0, recurrent_dropout=0.0, weight_drop=0.0)
    used = float(dropout) if draws else 0.0
    return Call(layer, WeightSpec(**sizes), cell, used, batch_first, repeat, cells, gates, draws, tape)
