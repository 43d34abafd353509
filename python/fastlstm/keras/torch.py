"""The backend torch, by the operators of `fastlstm.torch`: on a GPU, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..torch.autograd import lstm
from ..torch.call import layer_text
from .call import Call

__all__ = ["LEADING_ZEROS", "run"]

LEADING_ZEROS = True  # the output of a masked step before the first


def run(layer: Any, call: Call, x: Any, state: Any, weights: Sequence[Any], mask: Any, seed: Any) -> Any:
    text = f"{layer_text(call.spec, call.cell, 0.0)}|True|{call.repeat}|False|False|{call.draws}"
    if layer.stateful:  # the layer writes to its state before a backward pass reads it
        state = [tensor.clone() for tensor in state]
    marks = [] if mask is None and seed is None else [None, mask, None, None if seed is None else _number(seed)]
    y, h_n, c_n = lstm(x, [tensor[None] for tensor in state], call.weights(*weights), marks, text)
    return (*([y] if call.sequence else []), h_n[0], c_n[0])


def _number(seed: torch.Tensor) -> torch.Tensor:
    """63 bits in one."""
    low, high = seed.to("cpu", torch.int64)
    return low + ((high & 0x7FFFFFFF) << 32)
