"""`fastlstm.jax.lstm` under JAX's transformations, in loops, in flight and from threads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cases import assert_same_bits
from fastlstm.weights import WeightSpec

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

from fastlstm.jax import lstm  # noqa: E402
from jax_cases import DEEPER, DROPS, arrays_of, assert_alike, leaves_by_name, loss_of, scanned  # noqa: E402

pytestmark = pytest.mark.usefixtures("jax_with_both_dtypes")

MARKS = {
    "lengths": np.array([5, 0, 3]),
    "mask": np.arange(15).reshape(5, 3) % 4 > 0,
    "reset": np.arange(15).reshape(5, 3) % 3 == 0,
}


def everything(seed: Any, marks: dict[str, Any], arrays: dict[str, Any]) -> Any:
    return lstm(**arrays, **marks, cell=DROPS, dropout=0.3, dropout_seed=seed, return_cells=True, return_gates=True)


def test_no_compiler_makes_a_difference() -> None:
    """Values are traced: marks and seed, too."""
    arrays, seed = arrays_of(DEEPER), jnp.uint32(7)
    run = lambda *given: jax.value_and_grad(lambda a: loss_of(lambda **k: everything(*given, k))(a))(arrays)  # noqa: E731
    expected = leaves_by_name(everything(seed, MARKS, arrays))
    assert_same_bits(leaves_by_name(jax.jit(everything)(seed, MARKS, arrays)), expected)
    with jax.disable_jit():
        assert_same_bits(leaves_by_name(everything(seed, MARKS, arrays)), expected)
    assert_alike(jax.jit(run)(seed, MARKS), run(seed, MARKS))


@pytest.mark.parametrize("mapped", ["x", "weights", "state", "marks", "seed", "all"])
def test_vmap(mapped: str) -> None:
    n = 3
    given = {"seed": jnp.uint32(7), "marks": jax.tree.map(jnp.asarray, MARKS), **arrays_of(DEEPER)}

    def stacked(name: str, tree: Any) -> Any:
        change = {"seed": lambda a, i: a + jnp.uint32(i), "marks": lambda a, i: jnp.roll(a, i, -1)}
        return jax.tree.map(
            lambda a: jnp.stack([change.get(name, lambda a, i: a * (1 - 0.1 * i))(a, i) for i in range(n)]), tree
        )

    axes = {name: 0 if mapped in (name, "all") else None for name in given}
    many = {name: stacked(name, tree) if axes[name] == 0 else tree for name, tree in given.items()}

    def loss(one: dict[str, Any]) -> Any:
        arrays = {name: one[name] for name in ("x", "weights", "state")}
        seed, marks = one["seed"], one["marks"]
        of_these = loss_of(lambda **arrays: everything(seed, marks, arrays))
        return jax.value_and_grad(of_these)(arrays)

    found = jax.jit(jax.vmap(loss, (axes,)))(many)
    each = [
        loss({name: jax.tree.map(lambda a, i=i: a[i], many[name]) if axes[name] == 0 else many[name] for name in many})
        for i in range(n)
    ]
    assert_alike(found, jax.tree.map(lambda *leaves: jnp.stack(leaves), *each))


@pytest.mark.parametrize("kept", [lambda f: f, jax.checkpoint], ids=["tapes_kept", "checkpoint"])
def test_a_scan_around_it(kept: Any) -> None:
    arrays = arrays_of()
    segments = jnp.stack([arrays["x"], 2 * arrays["x"], -arrays["x"]])

    def loss(function: Any, arrays: dict[str, Any]) -> Any:
        @kept
        def segment(state: Any, x: Any) -> Any:
            y, state = function(x * arrays["x"], arrays["weights"], state)
            return state, y

        state, y = jax.lax.scan(segment, arrays["state"], segments)
        return (jnp.sin(y) * 3).sum() + sum(map(jnp.sum, state))

    found = jax.jit(jax.value_and_grad(lambda a: loss(lstm, a)))(arrays)
    assert_alike(found, jax.value_and_grad(lambda a: loss(scanned, a))(arrays))


def test_a_while_loop_around_it() -> None:
    arrays = arrays_of(steps=1)

    def run(function: Any) -> Any:
        step = lambda carry: (carry[0] + 1, function(arrays["x"], arrays["weights"], carry[1])[1])  # noqa: E731
        return jax.lax.while_loop(lambda carry: carry[0] < 4, step, (0, arrays["state"]))[1]

    assert_alike(jax.jit(run, static_argnums=0)(lstm), run(scanned))


def test_shapes_are_known_without_a_run() -> None:
    arrays = arrays_of(DEEPER)
    with_all = lambda: lstm(**arrays, return_cells=True, return_gates=True)  # noqa: E731
    shapes, found = jax.eval_shape(with_all), with_all()
    assert jax.tree.map(lambda a: (a.shape, a.dtype), shapes) == jax.tree.map(lambda a: (a.shape, a.dtype), found)


def test_donated_arrays() -> None:
    arrays = arrays_of()
    expected = lstm(**arrays)
    step = jax.jit(lambda state, x: lstm(x, arrays["weights"], state), donate_argnums=0)
    assert_alike(step(jax.tree.map(jnp.copy, arrays["state"]), arrays["x"]), expected)


def test_calls_in_flight_and_from_threads() -> None:
    arrays, found = arrays_of(WeightSpec(32, 64), 50, 8), {}
    step = jax.jit(jax.value_and_grad(loss_of(lstm)))
    expected = step(arrays)

    def work(name: int) -> None:
        found[name] = [step(arrays) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    work(3)
    for thread in threads:
        thread.join(timeout=60)
    assert len(found) == 4
    for results in found.values():
        for result in results:
            assert_alike(result, expected)


ON_TWO_DEVICES = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from jax_cases import arrays_of, assert_alike, loss_of
from fastlstm.jax import lstm

jax.config.update("jax_enable_x64", True)
arrays = arrays_of(batch=4)
mesh = jax.make_mesh((2,), ("rows",))
rows, everywhere = P(None, "rows"), P()
specs = {"x": rows, "weights": everywhere, "state": rows}
both = jax.device_put(arrays, {name: NamedSharding(mesh, spec) for name, spec in specs.items()})

def loss(arrays):
    return (lstm(**arrays)[0] ** 3).sum()

def part(arrays):
    value, grads = jax.value_and_grad(loss)(arrays)  # JAX sums those of what all devices share
    return jax.lax.psum(value, "rows"), grads

def part_unchecked(arrays):
    value, grads = jax.value_and_grad(loss)(arrays)
    return jax.lax.psum(value, "rows"), grads | {"weights": jax.lax.psum(grads["weights"], "rows")}

expected = jax.value_and_grad(loss)(arrays)
for function, check in ((part, True), (part_unchecked, False)):
    shared = jax.shard_map(function, mesh=mesh, in_specs=(specs,), out_specs=(everywhere, specs), check_vma=check)
    assert_alike(jax.device_get(jax.jit(shared)(both)), expected)
assert_alike(jax.device_get(jax.jit(jax.value_and_grad(loss))(both)), expected)
print("alike")
"""


def test_several_devices() -> None:
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", ON_TWO_DEVICES], cwd=here, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.endswith("alike\n"), done.stderr
