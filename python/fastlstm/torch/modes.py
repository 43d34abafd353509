"""What torch is doing around a call: what is asked of torch by names that are not public is asked here alone."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad

try:
    from torch._C import _are_functorch_transforms_active, _is_tracing, _len_torch_dispatch_stack
    from torch._C._functorch import is_legacy_batchedtensor
    from torch.autograd import _profiler_enabled
    from torch.library import register_vmap  # public, since torch 2.5
except ImportError as error:
    expected = "torch 2.5 or later, as 2.13, with which it is tested"
    raise ImportError(f"fastlstm.torch needs {expected}: torch {torch.__version__} lacks a name, {error}") from error

__all__ = ["applied_plainly", "in_forward_mode", "is_batched", "is_plain", "is_transformed", "register_vmap"]


def is_plain(x: torch.Tensor, *others: torch.Tensor | None) -> bool:
    """Whether no compiler, tracer, transformation, mode or profiler looks on, and no tensor has ways of its own."""
    return (
        not torch.compiler.is_compiling()
        and (x.is_cpu or x.is_cuda)
        and _PLAIN.issuperset(map(type, (x, *others)))
        and not _are_functorch_transforms_active()
        and not _len_torch_dispatch_stack()
        and not _is_tracing()
        and not _profiler_enabled()
    )


_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter, type(None)))


def is_transformed() -> bool:
    """By torch.func, whose tensors do not say whether they require a gradient."""
    return not torch.compiler.is_compiling() and bool(_are_functorch_transforms_active())


def in_forward_mode() -> bool:
    return bool(forward_ad._current_level >= 0)


def is_batched(grad: torch.Tensor | None) -> bool:
    """By `torch.autograd.grad(is_grads_batched=True)`, whose older `vmap` knows no rules of operators."""
    return grad is not None and not torch.compiler.is_compiling() and bool(is_legacy_batchedtensor(grad))


def applied_plainly(function: type[torch.autograd.Function]) -> Any:
    """What `apply` does after it has sought out defaults and transformations, which takes 10 microseconds."""
    return super(torch.autograd.Function, function).apply
