"""The operators `fastlstm::lstm_forward` and `lstm_backward`, which torch's compiler cannot look into: `functional`.

Letters: T steps, B batch, I input, H hidden, D directions, L layers; Hout = P if there is a projection, else H.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..functional import Tape, backward_natively, forward_natively, lstm_backward, lstm_forward
from .call import Call, call_of
from .modes import is_plain, register_vmap
from .packs import array_of, kept, packed
from .tapes import stacked, tape_of, tensor_of

__all__ = ["backward", "forward", "ops", "run_forward"]

# x [T,B,I], [B,T,I] if batch_first, [T,I]; state: h0 [L*D,B,Hout] and c0 [L*D,B,H], or none; weights in torch's order;
# marks: lengths [B], mask and reset as x without I, seed [], or nothing for none of them
_INPUTS = "Tensor x, Tensor[] state, Tensor[] weights, Tensor?[] marks, str call"
_library = torch.library.Library("fastlstm", "DEF")
# y, h_n, c_n, then cells, gates and the tape where asked for
_library.define(f"lstm_forward({_INPUTS}) -> Tensor[]")
# grads: of forward's results less the tape. dx if wants_x, dh0 and dc0 if there was a state, weights' if wants_weights
_library.define(f"lstm_backward(Tensor?[] grads, Tensor tape, bool wants_x, bool wants_weights, {_INPUTS}) -> Tensor[]")
ops = torch.ops.fastlstm

Tensors = list[torch.Tensor]


def forward(x: torch.Tensor, state: Tensors, weights: Tensors, marks: list[torch.Tensor | None], text: str) -> Tensors:
    """The operator, or where nothing looks on, what it runs: to dispatch takes as long as a small step."""
    run = run_forward if is_plain(x, *state, *weights) else ops.lstm_forward
    results: Tensors = run(x, state, weights, marks, text)
    return results


def backward(
    grads: Any,
    tape: torch.Tensor,
    wants_x: bool,
    wants_weights: bool,
    x: torch.Tensor,
    state: Any,
    weights: Any,
    *more: Any,
) -> Tensors:
    run = _backward if is_plain(x, *grads, *state, *weights) else ops.lstm_backward
    results: Tensors = run(grads, tape, wants_x, wants_weights, x, state, weights, *more)
    return results


def run_forward(
    x: torch.Tensor, state: Tensors, weights: Tensors, marks: list[torch.Tensor | None], text: str
) -> Tensors:
    call = call_of(text)
    results, tape = _run(x, state, weights, marks, call)
    tensors = _tensors_of(x, results)
    if call.keeps_tape:
        tensors.append(tensor_of(tape))
    return tensors


def _run(
    x: torch.Tensor, state: Tensors, weights: Tensors, marks: list[torch.Tensor | None], call: Call
) -> tuple[list[Any], Any]:
    """The results as arrays, and the tape."""
    lengths, mask, reset, drawn = map(_array_or_none, marks) if marks else (None,) * 4
    seed = 0 if drawn is None else int(drawn)
    initial = (array_of(state[0]), array_of(state[1])) if state else None
    weigh, array = packed if call.is_training else kept, array_of(x)
    if x.is_cpu:
        threads, marked, random = torch.get_num_threads(), (lengths, mask, reset), (call.dropout, seed, 0, 0)
        pack: Any = weigh(weights, call, threads)
        y, ends, cells, gates, tape = forward_natively(pack, array, initial, marked, call.native, random, threads)
        return [y, *ends] + [cells] * call.return_cells + [gates] * call.return_gates, tape
    options: dict[str, Any] = {"lengths": lengths, "mask": mask, "reset": reset, "dropout_seed": seed, **call.options}
    y, ends, *others, tape = lstm_forward(array, weigh(weights, call, None), initial, **options)
    return [y, *ends, *others], tape


def _backward(
    grads: list[torch.Tensor | None], tape: torch.Tensor, wants_x: bool, wants_weights: bool, *inputs: Any
) -> Tensors:
    x, state, weights, marks, text = inputs
    call = call_of(text)
    held: Any = tape_of(tape)
    if held is None:
        _, held = _run(x, state, weights, marks, call)
    dy, dh_n, dc_n, *more = map(_array_or_none, grads)
    dcells = more.pop(0) if call.return_cells else None
    dgates = more.pop(0) if call.return_gates else None
    if isinstance(held, Tape):
        given = dy, (dh_n, dc_n), dcells, dgates
        dx, dstate, dweights = backward_natively(held, given, torch.get_num_threads(), wants_x, wants_weights)
    else:
        wanted: dict[str, Any] = {"want_x": wants_x, "want_weights": wants_weights}
        dx, dstate, named = lstm_backward(held, dy, (dh_n, dc_n), dcells=dcells, dgates=dgates, **wanted)
        dweights = list(named.values())
    return _tensors_of(x, [dx] * wants_x + list(dstate) * bool(state) + dweights)


def _array_or_none(tensor: torch.Tensor | None) -> Any:
    return None if tensor is None else array_of(tensor)


def _tensors_of(x: torch.Tensor, arrays: Iterable[Any]) -> Tensors:
    """The tensors with the arrays' memory; on a GPU they are that already."""
    return list(map(torch.from_numpy, arrays) if x.is_cpu else arrays)


def _forward_shapes(x: torch.Tensor, state: Tensors, weights: Tensors, marks: Any, text: str) -> Tensors:
    call = call_of(text)
    spec = call.spec
    batch = () if x.dim() == 2 else x.shape[:1] if call.batch_first else x.shape[1:2]
    rows, D = spec.num_layers * spec.num_directions, spec.num_directions
    shapes: list[tuple[Any, ...]] = [(*x.shape[:-1], spec.output_size)]
    shapes += [(rows, *batch, size) for size in (spec.hidden_output, spec.hidden_size)]
    shapes += [(*x.shape[:-1], D * spec.hidden_size)] * call.return_cells
    shapes += [(*x.shape[:-1], D * 4 * spec.hidden_size)] * call.return_gates
    tape = [torch.empty(1, dtype=torch.uint8, device="cpu")] * call.keeps_tape
    return [x.new_empty(shape) for shape in shapes] + tape


def _backward_shapes(
    grads: Any, tape: torch.Tensor, wants_x: bool, wants_weights: bool, x: torch.Tensor, state: Tensors, *more: Any
) -> Tensors:
    weights: Tensors = more[0]
    return [like.new_empty(like.shape) for like in ([x] * wants_x + state + weights * wants_weights)]


def _mapped(operator: Callable[..., Tensors]) -> Any:
    """The rule of `torch.vmap` for an operator: one call for each element."""

    def rule(info: Any, in_dims: Any, *arguments: Any) -> tuple[Tensors, list[int]]:
        leaves, structure = pytree.tree_flatten(arguments)
        dims = pytree.tree_leaves(in_dims, is_leaf=lambda leaf: leaf is None)
        results = []
        for element in range(info.batch_size):
            one = [leaf if dim is None else leaf.select(dim, element) for leaf, dim in zip(leaves, dims, strict=True)]
            results.append(operator(*pytree.tree_unflatten(one, structure)))
        *together, last = zip(*results, strict=True)  # which may be the tapes
        joined = [*map(torch.stack, together), stacked(last)]
        return joined, [0] * len(joined)

    return rule


for _operator, _kernel, _shapes in (
    (ops.lstm_forward.default, run_forward, _forward_shapes),
    (ops.lstm_backward.default, _backward, _backward_shapes),
):
    for _device in ("CPU", "CUDA"):
        _library.impl(_operator, _kernel, _device)
    _library.impl(_operator, torch.library.fallthrough_kernel, "Autograd")  # which is `autograd`'s
    torch.library.register_fake(_operator, _shapes, lib=_library)
    register_vmap(_operator, _mapped(_operator), lib=_library)
