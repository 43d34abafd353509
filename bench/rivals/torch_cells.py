"""A cell variant in torch as one writes it today: x . W for all steps at once, then a Python loop over the steps.

Where a variant draws random masks they are given, so that results can be compared: torch's time is without drawing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from cells import CellProblem, cell_problem
from rivals import Runner, named

Tensors = dict[str, torch.Tensor]
FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "softsign": F.softsign,
    "elu": F.elu,
    "hard_sigmoid": F.hardsigmoid,  # x / 6 + 1 / 2
}


class Loop:
    """One layer of a variant: `loop(x, h0, c0, weights)`; weights by torch's names without `_l0`."""

    def __init__(self, p: CellProblem, training: bool) -> None:
        self.cell, self.H = p.variant.cell, p.case.H
        self.activations = [FUNCTIONS[activation.name] for activation in self.cell.activations]
        self.gates = 3 if self.cell.coupled_input_forget else 4
        self.return_gates, self.training = p.variant.gates, training
        draws = p.draws(training)
        per_gate = self.cell.dropout_per_gate and training
        self.x_mask, self.h_mask = (self.mask(scales, per_gate) for scales in (draws.x_scales, draws.h_scales))
        self.per_gate = per_gate
        self.keep_h, self.keep_c = (torch.tensor(keep) > 0 for keep in (draws.keep_h, draws.keep_c))
        self.weight_mask = torch.tensor(p.weight_mask()) if training and self.cell.weight_drop else None

    @staticmethod
    def mask(scales: np.ndarray, per_gate: bool) -> torch.Tensor | None:
        """`[B,n]`, `[4,B,n]` with masks by gate, None where nothing is dropped."""
        return None if scales.size == 1 else torch.tensor(scales if per_gate else scales[0])

    def project(self, x: torch.Tensor, w: Tensors) -> torch.Tensor:
        """`[T,B,GH]`; with masks by gate `[T,4,B,H]`."""
        b = w["bias_ih"] + w["bias_hh"]
        if "weight_ih" not in w:
            return x + b
        if self.per_gate:
            by_gate = w["weight_ih"].view(4, self.H, -1).transpose(1, 2)  # [4,I,H]
            return (x[:, None] * self.x_mask) @ by_gate + b.view(4, 1, self.H)
        if "gamma_ih" in w:
            return F.layer_norm(F.linear(x, w["weight_ih"]), (4 * self.H,), w["gamma_ih"], b)
        return F.linear(x if self.x_mask is None else x * self.x_mask, w["weight_ih"], b)

    def __call__(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor, w: Tensors) -> tuple[torch.Tensor, ...]:
        gate, squash, output = self.activations
        u = w["weight_hh"] if self.weight_mask is None else w["weight_hh"] * self.weight_mask
        u = u.view(4, self.H, self.H).transpose(1, 2) if self.per_gate else u.t()
        p_i, p_f, p_o = w["weight_peephole"].chunk(3) if "weight_peephole" in w else (None, None, None)
        ys, all_gates = [], []
        for t, pre_x in enumerate(self.project(x, w).unbind(0)):
            before = h, c
            h = h if self.h_mask is None else h * self.h_mask
            if self.per_gate:
                parts = torch.baddbmm(pre_x, h, u).unbind(0)
            elif "gamma_hh" in w:
                parts = (pre_x + F.layer_norm(h @ u, (4 * self.H,), w["gamma_hh"])).chunk(4, 1)
            else:
                parts = torch.addmm(pre_x, h, u).chunk(self.gates, 1)
            (i, f), (g, o) = (parts[:2] if self.gates == 4 else (parts[0], None)), parts[-2:]
            i = gate(self.clip(i if p_i is None else i + p_i * c))
            f = 1 - i if f is None else gate(self.clip(f if p_f is None else f + p_f * c))
            g = squash(self.clip(g))
            c = f * c + i * g
            if self.cell.cell_clip is not None:
                c = c.clamp(-self.cell.cell_clip, self.cell.cell_clip)
            o = gate(self.clip(o if p_o is None else o + p_o * c))
            seen = F.layer_norm(c, (self.H,), w["gamma_c"], w["beta_c"]) if "gamma_c" in w else c
            h = o * output(seen)
            if self.cell.zoneout_h:
                h, c = self.zoneout(t, before, (h, c))
            ys.append(h)
            if self.return_gates:
                all_gates.append(torch.cat([i, f, g, o], 1))
        return torch.stack(ys), h, c, *([torch.stack(all_gates)] if all_gates else [])

    def clip(self, pre: torch.Tensor) -> torch.Tensor:
        limit = self.cell.gate_clip
        return pre if limit is None else pre.clamp(-limit, limit)

    def zoneout(self, t: int, before: Any, after: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if self.training:
            return tuple(map(torch.where, (self.keep_h[t], self.keep_c[t]), before, after))
        return tuple(map(torch.lerp, after, before, (self.cell.zoneout_h, self.cell.zoneout_c)))


def set_up(problem: Any, mode: str, threads: int) -> Runner:
    torch.set_num_threads(threads)
    p = cell_problem(problem)
    loop = Loop(p, mode == "training")
    used = np.r_[0 : p.case.H, 2 * p.case.H : 4 * p.case.H] if loop.gates == 3 else slice(None)  # of all gates' rows
    names = [name.removesuffix("_l0") for name in p.weights]
    weights = [torch.tensor(w[used] if len(w) == 4 * p.case.H else w) for w in p.weights.values()]
    x, h0, c0, dy = (torch.tensor(array) for array in (p.x, p.h0[0], p.c0[0], p.dy))
    d_results = [dy] + ([] if p.dgates is None else [torch.tensor(p.dgates)])
    inputs = [tensor.requires_grad_(mode == "training") for tensor in (x, h0, c0, *weights)]

    def infer() -> Any:
        with torch.inference_mode():
            return loop(x, h0, c0, dict(zip(names, weights, strict=True))), None

    def train() -> Any:
        results = loop(x, h0, c0, dict(zip(names, weights, strict=True)))
        return results, torch.autograd.grad([results[0], *results[3:]], inputs, d_results)

    def read(result: Any) -> dict[str, np.ndarray]:
        (y, h_n, c_n, *gates), gradients = result
        arrays = named(*(tensor.detach().numpy() for tensor in (y, h_n[None], c_n[None])))
        arrays |= {"gates": gates[0].detach().numpy()} if gates else {}
        if gradients is None:
            return arrays
        dx, dh0, dc0, *d_used = (gradient.numpy() for gradient in gradients)
        dw = {name: np.zeros_like(w) for name, w in p.weights.items()}
        for whole, d in zip(dw.values(), d_used, strict=True):
            whole[used if len(whole) == 4 * p.case.H else slice(None)] = d
        return arrays | named(None, None, None, dx, dh0[None], dc0[None], dw)

    return Runner(train if mode == "training" else infer, read)
