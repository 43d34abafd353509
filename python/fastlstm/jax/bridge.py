"""How a compiled program comes to `host`: by a callback on XLA's own buffers, which takes 16 microseconds.

Not by `jax.pure_callback`: that takes 190, copies what goes in and out, and never returns where an array is large and
there is one processor. Not by a native module over XLA's FFI: that is what JAX has made this callback of.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from . import host
from .call import Call

try:
    from jax.experimental.buffer_callback import buffer_callback
except ImportError as error:
    why = f"which JAX {jax.__version__} has not: expected 0.6.2 or newer"
    raise ImportError(f"fastlstm.jax needs jax.experimental.buffer_callback, {why}") from error

__all__ = ["alike", "run"]


def run(kind: str, call: Call, operands: Sequence[Any], results: Sequence[jax.ShapeDtypeStruct]) -> list[Any]:
    """The arrays that "forward" or "backward" of `host` makes of the operands, when the program runs."""
    found = buffer_callback(_callback(kind, call), list(results), vmap_method="sequential")(*operands)
    return alike([*found, *operands])[: len(results)]


def alike(arrays: Sequence[Any]) -> list[Any]:
    """The arrays, each different in every part of a `jax.shard_map` where one of them is: so JAX knows what to sum."""
    axes = [_varying(array) for array in arrays]
    every: frozenset[Any] = frozenset().union(*axes)
    return [_vary(array, tuple(every - own)) if every - own else array for array, own in zip(arrays, axes, strict=True)]


def _varying(array: Any) -> frozenset[Any]:
    """The axes of the devices over which it is known to differ."""
    kind = jax.typeof(array)
    if hasattr(kind, "manual_axis_type"):
        return frozenset(kind.manual_axis_type.varying)
    return getattr(kind, "vma", frozenset())  # before JAX 0.10


def _vary(array: Any, axes: tuple[Any, ...]) -> Any:
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(array, axes, to="varying")
    return jax.lax.pvary(array, axes)  # before JAX 0.8


@functools.lru_cache(maxsize=1024)
def _callback(kind: str, call: Call) -> Callable[..., None]:
    """One and the same for the same call: JAX would compile an eager call anew for another one."""

    def callback(context: Any, results: list[Any], *operands: Any) -> None:
        getattr(host, kind)(call, _arrays(results), _arrays(operands))

    return callback


def _arrays(buffers: Sequence[Any]) -> list[np.ndarray]:
    """NumPy's view of their memory."""
    try:
        return [np.asarray(buffer) for buffer in buffers]
    except Exception as error:
        raise RuntimeError("fastlstm.jax.lstm was compiled for another device, expected the CPU") from error
