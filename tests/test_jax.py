"""`fastlstm.jax.lstm`: results and gradients against the reference and JAX's own, random numbers, what it computes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cases import EVERYTHING, OPTIONS, Case, assert_close, assert_same_bits, problem_of, truth_of
from cell_cases import SHAPES as CELL_SHAPES
from cell_cases import TOLERANCE, VARIANTS, own_errors, variant_of
from fastlstm import LSTMCellOptions, _core, functional
from fastlstm.exchange import from_flax
from fastlstm.weights import WeightSpec

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

from fastlstm.jax import lstm  # noqa: E402
from jax_cases import DEEPER, DROPS, SPEC, arrays_of, assert_alike, leaves_by_name, loss_of, scanned, solve_on_jax  # noqa: E402

pytestmark = pytest.mark.usefixtures("jax_with_both_dtypes")

SHAPES = [case for case in CELL_SHAPES if case.name in ("one_row_of_one_step", "primes", "no_steps", "no_rows")]


def truth_for(case: Case) -> dict[str, np.ndarray]:
    truth = truth_of(case)
    return {name: array for name, array in truth.items() if case.state or name not in ("dh0", "dc0")}


# Against the reference


@pytest.mark.parametrize("case", [*SHAPES, *OPTIONS, *EVERYTHING], ids=str)
def test_results_and_gradients(case: Case, dtype: str) -> None:
    assert_close(solve_on_jax(problem_of(case).astype(dtype)), truth_for(case), dtype)


@pytest.mark.parametrize("variant", VARIANTS)
def test_cells(variant: str, dtype: str) -> None:
    case = variant_of(variant, Case(variant, WeightSpec(5, 11, 2, bidirectional=True), mask="random", reset="random"))
    found = solve_on_jax(problem_of(case).astype(dtype))
    assert_close(found, truth_for(case), dtype, TOLERANCE["times for a variant"], own_errors(case, dtype))


@pytest.mark.parametrize("case", [EVERYTHING[0], EVERYTHING[3]], ids=str)
def test_transposed_weights_have_transposed_gradients(case: Case, dtype: str) -> None:
    problem = problem_of(variant_of("norms_with_peepholes_under_clips", case)).astype(dtype)
    turned = replace(problem, weights={name: array.T for name, array in problem.weights.items()})
    found = solve_on_jax(turned, transposed_weights=True)
    found |= {name: found[name].T for name in ("d" + name for name in problem.weights)}
    assert_same_bits(found, solve_on_jax(problem))


def test_every_instruction_set(isa: str, dtype: str) -> None:
    case = EVERYTHING[-1]
    assert_close(solve_on_jax(problem_of(case).astype(dtype)), truth_for(case), dtype)


# Against JAX's own derivatives


def test_gradients_are_those_of_a_scan() -> None:
    arrays = arrays_of()
    found = jax.value_and_grad(loss_of(lstm))(arrays)
    assert_alike(found, jax.value_and_grad(loss_of(scanned))(arrays))
    assert_alike(jax.jit(jax.value_and_grad(loss_of(lstm)))(arrays), found)


@pytest.mark.parametrize("options", [{}, {"mask": np.arange(15).reshape(5, 3) % 4 > 0, "masked_output": "repeat"}])
def test_gradients_are_those_of_finite_differences(options: dict[str, Any]) -> None:
    spec = WeightSpec(3, 5, 2, bidirectional=True, proj_size=2)
    check_grads(lambda arrays: lstm(**arrays, **options), (arrays_of(spec),), order=1, modes=("rev",))


def test_a_loss_that_is_differentiated_beside_its_gradient() -> None:
    arrays = arrays_of()

    def loss(function: Any, arrays: dict[str, Any]) -> Any:
        value, gradient = jax.value_and_grad(loss_of(function))(arrays)
        return value * value + sum(map(jnp.sum, jax.tree.leaves(jax.lax.stop_gradient(gradient))))

    found, expected = (jax.jit(jax.value_and_grad(lambda a, f=f: loss(f, a)))(arrays) for f in (lstm, scanned))
    assert_alike(found, expected)


def test_gradients_of_several_losses() -> None:
    arrays = arrays_of()
    (y, pull), (_, expected) = (jax.vjp(lambda a, f=f: f(**a)[0], arrays) for f in (lstm, scanned))
    for k in (1.0, 2.0):
        assert_alike(pull(k * y), expected(k * y))


def test_jacobian() -> None:
    arrays = arrays_of()
    found, expected = (jax.jacrev(lambda a, f=f: f(**a)[1])(arrays) for f in (lstm, scanned))
    assert_alike(found, expected)


# What is computed


@pytest.mark.parametrize("wanted", ["x", "weights", "state"])
def test_only_what_is_wanted_is_computed(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays, asked = arrays_of(), []

    def spy(*given: Any, want_x: bool, want_weights: bool, **options: Any) -> Any:
        asked.append((want_x, want_weights, given[1] is None, given[2][1] is None))
        return functional.lstm_backward(*given, want_x=want_x, want_weights=want_weights, **options)

    monkeypatch.setattr("fastlstm.jax.host.lstm_backward", spy)
    grad = jax.jit(jax.grad(lambda part: lstm(**(arrays | {wanted: part}))[1][0].sum()))
    found, expected = grad(arrays[wanted]), jax.grad(lambda a: scanned(**a)[1][0].sum())(arrays)[wanted]
    assert_alike(found, expected)
    assert asked == [(wanted == "x", wanted == "weights", True, True)]


def test_inference_keeps_no_tape(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays, trained = arrays_of(), []

    def spy(*given: Any, **options: Any) -> Any:
        trained.append((options["training"], options["memory"] is None))
        return forward(*given, **options)

    forward = _core.forward
    monkeypatch.setattr(_core, "forward", spy)
    jax.block_until_ready((jax.jit(lstm)(**arrays), lstm(**arrays, cell=DROPS, training=False)))
    assert trained == [(False, True), (False, True)]


def test_no_sequence_is_returned() -> None:
    arrays = arrays_of(DEEPER)
    y, state, cells = lstm(**arrays, return_sequence=False, return_cells=True)
    assert y is None
    _, expected, all_cells = lstm(**arrays, return_cells=True)
    assert_alike((state, cells), (expected, all_cells))
    found = jax.grad(lambda a: loss_of(lstm)(a, return_sequence=False))(arrays)
    assert_alike(found, jax.grad(lambda a: loss_of(lambda **k: lstm(**k)[1])(a))(arrays))


def test_half_a_state() -> None:
    arrays = arrays_of()
    h0, c0 = arrays.pop("state")
    assert_alike(lstm(**arrays, state=(None, c0)), lstm(**arrays, state=(jnp.zeros_like(h0), c0)))


# Random numbers


def test_seeds() -> None:
    arrays = arrays_of()
    of = lambda seed, call=0: lstm(**arrays, cell=DROPS, dropout_seed=seed, dropout_call=call)  # noqa: E731
    same = [7, np.int32(7), jnp.int64(7), jnp.uint8(7), np.array(7)]
    for seed in same:
        assert_same_bits(leaves_by_name(jax.jit(of)(seed)), leaves_by_name(of(7)))
    large = 2**63 + 12345
    y, *_ = functional.lstm_forward(
        np.asarray(arrays["x"]),
        jax.tree.map(np.asarray, arrays["weights"]),
        jax.tree.map(np.asarray, arrays["state"]),
        cell=DROPS,
        dropout_seed=large,
        dropout_call=2**31 + 3,
    )
    for seed in (large, jnp.uint64(large)):
        assert_same_bits({"y": np.asarray(of(seed, 2**31 + 3)[0])}, {"y": y})
    keys = [jax.random.key(1), jax.random.PRNGKey(1), jax.random.key(2), jax.random.key(1, impl="rbg")]
    one, old, *others = [np.asarray(jax.jit(of)(key)[0]) for key in keys]
    assert np.array_equal(one, old)
    for other in (*others, np.asarray(of(jax.random.key(1), 1)[0]), y):
        assert not np.array_equal(one, other)


def test_without_training_nothing_is_drawn() -> None:
    arrays = arrays_of(DEEPER)
    drops = LSTMCellOptions(recurrent_dropout=0.3, input_dropout=0.5, weight_drop=0.2)
    quiet = lambda a: loss_of(lstm)(a, cell=drops, dropout=0.5, training=False)  # noqa: E731
    assert_alike(jax.value_and_grad(quiet)(arrays), jax.value_and_grad(loss_of(lstm))(arrays))


def test_weights_of_flax() -> None:
    linen = pytest.importorskip("flax.linen")
    x = arrays_of(SPEC)["x"]
    rnn = linen.RNN(linen.OptimizedLSTMCell(SPEC.hidden_size, param_dtype=x.dtype), time_major=True)
    variables = rnn.init(jax.random.key(0), x)
    weights = jax.tree.map(jnp.asarray, from_flax(variables["params"]["cell"]))
    assert_alike(lstm(x, weights)[0], rnn.apply(variables, x))
