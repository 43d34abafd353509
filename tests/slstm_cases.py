"""What the tests of the sLSTM solve, each problem named for its reason; marks and tolerances are those of cases.py."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from cases import LENGTHS, MASKS, RESETS, read_only
from fastlstm import slstm, slstm_reference
from fastlstm.slstm_weights import SLSTMSpec, SLSTMState

Arrays = dict[str, np.ndarray]


def problem(
    spec: SLSTMSpec, T: int = 6, B: int = 3, seed: int = 0, scale: float = 1.0, state: bool = True
) -> dict[str, Any]:
    """weights, x, state, dy and dstate in float64, drawn in float32. The state is one that can be: n >= 1."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return np.float32(scale) * rng.standard_normal(shape, np.float32)

    H = spec.hidden_size
    weights = {name: draw(*shape) / np.float32(np.sqrt(shape[-1])) for name, shape in spec.shapes().items()}
    first = SLSTMState(draw(1, B, H), draw(1, B, H), 1 + np.abs(draw(1, B, H)), draw(1, B, H)) if state else None
    gradients = SLSTMState(*(draw(1, B, H) for _ in range(4)))
    drawn = {
        "weights": weights,
        "x": draw(T, B, spec.x_size),
        "state": first,
        "dy": draw(T, B, H),
        "dstate": gradients,
    }
    return astype(drawn, "float64")


def map_arrays(p: dict[str, Any], change: Any) -> dict[str, Any]:
    """The problem with every array of numbers replaced by `change(array)`."""

    def through(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: through(part) for name, part in value.items()}
        if isinstance(value, tuple):
            return SLSTMState(*(through(part) for part in value))
        return None if value is None else change(value)

    return {name: through(value) for name, value in p.items()}


def astype(p: dict[str, Any], dtype: str) -> dict[str, Any]:
    return map_arrays(p, lambda array: array.astype(dtype))


def rows_of(p: dict[str, Any], options: dict[str, Any], rows: np.ndarray) -> tuple[dict[str, Any], dict[str, Any]]:
    """Some rows of a time-major problem and its options as a problem of their own."""
    some = {"lengths": lambda a: a[rows], "mask": lambda a: a[:, rows], "reset": lambda a: a[:, rows]}
    part = map_arrays(p, lambda array: array[:, rows] if array.ndim == 3 else array)
    return part, {name: some[name](v) if name in some else v for name, v in options.items()}


def outputs_of(y: np.ndarray, state: SLSTMState) -> Arrays:
    return {"y": y} | {part + "_n": array for part, array in state._asdict().items()}


def infer(p: dict[str, Any], **options: Any) -> Arrays:
    """The native outputs by name, without a tape."""
    y, state, _ = slstm.slstm_forward(p["x"], p["weights"], p["state"], training=False, **options)
    return outputs_of(y, state)


def solve(p: dict[str, Any], module: ModuleType = slstm_reference, **options: Any) -> Arrays:
    """Every output and gradient by name."""
    y, state, tape = module.slstm_forward(p["x"], p["weights"], p["state"], **options)
    grads = module.slstm_backward(tape, p["dy"], p["dstate"], threads=options.get("threads"))
    found = outputs_of(y, state) | {"dx": grads.x}
    found |= {f"d{part}0": array for part, array in grads.state._asdict().items()}
    return found | {"d" + name: array for name, array in grads.weights.items()}


def assert_equal(found: Arrays, expected: Arrays, tolerance: float = 1e-12) -> None:
    for name, array in expected.items():
        assert found[name].shape == array.shape, name
        difference = np.abs(found[name] - array).max(initial=0)
        assert difference <= tolerance * max(1, np.abs(array).max(initial=0)), name


SPECS = {
    "one_unit": SLSTMSpec(1, 1, 1),
    "one_head": SLSTMSpec(3, 5, 1),
    "heads_of_one_unit": SLSTMSpec(3, 4, 4),
    "heads": SLSTMSpec(4, 6, 3),
    "no_bias": SLSTMSpec(4, 6, 2, bias=False),
    "pre_activations": SLSTMSpec(0, 6, 2),
}


@dataclass(frozen=True)
class Case:
    """What to compute. lengths, mask and reset name the patterns of cases.py."""

    name: str
    spec: SLSTMSpec
    steps: int = 7
    batch: int = 5
    state: bool = True
    lengths: str | None = None
    mask: str | None = None
    reset: str | None = None
    masked_output: str = "zero"
    scale: float = 1.0

    def __str__(self) -> str:
        return self.name

    def problem(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The arrays, which are read-only, and the options of `slstm_forward`."""
        T, B, rng = self.steps, self.batch, np.random.default_rng(1)
        p = map_arrays(problem(self.spec, T, B, scale=self.scale, state=self.state), read_only)
        options: dict[str, Any] = {"masked_output": self.masked_output}
        for name, patterns in (("lengths", LENGTHS), ("mask", MASKS), ("reset", RESETS)):
            if getattr(self, name):
                options[name] = patterns[getattr(self, name)](T, B, rng)
        return p, options


@functools.cache
def truth_of(case: Case) -> Arrays:
    """All outputs and gradients of the case by the reference in float64."""
    p, options = case.problem()
    return solve(p, **options)


EVERY_MARK = {"lengths": "any_order", "mask": "random", "reset": "random"}

# Sizes at which the kernels change their path: vectors are 2 to 16 numbers wide, tiles 6 rows high, heads are padded.
SHAPES = [
    Case("one_of_everything", SLSTMSpec(1, 1, 1), 1, 1),
    Case("primes", SLSTMSpec(7, 13, 1), 11, 5),
    Case("one_step", SLSTMSpec(3, 10, 2), 1, 4),
    Case("no_steps", SLSTMSpec(3, 10, 2), 0, 3),
    Case("no_rows", SLSTMSpec(3, 10, 2), 4, 0),
    Case("neither_steps_nor_rows", SLSTMSpec(0, 10, 2), 0, 0),
    Case("heads_of_one_unit", SLSTMSpec(5, 7, 7)),
    Case("heads_of_three_units", SLSTMSpec(5, 15, 5)),
    Case("heads_of_whole_vectors", SLSTMSpec(16, 64, 2), 5, 6),
    Case("heads_not_a_multiple_of_the_vector", SLSTMSpec(9, 111, 3), 5, 6),
    Case("head_one_more_than_the_widest_panel", SLSTMSpec(3, 65, 1), 5, 3),
    Case("input_much_wider_than_hidden", SLSTMSpec(67, 6, 2), 5, 4),
    Case("products_of_several_chains", SLSTMSpec(150, 278, 2), 3, 4),
    Case("pre_activations", SLSTMSpec(0, 26, 2)),
    Case("no_bias", SLSTMSpec(5, 22, 2, bias=False)),
    Case("pre_activations_without_bias", SLSTMSpec(0, 26, 2, bias=False)),
    Case("no_state", SLSTMSpec(5, 22, 2), state=False),
    Case("one_row_over_more_steps_than_are_loaded", SLSTMSpec(5, 38, 2), 200, 1),
    Case("three_rows_over_more_steps_than_are_loaded", SLSTMSpec(5, 10, 2), 70, 3),
    Case("one_row_more_than_a_block_of_48", SLSTMSpec(5, 10, 2), 3, 49),
    Case("backward_in_three_chunks", SLSTMSpec(5, 6, 2), 70, 8),
    Case("more_rows_than_a_chunk_of_backward", SLSTMSpec(3, 6, 3), 3, 300),
    Case("hidden_over_128", SLSTMSpec(3, 130, 2), 25, 18),
    Case("gates_that_saturate", SLSTMSpec(0, 6, 2), scale=10.0),
]
MARKED = [Case(f"lengths_{name}", SLSTMSpec(5, 22, 2), lengths=name) for name in LENGTHS]
MARKED += [Case(f"mask_{name}", SLSTMSpec(5, 22, 2), mask=name) for name in MASKS]
MARKED += [Case(f"reset_{name}", SLSTMSpec(5, 22, 2), reset=name) for name in RESETS]
for spec in (SLSTMSpec(5, 22, 2), SLSTMSpec(0, 6, 2)):
    for repeated in ("zero", "repeat"):
        for T, B in ((13, 9), (9, 97), (120, 1)):
            name = f"every_mark_{repeated}_{'pre_activations_' * (not spec.input_size)}{T}_{B}"
            MARKED.append(Case(name, spec, T, B, masked_output=repeated, **EVERY_MARK))

# Sizes at which threads share the work: heads, rows, or both.
SHARED = [
    Case("heads_shared", SLSTMSpec(33, 132, 4), 9, 7),
    Case("rows_shared", SLSTMSpec(30, 41, 1), 9, 39),
    Case("heads_and_rows_shared", SLSTMSpec(30, 82, 2), 70, 13, **EVERY_MARK),
    Case("heads_of_one_row_shared", SLSTMSpec(61, 201, 3), 50, 1, reset="random"),
    Case("pre_activations_shared", SLSTMSpec(0, 132, 3), 40, 12, mask="random", masked_output="repeat"),
]
