"""`lstm`: one call of an LSTM on JAX's arrays, differentiable in reverse mode."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from ..cells import PLAIN, LSTMCellOptions
from .arguments import call_and_arrays
from .bridge import alike, run
from .call import Call
from .host import tape_bytes

__all__ = ["lstm"]


def lstm(
    x: Any,
    weights: Mapping[str, Any],
    state: tuple[Any, Any] | None = None,
    *,
    cell: LSTMCellOptions = PLAIN,
    batch_first: bool = False,
    dropout: float = 0.0,
    dropout_seed: Any = None,
    dropout_call: Any = 0,
    lengths: Any = None,
    mask: Any = None,
    reset: Any = None,
    masked_output: str = "zero",
    return_sequence: bool = True,
    return_cells: bool = False,
    return_gates: bool = False,
    transposed_weights: bool = False,
    training: bool = True,
    threads: int | None = None,
) -> tuple[Any, ...]:
    """Run an LSTM of any layers and directions on the CPU: y, (h_n, c_n), then cells and gates if asked for.

    x: `[T,B,I]`, `[B,T,I]` if batch_first, or unbatched `[T,I]`, of the weights' dtype (float32 or float64). weights:
    torch's names and shapes, see `fastlstm.weights.WeightSpec.shapes`; with transposed_weights matrices are the other
    way round, `[I,4H]`, `[Hout,4H]`, `[H,P]`, as Keras's and Flax's kernels are, and so are their gradients. state: (h0
    `[L*D,B,Hout]`, c0 `[L*D,B,H]`), zeros if None, as each half may be. y: `[T,B,D*Hout]` laid out as x, None without
    return_sequence; cells: c of every step of the last layer, `[T,B,D*H]`; gates: i f g o of every step of it,
    `[T,B,D*4H]`; h_n, c_n as state. Everything that is not an array is static under jit. cell, dropout, lengths, mask,
    reset and masked_output mean what `fastlstm.lstm_forward` says.

    training: whether dropout and what `cell` drops or zones out is drawn, from dropout_seed (an integer from 0 to
    2**64 - 1, an array of one, or a key of `jax.random`) and dropout_call, a number that gives each call with the same
    seed other masks; both may be traced. Without training nothing is drawn, and gradients are there all the same, but
    for those of zoneout's expectation.

    jit, grad, vjp, jacrev, vmap (one call after the other), checkpoint and scan work. There are gradients with respect
    to x, weights and state, of the first order and in reverse mode.

    Raises ValueError or TypeError naming argument, got and expected while it is traced. What depends on values, such as
    a length beyond T, is an error of the compiled program, with the same text.

    >>> import jax.numpy as jnp
    >>> weights = {"weight_ih_l0": jnp.ones((4, 1)), "weight_hh_l0": jnp.ones((4, 1))}
    >>> y, (h_n, c_n) = jax.jit(lstm)(jnp.ones((2, 1, 1)), weights)
    >>> y.round(4).ravel().tolist(), bool(h_n[0, 0, 0] == y[-1, 0, 0])
    ([0.369..., 0.650...], True)
    >>> loss = lambda weights: lstm(jnp.ones((2, 1, 1)), weights)[0].sum()
    >>> round(float(jax.grad(loss)(weights)["weight_hh_l0"].sum()), 4)
    0.0895
    """
    call, arrays = call_and_arrays(
        x,
        weights,
        state,
        cell=cell,
        batch_first=batch_first,
        dropout=dropout,
        dropout_seed=dropout_seed,
        dropout_call=dropout_call,
        marks={"lengths": lengths, "mask": mask, "reset": reset},
        masked_output=masked_output,
        return_sequence=return_sequence,
        return_cells=return_cells,
        return_gates=return_gates,
        transposed_weights=transposed_weights,
        training=training,
        threads=threads,
    )
    leaves, structure = jax.tree.flatten(arrays)
    arrays = jax.tree.unflatten(structure, alike(leaves))
    found = dict(zip(call.shapes, _compiled(call, *arrays), strict=True))
    return (found.pop("y", None), (found.pop("h_n"), found.pop("c_n")), *found.values())


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lstm(call: Call, x: Any, state: list[Any], weights: list[Any], marks: list[Any]) -> list[Any]:
    """The results that the call names."""
    shapes = [jax.ShapeDtypeStruct(shape, call.dtype) for shape in call.shapes.values()]
    if call.keeps_tape:
        shapes.append(jax.ShapeDtypeStruct((tape_bytes(call),), "uint8"))
    return run("forward", call, [x, *state, *weights, *marks], shapes)


class _Kept(NamedTuple):
    """From forward for backward."""

    tape: Any  # uint8 [bytes]: it is copied where JAX copies, and goes when nothing needs it, as any array
    weights: list[Any]
    marks: list[Any]
    # [x,weights,0], 1 for what is differentiated: of nothing that is static JAX may take what an earlier trace said
    wanted: Any


def _lstm_forward(call: Call, x: Any, state: list[Any], weights: list[Any], marks: list[Any]) -> tuple[Any, _Kept]:
    if not call.draws and (call.cell.zoneout_h or call.cell.zoneout_c):
        raise NotImplementedError(
            "training is False, but the cell has zoneout, whose expectation has no gradient here: expected True"
        )
    inputs = [x, state, weights, marks]
    values = jax.tree.map(lambda primal: primal.value, inputs, is_leaf=lambda leaf: hasattr(leaf, "perturbed"))
    *results, tape = _lstm(replace(call, keeps_tape=True), *values)
    wanted = jnp.zeros((int(x.perturbed), int(any(weight.perturbed for weight in weights)), 0), bool)
    results = [*results, tape] if call.keeps_tape else results  # as where a gradient's forward is differentiated
    return results, _Kept(tape, values[2], values[3], wanted)


def _lstm_backward(call: Call, kept: _Kept, grads: list[Any]) -> tuple[Any, ...]:
    named = dict(zip(call.shapes, grads, strict=not call.keeps_tape))  # which has no gradient
    given = {name: grad for name, grad in named.items() if not isinstance(grad, SymbolicZero)}
    wants_x, wants_weights, _ = map(bool, kept.wanted.shape)
    one = replace(call, grads=tuple(given), wants_x=wants_x, wants_weights=wants_weights)
    found = _gradients(one, kept.tape, kept.weights, kept.marks, list(given.values()))

    def zeros(shape: tuple[int, ...]) -> Any:
        """Which nobody reads, but JAX mixes up None and arrays."""
        return alike([jnp.zeros(shape, call.dtype), kept.tape])[0]

    dx = found.pop(0) if wants_x else zeros(call.layout.sequence(call.spec.x_size))
    dstate = [found.pop(0) for _ in range(2 * call.has_state)]
    return dx, dstate, found if wants_weights else list(map(zeros, call.weight_shapes.values())), None


_lstm.defvjp(_lstm_forward, _lstm_backward, symbolic_zeros=True)
_compiled = jax.jit(_lstm, static_argnums=0, inline=True)  # an eager call takes half the time


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gradients(call: Call, tape: Any, weights: list[Any], marks: list[Any], grads: list[Any]) -> list[Any]:
    """Of x if wanted, of the state if it was given, of the weights if wanted."""
    shapes = [call.layout.sequence(call.spec.x_size)] * call.wants_x
    shapes += [call.shapes[name] for name in ("h_n", "c_n")] * call.has_state
    shapes += list(call.weight_shapes.values()) * call.wants_weights
    like = [jax.ShapeDtypeStruct(shape, call.dtype) for shape in shapes]
    return run("backward", call, [tape, *weights, *marks, *grads], like)


def _refuse(*_: Any) -> Any:
    raise NotImplementedError("fastlstm.jax.lstm has first derivatives only: expected no gradient of its gradients")


_gradients.defvjp(lambda call, *inputs: (_gradients(call, *inputs), None), _refuse)
