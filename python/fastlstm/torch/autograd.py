"""`lstm`: one call of an LSTM on tensors, differentiable as often as one likes.

An `autograd.Function` around each operator: one that is registered with the operator would not work in torch.func.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad

from .equations import first_order, second_order
from .operators import Tensors, backward, forward, is_plain

__all__ = ["is_differentiated", "lstm"]


def lstm(x: torch.Tensor, state: Tensors, weights: Tensors, marks: list[torch.Tensor | None], options: str) -> Any:
    """The results of `fastlstm::lstm_forward` less the tape. options: a call's text without its last flag."""
    if is_differentiated(x, state, weights):
        apply = _apply_plainly if is_plain(x, *state, *weights) else _Forward.apply
        return apply(options + "|True", len(state), len(weights), x, *state, *weights, *marks)[:-1]
    return forward(x, state, weights, marks, options + "|False")


def is_differentiated(x: torch.Tensor, state: Tensors, weights: Tensors) -> bool:
    if forward_ad._current_level >= 0:
        return True  # `_Forward` refuses to; an operator would lose the tangents
    if not torch.is_grad_enabled():
        return False
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return True  # inside `vmap` a tensor does not say whether it requires a gradient
    return x.requires_grad or any(tensor.requires_grad for tensor in (*weights, *state))


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
        text, states, weights = ctx.call
        tape, *inputs = ctx.saved_tensors
        needs = ctx.needs_input_grad[3:]
        if any(map(_is_batched, grads)):
            return (None, None, None, *first_order(text, states, weights, inputs, needs, grads[:-1]))
        end = 1 + states + weights
        wants = wants_x, wants_weights = needs[0], any(needs[1 + states : end])
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # which takes no second derivatives
            found = _Backward.apply(text, states, weights, wants, len(grads) - 1, tape, *grads[:-1], *inputs)
        else:
            x, state, arrays, marks = inputs[0], inputs[1 : 1 + states], inputs[1 + states : end], inputs[end:]
            found = backward(grads[:-1], tape, wants_x, wants_weights, x, state, arrays, marks, text)
        dx = found[:1] if wants_x else (None,)
        dstate = found[wants_x : wants_x + states]
        dweights = found[wants_x + states :] if wants_weights else (None,) * weights
        return (None, None, None, *dx, *dstate, *dweights, *(None,) * (len(inputs) - end))


def _is_batched(grad: torch.Tensor | None) -> bool:
    """By `torch.autograd.grad(is_grads_batched=True)`, whose older `vmap` knows no rules of operators."""
    if grad is None or torch.compiler.is_compiling():
        return False
    batched: bool = torch._C._dispatch_keys(grad).has(_BATCHED)
    return batched


_BATCHED = torch._C._dispatch_key_parse("Batched")


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


# What `apply` does after it has sought out defaults of arguments and transformations, which takes 10 microseconds.
_apply_plainly = super(torch.autograd.Function, _Forward).apply
