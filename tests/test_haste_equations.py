"""Layer normalisation and zoneout as haste publishes them (LayerNormLSTM), in torch's words, with autograd.

haste itself runs on GPUs only. Its equations: pre = LN(W x) gamma0 + LN(U h) gamma1 + b, then the cell, and
h' = o * tanh(LN(c) gamma_h + beta_h); zoneout keeps h in training by a mask, in inference by its expectation.
"""

from __future__ import annotations

import numpy as np
import pytest

from cases import Case, Problem, assert_close, problem_of, solve
from fastlstm import LSTMCellOptions, functional
from fastlstm.dropout import Draws
from fastlstm.weights import WeightSpec

torch = pytest.importorskip("torch")
F = pytest.importorskip("torch.nn.functional")


def haste(problem: Problem, keep_h: np.ndarray) -> dict[str, np.ndarray]:
    """What `solve` returns, for one layer in one direction. keep_h `[T,B,H]`."""
    p, H = problem, problem.spec.hidden_size
    w = {name.removesuffix("_l0"): torch.tensor(array, requires_grad=True) for name, array in p.weights.items()}
    x, h0, c0 = (torch.tensor(array, requires_grad=True) for array in (p.x, p.state[0], p.state[1]))
    h, c, ys, cs = h0[0], c0[0], [], []
    for t in range(len(p.x)):
        by_x = F.layer_norm(x[t] @ w["weight_ih"].T, (4 * H,)) * w["gamma_ih"]
        by_h = F.layer_norm(h @ w["weight_hh"].T, (4 * H,)) * w["gamma_hh"]
        i, f, g, o = (by_x + by_h + w["bias_ih"] + w["bias_hh"]).chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        new_h = torch.sigmoid(o) * torch.tanh(F.layer_norm(c, (H,)) * w["gamma_c"] + w["beta_c"])
        keep = torch.tensor(np.broadcast_to(keep_h[t], new_h.shape).copy())
        h = keep * h + (1 - keep) * new_h
        ys.append(h)
        cs.append(c)
    found = {"y": torch.stack(ys), "h_n": h[None], "c_n": c[None], "cells": torch.stack(cs)}
    torch.autograd.backward(list(found.values()), [torch.tensor(a) for a in (p.dy, *p.dstate, p.dcells)])
    found |= {"dx": x.grad, "dh0": h0.grad, "dc0": c0.grad} | {f"d{name}_l0": a.grad for name, a in w.items()}
    return {name: tensor.detach().numpy() for name, tensor in found.items()}


@pytest.mark.parametrize("zoneout_h", [0.0, 0.3], ids=["", "zoneout"])
@pytest.mark.parametrize("H", [4, 13, 40])
def test_training(isa: str, H: int, zoneout_h: float) -> None:
    cell = LSTMCellOptions(zoneout_h=zoneout_h)
    case = Case("", WeightSpec(7, H, layer_norm=True), 9, 5, cell=cell)
    problem = problem_of(case)
    seeds = problem.options.get("dropout_seed", 0), problem.options.get("dropout_call", 0)
    place = {"layer": 0, "direction": 0, "first_step": 0, "steps": case.steps, "batch": case.batch}
    keep = Draws.of(cell, True, *seeds, **place, sizes=(7, H, H), dtype=np.dtype("float64")).keep_h
    assert keep.any() == bool(zoneout_h)
    assert_close(solve(problem), haste(problem, keep), "float64", times=10)  # 1e-11: deviations may be small


def test_inference_takes_the_expectation_of_zoneout(isa: str) -> None:
    case = Case("", WeightSpec(7, 13, layer_norm=True), 9, 5, cell=LSTMCellOptions(zoneout_h=0.3))
    p = problem_of(case)
    y, (h_n, c_n), cells, _ = functional.lstm_forward(
        p.x, p.weights, p.state, return_cells=True, training=False, **p.options
    )
    expected = haste(p, np.full((case.steps, 1, 1), 0.3))
    found = {"y": y, "h_n": h_n, "c_n": c_n, "cells": cells}
    assert_close(found, {name: expected[name] for name in found}, "float64", times=10)
