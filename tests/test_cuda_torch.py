"""torch's tensors on a GPU, emulated or real: bfloat16, which no other library has, and what is torch's own way."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from cases import EVERYTHING, TOLERANCE, Case, Problem, assert_close, problem_of, solve, truth_of
from cell_cases import MARKS, variant_of
from fastlstm import LSTM, lstm_backward, lstm_forward, reference
from fastlstm.weights import WeightSpec
from gpus import Gpu

torch = pytest.importorskip("torch")
GPUS = ["emulated_torch", pytest.param("torch", marks=pytest.mark.gpu)]
pytestmark = pytest.mark.parametrize("gpu", GPUS, indirect=True)

SMALL = Case("small", WeightSpec(3, 9), 4, 5, **MARKS)
TILES = Case("rows_and_units_of_several_tiles", WeightSpec(5, 37), 3, 41, **MARKS)


@functools.cache
def rounded(case: Case) -> tuple[Problem, dict[str, np.ndarray]]:
    """The problem in numbers that bfloat16 has, and what the reference makes of them."""
    problem = problem_of(case).map_arrays(lambda array: torch.from_numpy(np.array(array)).bfloat16().double().numpy())
    return problem, solve(problem, reference)


def solve_in_bfloat16(gpu: Gpu, problem: Problem, algo: str | None = None) -> dict[str, np.ndarray]:
    found = solve(problem.map_arrays(lambda array: gpu.put(array).bfloat16()).with_options(algo=algo))
    assert {array.dtype for array in found.values()} == {torch.bfloat16}
    return {name: gpu.get(array.double()) for name, array in found.items()}


def assert_near(found: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> None:
    assert_close(found, truth, "float64", TOLERANCE["bfloat16"] / TOLERANCE["float64"])


@pytest.mark.parametrize("algo", ["step", "resident", "persistent"])
@pytest.mark.parametrize("case", [SMALL, TILES], ids=str)
def test_bfloat16(gpu: Gpu, case: Case, algo: str) -> None:
    problem, truth = rounded(case)
    assert_near(solve_in_bfloat16(gpu, problem, algo), truth)


@pytest.mark.parametrize("case", EVERYTHING, ids=str)
def test_bfloat16_with_every_option(gpu: Gpu, case: Case) -> None:
    problem, truth = rounded(case)
    assert_near(solve_in_bfloat16(gpu, problem), truth)


@pytest.mark.parametrize("variant", ["layer_norm", "peepholes", "everything_at_once"])
def test_bfloat16_of_a_variant(gpu: Gpu, variant: str) -> None:
    problem, truth = rounded(variant_of(variant, SMALL))
    assert_near(solve_in_bfloat16(gpu, problem), truth)


def test_float32_and_float64(gpu: Gpu, dtype: str) -> None:
    assert_close(gpu.solve(problem_of(TILES).astype(dtype)), truth_of(TILES), dtype)


def test_autograd_sees_nothing(gpu: Gpu) -> None:
    problem = problem_of(SMALL).map_arrays(gpu.put)
    watched = problem.map_arrays(lambda array: array.clone().requires_grad_())
    y, (h_n, _), *_, tape = lstm_forward(watched.x, watched.weights, watched.state, **watched.options)
    grads = lstm_backward(tape, watched.dy, watched.dstate)
    for array in (y, h_n, grads.x, *grads.weights.values()):
        assert not array.requires_grad
    plain, *_ = lstm_forward(problem.x, problem.weights, problem.state, **problem.options)
    np.testing.assert_array_equal(gpu.get(y), gpu.get(plain))


def test_a_layer_of_tensors(gpu: Gpu) -> None:
    cpu, x = LSTM(3, 9, seed=0), np.random.default_rng(0).standard_normal((5, 4, 3), np.float32)
    lstm, there = LSTM(3, 9, seed=0).to(gpu.put(x)), gpu.put(x)
    y, stream = lstm(there)[0], lstm.stream(4)
    assert type(y) is type(there)
    for found in (y, stream(there)):
        np.testing.assert_allclose(gpu.get(found), cpu(x)[0], rtol=2e-6, atol=2e-6)
    stream.reset([1])
    assert not gpu.get(stream.state[0])[:, 1].any() and gpu.get(stream.state[0])[:, 0].any()
    lstm.weights["weight_hh_l0"] = cpu.weights["weight_hh_l0"] * 2
    np.testing.assert_array_equal(gpu.get(lstm.weights["weight_hh_l0"]), cpu.weights["weight_hh_l0"] * 2)
    assert lstm.to("cpu").weights["bias_ih_l0"].dtype == np.float32
