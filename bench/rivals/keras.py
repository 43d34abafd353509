"""Keras's LSTM layers on the backend that KERAS_BACKEND names: predict_on_batch, and gradients by that backend.

jit: compiled by XLA. Keras wants rows first, so every array is laid out so outside the clock. Several layers are
stacked and two directions wrapped in Bidirectional, as its users do.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from cases import Problem
from rivals import Missing, Runner, named, suffixes


def build(problem: Problem) -> Any:
    """A model of (x [B,T,I], mask [B,T] if there is one, the states [B,H] in Keras's order) -> (y, those states)."""
    case = problem.case
    keras.config.set_floatx(case.dtype)
    keras.config.set_dtype_policy(case.dtype)
    inputs = [keras.Input((case.T, case.I), batch_size=case.B)]
    mask = keras.Input((case.T,), batch_size=case.B, dtype="bool") if case.varying == "mask" else None
    inputs += [mask] if mask is not None else []
    y, states = inputs[0], []
    for layer in range(case.layers):
        lstm = keras.layers.LSTM(case.H, return_sequences=True, return_state=True, zero_output_for_mask=True)
        if case.bidirectional:
            lstm = keras.layers.Bidirectional(lstm)
        before = [keras.Input((case.H,), batch_size=case.B) for _ in range(2 * case.directions)]
        y, *after = lstm(y, mask=mask, initial_state=before)
        ends = suffixes(case)[layer * case.directions :][: case.directions]
        lstm.set_weights([array for end in ends for array in weights(problem, end)])
        inputs += before
        states += after
    return keras.Model(inputs, [y, *states])


def weights(problem: Problem, end: str) -> list[np.ndarray]:
    """Keras has its weights transposed: kernel, recurrent kernel, bias. Its gates i f c o are our i f g o."""
    w = problem.weights
    return [w["weight_ih" + end].T, w["weight_hh" + end].T, w["bias_ih" + end] + w["bias_hh" + end]]


def set_up(problem: Problem, mode: str, threads: int, jit: bool = False) -> Runner:
    case = problem.case
    if case.varying not in ("", "mask"):
        raise Missing(f"Keras's LSTM has no {case.varying}")
    backend = keras.backend.backend()
    if backend == "jax" and case.dtype != "float32":
        raise Missing("on JAX it computes in float32 alone")
    if backend == "torch":
        import torch

        torch.set_num_threads(threads)
    model = build(problem)
    model.compile(jit_compile=jit)
    x = np.ascontiguousarray(problem.x.swapaxes(0, 1))
    masks = [np.ascontiguousarray(problem.options["mask"].T)] if "mask" in problem.options else []
    states = [half[row] for row in range(len(problem.h0)) for half in problem.state]
    if mode == "inference":
        inputs = [x, *masks, *states]
        return Runner(lambda: model.predict_on_batch(inputs), read)
    dy = np.ascontiguousarray(problem.dy.swapaxes(0, 1))
    run = {"tensorflow": tensorflow_gradients, "torch": torch_gradients, "jax": jax_gradients}[backend]
    train = run(model, x, masks, states, dy, jit)
    return Runner(train, lambda results: read_training(case, *results))


def tensorflow_gradients(model: Any, x: Any, masks: list[Any], states: list[Any], dy: Any, jit: bool) -> Any:
    import tensorflow as tf

    x, dy = tf.constant(x), tf.constant(dy)
    masks, states = [tf.constant(mask) for mask in masks], [tf.constant(state) for state in states]

    @tf.function(jit_compile=jit)
    def train() -> Any:
        with tf.GradientTape() as tape:
            tape.watch([x, *states])
            results = model([x, *masks, *states], training=True)
            loss = tf.reduce_sum(results[0] * dy)
        return results, tape.gradient(loss, [x, *states, *model.trainable_variables])

    def run() -> Any:  # reading a result waits until all are there
        results, gradients = train()
        return results, [gradient.numpy() for gradient in gradients]

    return run


def torch_gradients(model: Any, x: Any, masks: list[Any], states: list[Any], dy: Any, jit: bool) -> Any:
    import torch

    inputs = [torch.tensor(array, requires_grad=True) for array in (x, *states)]
    masks, dy = [torch.tensor(mask) for mask in masks], torch.tensor(dy)
    variables = inputs + [weight.value for weight in model.trainable_weights]

    def train() -> Any:
        results = model([inputs[0], *masks, *inputs[1:]], training=True)
        return results, torch.autograd.grad(results[0], variables, dy)

    return train


def jax_gradients(model: Any, x: Any, masks: list[Any], states: list[Any], dy: Any, jit: bool) -> Any:
    import jax
    import jax.numpy as jnp

    fixed = [variable.value for variable in model.non_trainable_variables]
    dy = jnp.asarray(dy)

    def loss(x: Any, states: Any, variables: Any, masks: Any) -> Any:
        results, _ = model.stateless_call(variables, fixed, [x, *masks, *states], training=True)
        return jnp.vdot(results[0], dy), results

    work = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    arguments = jax.device_put((x, states, [variable.value for variable in model.trainable_variables], masks))

    def train() -> Any:
        (_, results), (dx, dstates, dw) = jax.block_until_ready(work(*arguments))
        return results, [dx, *dstates, *dw]

    return train


def read(results: Any) -> dict[str, np.ndarray]:
    y, *states = (keras.ops.convert_to_numpy(result) for result in results)
    return named(y.swapaxes(0, 1), np.stack(states[::2]), np.stack(states[1::2]))


def read_training(case: Any, results: Any, gradients: Any) -> dict[str, np.ndarray]:
    ends = suffixes(case)
    dx, *rest = (keras.ops.convert_to_numpy(gradient) for gradient in gradients)
    dstates, dweights = rest[: 2 * len(ends)], rest[2 * len(ends) :]
    dw = {}
    for end, d_x, d_h, d_b in zip(ends, dweights[::3], dweights[1::3], dweights[2::3], strict=True):
        dw |= {"weight_ih" + end: d_x.T, "weight_hh" + end: d_h.T, "bias_ih" + end: d_b, "bias_hh" + end: d_b}
    own = named(None, None, None, dx.swapaxes(0, 1), np.stack(dstates[::2]), np.stack(dstates[1::2]), dw)
    return read(results) | own
