"""The LSTM of `fastlstm.reference` once more, in operations that torch can differentiate: for second derivatives.

Slow, a step at a time. Letters: T steps, B batch, I input, H hidden, P projection, D directions, L layers; Hout = P if
there is a projection, else H. Gates stand in the order i f g o in every 4H axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from ..cells import NORM_EPSILON, Activation
from ..dropout import Draws, drop, dropout_mask
from ..weights import weight_suffix
from .call import Call, call_of

__all__ = ["first_order", "forward", "second_order"]

Tensors = list[torch.Tensor]


def first_order(
    text: str, states: int, weights: int, inputs: Tensors, needs: Any, grads: tuple[torch.Tensor | None, ...]
) -> list[torch.Tensor | None]:
    """What `fastlstm::lstm_backward` computes of those inputs (x, states, weights, marks) that need a gradient."""
    wanted = [place for place, need in enumerate(needs) if need]
    end = 1 + states + weights
    with torch.enable_grad():
        results = forward(inputs[0], inputs[1 : 1 + states], inputs[1 + states : end], inputs[end:], call_of(text))
    pairs = [(result, grad) for result, grad in zip(results, grads, strict=True) if grad is not None]
    outputs, given = zip(*pairs, strict=True)
    graph = {"create_graph": torch.is_grad_enabled(), "allow_unused": True}
    found = torch.autograd.grad(outputs, [inputs[place] for place in wanted], given, **graph)
    dense = dict(zip(wanted, found, strict=True))
    return [dense.get(place) for place in range(len(inputs))]


def second_order(
    text: str,
    states: int,
    weights: int,
    wants: tuple[bool, bool],
    outputs: int,
    saved: tuple[Any, ...],
    grads: tuple[torch.Tensor | None, ...],
) -> list[torch.Tensor | None]:
    """The gradients of `fastlstm::lstm_backward`'s tensors, `saved`, from those of its results."""
    given, (x, *others) = saved[:outputs], saved[outputs:]
    end = states + weights
    state, arrays, marks = others[:states], others[states:end], others[end:]
    places = [place for place, d in enumerate(given) if d is not None]

    def results(x: torch.Tensor, state: Tensors, arrays: Tensors) -> Tensors:
        found = forward(x, state, arrays, marks, call_of(text))
        return [found[place] for place in places]

    def backward(dy: Tensors, x: torch.Tensor, state: Tensors, arrays: Tensors) -> Tensors:
        _, pull = torch.func.vjp(results, x, state, arrays)
        dx, dstate, darrays = pull(dy)
        return [*([dx] if wants[0] else []), *dstate, *(darrays if wants[1] else [])]

    found, pull = torch.func.vjp(backward, [given[place] for place in places], x, state, arrays)
    dy, dx, dstate, darrays = pull([torch.zeros_like(f) if d is None else d for f, d in zip(found, grads, strict=True)])
    dense = dict(zip(places, dy, strict=True))
    return [*map(dense.get, range(outputs)), dx, *dstate, *darrays, *(None for _ in marks)]


class _Steps(NamedTuple):
    counts: torch.Tensor  # [T,B,1] bool
    cut: torch.Tensor  # [T,B,1] bool
    reverse: bool


def forward(x: torch.Tensor, state: Tensors, weights: Tensors, marks: list[Any], call: Call) -> Tensors:
    """The results of `fastlstm::lstm_forward` less the tape."""
    spec, D, unbatched = call.spec, call.spec.num_directions, x.dim() == 2
    swaps = call.batch_first and not unbatched

    def enter(a: torch.Tensor) -> torch.Tensor:
        return a.unsqueeze(1) if unbatched else a.transpose(0, 1) if swaps else a

    def leave(a: torch.Tensor) -> torch.Tensor:
        return a.squeeze(1) if unbatched else a.transpose(0, 1) if swaps else a

    named = dict(zip(spec.shapes(), weights, strict=True))
    lengths, mask, reset, seed = marks or (None,) * 4
    output = enter(x)
    both = _steps(output, lengths, *(None if a is None else enter(a[..., None]) for a in (mask, reset)))[:D]
    counts, place = both[0].counts, _Place(0 if seed is None else int(seed), output, call)
    states = [a.unsqueeze(1) if unbatched else a for a in state]
    ends: list[tuple[torch.Tensor, torch.Tensor]] = []
    for layer in range(spec.num_layers):
        if layer and call.dropout:
            output = output * place.kept("between layers", call.dropout, layer - 1, D, spec.hidden_output)
        inside = torch.where(counts, output, 0)
        parts: list[Tensors] = []
        for direction, steps in enumerate(both):
            suffix, row = weight_suffix(layer, direction), layer * D + direction
            w = {name.removesuffix(suffix): array for name, array in named.items() if name.endswith(suffix)}
            own = inside if "weight_ih" in w else inside.chunk(D, -1)[direction]
            sizes = spec.hidden_output, spec.hidden_size
            first = [a[row] for a in states] or [own.new_zeros(own.shape[1], size) for size in sizes]
            if call.cell.weight_drop:
                scale = place.kept("weight_drop", call.cell.weight_drop, layer, direction + 1, sizes[0], 4 * sizes[1])
                w["weight_hh"] = w["weight_hh"] * scale[:, 0, direction * sizes[0] :]
            *sequences, end = _direction(own, w, first, steps, call, place.draws(layer, direction, own.shape[-1]))
            parts.append(sequences)
            ends.append(end)
        output, cells, gates = (torch.cat(both_parts, -1) for both_parts in zip(*parts, strict=True))
    y = output if call.repeat else torch.where(counts, output, 0)
    more = ([cells] if call.return_cells else []) + ([torch.where(counts, gates, 0)] if call.return_gates else [])
    last = [torch.stack(rows) for rows in zip(*ends, strict=True)]
    return [leave(y), *(a.squeeze(1) if unbatched else a for a in last), *map(leave, more)]


class _Place(NamedTuple):
    """What all random numbers of a call share."""

    seed: int
    x: torch.Tensor  # [T,B,I]
    call: Call

    @property
    def _dtype(self) -> Any:
        return np.dtype(str(self.x.dtype).removeprefix("torch."))

    def kept(
        self, kind: str, p: float, layer: int, directions: int, units: int, rows: int | None = None
    ) -> torch.Tensor:
        """What dropout multiplies by, [T,B,directions*units]; of a weight's rows, [rows,1,directions*units]."""
        steps, batch = self.x.shape[:2] if rows is None else (rows, 1)
        size = {"steps": steps, "batch": batch, "num_directions": directions, "units": units}
        mask = dropout_mask(p, self.seed, 0, layer=layer, kind=kind, **size)
        return _tensor(drop(np.ones(mask.shape, self._dtype), mask, p), self.x)

    def draws(self, layer: int, direction: int, inputs: int) -> Tensors:
        spec, (T, B) = self.call.spec, self.x.shape[:2]
        of = {"layer": layer, "direction": direction, "first_step": 0, "steps": T, "batch": B}
        sizes = inputs, spec.hidden_output, spec.hidden_size
        draws = Draws.of(self.call.cell, self.call.draws, self.seed, 0, **of, sizes=sizes, dtype=self._dtype)
        return [_tensor(draw, self.x) for draw in draws]


def _tensor(array: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(array).to(like.device)


def _steps(
    x: torch.Tensor,  # [T,B,I]
    lengths: torch.Tensor | None,  # [B]
    mask: torch.Tensor | None,  # [T,B,1]
    reset: torch.Tensor | None,  # [T,B,1]
) -> list[_Steps]:
    T, B = x.shape[:2]
    inside = torch.ones(T, B, dtype=torch.bool, device=x.device)
    if lengths is not None:
        inside = inside & (torch.arange(T, device=x.device)[:, None] < lengths.to(x.device).reshape(-1))
    inside = inside[..., None]
    counts = inside if mask is None else inside & (mask != 0)
    cut = torch.zeros_like(inside) if reset is None else inside & (reset != 0)
    # The reverse direction meets a reset on its way from t to t-1.
    return [_Steps(counts, cut, False), _Steps(counts, torch.cat([cut[1:], torch.zeros_like(cut[:1])]), True)]


def _direction(
    x: torch.Tensor,  # [T,B,I]
    w: dict[str, torch.Tensor],
    state: Tensors,  # [B,Hout], [B,H]
    steps: _Steps,
    call: Call,
    draws: Tensors,
) -> Any:
    """h, c and the gates after every step, and the last h and c."""
    h, c = state
    x_scales, h_scales, keep_h, keep_c = draws
    by_x = x if "weight_ih" not in w else _normalised(_product(x, w["weight_ih"], x_scales), w.get("gamma_ih"))
    if "bias_ih" in w:
        by_x = by_x + w["bias_ih"] + w["bias_hh"]
    sequences: tuple[Tensors, Tensors, Tensors] = [], [], []
    order = range(len(x) - 1, -1, -1) if steps.reverse else range(len(x))
    for t in order:
        h, c = torch.where(steps.cut[t], 0, h), torch.where(steps.cut[t], 0, c)
        pre = by_x[t] + _normalised(_product(h, w["weight_hh"], h_scales), w.get("gamma_hh"))
        gates, c_new, h_new = _cell(pre, c, w, call)
        if "weight_hr" in w:
            h_new = h_new @ w["weight_hr"].T
        h_new, c_new = keep_h[t] * h + (1 - keep_h[t]) * h_new, keep_c[t] * c + (1 - keep_c[t]) * c_new
        h, c = torch.where(steps.counts[t], h_new, h), torch.where(steps.counts[t], c_new, c)
        for sequence, step in zip(sequences, (h, c, gates), strict=True):
            sequence.append(step)
    return *(torch.stack(sequence[:: -1 if steps.reverse else 1]) for sequence in sequences), (h, c)


def _product(a: torch.Tensor, w: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """(a * scale) . w^T, where each gate may have a scale of its own."""
    return torch.cat([(a * scale) @ part.T for part, scale in zip(w.chunk(len(scales)), scales, strict=True)], -1)


def _normalised(a: torch.Tensor, gain: torch.Tensor | None) -> torch.Tensor:
    return a if gain is None else F.layer_norm(a, a.shape[-1:], gain, None, NORM_EPSILON)


def _cell(
    pre: torch.Tensor, c_prev: torch.Tensor, w: dict[str, torch.Tensor], call: Call
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The twin of `cells.cell_forward`."""
    cell = call.cell
    gate, squash, output = (_activation(one) for one in cell.activations)
    i, f, g, o = pre.chunk(4, -1)
    p_i, p_f, p_o = w["weight_peephole"].chunk(3) if "weight_peephole" in w else (0, 0, 0)
    i = gate(_clip(i + p_i * c_prev, cell.gate_clip))
    f = 1 - i if cell.coupled_input_forget else gate(_clip(f + p_f * c_prev, cell.gate_clip))
    g = squash(_clip(g, cell.gate_clip))
    c = _clip(f * c_prev + i * g, cell.cell_clip)
    o = gate(_clip(o + p_o * c, cell.gate_clip))
    seen = c if "gamma_c" not in w else _normalised(c, w["gamma_c"]) + w["beta_c"]
    return torch.cat([i, f, g, o], -1), c, o * output(seen)


def _clip(a: torch.Tensor, limit: float | None) -> torch.Tensor:
    return a if limit is None else a.clamp(-limit, limit)


def _activation(one: Activation) -> Callable[[torch.Tensor], torch.Tensor]:
    alpha, beta = one.alpha, one.beta
    formulas: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "relu": torch.relu,
        "hard_sigmoid": lambda a: (alpha * a + beta).clamp(0, 1),
        "affine": lambda a: alpha * a + beta,
        "leaky_relu": lambda a: F.leaky_relu(a, alpha),
        "elu": lambda a: F.elu(a, alpha),
        "softsign": F.softsign,
        "softplus": F.softplus,
        "scaled_tanh": lambda a: alpha * torch.tanh(beta * a),
        "thresholded_relu": lambda a: torch.where(a < alpha, 0, a),
    }
    return formulas[one.name]
