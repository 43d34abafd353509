"""What `LSTM` and `LSTMCell` share: how a module calls the operators, and that its pack of weights never grows old."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

from .. import cuda
from ..cells import PLAIN, LSTMCellOptions, check_cell_options, check_probability
from ..weights import WeightSpec
from . import equations, packs
from .autograd import is_differentiated, lstm
from .call import call_of, layer_text

__all__ = ["PLAINLY", "RunsLSTM", "State", "pair_of", "why_not"]

PLAINLY = "False|False|False"  # a call that repeats no output, and returns no cells or gates

State = tuple[torch.Tensor, torch.Tensor]

_SIZES = frozenset(field.name for field in fields(WeightSpec))


class RunsLSTM(torch.nn.Module):
    """Comes before torch's class among the bases. `_describe` makes a module of torch's one of ours, see `convert`."""

    peepholes: bool = False
    layer_norm: bool = False
    cell: LSTMCellOptions = PLAIN
    fallback: bool = False  # to torch's own, where the kernels cannot run

    _names: tuple[str, ...]  # of the weights, in torch's order
    _layer: str  # `layer_text`; a dropout beside it would be a variable to compilers
    _draws: bool  # random numbers in training
    _zones: bool  # some units keep their states, by chance in training, by expectation in eval mode

    def _spec(self) -> WeightSpec:
        raise NotImplementedError

    def _describe(self) -> None:
        """Write down for the operators what the layer is."""
        dropout = check_probability("dropout", getattr(self, "dropout", 0.0))
        spec = self._spec()
        self._layer = layer_text(spec, check_cell_options(self.cell), dropout)
        self._draws = self.cell.draws or (dropout > 0 and spec.num_layers > 1)
        self._zones = self.cell.zoneout_h > 0 or self.cell.zoneout_c > 0

    def __setattr__(self, name: str, value: Any) -> None:
        """dropout and cell may be set at any time; what the weights' shapes follow from may not."""
        described = "_layer" in self.__dict__
        if described and name in _SIZES and value != (own := getattr(self, name, value)):
            raise AttributeError(f"{name} is {own}, as the weights are: expected a new layer for {name}={value}")
        if described and name == "dropout":
            check_probability(name, value)
        if described and name == "cell":
            check_cell_options(value)
        super().__setattr__(name, value)
        if described and name in ("dropout", "cell"):
            self._describe()

    def _falls_back(self, input: Any) -> bool:
        x = input.data if isinstance(input, PackedSequence) else input
        return why_not(x.device, torch.float32 if _is_cast(x) else x.dtype) != ""

    def _run(self, x: torch.Tensor, state: list[Any], marks: list[Any], batch_first: bool, more: str) -> Any:
        """y, h_n, c_n, then what more asks for; marks: lengths, mask, reset, or empty for none of them."""
        own = self._parameters
        weights: list[Any] = [own[name] if name in own else getattr(self, name) for name in self._names]
        draws = self.training and self._draws
        if marks or draws:
            seed = torch.randint(2**63 - 1, (), dtype=torch.int64) if draws else None
            marks = [*(marks or (None, None, None)), seed]
        options = f"{self._layer}|{batch_first}|{more}|{draws}"
        if not _is_cast(x):
            return self._compute(x, state, weights, marks, options)
        x, *given = (_cast(tensor, torch.float32) for tensor in (x, *state, *weights))
        results = self._compute(x, given[: len(state)], given[len(state) :], marks, options)
        return [_cast(result, torch.get_autocast_dtype(x.device.type)) for result in results]

    def _compute(self, x: torch.Tensor, state: Any, weights: Any, marks: list[Any], options: str) -> Any:
        weight = weights[0]
        if state or x.dtype is not weight.dtype or x.device != weight.device:
            _check(x, state, weight)
        if self._zones and not self.training and is_differentiated(x, state, weights):
            # The kernels' backward pass is that of units drawn by chance.
            with torch.autocast(x.device.type, enabled=False):
                return equations.forward(x, state, weights, marks, call_of(options + "|False"))
        return lstm(x, state, weights, marks, options)

    def repack(self) -> None:
        """Have the next inference call read the weights anew.

        It does that by itself wherever a weight has moved, torch has counted a write, or one of 64 values sampled from
        each has changed: after any optimizer's step, `load_state_dict`, `.to` or `train`. This is for a write of few
        values past torch's count, as `lstm.weight_hh_l0.data[3, 5] = 0`.
        """
        packs.drop(self._parameters.get(self._names[0]))

    def train(self, mode: bool = True) -> Any:
        self.repack()
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.repack()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.repack()
        super()._load_from_state_dict(*args, **kwargs)


def why_not(device: torch.device, dtype: torch.dtype) -> str:
    """Why the kernels cannot run there and so, "" if they can."""
    if device.type == "cuda":
        return cuda.reason()
    if device.type not in ("cpu", "meta"):
        return f"it is on the device {device.type}"
    if dtype not in (torch.float32, torch.float64):
        return f"its weights are {str(dtype).removeprefix('torch.')}"
    return ""


def pair_of(hx: Any) -> list[torch.Tensor]:
    """Initial h and c; none for None."""
    if hx is None:
        return []
    if isinstance(hx, tuple | list):
        if len(hx) == 2 and isinstance(hx[0], torch.Tensor) and isinstance(hx[1], torch.Tensor):
            return list(hx)
        got = f"({', '.join(type(one).__name__ for one in hx)})"
    else:
        got = type(hx).__name__
    raise TypeError(f"hx is {got}: expected a pair of tensors, h0 and c0")


def _check(x: torch.Tensor, state: Any, weight: torch.Tensor) -> None:
    """Where tensors are, and their types, in torch's words."""
    device, dtype = weight.device, weight.dtype
    for name, tensor in zip(("input", "h0", "c0"), (x, *state), strict=False):
        if tensor.device != device:
            raise RuntimeError(f"{name} is on {tensor.device}, but the weights are on {device}: expected one device")
        if tensor.dtype != dtype:
            raise TypeError(f"{name} is {tensor.dtype}, but the weights are {dtype}: expected {name}.to({dtype})")


def _is_cast(x: torch.Tensor) -> bool:
    """To float32, as autocast is on."""
    device = "cpu" if x.is_cpu else x.device.type  # whose name takes a third of a microsecond
    return device != "meta" and torch.is_autocast_enabled(device) and x.dtype != torch.float64


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float64 stays what it is, as under torch's autocast."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)
