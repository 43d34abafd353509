"""What `fastlstm.jax` makes of the problems of `cases`, and an LSTM that JAX differentiates by itself."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cases import TOLERANCE, Problem
from fastlstm import LSTMCellOptions
from fastlstm.jax import lstm
from fastlstm.weights import WeightSpec, initial_weights


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


SPEC = WeightSpec(4, 6)
DEEPER = WeightSpec(4, 6, num_layers=2, bidirectional=True)
DROPS = LSTMCellOptions(recurrent_dropout=0.3, weight_drop=0.2, zoneout_h=0.1)


def arrays_of(spec: WeightSpec = SPEC, steps: int = 5, batch: int = 3, dtype: str = "float64") -> dict[str, Any]:
    rng = np.random.default_rng(3)
    weights = initial_weights(spec, dtype=dtype, rng=rng)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)  # noqa: E731
    rows = spec.num_layers * spec.num_directions
    state = draw(rows, batch, spec.hidden_output), draw(rows, batch, spec.hidden_size)
    return {"x": draw(steps, batch, spec.input_size), "weights": jax.tree.map(jnp.asarray, weights), "state": state}


def loss_of(function: Any) -> Any:
    """A number from all that an LSTM returns, whose gradients are not alike."""

    def loss(arrays: dict[str, Any], **options: Any) -> Any:
        results = jax.tree.leaves(function(**arrays, **options))
        return sum((jnp.sin(a) * (1 + jnp.arange(a.size).reshape(a.shape) % 7)).sum() for a in results)

    return loss


def assert_alike(found: Any, expected: Any, limit: float = TOLERANCE["float64"]) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=limit * max(1.0, float(jnp.abs(b).max(initial=0))))


def leaves_by_name(tree: Any) -> dict[str, np.ndarray]:
    return {str(number): np.asarray(leaf) for number, leaf in enumerate(jax.tree.leaves(tree))}
