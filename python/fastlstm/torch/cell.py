"""`LSTMCell`: torch.nn.LSTMCell's interface."""

from __future__ import annotations

from typing import Any

import torch

from ..weights import WeightSpec
from .module import PLAINLY, RunsLSTM, State, pair_of

__all__ = ["LSTMCell"]


class LSTMCell(RunsLSTM, torch.nn.LSTMCell):
    """`torch.nn.LSTMCell` on fastlstm's kernels: the same arguments, names and shapes of weights, results, gradients.

    A loop over cells pays for every step what a call costs; `LSTM` takes all steps at once, with resets between them.

    >>> cell = LSTMCell(8, 32)
    >>> h, c = cell(torch.ones(4, 8))
    >>> h.shape, c.shape
    (torch.Size([4, 32]), torch.Size([4, 32]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        fallback: bool = False,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self.fallback = fallback
        self._describe()

    def forward(self, input: torch.Tensor, hx: State | None = None) -> State:
        """h and c after the step: input `[B,I]` or `[I]`, hx a pair of `[B,H]` or `[H]`, zeros if None."""
        if self.fallback and self._falls_back(input):
            h, c = super().forward(input, hx)
            return h, c
        size = self.input_size
        if input.dim() not in (1, 2) or input.shape[-1] != size:
            raise ValueError(f"input has shape {tuple(input.shape)}: expected (B, {size}), or ({size},) unbatched")
        state = [tensor.unsqueeze(0) for tensor in pair_of(hx)]
        _, h, c = self._run(input.unsqueeze(0), state, [], False, PLAINLY)
        return h.squeeze(0), c.squeeze(0)

    def _spec(self) -> WeightSpec:
        return WeightSpec(self.input_size, self.hidden_size, bias=self.bias)

    def _describe(self) -> None:
        super()._describe()
        self._names = tuple(name.removesuffix("_l0") for name in self._spec().shapes())
