"""The LSTM on a GPU, emulated or real, against the float64 reference: the cases of the CPU, forward and backward."""

from __future__ import annotations

import functools
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from cases import (
    EVERYTHING,
    OPTIONS,
    SHAPES,
    SHARED,
    TOLERANCE,
    Case,
    assert_close,
    assert_same_bits,
    make_problem,
    problem_of,
    solve,
    truth_of,
)
from cell_cases import ALONE, MARKS, TOGETHER, VARIANTS, cell_of, own_errors, variant_of
from emulated_cuda import Emulator
from fastlstm import LSTMCellOptions, functional, reference
from fastlstm.device_weights import DeviceWeights
from fastlstm.weights import WeightSpec
from gpus import Gpu, why_not

ALGORITHMS = ["step", "resident", "persistent"]
SMALL = Case("small", WeightSpec(3, 9), 4, 5, **MARKS)
TILES = Case("rows_and_units_of_several_tiles", WeightSpec(5, 37), 3, 41, **MARKS)


def is_persistent(case: Case) -> bool:
    return not (case.spec.proj_size or case.spec.layer_norm or case.cell.recurrent_dropout)


def is_resident(case: Case) -> bool:
    return is_persistent(case) and case.spec.hidden_size <= 64


ON_GPU = not all(why_not(name) for name in ("cupy", "torch"))
# The emulator takes a second for a step of the widest.
MOST_STEPS = 100 if ON_GPU else 4
OF_ALL_SHAPES = [
    replace(case, steps=min(case.steps, MOST_STEPS)) if case.spec.hidden_size > 128 else case for case in SHAPES
]


@pytest.mark.parametrize("case", [*OF_ALL_SHAPES, *SHARED, *OPTIONS, *EVERYTHING], ids=str)
def test_case(gpu: Gpu, dtype: str, case: Case) -> None:
    assert_close(gpu.solve(problem_of(case).astype(dtype)), truth_of(case), dtype)


def cases_of(place: int) -> list[Case]:
    """Of the variant at this place: a GPU takes all; the emulator, at seconds each, two layouts and masked outputs."""
    others = len(EVERYTHING) // 2
    turns = [EVERYTHING[(place + step) % len(EVERYTHING)] for step in (0, others)]
    return [SMALL, TILES, *(EVERYTHING if ON_GPU else turns)]


@pytest.mark.parametrize(
    ("variant", "case"),
    [(variant, case) for place, variant in enumerate(VARIANTS) for case in cases_of(place)],
    ids=str,
)
def test_variant(gpu: Gpu, dtype: str, variant: str, case: Case) -> None:
    case = variant_of(variant, case)
    found = gpu.solve(problem_of(case).astype(dtype))
    assert_close(found, truth_of(case), dtype, TOLERANCE["times for a variant"], own_errors(case, dtype))


# float16 rounds what goes in, too: what it is held to is the reference with these numbers.
@functools.cache
def rounded(case: Case) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    problem = problem_of(case).astype("float16")
    return problem, solve(problem.astype("float64"), reference)


@pytest.mark.parametrize("case", [*OF_ALL_SHAPES, *OPTIONS, *EVERYTHING], ids=str)
def test_half_precision(gpu: Gpu, case: Case) -> None:
    problem, truth = rounded(case)
    assert_close(gpu.solve(problem), truth, "float16")


# A gate within half an ulp of what it is clipped to may have been clipped or not: its gradient is there, or is not.
@pytest.mark.parametrize("case", [SMALL, TILES], ids=str)
@pytest.mark.parametrize("variant", [v for v in ALONE | TOGETHER if cell_of(v).gate_clip is None])
def test_half_precision_of_a_variant(gpu: Gpu, variant: str, case: Case) -> None:
    case = variant_of(variant, case)
    problem, truth = rounded(case)
    assert_close(gpu.solve(problem), truth, "float16", least=own_errors(case, "float16"))


# More rows than a tile of a warp, and of a block; units that fill the columns of a block, and that do not.
TENSOR_CASES = [SMALL, TILES, *OPTIONS, Case("rows_of_several_tiles", WeightSpec(3, 19), 3, 83, **MARKS)]
TENSOR_CASES = [case for case in TENSOR_CASES if is_persistent(case)]


@pytest.mark.parametrize("case", TENSOR_CASES, ids=str)
def test_tensor_cores_in_half_precision(gpu: Gpu, case: Case) -> None:
    problem, truth = rounded(case)
    assert_close(gpu.solve(problem, "persistent"), truth, "float16")


@pytest.mark.parametrize("case", TENSOR_CASES, ids=str)
def test_tensor_cores_in_tf32(gpu: Gpu, case: Case) -> None:
    problem = problem_of(case).astype("float32")
    found = gpu.solve(problem, "persistent", tf32=True)
    assert_close(found, truth_of(case), "float32", TOLERANCE["times for tf32"])


def test_tf32_is_not_taken_unless_allowed(gpu: Gpu) -> None:
    problem = problem_of(SMALL).astype("float32")
    exact, rounded = (gpu.solve(problem, "persistent", tf32=allowed)["y"] for allowed in (False, True))
    assert np.abs(exact - rounded).max() > TOLERANCE["float32"]
    for algo in ("step", "resident"):  # which have no tensor cores
        assert_same_bits(gpu.solve(problem, algo, tf32=True), gpu.solve(problem, algo))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_row_is_the_same_in_every_batch_on_tensor_cores(gpu: Gpu, dtype: str) -> None:
    problem = problem_of(Case("", WeightSpec(0, 37), 4, 83, mask="random", reset="random")).astype(dtype)
    whole, rows = gpu.solve(problem, "persistent", tf32=dtype == "float32"), np.array([3, 80, 17])
    part = gpu.solve(problem.rows(rows), "persistent", tf32=dtype == "float32")
    for name in ("y", "h_n", "c_n", "cells", "dx", "dh0", "dc0"):
        np.testing.assert_array_equal(part[name], whole[name][:, rows], name)


# Few rows of it would be resident in so little memory, many would not; on tensor cores they would be summed otherwise.
@pytest.mark.parametrize("gpu", ["emulated"], indirect=True)
def test_how_a_layer_runs_does_not_depend_on_the_batch(gpu: Gpu, emulator: Emulator) -> None:
    emulator.set_shared_bytes(49_000)
    problem = problem_of(Case("", WeightSpec(0, 72), 3, 41)).astype("float16")
    whole, rows = gpu.solve(problem), np.array([3, 40, 17])
    part = gpu.solve(problem.rows(rows))
    for name in ("y", "h_n", "c_n", "cells", "dx", "dh0", "dc0"):
        np.testing.assert_array_equal(part[name], whole[name][:, rows], name)


# What a step backward multiplies is deeper than one part for each slice.
DEEP = Case("deep", WeightSpec(3, 72), 3, 5, **MARKS)


@pytest.mark.parametrize("case", [DEEP, *(case for case in [SMALL, TILES, *OPTIONS] if is_resident(case))], ids=str)
def test_algorithms_give_the_same_bits(gpu: Gpu, dtype: str, case: Case) -> None:
    step, *others = (gpu.solve(problem_of(case).astype(dtype), algo) for algo in ALGORITHMS)
    for other in others:
        assert_same_bits(step, other)


# As much as forward needs, and not enough for all that a step backward multiplies at once.
@pytest.mark.parametrize(
    ("dtype", "tf32", "size"), [("float32", False, 53000), ("float16", False, 45000), ("float32", True, 80000)]
)
@pytest.mark.parametrize("gpu", ["emulated"], indirect=True)
def test_less_shared_memory_gives_the_same_bits(
    gpu: Gpu, emulator: Emulator, dtype: str, tf32: bool, size: int
) -> None:
    problem = problem_of(Case("", WeightSpec(3, 100), 3, 5, **MARKS)).astype(dtype)
    with_all = gpu.solve(problem, "persistent", tf32)
    emulator.set_shared_bytes(size)
    assert_same_bits(gpu.solve(problem, "persistent", tf32), with_all)
    emulator.set_shared_bytes(size // 2)
    with pytest.raises(ValueError, match=r'algo is "persistent", .* shared memory, and a block has'):
        gpu.solve(problem, "persistent", tf32)


# Which means "not yet" where blocks of a persistent kernel wait for each other's numbers.
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_nan_of_all_ones_is_a_nan(gpu: Gpu, dtype: str, algo: str) -> None:
    problem = problem_of(Case("", WeightSpec(3, 24), 4, 5)).astype(dtype)
    h0, x = problem.state[0].copy(), problem.x.copy()
    expected = gpu.solve(problem, algo)
    for array, row in ((h0, 1), (x, 3)):
        array[0, row, 0] = np.frombuffer(b"\xff" * array.itemsize, dtype)[0]
    found = gpu.solve(replace(problem, state=(h0, problem.state[1]), x=x), algo)
    assert np.isnan(found["y"][:, [1, 3]]).all() and np.isnan(found["dx"][0, [1, 3]]).all()
    for name in ("y", "dx"):
        np.testing.assert_array_equal(found[name][:, [0, 2, 4]], expected[name][:, [0, 2, 4]])


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_row_is_the_same_in_every_batch(gpu: Gpu, dtype: str, algo: str) -> None:
    problem = problem_of(Case("", WeightSpec(5, 37), 4, 41, mask="random", reset="random")).astype(dtype)
    whole, rows = gpu.solve(problem, algo), np.array([3, 40, 17])
    part = gpu.solve(problem.rows(rows), algo)
    # x . W is the array library's, which may sum in another order where there are fewer rows.
    for name in ("y", "h_n", "c_n", "cells", "dx", "dh0", "dc0"):
        np.testing.assert_allclose(part[name], whole[name][:, rows], rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("algo", ALGORITHMS)
@pytest.mark.parametrize("case", [SMALL, TILES], ids=str)
def test_training_gives_what_inference_gives(gpu: Gpu, dtype: str, algo: str, case: Case) -> None:
    problem = problem_of(case).astype(dtype).map_arrays(gpu.put)
    results = []
    for training in (True, False):
        y, (h_n, c_n), tape = functional.lstm_forward(
            problem.x, problem.weights, problem.state, algo=algo, training=training, **problem.options
        )
        assert (tape is not None) == training
        results.append({"y": gpu.get(y), "h_n": gpu.get(h_n), "c_n": gpu.get(c_n)})
    assert_same_bits(*results)


@pytest.mark.parametrize("gpu", ["emulated"], indirect=True)
def test_inference_has_the_memory_of_one_layer_at_a_time(gpu: Gpu) -> None:
    peaks = []
    for layers in (2, 6):
        problem = problem_of(Case("", WeightSpec(3, 9, num_layers=layers), 8, 32)).map_arrays(gpu.put)
        weights = DeviceWeights.of(problem.weights)
        tracemalloc.start()
        functional.lstm_forward(problem.x, weights, training=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


@pytest.mark.parametrize("case", EVERYTHING, ids=str)
def test_backward_gives_the_same_again(gpu: Gpu, dtype: str, case: Case) -> None:
    problem = problem_of(case).astype(dtype).map_arrays(gpu.put)
    *_, tape = functional.lstm_forward(problem.x, problem.weights, problem.state, **problem.options)
    first, second = (functional.lstm_backward(tape, problem.dy, problem.dstate) for _ in range(2))
    both = [{"x": gpu.get(grads.x), **{n: gpu.get(g) for n, g in grads.weights.items()}} for grads in (first, second)]
    assert_same_bits(*both)


@pytest.mark.parametrize("truncate", [1, 3])
def test_truncated_gradients(gpu: Gpu, dtype: str, truncate: int) -> None:
    case = EVERYTHING[0]
    found, expected = [], []
    for problem, module, results in (
        (problem_of(case).astype(dtype).map_arrays(gpu.put), functional, found),
        (problem_of(case), reference, expected),
    ):
        *_, tape = module.lstm_forward(problem.x, problem.weights, problem.state, **problem.options)
        grads = module.lstm_backward(tape, problem.dy, problem.dstate, truncate=truncate)
        results.append({"dx": grads.x, "dh0": grads.state[0], **{"d" + n: g for n, g in grads.weights.items()}})
    assert_close({name: gpu.get(array) for name, array in found[0].items()}, expected[0], dtype)


def test_out_is_where_y_goes(gpu: Gpu, dtype: str) -> None:
    problem = problem_of(SMALL).astype(dtype).map_arrays(gpu.put)
    out = gpu.put(np.zeros((4, 5, 9), dtype))
    y, _, _ = functional.lstm_forward(problem.x, problem.weights, problem.state, out=out, **problem.options)
    assert y is out
    np.testing.assert_allclose(gpu.get(out), truth_of(SMALL)["y"], atol=1e-6)


def test_no_y_is_stored_where_none_is_wanted(gpu: Gpu, dtype: str) -> None:
    problem = problem_of(SMALL).astype(dtype).map_arrays(gpu.put)
    y, (h_n, _), tape = functional.lstm_forward(
        problem.x, problem.weights, problem.state, return_sequence=False, **problem.options
    )
    assert y is None
    np.testing.assert_allclose(gpu.get(h_n), truth_of(SMALL)["h_n"], atol=1e-6)
    with pytest.raises(ValueError, match="dy is given: expected None"):
        functional.lstm_backward(tape, dy=gpu.put(np.zeros((4, 5, 9), dtype)))


def bad(gpu: Gpu) -> dict[str, tuple[type[Exception], str, dict[str, object]]]:
    x = gpu.put(np.zeros((4, 5, 3), np.float32))
    state = gpu.put(np.zeros((1, 5, 9), np.float32))
    double = problem_of(SMALL).map_arrays(gpu.put)
    float64 = {"x": double.x, "weights": double.weights}
    return {
        "x of another size": (ValueError, "x has shape .* expected", {"x": x[..., :2]}),
        "x of another dtype": (TypeError, "x has dtype float64", {"x": gpu.put(np.zeros((4, 5, 3)))}),
        "x on the CPU": (TypeError, "x is on the CPU, but the weights are on a GPU", {"x": np.zeros((4, 5, 3), "f")}),
        "a state of another shape": (ValueError, "h0 has shape", {"state": (state[:, :2], None)}),
        "a state on the CPU": (TypeError, "c0 is", {"state": (None, np.zeros((1, 5, 9), np.float32))}),
        "a mask of another shape": (ValueError, "mask has shape", {"mask": gpu.put(np.ones((4, 4), bool))}),
        "threads": (ValueError, "threads is 2, but x is on a GPU", {"threads": 2}),
        "an unknown algorithm": (ValueError, "algo is 'fast': expected one of auto, step", {"algo": "fast"}),
        "tf32 in float64": (ValueError, "tf32 is True, but x has dtype float64", float64 | {"tf32": True}),
        "checkpoints": (ValueError, "checkpoint_every is given, but x is on a GPU", {"checkpoint_every": 2}),
    }


@pytest.mark.parametrize("what", bad(Gpu("emulated")))
def test_bad_input(gpu: Gpu, what: str) -> None:
    error, message, arguments = bad(gpu)[what]
    problem = problem_of(SMALL).astype("float32").map_arrays(gpu.put)
    given = {"x": problem.x, "weights": problem.weights} | arguments
    with pytest.raises(error, match=message):
        functional.lstm_forward(**given)


def test_what_kernels_cannot_do_is_an_error(gpu: Gpu) -> None:
    projected, normalised = WeightSpec(3, 9, proj_size=2), WeightSpec(3, 9, layer_norm=True)
    for spec, why in ((projected, "it has a projection"), (normalised, "it is normalised")):
        problem = make_problem(Case("", spec)).map_arrays(gpu.put)
        for algo in ("resident", "persistent"):
            with pytest.raises(ValueError, match=f'algo is "{algo}", which this layer cannot be: {why}'):
                functional.lstm_forward(problem.x, problem.weights, algo=algo)


def test_lengths_on_the_gpu_beyond_the_end_are_its_steps(gpu: Gpu) -> None:
    """Nobody has checked them; in reverse, a reset behind the last step must not be looked for."""
    problem = problem_of(Case("", WeightSpec(3, 5, bidirectional=True), 6, 4, reset="random"))
    reset = problem.options["reset"]
    behind = gpu.put(np.concatenate([reset, ~reset[:1]]))[:-1]  # what stands there in memory
    of_gpu = problem.map_arrays(gpu.put).with_options(reset=behind, lengths=gpu.put(np.full(4, 7)))
    found = {name: gpu.get(array) for name, array in solve(of_gpu).items()}
    assert_same_bits(found, gpu.solve(problem))


def test_the_cpu_has_no_algorithms() -> None:
    problem = problem_of(SMALL)
    with pytest.raises(ValueError, match="tf32 is True, but x is on the CPU"):
        functional.lstm_forward(problem.x, problem.weights, tf32=True)
    with pytest.raises(ValueError, match="algo is 'step', but x is on the CPU"):
        functional.lstm_forward(problem.x, problem.weights, algo="step")


def test_zoneout_and_dropout_draw_what_the_cpu_draws(gpu: Gpu) -> None:
    cell = LSTMCellOptions(zoneout_h=0.5, recurrent_dropout=0.5)
    problem = problem_of(SMALL).with_options(cell=cell, dropout_seed=7)
    assert_close(gpu.solve(problem), solve(problem), "float64")
