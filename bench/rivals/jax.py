"""JAX: the LSTM that one writes with lax.scan, under jit; all gradients by its reverse mode. Resets are one line."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cases import Problem
from rivals import Missing, Runner, named, suffixes


def direction(x: Any, h0: Any, c0: Any, w: dict[str, Any], suffix: str, keep: Any, reverse: bool) -> Any:
    """y [T,B,H], h_n and c_n of one layer and direction; keep [T,B,1] is 0 where a row begins anew, or None."""
    w_h = w["weight_hh" + suffix].T
    pre = x @ w["weight_ih" + suffix].T + (w["bias_ih" + suffix] + w["bias_hh" + suffix])

    def step(state: Any, inputs: Any) -> Any:
        h, c = state
        pre, keep = inputs
        if keep is not None:
            h, c = h * keep, c * keep
        i, f, g, o = jnp.split(pre + h @ w_h, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    (h, c), y = jax.lax.scan(step, (h0, c0), (pre, keep), reverse=reverse)
    return y, h, c


def set_up(problem: Problem, mode: str, threads: int) -> Runner:
    case = problem.case
    if case.varying not in ("", "reset"):
        raise Missing(f"this scan has no {case.varying}")
    keep = jnp.asarray(~problem.options["reset"], case.dtype)[..., None] if "reset" in problem.options else None

    def lstm(x: Any, h0: Any, c0: Any, w: dict[str, Any]) -> Any:
        states = []
        ends = iter(suffixes(case))
        for layer in range(case.layers):
            ys = []
            for way in range(case.directions):
                row = layer * case.directions + way
                y, *state = direction(x, h0[row], c0[row], w, next(ends), keep, reverse=way == 1)
                ys.append(y)
                states.append(state)
            x = jnp.concatenate(ys, axis=-1) if len(ys) > 1 else ys[0]
        h_n, c_n = (jnp.stack(parts) for parts in zip(*states, strict=True))
        return x, h_n, c_n

    def loss(x: Any, h0: Any, c0: Any, w: dict[str, Any]) -> Any:
        results = lstm(x, h0, c0, w)
        return jnp.vdot(results[0], dy), results

    inputs = jax.device_put((problem.x, problem.h0, problem.c0, problem.weights))
    dy = jnp.asarray(problem.dy)
    work = jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True) if mode == "training" else lstm
    compiled = jax.jit(work).lower(*inputs).compile()

    def read(results: Any) -> dict[str, np.ndarray]:
        results = jax.tree.map(np.asarray, results)
        if mode == "inference":
            return named(*results)
        (_, forward), gradients = results
        return named(*forward, *gradients)

    return Runner(lambda: jax.block_until_ready(compiled(*inputs)), read)
