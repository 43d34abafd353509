"""What `fastlstm.jax` makes of the problems of `cases`, and an LSTM that JAX differentiates by itself."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cases import Problem
from fastlstm.jax import lstm


def on_jax(problem: Problem) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is differentiated, x, weights and state, and the rest of `lstm`'s arguments."""
    p = problem
    inputs = {"x": jnp.asarray(p.x), "weights": {name: jnp.asarray(array) for name, array in p.weights.items()}}
    if p.state is not None:
        inputs["state"] = tuple(map(jnp.asarray, p.state))
    return inputs, p.options | {"return_cells": True, "return_gates": p.dgates is not None}


def solve_on_jax(problem: Problem, **more: Any) -> dict[str, np.ndarray]:
    """As `cases.solve`, in one compiled program; no gradients of a state that is not given."""
    p = problem
    inputs, options = on_jax(p)
    grads = (p.dy, p.dstate, p.dcells, *([] if p.dgates is None else [p.dgates]))

    @jax.jit
    def run(inputs: dict[str, Any], grads: Any) -> Any:
        results, pull = jax.vjp(lambda inputs: lstm(**inputs, **options, **more), inputs)
        return results, pull(jax.tree.map(jnp.asarray, grads))[0]

    (y, (h_n, c_n), cells, *gates), found = jax.tree.map(np.asarray, run(inputs, grads))
    solved = {"y": y, "h_n": h_n, "c_n": c_n, "cells": cells, "dx": found["x"]}
    solved |= {"gates": gates[0]} if gates else {}
    solved |= dict(zip(("dh0", "dc0"), found["state"], strict=True)) if "state" in found else {}
    return solved | {"d" + name: found["weights"][name] for name in p.weights}


def scanned(x: Any, weights: dict[str, Any], state: tuple[Any, Any] | None = None) -> Any:
    """The textbook's LSTM of one layer and direction, y and (h_n, c_n), as one writes it with lax.scan."""
    size = weights["weight_hh_l0"].shape[1]
    h, c = (jnp.zeros((x.shape[1], size), x.dtype),) * 2 if state is None else (state[0][0], state[1][0])
    by_x = x @ weights["weight_ih_l0"].T + weights["bias_ih_l0"] + weights["bias_hh_l0"]

    def step(state: Any, pre: Any) -> Any:
        h, c = state
        i, f, g, o = jnp.split(pre + h @ weights["weight_hh_l0"].T, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    (h, c), y = jax.lax.scan(step, (h, c), by_x)
    return y, (h[None], c[None])
