"""`fastlstm.jax.lstm`: results and gradients against the reference, JAX's transformations, and what it refuses."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fastlstm
from cases import EVERYTHING, OPTIONS, Case, assert_close, assert_same_bits, problem_of, truth_of
from cell_cases import SHAPES as CELL_SHAPES
from cell_cases import TOLERANCE, VARIANTS, own_errors, variant_of
from conftest import RUNNABLE
from fastlstm import LSTMCellOptions, _core, functional
from fastlstm.weights import WeightSpec, initial_weights

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

from fastlstm.jax import bridge, lstm  # noqa: E402
from jax_cases import scanned, solve_on_jax  # noqa: E402

SHAPES = [case for case in CELL_SHAPES if case.name in ("one_row_of_one_step", "primes", "no_steps", "no_rows")]


@pytest.fixture(autouse=True)
def both_dtypes() -> Iterator[None]:
    """Of all threads, unlike `jax.enable_x64`."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


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


def test_every_instruction_set(isa: str, dtype: str) -> None:
    case = EVERYTHING[-1]
    assert_close(solve_on_jax(problem_of(case).astype(dtype)), truth_for(case), dtype)


# Against JAX's own derivatives

SPEC = WeightSpec(4, 6)


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


def assert_alike(found: Any, expected: Any, limit: float = 1e-12) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=limit * max(1.0, float(jnp.abs(b).max(initial=0))))


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


def test_jacobian() -> None:
    arrays = arrays_of()
    found, expected = (jax.jacrev(lambda a, f=f: f(**a)[1])(arrays) for f in (lstm, scanned))
    assert_alike(found, expected)


# Under JAX's transformations

MARKS = {
    "lengths": np.array([5, 0, 3]),
    "mask": np.arange(15).reshape(5, 3) % 4 > 0,
    "reset": np.arange(15).reshape(5, 3) % 3 == 0,
}
DROPS = LSTMCellOptions(recurrent_dropout=0.3, weight_drop=0.2, zoneout_h=0.1)


def everything(seed: Any, marks: dict[str, Any], arrays: dict[str, Any]) -> Any:
    return lstm(**arrays, **marks, cell=DROPS, dropout=0.3, dropout_seed=seed, return_cells=True, return_gates=True)


def leaves_by_name(tree: Any) -> dict[str, np.ndarray]:
    return {str(number): np.asarray(leaf) for number, leaf in enumerate(jax.tree.leaves(tree))}


def test_no_compiler_makes_a_difference() -> None:
    """Values are traced: marks and seed, too."""
    arrays, seed = arrays_of(DEEP_HERE), jnp.uint32(7)
    run = lambda *given: jax.value_and_grad(lambda a: loss_of(lambda **k: everything(*given, k))(a))(arrays)  # noqa: E731
    expected = leaves_by_name(everything(seed, MARKS, arrays))
    assert_same_bits(leaves_by_name(jax.jit(everything)(seed, MARKS, arrays)), expected)
    with jax.disable_jit():
        assert_same_bits(leaves_by_name(everything(seed, MARKS, arrays)), expected)
    assert_alike(jax.jit(run)(seed, MARKS), run(seed, MARKS))


DEEP_HERE = WeightSpec(4, 6, num_layers=2, bidirectional=True)


@pytest.mark.parametrize("mapped", ["x", "weights", "state", "marks", "seed", "all"])
def test_vmap(mapped: str) -> None:
    n = 3
    given = {"seed": jnp.uint32(7), "marks": jax.tree.map(jnp.asarray, MARKS), **arrays_of(DEEP_HERE)}

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


def test_checkpoint_and_scan_around_it() -> None:
    arrays = arrays_of()
    segments = jnp.stack([arrays["x"], 2 * arrays["x"], -arrays["x"]])

    def loss(function: Any, arrays: dict[str, Any]) -> Any:
        @jax.checkpoint
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
    arrays = arrays_of(DEEP_HERE)
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
    arrays = arrays_of(DEEP_HERE)
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
    arrays = arrays_of(DEEP_HERE)
    drops = LSTMCellOptions(recurrent_dropout=0.3, input_dropout=0.5, weight_drop=0.2)
    quiet = lambda a: loss_of(lstm)(a, cell=drops, dropout=0.5, training=False)  # noqa: E731
    assert_alike(jax.value_and_grad(quiet)(arrays), jax.value_and_grad(loss_of(lstm))(arrays))


# What is refused


REFUSED = [
    ({"x": [1.0]}, TypeError, "x is a list, expected a jax.Array or a numpy.ndarray"),
    ({"x": np.ones((5, 3, 7))}, ValueError, r"x has shape \(5, 3, 7\), .* expected \(T, B, 4\)"),
    ({"x": np.ones((5, 3, 4), np.float32)}, TypeError, "x has dtype float32, expected float64"),
    ({"weights": {}}, ValueError, "weights has no weight_hh_l0"),
    ({"weights": None}, TypeError, "weights is a NoneType"),
    ({"state": 1}, TypeError, r"state is a int, expected a pair \(state\[0\] \(h0\), state\[1\] \(c0\)\)"),
    ({"state": (np.ones((1, 3, 5)), None)}, ValueError, r"state\[0\] \(h0\) has shape .* expected \(1, 3, 6\)"),
    ({"cell": 1}, TypeError, "cell is 1"),
    ({"dropout": 2.0}, ValueError, "dropout is 2.0"),
    ({"cell": DROPS}, TypeError, "dropout_seed is None, expected an integer, .* a key of jax.random"),
    ({"cell": DROPS, "dropout_seed": -1}, ValueError, "dropout_seed is -1"),
    ({"cell": DROPS, "dropout_seed": 1.5}, TypeError, "dropout_seed is 1.5"),
    ({"cell": DROPS, "dropout_seed": np.ones(3)}, TypeError, r"dropout_seed is of shape \(3,\) and dtype float64"),
    ({"cell": DROPS, "dropout_seed": 1, "dropout_call": None}, TypeError, "dropout_call is None"),
    ({"lengths": np.ones(4, np.int32)}, ValueError, r"lengths has shape \(4,\), expected \(3,\)"),
    ({"lengths": np.ones(3)}, TypeError, "lengths has dtype float64, expected integers"),
    ({"mask": np.ones((3, 5))}, ValueError, r"mask has shape \(3, 5\), expected \(5, 3\)"),
    ({"reset": np.ones((5, 3), complex)}, TypeError, "reset has dtype complex128, expected booleans"),
    ({"masked_output": "last"}, ValueError, "masked_output is 'last'"),
    ({"batch_first": 1}, TypeError, "batch_first is 1"),
    ({"training": 1}, TypeError, "training is 1"),
    ({"threads": 0}, ValueError, "threads is 0"),
    ({"threads": "2"}, TypeError, "threads is a str"),
]


@pytest.mark.parametrize(("wrong", "error", "text"), REFUSED, ids=[text for _, _, text in REFUSED])
def test_refused_while_traced(wrong: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        jax.eval_shape(lambda: lstm(**(arrays_of() | wrong)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32"])
def test_other_dtypes_are_refused(dtype: str) -> None:
    arrays = jax.tree.map(lambda a: a.astype(dtype), arrays_of())
    with pytest.raises(TypeError, match=f"the weights have dtype {dtype}, expected float32 or float64"):
        lstm(**arrays)


def test_arrays_elsewhere_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = arrays_of()
    monkeypatch.setattr("fastlstm.jax.arguments.platforms_of", lambda array: {"gpu"})
    with pytest.raises(ValueError, match="x is on gpu, expected the CPU"):
        lstm(**arrays)


RUNNING = jax.errors.JaxRuntimeError, ValueError  # as which JAX lets an error in a program come out


@pytest.mark.skipif(len(RUNNABLE) < 2, reason="needs another instruction set")
def test_a_gradient_for_another_instruction_set_is_refused() -> None:
    arrays, step = arrays_of(), jax.jit(jax.grad(loss_of(lstm)))
    fastlstm.set_isa(RUNNABLE[0])
    jax.block_until_ready(step(arrays))
    fastlstm.set_isa(RUNNABLE[1])
    with pytest.raises(RUNNING, match=f"for {RUNNABLE[0]}, but {RUNNABLE[1]} is active"):
        jax.block_until_ready(step(arrays))


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"lengths": np.array([1, 9, 2])}, r"lengths\[1\] is 9: expected 0 <= length <= T = 5"),
        ({"mask": np.full((5, 3), 2)}, "mask contains 2: expected booleans"),
    ],
)
def test_refused_when_it_runs(wrong: dict[str, Any], text: str) -> None:
    arrays = arrays_of()
    with pytest.raises(RUNNING, match=text):
        jax.block_until_ready(jax.jit(lambda marks: lstm(**arrays, **marks))(wrong))


def test_another_device_is_refused_when_it_runs() -> None:
    class Buffer:
        def __array__(self) -> np.ndarray:
            raise TypeError("only supported on CPU")

    with pytest.raises(RuntimeError, match="expected the CPU"):
        bridge._arrays([Buffer()])


def test_a_jax_without_the_callback_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax.experimental.buffer_callback", None)
    with pytest.raises(ImportError, match=r"needs jax\.experimental\.buffer_callback, which JAX .* has not"):
        importlib.reload(bridge)


def test_higher_derivatives_are_refused() -> None:
    arrays = arrays_of()
    first = jax.grad(loss_of(lstm))
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        jax.grad(lambda a: first(a)["x"].sum())(arrays)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(loss_of(lstm), (arrays,), (arrays,))


def test_gradients_of_an_expectation_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="training is False, but the cell has zoneout"):
        jax.grad(lambda a: loss_of(lstm)(a, cell=DROPS, training=False))(arrays_of())
