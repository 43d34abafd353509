"""Random layers and inputs for `fastlstm.torch`, and what it and torch.nn.LSTM make of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from cases import assert_close, relative_error

Results = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Random:
    """One random configuration: a layer's arguments, and inputs for it."""

    arguments: dict[str, Any]
    dtype: torch.dtype
    x: torch.Tensor | PackedSequence
    state: tuple[torch.Tensor, torch.Tensor] | None

    def astype(self, dtype: torch.dtype) -> Random:
        state = self.state and (self.state[0].to(dtype), self.state[1].to(dtype))
        return replace(self, dtype=dtype, x=self.x.to(dtype), state=state)

    def layer(self, kind: Any) -> Any:
        torch.manual_seed(5)
        return kind(**self.arguments, dtype=self.dtype)


def random_case(number: int) -> Random:
    """Every argument of torch.nn.LSTM but dropout, which draws other numbers; inputs of every kind it takes."""
    rng = np.random.default_rng(number)
    pick = lambda *options: options[rng.integers(len(options))]  # noqa: E731
    hidden = int(rng.integers(1, 40))
    arguments = {
        "input_size": int(rng.integers(1, 30)),
        "hidden_size": hidden,
        "num_layers": pick(1, 1, 2, 3),
        "bias": pick(True, True, False),
        "batch_first": pick(False, True),
        "bidirectional": pick(False, True),
        "proj_size": int(rng.integers(1, hidden)) if hidden > 1 and rng.random() < 0.3 else 0,
    }
    dtype = pick(torch.float32, torch.float64)
    steps, batch, kind = int(rng.integers(1, 12)), int(rng.integers(1, 10)), pick("batched", "strided", "one", "packed")
    torch.manual_seed(number)
    shape: tuple[int, ...] = (batch, steps) if arguments["batch_first"] else (steps, batch)
    x: Any = torch.randn(*shape, arguments["input_size"], dtype=dtype)
    if kind == "strided":
        x = torch.randn(arguments["input_size"], *shape, 2, dtype=dtype)[..., 0].permute(1, 2, 0)
    elif kind == "one":
        x = torch.randn(steps, arguments["input_size"], dtype=dtype)
    elif kind == "packed":
        lengths = torch.from_numpy(rng.integers(1, steps + 1, batch))
        is_sorted = bool(rng.integers(2))
        lengths = lengths.sort(descending=True)[0] if is_sorted else lengths
        x = pack_padded_sequence(x, lengths, arguments["batch_first"], enforce_sorted=is_sorted)
    rows = arguments["num_layers"] * (1 + arguments["bidirectional"])
    sizes = [(rows, *([] if kind == "one" else [batch]), n) for n in (arguments["proj_size"] or hidden, hidden)]
    state = tuple(torch.randn(*size, dtype=dtype) for size in sizes) if rng.random() < 0.5 else None
    return Random(arguments, dtype, x, state)  # type: ignore[arg-type]


def results_of(layer: torch.nn.Module, case: Random, wanted: tuple[bool, bool, bool] = (True, True, True)) -> Results:
    """y, h_n, c_n, and gradients of a loss through all of them: of x, the state and the weights where wanted."""
    packed = isinstance(case.x, PackedSequence)
    x = (case.x.data if packed else case.x).detach().clone(memory_format=torch.preserve_format)
    x.requires_grad_(wanted[0])
    state = None if case.state is None else tuple(a.clone().requires_grad_(wanted[1]) for a in case.state)
    layer.requires_grad_(wanted[2])
    y, (h_n, c_n) = layer(case.x._replace(data=x) if packed else x, state)
    found = {"y": y.data if packed else y, "h_n": h_n, "c_n": c_n}
    inputs = {"dx": x} if wanted[0] else {}
    inputs |= dict(zip(("dh0", "dc0"), state, strict=True)) if wanted[1] and state else {}
    inputs |= {"d" + name: weight for name, weight in layer.named_parameters()} if wanted[2] else {}
    torch.manual_seed(7)
    loss = sum((a * torch.randn(a.shape, dtype=torch.float64).to(a.dtype)).sum() for a in found.values())
    return found | (dict(zip(inputs, torch.autograd.grad(loss, inputs.values()), strict=True)) if inputs else {})


def second_gradients_of(layer: torch.nn.Module, case: Random) -> Results:
    """The gradients of a loss that is made of `results_of`'s gradients, of x, the state and the weights."""
    packed = isinstance(case.x, PackedSequence)
    x = (case.x.data if packed else case.x).detach().clone().requires_grad_()
    state = None if case.state is None else tuple(a.clone().requires_grad_() for a in case.state)
    y, (h_n, c_n) = layer(case.x._replace(data=x) if packed else x, state)
    outputs = [y.data if packed else y, h_n, c_n]
    names, weights = zip(*layer.named_parameters(), strict=True)
    inputs = dict(zip(("x", "h0", "c0"), (x, *(state or ())), strict=False)) | dict(zip(names, weights, strict=True))
    torch.manual_seed(7)
    first = sum((a * torch.randn(a.shape, dtype=a.dtype) + a**2).sum() for a in outputs)
    grads = torch.autograd.grad(first, list(inputs.values()), create_graph=True)
    second = sum((grad * torch.randn(grad.shape, dtype=grad.dtype)).sum() for grad in grads)
    return {
        f"d{name}": grad for name, grad in zip(inputs, torch.autograd.grad(second, list(inputs.values())), strict=True)
    }


def as_arrays(results: Results) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in results.items()}


def assert_as_exact(found: dict[str, np.ndarray], theirs: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> None:
    """Within the tolerance of the dtype, torch's own error allowing more where numbers cancel.

    The largest of few errors is a matter of luck, hence 3 times.
    """
    least = {name: 3 * relative_error(theirs[name], array) for name, array in truth.items()}
    assert_close(found, truth, next(iter(found.values())).dtype.name, least=least)
