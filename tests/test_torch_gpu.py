"""`fastlstm.torch` on a GPU, emulated or real: its operators run the CUDA kernels, forward and backward."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cases import assert_close
from gpus import Gpu

torch = pytest.importorskip("torch")

from fastlstm.torch import LSTM, autograd, convert, operators, packs  # noqa: E402
from torch_cases import as_arrays  # noqa: E402

GPUS = ["emulated_torch", pytest.param("torch", marks=pytest.mark.gpu)]


def results_of(layer: LSTM, put: Any) -> dict[str, np.ndarray]:
    """Of inputs where `put` has them, by the function that layers call: parameters cannot be emulated tensors."""
    torch.manual_seed(1)
    numbers = [torch.randn(4, 3, layer.input_size), torch.randn(4, 3, 9), torch.randn(4, 3, 9)]
    x, *state = (put(a.numpy()).requires_grad_() for a in numbers)
    weights = [put(getattr(layer, name).detach().numpy()).requires_grad_() for name in layer._names]
    marks = [torch.tensor([4, 2, 0]), None, put(np.eye(4, 3) > 0), torch.tensor(7)]
    options = f"{layer._layer}|False|True|True|False|True"
    y, h, c, cells = autograd.lstm(x, state, weights, marks, options)
    loss = (y * y).sum() + h.sum() + (c * cells[-1, :, :9]).sum()
    named = {"x": x, "h0": state[0], "c0": state[1], **dict(zip(layer._names, weights, strict=True))}
    loss.as_subclass(torch.Tensor).backward()
    found = {"y": y, "h_n": h, "c_n": c, "cells": cells} | {f"d{name}": tensor.grad for name, tensor in named.items()}
    return as_arrays({name: tensor.as_subclass(torch.Tensor).cpu() for name, tensor in found.items()})


def emulated_again(tensor: torch.Tensor) -> Any:
    from emulated_torch import EmulatedTensor

    return tensor.as_subclass(EmulatedTensor) if tensor.is_floating_point() else packs.array_of(tensor)


@pytest.mark.parametrize("gpu", GPUS, indirect=True)
def test_numbers_are_the_cpus(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = LSTM(3, 9, 2, bidirectional=True, dropout=0.4, peepholes=True)
    expected = results_of(layer, torch.from_numpy)
    if gpu.name == "emulated_torch":  # whose tensors lose their class in a dispatch, and in autograd's own operations
        for module in (autograd, operators):
            monkeypatch.setattr(module, "is_plain", lambda *_: True)
        monkeypatch.setattr(operators, "array_of", emulated_again)
    assert_close(results_of(layer, gpu.put), expected, "float32", times=3)  # each of the two has its own roundings


@pytest.mark.gpu
def test_a_layer_moves_to_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    layer, x = LSTM(3, 9), torch.randn(4, 3, 3)
    expected = layer(x)[0]
    found = layer.cuda()(x.cuda())[0]
    torch.testing.assert_close(found.cpu(), expected)
    with torch.autocast("cuda", torch.bfloat16):
        assert layer(x.cuda())[0].dtype == torch.bfloat16
    model = torch.nn.LSTM(3, 9).cuda()
    assert list(convert(model).swapped) == [""]
