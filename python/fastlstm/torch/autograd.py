"""`lstm`: one call of an LSTM on tensors, differentiable as often as one likes.

An `autograd.Function` around each operator: one that is registered with the operator would not work in torch.func.
"""

from __future__ import annotations

from typing import Any

import torch

from .equations import first_order, second_order
from .modes import applied_plainly, in_forward_mode, is_batched, is_plain, is_transformed
from .operators import Tensors, backward, forward, run_forward

__all__ = ["is_differentiated", "lstm"]


def lstm(x: torch.Tensor, state: Tensors, weights: Tensors, marks: list[torch.Tensor | None], options: str) -> Any:
    """The results of `fastlstm::lstm_forward` less the tape. options: a call's text without its last flag."""
    if is_differentiated(x, state, weights):
        inputs = (options + "|True", len(state), len(weights), x, *state, *weights, *marks)
        return _apply_plainly(*inputs) if is_plain(x, *state, *weights) else _Forward.apply(*inputs)[:-1]
    return forward(x, state, weights, marks, options + "|False")


def is_differentiated(x: torch.Tensor, state: Tensors, weights: Tensors) -> bool:
    """In forward mode, too: `_Forward` refuses it, where an operator would lose the tangents."""
    graph = torch.is_grad_enabled()
    if graph and (x.requires_grad or any(tensor.requires_grad for tensor in (*weights, *state))):
        return True
    return in_forward_mode() or (graph and is_transformed())


class _Forward(torch.autograd.Function):
    """Inputs: a call's text, how many states and weights there are, then x, states, weights and marks."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[torch.Tensor, ...]:
        text, states, weights, x, *tensors = inputs
        end = states + weights
        return tuple(forward(x, tensors[:states], tensors[states:end], tensors[end:], text))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.call = inputs[:3]
        ctx.save_for_backward(output[-1], *inputs[3:])
        ctx.mark_non_differentiable(output[-1])
        if not torch.compiler.is_compiling():
            ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        return _gradients(ctx, grads[:-1])


def _gradients(ctx: Any, grads: tuple[torch.Tensor | None, ...]) -> tuple[Any, ...]:
    text, states, weights = ctx.call
    tape, *inputs = ctx.saved_tensors
    needs = ctx.needs_input_grad[3:]
    if any(map(is_batched, grads)):
        return (None, None, None, *first_order(text, states, weights, inputs, needs, grads))
    end = 1 + states + weights
    wants = wants_x, wants_weights = needs[0], any(needs[1 + states : end])
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # which takes no second derivatives
        found = _Backward.apply(text, states, weights, wants, len(grads), tape, *grads, *inputs)
    else:
        x, state, arrays, marks = inputs[0], inputs[1 : 1 + states], inputs[1 + states : end], inputs[end:]
        found = backward(grads, tape, wants_x, wants_weights, x, state, arrays, marks, text)
    dx = found[:1] if wants_x else (None,)
    dstate = found[wants_x : wants_x + states]
    dweights = found[wants_x + states :] if wants_weights else (None,) * weights
    return (None, None, None, *dx, *dstate, *dweights, *(None,) * (len(inputs) - end))


class _Backward(torch.autograd.Function):
    """Inputs: `_Forward`'s first three, what is wanted, how many gradients come, the tape, they, the other inputs."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[torch.Tensor, ...]:
        text, states, weights, wants, outputs, tape, *tensors = inputs
        grads, (x, *others) = tensors[:outputs], tensors[outputs:]
        end = states + weights
        state, arrays, marks = others[:states], others[states:end], others[end:]
        return tuple(backward(grads, tape, *wants, x, state, arrays, marks, text))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.call = inputs[:5]
        ctx.save_for_backward(*inputs[6:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        text, states, weights, wants, outputs = ctx.call
        found = second_order(text, states, weights, wants, outputs, ctx.saved_tensors, grads)
        return (None, None, None, None, None, None, *found)


class _Plain(torch.autograd.Function):
    """`_Forward` where nothing looks on, with less of torch's machinery, which takes longer than a small step."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[torch.Tensor, ...]:
        text, states, weights, x, *tensors = inputs
        end = states + weights
        *results, tape = run_forward(x, tensors[:states], tensors[states:end], tensors[end:], text)
        ctx.call = text, states, weights
        ctx.save_for_backward(tape, x, *tensors)
        ctx.set_materialize_grads(False)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        return _gradients(ctx, grads)


_apply_plainly = applied_plainly(_Plain)
