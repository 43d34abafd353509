"""torch.nn.LSTM as its users call it: inference_mode, or forward and autograd for all gradients.

packed: rows of several lengths as a PackedSequence. loop: one step a call, where resets force it. compiled: through
torch.compile. device: "cuda" for cuDNN's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from cases import Problem
from rivals import Missing, Runner, named

State = tuple[torch.Tensor, torch.Tensor]
Call = Callable[[torch.Tensor, State], tuple[torch.Tensor, State]]


def set_up(
    problem: Problem,
    mode: str,
    threads: int,
    packed: bool = False,
    loop: bool = False,
    compiled: bool = False,
    device: str = "cpu",
) -> Runner:
    torch.set_num_threads(threads)
    case = problem.case
    needed = {"": "", "lengths": "packed", "reset": "loop", "mask": "mask"}[case.varying]
    if needed and not {"packed": packed, "loop": loop}.get(needed):
        raise Missing(f"nn.LSTM itself has no {case.varying}")
    kind = {"dtype": getattr(torch, case.dtype), "device": device}
    lstm = torch.nn.LSTM(case.I, case.H, case.layers, bidirectional=case.bidirectional, **kind)
    lstm.train(mode == "training")
    lstm.load_state_dict({name: torch.tensor(array) for name, array in problem.weights.items()})
    call: Call = torch.compile(lstm) if compiled else lstm
    if packed:
        call = with_lengths(lstm, torch.tensor(problem.options["lengths"]))
    if loop:
        call = with_resets(lstm, torch.tensor(problem.options["reset"]))
    x, h0, c0, dy = (torch.tensor(array).to(**kind) for array in (problem.x, problem.h0, problem.c0, problem.dy))
    if mode == "training":
        return training(call, dict(lstm.named_parameters()), x, (h0, c0), dy)
    carried = [(h0, c0)]

    def infer() -> Any:
        with torch.inference_mode():
            return call(x, (h0, c0))

    def step() -> Any:
        with torch.inference_mode():
            y, carried[0] = call(x, carried[0])
            return y, carried[0]

    return Runner(step if mode == "step" else infer, read)


def training(call: Call, weights: dict[str, Any], x: torch.Tensor, state: State, dy: torch.Tensor) -> Runner:
    inputs = [tensor.requires_grad_() for tensor in (x, *state)] + list(weights.values())

    def train() -> Any:
        results = call(x, state)
        return results, torch.autograd.grad(results[0], inputs, dy)

    def read_training(result: Any) -> dict[str, np.ndarray]:
        results, gradients = result
        dx, dh0, dc0, *dw = map(as_numpy, gradients)
        return read(results) | named(None, None, None, dx, dh0, dc0, dict(zip(weights, dw, strict=True)))

    return Runner(train, read_training)


def read(result: Any) -> dict[str, np.ndarray]:
    y, (h_n, c_n) = result
    return named(*map(as_numpy, (y, h_n, c_n)))


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """NumPy has no bfloat16: float32 for it, which holds each of its numbers."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def with_lengths(lstm: torch.nn.LSTM, lengths: torch.Tensor) -> Call:
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    def call(x: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        results, state = lstm(pack_padded_sequence(x, lengths, enforce_sorted=False), state)
        return pad_packed_sequence(results, total_length=len(x))[0], state

    return call


def with_resets(lstm: torch.nn.LSTM, reset: torch.Tensor) -> Call:
    """What libraries of reinforcement learning do: a call for each step, with the state of new episodes set to zero."""
    keep = (~reset).to(lstm.weight_hh_l0.dtype)[:, None, :, None]  # [T,1,B,1]

    def call(x: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        ys = []
        for step, kept in zip(x.split(1), keep, strict=True):
            y, state = lstm(step, (kept * state[0], kept * state[1]))
            ys.append(y)
        return torch.cat(ys), state

    return call
