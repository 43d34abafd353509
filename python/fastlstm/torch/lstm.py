"""`LSTM`: torch.nn.LSTM's interface, and keywords for what that has not."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

from ..cells import PLAIN, LSTMCellOptions
from ..functional import check_call
from ..layouts import check_cell
from ..weights import WeightSpec
from .module import PLAINLY, RunsLSTM, State, pair_of

__all__ = ["LSTM"]


class LSTM(RunsLSTM, torch.nn.RNNBase):
    """`torch.nn.LSTM` on fastlstm's kernels: the same arguments, names and shapes of weights, results and gradients.

    Checkpoints load both ways. It is no subclass of `torch.nn.LSTM`, at which torch's compiler stops; it has its base.
    float32 and float64; under autocast it computes in float32 and returns the dtype of autocast.

    peepholes, layer_norm, cell: other cells, see `fastlstm.LSTMCellOptions`; forget_bias: what b_ih of the forget gate
    begins with, b_hh being 0 there. What a cell or dropout draws, it draws in training only, from torch's generator.
    fallback: whether torch's own LSTM runs where fastlstm's kernels cannot, as on a GPU without them or in bfloat16 on
    the CPU, instead of an error that says why.

    >>> lstm = LSTM(8, 32, num_layers=2)
    >>> y, (h_n, c_n) = lstm(torch.ones(10, 4, 8), lengths=[10, 7, 1, 0])
    >>> y.shape, h_n.shape
    (torch.Size([10, 4, 32]), torch.Size([2, 4, 32]))
    """

    forget_bias: float | None = None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        peepholes: bool = False,
        layer_norm: bool = False,
        cell: LSTMCellOptions = PLAIN,
        forget_bias: float | None = None,
        fallback: bool = False,
    ) -> None:
        sizes = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size)
        super().__init__("LSTM", *sizes, device, dtype)
        if forget_bias is not None and not bias:
            raise ValueError(f"forget_bias is {forget_bias}, but bias is False: expected forget_bias=None")
        self.peepholes, self.layer_norm, self.cell, self.forget_bias = peepholes, layer_norm, cell, forget_bias
        self.fallback = fallback
        self._describe()
        check_cell(self._spec(), cell)
        for name, shape in self._spec().shapes().items():
            if name not in self._parameters:
                self.register_parameter(name, torch.nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self._fill()

    def forward(
        self,
        input: torch.Tensor | PackedSequence,
        hx: State | None = None,
        *,
        lengths: Any = None,
        mask: Any = None,
        reset: Any = None,
        masked_output: str = "zero",
        return_cells: bool = False,
        return_gates: bool = False,
    ) -> tuple[Any, ...]:
        """output, (h_n, c_n), then cells and gates if asked for, as torch.nn.LSTM and `fastlstm.lstm_forward` say.

        lengths `[B]`, mask and reset (laid out as input, without its features): which steps count, and before which a
        state is zeroed. In lengths a 0 is allowed. return_cells: c of every step of the last layer. return_gates: its
        gates i f g o after their activations.
        """
        if self.fallback and self._falls_back(input):
            return self._torchs(
                input, hx, lengths, mask, reset, masked_output != "zero" or return_cells or return_gates
            )
        state, more = pair_of(hx), PLAINLY
        if masked_output != "zero" or return_cells or return_gates:
            check_call(masked_output, return_cells=return_cells, return_gates=return_gates)
            more = f"{masked_output == 'repeat'}|{return_cells}|{return_gates}"
        marks = [] if lengths is mask is reset is None else [lengths, mask, reset]
        if isinstance(input, PackedSequence):
            return self._packed(input, state, marks, more)
        marks = [None if mark is None else torch.as_tensor(mark) for mark in marks]
        y, h_n, c_n, *others = self._run(input, state, marks, self.batch_first, more)
        return y, (h_n, c_n), *others

    # What torch.nn.LSTM's own forward calls.
    get_expected_cell_size = torch.nn.LSTM.get_expected_cell_size
    check_forward_args = torch.nn.LSTM.check_forward_args
    permute_hidden = torch.nn.LSTM.permute_hidden

    def _torchs(self, input: Any, hx: State | None, *more: Any) -> tuple[Any, ...]:
        plain = self.cell == PLAIN and not (self.peepholes or self.layer_norm)
        if not plain or any(given is not None and given is not False for given in more):
            raise RuntimeError(
                "fallback is to torch's own LSTM, which has neither marks nor more results nor other cells"
            )
        results: tuple[Any, ...] = torch.nn.LSTM.forward(self, input, hx)
        return results

    def _packed(self, input: PackedSequence, state: list[torch.Tensor], marks: list[Any], more: str) -> tuple[Any, ...]:
        """Rows in the order of their lengths, as they lie in a packed sequence."""
        for name, mark in zip(("lengths", "mask", "reset"), marks, strict=False):
            if mark is not None:
                raise ValueError(f"{name} is given, but input is a PackedSequence: expected None")
        data, sizes, order, inverse = input
        T, B = len(sizes), int(sizes[0])
        counts = torch.arange(B) < sizes[:, None]
        index = counts.reshape(-1).nonzero()[:, 0].to(data.device)
        x = data.new_zeros(T * B, data.shape[-1]).index_copy(0, index, data).reshape(T, B, -1)
        if order is not None:
            state = [tensor.index_select(1, order) for tensor in state]
        padded, h_n, c_n, *others = self._run(x, state, [counts.sum(0), None, None], False, more)
        if inverse is not None:
            h_n, c_n = h_n.index_select(1, inverse), c_n.index_select(1, inverse)
        y, *others = (
            PackedSequence(sequence.flatten(0, 1).index_select(0, index), sizes, order, inverse)
            for sequence in (padded, *others)
        )
        return y, (h_n, c_n), *others

    def _spec(self) -> WeightSpec:
        sizes = (self.input_size, self.hidden_size, self.num_layers, self.bias, self.bidirectional, self.proj_size)
        return WeightSpec(*sizes, self.peepholes, self.layer_norm)

    def _describe(self) -> None:
        super()._describe()
        self._names = tuple(self._spec().shapes())

    def reset_parameters(self) -> None:
        """As torch.nn.LSTM: with the same numbers from the same generator."""
        super().reset_parameters()
        if "_layer" in self.__dict__:
            self._fill()

    @torch.no_grad()
    def _fill(self) -> None:
        """What torch's has not: its own parameters, and forget_bias."""
        bound = self.hidden_size**-0.5
        for name, weight in self.named_parameters():
            if "peephole" in name:
                weight.uniform_(-bound, bound)
            elif "gamma" in name or "beta" in name:
                weight.fill_(float("gamma" in name))
            elif self.forget_bias is not None and "bias" in name:
                weight[self.hidden_size : 2 * self.hidden_size] = self.forget_bias if "bias_ih" in name else 0.0

    def flatten_parameters(self) -> None:
        """Nothing: there is no order in which the weights would have to lie."""

    def extra_repr(self) -> str:
        options = {"peepholes": False, "layer_norm": False, "cell": PLAIN, "forget_bias": None}
        own = {name: getattr(self, name) for name, default in options.items() if getattr(self, name) != default}
        torchs: str = super().extra_repr()
        return torchs + "".join(f", {name}={value}" for name, value in own.items())
