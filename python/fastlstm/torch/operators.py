"""The operators `fastlstm::lstm_forward` and `lstm_backward`, which torch's compiler cannot look into: `functional`.

Letters: T steps, B batch, I input, H hidden, D directions, L layers; Hout = P if there is a projection, else H.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ..device_forward import DeviceTape
from ..functional import Tape, lstm_backward, lstm_forward
from .call import Call, call_of
from .packs import array_of, kept, packed
from .tapes import stacked, tape_of, tensor_of

__all__ = ["backward", "forward", "is_plain", "ops"]

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
    run = _forward if is_plain(x, *state, *weights) else ops.lstm_forward
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


def is_plain(x: torch.Tensor, *others: torch.Tensor | None) -> bool:
    """Whether no compiler, tracer, transformation, mode or profiler looks on, and no tensor has ways of its own."""
    return (
        not torch.compiler.is_compiling()
        and (x.is_cpu or x.is_cuda)
        and _PLAIN.issuperset(map(type, (x, *others)))
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._is_tracing()
        and not torch.autograd._profiler_enabled()
    )


_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter, type(None)))


def _forward(x: torch.Tensor, state: Tensors, weights: Tensors, marks: list[torch.Tensor | None], text: str) -> Tensors:
    call = call_of(text)
    (y, (h_n, c_n), *more), tape = _run(x, state, weights, marks, call)
    results = _tensors_of(x, (y, h_n, c_n, *more))
    if call.keeps_tape:
        results.append(tensor_of(tape))
    return results


def _run(
    x: torch.Tensor, state: Tensors, weights: Tensors, marks: list[torch.Tensor | None], call: Call
) -> tuple[list[Any], Any]:
    """The results, and the tape."""
    threads = torch.get_num_threads() if x.is_cpu else None
    options = call.options
    weigh = packed if options["training"] else kept
    if marks:
        lengths, mask, reset, seed = (None if mark is None else array_of(mark) for mark in marks)
        dropout_seed = None if seed is None else int(seed)
        options = options | {"lengths": lengths, "mask": mask, "reset": reset, "dropout_seed": dropout_seed}
    given = (array_of(state[0]), array_of(state[1])) if state else None
    *results, tape = lstm_forward(array_of(x), weigh(weights, call, threads), given, threads=threads, **options)
    return results, tape


def _backward(
    grads: list[torch.Tensor | None], tape: torch.Tensor, wants_x: bool, wants_weights: bool, *inputs: Any
) -> Tensors:
    x, state, weights, marks, text = inputs
    call = call_of(text)
    held: Tape | DeviceTape | None = tape_of(tape)
    if held is None:
        _, held = _run(x, state, weights, marks, call)
    dy, dh_n, dc_n, *more = (None if grad is None else array_of(grad) for grad in grads)
    dcells = more.pop(0) if call.return_cells else None
    dgates = more.pop(0) if call.return_gates else None
    threads = torch.get_num_threads() if x.is_cpu else None
    options: dict[str, Any] = {
        "dcells": dcells,
        "dgates": dgates,
        "threads": threads,
        "want_x": wants_x,
        "want_weights": wants_weights,
    }
    found = lstm_backward(held, dy, (dh_n, dc_n), **options)
    wanted = [found.x] * wants_x + list(found.state) * bool(state) + list(found.weights.values())
    return _tensors_of(x, wanted)


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
    (ops.lstm_forward.default, _forward, _forward_shapes),
    (ops.lstm_backward.default, _backward, _backward_shapes),
):
    for _device in ("CPU", "CUDA"):
        _library.impl(_operator, _kernel, _device)
    _library.impl(_operator, torch.library.fallthrough_kernel, "Autograd")  # which is `autograd`'s
    torch.library.register_fake(_operator, _shapes, lib=_library)
    torch.library.register_vmap(_operator, _mapped(_operator), lib=_library)
