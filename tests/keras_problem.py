"""What the tests of `fastlstm.keras` share: a layer of ours beside one of Keras's, and gradients on any backend."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from cases import TOLERANCE, relative_error
from fastlstm.keras import LSTM

BACKEND = keras.backend.backend()
needs_gradients = pytest.mark.skipif(BACKEND == "numpy", reason="the backend numpy has no gradients")

Arrays = dict[str, np.ndarray]


def numbers(shape: tuple[int, ...], seed: int = 0, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def pair(units: int, features: int, batch: int | None = None, **options: Any) -> tuple[Any, LSTM]:
    """Keras's layer and ours, with the same weights, none of which is 0."""
    theirs, ours = keras.layers.LSTM(units, **options), LSTM(units, **options)
    for layer in (theirs, ours):
        layer.build((batch, None, features))
        layer.set_weights([numbers(w.shape, i) / units**0.5 for i, w in enumerate(layer.weights)])
    return theirs, ours


def solve(layer: Any, inputs: list[np.ndarray], mask: np.ndarray | None, training: bool = False) -> Arrays:
    """The layer's results, and the gradients of a weighted sum of them by inputs (x, h0, c0) and weights."""
    mask = None if mask is None else ops.convert_to_tensor(mask)

    def call(x: Any, *state: Any) -> list[Any]:
        results = layer(x, initial_state=list(state) or None, mask=mask, training=training)
        return list(results) if isinstance(results, list | tuple) else [results]

    def loss(results: list[Any]) -> Any:
        weights = [ops.convert_to_tensor(numbers(tuple(result.shape), i)) for i, result in enumerate(results)]
        return sum(ops.sum(result * weight) for result, weight in zip(results, weights, strict=True))

    results, grads = GRADIENTS[BACKEND](layer, call, loss, inputs)
    names = ["dx", "dh0", "dc0"][: len(inputs)] + ["dkernel", "drecurrent", "dbias"][: len(layer.trainable_weights)]
    found = {f"result {i}": result for i, result in enumerate(results)} | dict(zip(names, grads, strict=False))
    return {name: ops.convert_to_numpy(array) for name, array in found.items()}


def no_gradients(layer: Any, call: Any, loss: Any, inputs: list[np.ndarray]) -> Any:
    return call(*inputs), []


def gradients_by_torch(layer: Any, call: Any, loss: Any, inputs: list[np.ndarray]) -> Any:
    import torch

    tensors = [torch.tensor(array, requires_grad=True) for array in inputs]
    results = call(*tensors)
    return results, torch.autograd.grad(loss(results), tensors + [w.value for w in layer.trainable_weights])


def gradients_by_tensorflow(layer: Any, call: Any, loss: Any, inputs: list[np.ndarray]) -> Any:
    import tensorflow as tf

    tensors = [tf.constant(array) for array in inputs]
    with tf.GradientTape() as tape:
        for tensor in tensors:
            tape.watch(tensor)
        results = call(*tensors)
        total = loss(results)
    return results, tape.gradient(total, tensors + [w.value for w in layer.trainable_weights])


def gradients_by_jax(layer: Any, call: Any, loss: Any, inputs: list[np.ndarray]) -> Any:
    import jax

    def function(arrays: list[Any], weights: list[Any]) -> Any:
        mapping = list(zip(layer.trainable_variables, weights, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            results = call(*arrays)
        return loss(results), results

    weights = [variable.value for variable in layer.trainable_variables]
    (_, results), (by_input, by_weight) = jax.jit(jax.value_and_grad(function, (0, 1), has_aux=True))(inputs, weights)
    return results, [*by_input, *by_weight]


GRADIENTS = {
    "numpy": no_gradients,
    "torch": gradients_by_torch,
    "tensorflow": gradients_by_tensorflow,
    "jax": gradients_by_jax,
}


def assert_alike(found: Arrays, expected: Arrays, times: float = 1.0) -> None:
    """Keras computes in float32, too, and its sums in other orders."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].shape == array.shape and found[name].dtype == array.dtype, name
    errors = {name: float(relative_error(found[name], array)) for name, array in expected.items()}
    assert max(errors.values()) <= times * TOLERANCE["beside Keras"], errors


def mask_of(kind: str, batch: int, steps: int, seed: int) -> np.ndarray | None:
    rng = np.random.default_rng(seed)
    if kind == "none":
        return None
    if kind == "right":
        return np.arange(steps) < rng.integers(0, steps + 1, batch)[:, None]
    return rng.random((batch, steps)) < {"any": 0.5, "nothing counts": 0.0, "everything counts": 1.0}[kind]


def float64() -> contextlib.AbstractContextManager[None]:
    """JAX has such numbers only where it is told to."""
    if BACKEND != "jax":
        return contextlib.nullcontext()
    import jax

    return jax.enable_x64(True)
