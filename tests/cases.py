"""The problems that the tests solve, each named for its reason, and the one table of errors that are allowed.

Arrays are drawn in float32 whatever the dtype under test: one float64 run of the reference is the truth for both.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np

from fastlstm import functional, reference
from fastlstm.cells import PLAIN, LSTMCellOptions
from fastlstm.weights import WeightSpec, initial_weights

# The largest max|a - b| / max|b| that an array may show against a float64 run, and why it is not less.
TOLERANCE = {
    "float32": 1e-6,  # 8 half-ulps of float32; the activations take up to 5
    # db, as what belongs to a unit alone, is one sum over all T*B steps, with nothing that averages its terms as in dW
    "float32 bias": 2e-6,
    "float64": 1e-12,  # far above float64's 1e-16, far below any step that float32 could have taken on the way
    # Weights, states, gates and their gradients are rounded to 11 bits each, half an ulp being 2.4e-4, and sums over
    # steps add them up; measured up to 4e-3.
    "float16": 1e-2,
    "bfloat16": 2e-2,  # 8 bits; measured up to 1.1e-2
    # U and what it multiplies are rounded to 11 bits, 8192 times more than to float32's 24; states and sums are not.
    "times for tf32": 1000,
    "finite differences": 1e-9,  # five points, h = 1e-3: h**4 of the fifth derivative, 1e-15 / h of rounding
    # How far beyond torch's own error: 2.5 ulps of float32. Our tanh is good to 5 ulps, torch's to 1, and a maximum
    # over few numbers is a matter of luck.
    "beyond torch": 3e-7,
    # x86_v2 has no fused multiply-add: twice the roundings in a product, and a tanh good to 6 ulps.
    "beyond torch, x86_v2": 4e-7,
    # Where gates come so near to 1 that f (1 - f) makes much of an ulp of f; measured up to 16, torch's own up to 10.
    "times for saturated gates": 20,
    "times torch, mean": 1.5,  # its own error, in the geometric mean over many arrays; measured up to 1.3
    # int8 weights multiply x and h as 16-bit numbers: each is off by 1.5e-5 of its row's largest, and sums of them by
    # a few times that; measured up to 1e-4.
    "16-bit activations": 3e-4,
    # How many times more for a variant of the cell: its activations take up to 6.5 ulps, and those that have
    # no bound, as zoneout, keep what was off. Measured up to 1.3.
    "times for a variant": 1.5,
    "times for a variant, x86_v2": 3.5,  # more roundings, see above; measured up to 3.2 in a sum that cancels
    # How many times the largest error that NumPy's float32 has in the same case, with layer normalisation: it divides
    # by deviations as small as 0.003, so that what is left of a rounding is a matter of luck. Measured up to 13.
    "times NumPy, normalised": 20,
    # How many times the error that NumPy's float32 has in the same case: a gate is e^(i - m), and an error of m, which
    # is relative to m, is absolute there: half a thousandth at m = 10,000. Measured up to 0.5 where it is large.
    "times NumPy, sLSTM": 2,
    # Its sigmoid and tanh are polynomials good to some 1e-7 absolute, and their errors go round the recurrence.
    "onnxruntime": 5e-6,
    # Keras's own float32 is further off than ours; measured up to 4.7e-6, in a gradient of h0 whose terms cancel.
    "beside Keras": 1e-5,
    # An h within rounding of the middle between two levels may go either way: one level of one term, 3e-5 / sqrt(H).
    "a level that rounds the other way": 1e-5,
}


def tolerance(array: str, dtype: str) -> float:
    """The tolerance of an array by the name that `solve` gives it."""
    by_unit = array.startswith(("dbias", "dweight_peephole", "dgamma", "dbeta"))
    return TOLERANCE["float32 bias" if dtype == "float32" and by_unit else dtype]


@dataclass(frozen=True)
class Case:
    """What to compute. lengths, mask and reset name the patterns below."""

    name: str
    spec: WeightSpec
    steps: int = 7
    batch: int = 5
    layout: str = "time_major"  # or batch_first, unbatched
    state: bool = True
    lengths: str | None = None
    mask: str | None = None
    reset: str | None = None
    masked_output: str = "zero"
    dropout: float = 0.0
    x_scale: float = 1.0
    cell: LSTMCellOptions = PLAIN
    gates: bool = False  # whether they are asked for, and have a gradient
    seed: int = 0

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Problem:
    """Everything that goes into forward and backward, laid out as its case says."""

    spec: WeightSpec
    weights: dict[str, np.ndarray]
    x: np.ndarray
    state: tuple[np.ndarray, np.ndarray] | None
    dy: np.ndarray | None
    dstate: tuple[np.ndarray | None, np.ndarray | None] | None
    dcells: np.ndarray | None
    options: dict[str, Any]  # of lstm_forward
    dgates: np.ndarray | None = None

    def astype(self, dtype: str) -> Problem:
        return self.map_arrays(lambda array: array.astype(dtype))

    def map_arrays(self, change: Any) -> Problem:
        """The problem with every floating-point array replaced by `change(array)`."""

        def through(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: through(part) for name, part in value.items()}
            if isinstance(value, tuple):
                return tuple(through(part) for part in value)
            return None if value is None else change(value)

        names = ("weights", "x", "state", "dy", "dstate", "dcells", "dgates")
        return replace(self, **{name: through(getattr(self, name)) for name in names})

    def with_options(self, **options: Any) -> Problem:
        return replace(self, options=self.options | options)

    def rows(self, rows: slice | np.ndarray) -> Problem:
        """Some rows of a time-major problem as a problem of their own."""

        def some(name: str, value: Any) -> Any:
            return value[rows] if name == "lengths" else value[:, rows] if name in ("mask", "reset") else value

        part = self.map_arrays(lambda array: array[:, rows] if array.ndim == 3 else array)
        return replace(part, options={name: some(name, value) for name, value in self.options.items()})

    def steps(self, steps: slice) -> Problem:
        """Some steps of a time-major problem without lengths; states as they were."""
        options = {name: v[steps] if name in ("mask", "reset") else v for name, v in self.options.items()}
        return replace(self, x=self.x[steps], options=options)

    def counts(self) -> np.ndarray:
        """Which steps count, `[T,B]`, of a time-major problem."""
        counts = np.ones(self.x.shape[:2], bool)
        if "lengths" in self.options:
            counts &= np.arange(len(self.x))[:, None] < self.options["lengths"]
        return counts & self.options["mask"].astype(bool) if "mask" in self.options else counts


LENGTHS = {
    "any_order": lambda T, B, rng: np.concatenate([[T // 2, 0, T][:B], rng.integers(0, T + 1, max(B - 3, 0))]),
    "all_zero": lambda T, B, rng: np.zeros(B, np.int64),
    "all_full": lambda T, B, rng: np.full(B, T, np.uint8),
    "longest_first": lambda T, B, rng: np.sort(rng.integers(1, T + 1, B))[::-1],
}
MASKS = {
    "random": lambda T, B, rng: rng.random((T, B)) < 0.6,
    "leading": lambda T, B, rng: np.arange(T)[:, None] >= rng.integers(0, T + 1, B),
    "trailing": lambda T, B, rng: np.arange(T)[:, None] < rng.integers(0, T + 1, B),
    "nothing_counts": lambda T, B, rng: np.zeros((T, B), bool),
    "everything_counts": lambda T, B, rng: np.ones((T, B), bool),
    "one_row_never_counts": lambda T, B, rng: np.broadcast_to(np.arange(B) != B // 2, (T, B)).copy(),
    "alternating_integers": lambda T, B, rng: np.indices((T, B)).sum(axis=0) % 2,
    "alternating_floats": lambda T, B, rng: np.indices((T, B)).sum(axis=0) % 2.0,
}
RESETS = {
    "random": lambda T, B, rng: rng.random((T, B)) < 0.3,
    "first_step": lambda T, B, rng: np.broadcast_to(np.arange(T)[:, None] == 0, (T, B)).copy(),
    "every_step": lambda T, B, rng: np.ones((T, B), bool),
    "never": lambda T, B, rng: np.zeros((T, B), np.int8),
}


def laid_out(array: np.ndarray, layout: str) -> np.ndarray:
    """A sequence `[T,B,..]` in this layout; unbatched is its only row."""
    if layout == "unbatched":
        return array[:, 0]
    return np.ascontiguousarray(array.swapaxes(0, 1)) if layout == "batch_first" else array


def make_problem(case: Case, seed: int = 0) -> Problem:
    """The case with random numbers, in float64; every array is read-only."""
    rng = np.random.default_rng(seed)
    spec, T, B = case.spec, case.steps, case.batch
    unbatched = case.layout == "unbatched"
    rows = spec.num_layers * spec.num_directions

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32).astype(np.float64)

    def draw_state() -> tuple[np.ndarray, np.ndarray]:
        pair = draw(rows, B, spec.hidden_output), draw(rows, B, spec.hidden_size)
        return (pair[0][:, 0], pair[1][:, 0]) if unbatched else pair

    weights = initial_weights(spec, dtype=np.float32, rng=rng)
    for name in weights:
        if name.startswith(("gamma", "beta")):  # which begin as ones and zeros
            weights[name] += rng.uniform(-0.5, 0.5, weights[name].shape).astype(np.float32)
    options: dict[str, Any] = {"masked_output": case.masked_output, "batch_first": case.layout == "batch_first"}
    if case.lengths:
        lengths = LENGTHS[case.lengths](T, B, rng)
        options["lengths"] = int(lengths[0]) if unbatched else lengths
    if case.mask:
        options["mask"] = laid_out(MASKS[case.mask](T, B, rng), case.layout)
    if case.reset:
        options["reset"] = laid_out(RESETS[case.reset](T, B, rng), case.layout)
    if case.dropout:
        options["dropout"] = case.dropout
    if case.cell != PLAIN:
        options["cell"] = case.cell
    if case.dropout or case.cell.draws:
        options |= {"dropout_seed": 2**63 + 12345, "dropout_call": 2**31 + 3}
    problem = Problem(
        spec=spec,
        weights={name: array.astype(np.float64) for name, array in weights.items()},
        x=laid_out(draw(T, B, spec.x_size) * case.x_scale, case.layout),
        state=draw_state() if case.state else None,
        dy=laid_out(draw(T, B, spec.output_size), case.layout),
        dstate=draw_state(),
        dcells=laid_out(draw(T, B, spec.num_directions * spec.hidden_size), case.layout),
        options=options,
        dgates=laid_out(draw(T, B, spec.num_directions * 4 * spec.hidden_size), case.layout) if case.gates else None,
    )
    return problem.map_arrays(read_only)


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


@functools.cache
def problem_of(case: Case) -> Problem:
    return make_problem(case, case.seed)


@functools.cache
def truth_of(case: Case) -> dict[str, np.ndarray]:
    """All outputs and gradients of the case by the reference in float64."""
    return solve(problem_of(case), reference)


def solve(
    problem: Problem, module: ModuleType = functional, threads: int | None = None, backward_threads: int | None = None
) -> dict[str, np.ndarray]:
    """Forward and backward by `module`: every output and gradient by name, the weights' as "d" + their names."""
    p, with_gates = problem, problem.dgates is not None
    y, (h_n, c_n), cells, *gates, tape = module.lstm_forward(
        p.x, p.weights, p.state, return_cells=True, return_gates=with_gates, threads=threads, **p.options
    )
    given = {"dcells": p.dcells, "dgates": p.dgates, "threads": backward_threads or threads}
    grads = module.lstm_backward(tape, p.dy, p.dstate, **given)
    found = {"y": y, "h_n": h_n, "c_n": c_n, "cells": cells, "dx": grads.x}
    found |= {"gates": gates[0]} if with_gates else {}
    return found | {"dh0": grads.state[0], "dc0": grads.state[1]} | {"d" + n: g for n, g in grads.weights.items()}


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """max|a - b| / max|b|; where b is all zero, any difference is infinite; a NaN is."""
    difference = float(np.abs(found - expected).max(initial=0))
    if np.isnan(difference):
        return np.inf
    return difference / float(np.abs(expected).max()) if difference else 0.0


def assert_close(
    found: dict[str, np.ndarray],
    expected: dict[str, np.ndarray],
    dtype: str,
    times: float = 1.0,
    least: dict[str, float] | None = None,
) -> None:
    """Every array of `expected` is there with its shape, in `dtype`, and within so many times its tolerance.

    least: what is allowed where that is less.
    """
    assert found.keys() == expected.keys()
    errors = {}
    for name, array in expected.items():
        assert found[name].shape == array.shape and found[name].dtype == dtype, name
        with np.errstate(divide="ignore"):
            error = relative_error(found[name], array)
        if not error <= max(tolerance(name, dtype) * times, (least or {}).get(name, 0.0)):
            errors[name] = error
    assert not errors, f"max|a - b| / max|b| of {errors}"


def assert_same_bits(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Every array of `expected` is in `found`, and no bit of it differs (-0 is not 0)."""
    different = []
    for name, array in expected.items():
        assert found[name].shape == array.shape and found[name].dtype == array.dtype, name
        if np.ascontiguousarray(found[name]).tobytes() != np.ascontiguousarray(array).tobytes():
            different.append(name)
    assert not different, f"{different} differ"


DEEP = WeightSpec(5, 11, num_layers=2, bidirectional=True)
DEEP_PROJECTED = WeightSpec(5, 11, num_layers=2, bidirectional=True, proj_size=3)

# Sizes at which the kernels change their path: vectors are 2 to 16 numbers wide, tiles 6 rows high.
SHAPES = [
    Case("one_of_everything", WeightSpec(1, 1), 1, 1),
    Case("one_step", WeightSpec(3, 5), 1, 4),
    Case("one_step_of_several_panels", WeightSpec(70, 67), 1, 3),
    Case("one_step_deep", DEEP, 1, 16, lengths="any_order"),
    Case("one_step_of_more_rows", DEEP, 1, 17, lengths="any_order"),
    Case("primes", WeightSpec(7, 13), 11, 5),
    Case("no_steps", DEEP_PROJECTED, 0, 3),
    Case("no_rows", DEEP_PROJECTED, 4, 0),
    Case("neither_steps_nor_rows", DEEP, 0, 0),
    Case("no_steps_of_an_unbatched_input", DEEP, 0, 1, layout="unbatched"),
    Case("hidden_less_than_a_vector", WeightSpec(4, 3), 5, 4),
    Case("hidden_of_whole_vectors", WeightSpec(16, 32), 5, 6),
    Case("hidden_not_a_multiple_of_the_vector", WeightSpec(9, 37), 5, 6),
    Case("hidden_one_more_than_the_widest_panel", WeightSpec(3, 65), 5, 3),
    Case("input_much_wider_than_hidden", WeightSpec(67, 3), 5, 4),
    Case("input_of_one", WeightSpec(1, 19), 9, 7),
    Case("rows_of_one_tile", WeightSpec(3, 9), 4, 6),
    Case("one_row_more_than_a_tile", WeightSpec(3, 9), 4, 7),
    Case("one_row_more_than_a_block_of_48", WeightSpec(5, 9), 3, 49),
    Case("rows_of_three_blocks", WeightSpec(5, 9), 3, 97),
    Case(
        "rows_of_three_blocks_in_every_way", DEEP_PROJECTED, 3, 131, lengths="any_order", mask="random", reset="random"
    ),
    Case("one_row_over_more_steps_than_are_hoisted", WeightSpec(5, 9), 50, 1),
    Case("two_rows_over_whole_hoisted_blocks", WeightSpec(5, 9), 48, 2),
    Case("three_rows_over_more_steps_than_are_hoisted", WeightSpec(5, 9), 33, 3, lengths="any_order", reset="random"),
    Case("three_rows_in_both_directions_hoisted", DEEP, 35, 3, mask="trailing", masked_output="repeat"),
    Case("backward_in_three_chunks", WeightSpec(5, 7), 70, 8),
    Case("backward_in_three_chunks_of_ragged_rows", DEEP, 40, 17, lengths="any_order"),
    Case("more_rows_than_a_chunk_of_backward", WeightSpec(3, 5), 3, 300),
    Case("hidden_over_128", WeightSpec(3, 129), 25, 18),
    Case("hidden_over_256", WeightSpec(3, 257), 19, 30),
]

# Sizes at which threads share the work: rows where there are enough for every thread, else units. The last has rows
# of several blocks under shared units.
SHARED = [
    Case("rows_shared", WeightSpec(30, 40), 4, 39),
    Case("ragged_rows_shared", WeightSpec(30, 41), 9, 40, lengths="any_order", reset="random"),
    Case("units_shared", WeightSpec(61, 67), 5, 5),
    Case("units_shared_hoisted", WeightSpec(91, 99), 20, 3),
    Case("units_shared_with_marks", WeightSpec(61, 67), 9, 7, lengths="any_order", mask="random", reset="random"),
    Case("projection_shared", WeightSpec(61, 67, proj_size=21), 5, 5),
    Case("ragged_projection_shared", WeightSpec(61, 67, proj_size=21), 9, 7, lengths="any_order", mask="random"),
    Case("deep_shared", WeightSpec(40, 48, 2, True, True), 6, 30, lengths="any_order", dropout=0.3),
    Case("weights_larger_than_the_cache", WeightSpec(127, 131), 4, 70, lengths="any_order"),
]

# Every option alone, then together.
OPTIONS = [
    Case("three_layers", WeightSpec(5, 11, num_layers=3)),
    Case("both_directions", WeightSpec(5, 11, bidirectional=True)),
    Case("two_layers_in_both_directions", DEEP),
    Case("projection", WeightSpec(5, 11, proj_size=4)),
    Case("projection_to_one_unit", WeightSpec(5, 11, proj_size=1)),
    Case("projection_wider_than_a_panel", WeightSpec(5, 71, proj_size=67)),
    Case("deep_projection_in_both_directions", DEEP_PROJECTED),
    Case("no_bias", WeightSpec(5, 11, bias=False)),
    Case("no_bias_in_any_layer", WeightSpec(5, 11, 2, False, True, 3)),
    Case("no_state", DEEP, state=False),
    Case("batch_first", DEEP, layout="batch_first"),
    Case("unbatched", DEEP, layout="unbatched", batch=1),
    Case("inputs_that_saturate_the_gates", WeightSpec(5, 11), x_scale=10),
    Case("dropout", WeightSpec(5, 11, num_layers=3), dropout=0.4),
    Case("dropout_in_both_directions", DEEP, dropout=0.4),
    Case("dropout_of_projections", DEEP_PROJECTED, dropout=0.4),
    Case("dropout_of_everything", DEEP, dropout=1.0),
    Case("dropout_without_a_second_layer", WeightSpec(5, 11), dropout=0.5),
]
OPTIONS += [Case(f"lengths_{name}", DEEP, lengths=name) for name in LENGTHS]
OPTIONS += [Case(f"mask_{name}", DEEP, mask=name) for name in MASKS]
OPTIONS += [Case(f"mask_{name}_repeated", DEEP, mask=name, masked_output="repeat") for name in MASKS]
OPTIONS += [Case(f"reset_{name}", DEEP, reset=name) for name in RESETS]
OPTIONS += [
    Case("lengths_repeated", DEEP, lengths="any_order", masked_output="repeat"),
    Case("lengths_without_state_repeated", DEEP, lengths="any_order", state=False, masked_output="repeat"),
    Case("lengths_of_projections_repeated", DEEP_PROJECTED, lengths="any_order", masked_output="repeat"),
    Case("mask_of_projections_repeated", DEEP_PROJECTED, mask="random", masked_output="repeat"),
    Case("mask_and_lengths", DEEP, lengths="any_order", mask="random"),
    Case("mask_leading_and_lengths", DEEP_PROJECTED, lengths="any_order", mask="leading"),
    Case("reset_of_masked_steps", DEEP, mask="nothing_counts", reset="random", masked_output="repeat"),
    Case("reset_beyond_lengths", DEEP, lengths="any_order", reset="every_step"),
    Case("reset_of_projections", DEEP_PROJECTED, reset="random"),
    Case("reset_and_mask_of_projections", DEEP_PROJECTED, mask="random", reset="random", masked_output="repeat"),
]
EVERYTHING = [
    Case(
        f"every_option_{layout}_{masked_output}",
        WeightSpec(5, 11, 3, True, True, proj_size),
        steps=13,
        batch=1 if layout == "unbatched" else 9,
        layout=layout,
        lengths="any_order",
        mask="random",
        reset="random",
        masked_output=masked_output,
        dropout=0.25,
    )
    for layout, proj_size in (("time_major", 4), ("batch_first", 0), ("unbatched", 4))
    for masked_output in ("zero", "repeat")
]
