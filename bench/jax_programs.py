"""`fastlstm.jax.lstm` beside the LSTM that one writes with lax.scan: both under jit, in one process, in turns.

    python bench/jax_programs.py

writes results/<name>.json and a table beside it. All runs on one core. A figure is the fastest of many calls, in
seconds of the core's time: what all threads of the process use, so that other processes on the machine do not count.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

from programs import fastest, on_one_core, write

CASES = {  # T, B, I, H
    "batch of rows": (100, 32, 64, 128),
    "hydrology": (365, 256, 8, 64),
    "many units": (50, 64, 512, 512),
    "one row": (100, 1, 64, 128),
    "one step of one row": (1, 1, 64, 64),
}
MODES = ("inference", "training")  # all gradients, those of x among them


def programs(T: int, B: int, I: int, H: int) -> dict[str, dict[str, Callable[[], Any]]]:
    """By mode and lane, a call of a compiled program; all lanes have the same arrays and give the same numbers."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from fastlstm.jax import lstm
    from fastlstm.weights import WeightSpec, initial_weights
    from rivals.jax import direction

    rng = np.random.default_rng(0)
    weights = jax.tree.map(jnp.asarray, initial_weights(WeightSpec(I, H), dtype=np.float32, rng=rng))
    x, dy, h0 = (jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in ((T, B, I), (T, B, H), (1, B, H)))

    def ours(weights: Any, x: Any) -> Any:
        return lstm(x, weights, (h0, h0))[0]

    def scan(weights: Any, x: Any) -> Any:
        return direction(x, h0[0], h0[0], weights, "_l0", None, reverse=False)[0]

    made: dict[str, dict[str, Callable[[], Any]]] = {mode: {} for mode in MODES}
    for lane, function in (("fastlstm", ours), ("scan", scan)):
        loss = lambda weights, x, function=function: jnp.vdot(function(weights, x), dy)  # noqa: E731
        for mode, work in zip(MODES, (function, jax.grad(loss, argnums=(0, 1))), strict=True):
            compiled = jax.jit(work)
            made[mode][lane] = lambda compiled=compiled: jax.block_until_ready(compiled(weights, x))
    for mode in MODES:
        a, b = (jax.tree.leaves(made[mode][lane]()) for lane in ("fastlstm", "scan"))
        for one, other in zip(a, b, strict=True):
            assert float(jnp.abs(one - other).max()) <= 1e-4 * float(jnp.abs(other).max()), mode
    return made


def table(found: dict[str, dict[str, dict[str, float]]], cpu: str) -> str:
    lines = [
        "# fastlstm.jax beside lax.scan",
        "",
        f"`bench/jax_programs.py`: float32, under jit, one core of {cpu}.",
        "Milliseconds of the core's time, the fastest of many calls; in brackets, how many times ours.",
        "",
        "| | inference | lax.scan | training | lax.scan |",
        "|---|---|---|---|---|",
    ]
    for case, modes in found.items():
        sizes = ", ".join(f"{name}={size}" for name, size in zip("TBIH", CASES[case], strict=True))
        cells = []
        for seconds in (modes[mode] for mode in MODES):
            ours, scan = seconds["fastlstm"], seconds["scan"]
            cells += [f"{ours * 1e3:.3g}", f"{scan * 1e3:.3g} ({scan / ours:.2f})"]
        lines.append(f"| {case}: {sizes} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="jax")
    arguments = parser.parse_args()
    on_one_core()
    os.environ["JAX_PLATFORMS"] = "cpu"
    found: dict[str, dict[str, dict[str, float]]] = {}
    for case, sizes in CASES.items():
        found[case] = {mode: fastest(calls) for mode, calls in programs(*sizes).items()}
        print(case, found[case], flush=True)
    write(arguments.name, found, table)


if __name__ == "__main__":
    main()
