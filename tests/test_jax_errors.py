"""What `fastlstm.jax.lstm` refuses: while it is traced, or, where only values tell, when it runs."""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Any

import numpy as np
import pytest

import fastlstm
from conftest import RUNNABLE

jax = pytest.importorskip("jax")

from fastlstm.jax import bridge, lstm  # noqa: E402
from jax_cases import DROPS, arrays_of, loss_of  # noqa: E402

pytestmark = pytest.mark.usefixtures("jax_with_both_dtypes")

REFUSED = [
    ({"x": [1.0]}, TypeError, "x is a list, expected a jax.Array or a numpy.ndarray"),
    ({"x": np.ones((5, 3, 7))}, ValueError, r"x has shape \(5, 3, 7\), .* expected \(T, B, 4\)"),
    ({"x": np.ones((5, 3, 4), np.float32)}, TypeError, "x has dtype float32, expected float64"),
    ({"weights": {}}, ValueError, "weights has no weight_hh_l0"),
    ({"transposed_weights": True}, ValueError, r"transposed_weights is True, and of the transposes weight_"),
    ({"transposed_weights": "yes"}, TypeError, "transposed_weights is 'yes', a str: expected True or False"),
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


@pytest.mark.parametrize("compiled", [lambda f: f, jax.jit, functools.partial(jax.jit, inline=True)])
@pytest.mark.parametrize("before", ["", "x", "weights", "state"])
def test_higher_derivatives_are_refused(before: str, compiled: Any) -> None:
    """Also where JAX has traces of the same function from before, of other arguments' gradients."""
    arrays, function = arrays_of(), compiled(lstm)
    first = jax.grad(loss_of(function))
    first(arrays)
    if before:
        jax.grad(lambda part: loss_of(function)(arrays | {before: part}))(arrays[before])
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        jax.grad(lambda a: first(a)["x"].sum())(arrays)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(loss_of(lstm), (arrays,), (arrays,))


def test_gradients_of_an_expectation_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="training is False, but the cell has zoneout"):
        jax.grad(lambda a: loss_of(lstm)(a, cell=DROPS, training=False))(arrays_of())
