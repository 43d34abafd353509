"""`convert`: a whole model's LSTMs become fastlstm's, where they are, and become torch's again if wanted."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .cell import LSTMCell
from .lstm import LSTM
from .module import RunsLSTM, why_not

__all__ = ["Conversion", "convert"]

_OURS: dict[type, type[RunsLSTM]] = {torch.nn.LSTM: LSTM, torch.nn.LSTMCell: LSTMCell}
_BASES = (torch.nn.RNNBase, torch.nn.RNNCellBase)


@dataclass
class Conversion:
    """What `convert` did: the names of modules that were swapped, and of those left, with the reason."""

    swapped: dict[str, torch.nn.Module] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def undo(self) -> None:
        """Make the swapped modules torch's again; their weights stay as they are now."""
        theirs = {ours: torchs for torchs, ours in _OURS.items()}
        for module in self.swapped.values():
            if (kind := theirs.get(type(module))) is not None:
                for name in ("_names", "_layer", "_draws", "_zones", "fallback"):
                    del module.__dict__[name]
                module.__class__ = kind

    def __str__(self) -> str:
        lines = [f"{name or '(the model)'}: swapped" for name in self.swapped]
        lines += [f"{name or '(the model)'}: left, {reason}" for name, reason in self.left.items()]
        return "\n".join(lines) or "there is no LSTM"


def convert(model: torch.nn.Module, *, fallback: bool = False) -> Conversion:
    """Make every torch.nn.LSTM and LSTMCell of a model fastlstm's, in place; print the result to see what was done.

    A module stays the same object with the same parameters, hooks and name, so that optimizers and checkpoints hold on
    to it: only its class changes. Left are other recurrent layers, subclasses, whose code may count on torch's class,
    and what the kernels cannot do. fallback: those that are swapped run as torch's wherever they may be moved to that
    the kernels cannot run, instead of raising an error.

    >>> model = torch.nn.ModuleDict({"encoder": torch.nn.LSTM(3, 5), "decoder": torch.nn.GRU(5, 3)})
    >>> print(convert(model))
    encoder: swapped
    decoder: left, a torch.nn.GRU is no LSTM
    """
    done = Conversion()
    for name, module in model.named_modules():
        if isinstance(module, RunsLSTM) or not (isinstance(module, _BASES) or _is_torchs_other(module)):
            continue
        if reason := _why_not(module):
            done.left[name] = reason
            continue
        module.__class__ = _OURS[type(module)]
        module.fallback = fallback
        module._describe()
        done.swapped[name] = module
    return done


def _is_torchs_other(module: torch.nn.Module) -> bool:
    """An LSTM of torch's with other bases, as quantized and scripted ones are."""
    name = getattr(module, "original_name", type(module).__name__)
    return type(module).__module__.startswith("torch.") and name in {kind.__name__ for kind in _OURS}


def _why_not(module: torch.nn.Module) -> str:
    kind = type(module)
    if kind not in _OURS:
        base = next((base for base in _OURS if isinstance(module, base)), None)
        if base is not None:
            return f"a {kind.__qualname__} is a subclass of torch.nn.{base.__name__}"
        if not isinstance(module, _BASES):
            return f"a {kind.__module__}.{kind.__name__} is no torch.nn.LSTM"
        return f"a torch.nn.{kind.__name__} is no LSTM" if kind.__module__.startswith("torch.") else "it is no LSTM"
    weight = next(module.parameters(), None)
    if weight is None:
        return "it has no parameters"
    return why_not(weight.device, weight.dtype)
