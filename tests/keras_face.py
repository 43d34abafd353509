"""`fastlstm.keras.LSTM` beside keras.layers.LSTM on the backend of this process, which tests/test_keras.py starts."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from cases import TOLERANCE, relative_error
from fastlstm import reference
from fastlstm.cells import LSTMCellOptions
from fastlstm.dropout import Draws
from fastlstm.exchange import from_keras
from fastlstm.keras import LSTM
from test_examples import PAGES, run_blocks

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


SIZES = [(1, 1, 1, 1), (2, 5, 3, 7), (7, 4, 1, 16), (3, 6, 13, 5), (11, 3, 8, 33)]  # B, T, I, H
KINDS = ["none", "right", "any", "nothing counts", "everything counts"]
BOUNDED = ["tanh", "hard_sigmoid", "softsign", "sigmoid"]
ACTIVATIONS = [*BOUNDED, "relu", "linear", "leaky_relu", "elu", "softplus"]


@pytest.mark.parametrize("seed", range(25 if BACKEND == "jax" else 100))  # JAX compiles a program for each
def test_layer_beside_layer(seed: int) -> None:
    """Random options: results and all gradients."""
    rng = np.random.default_rng(seed)
    flags = {name: bool(rng.integers(2)) for name in ("return_sequences", "return_state", "go_backwards", "use_bias")}
    zero, unroll, state = (bool(rng.integers(2)) for _ in range(3))
    B, T, I, H = SIZES[seed % len(SIZES)]
    mask = mask_of(KINDS[rng.integers(len(KINDS))], B, T, seed)
    if unroll and mask is not None and (zero or (flags["go_backwards"] and BACKEND in ("torch", "tensorflow"))):
        unroll = False  # Keras's own: jax and numpy leave no zeros there, tensorflow turns no mask, torch raises
    activations = {"activation": "tanh", "recurrent_activation": "sigmoid"}
    if seed % 2:
        choices = {"activation": ACTIVATIONS, "recurrent_activation": BOUNDED}
        activations = {name: names[rng.integers(len(names))] for name, names in choices.items()}
    theirs, ours = pair(H, I, zero_output_for_mask=zero, unroll=unroll, **flags, **activations)
    inputs = [numbers((B, T, I), seed), *([numbers((B, H), seed + 1), numbers((B, H), seed + 2)] if state else [])]
    assert_alike(solve(ours, inputs, mask), solve(theirs, inputs, mask))


def test_it_runs_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("Keras's own loop")

    monkeypatch.setattr(keras.layers.LSTM, "inner_loop", never)
    theirs, ours = pair(4, 3)
    ours(numbers((2, 5, 3)))
    with pytest.raises(AssertionError, match="Keras's own loop"):
        theirs(numbers((2, 5, 3)))


def float64() -> contextlib.AbstractContextManager[None]:
    """JAX has such numbers only where it is told to."""
    if BACKEND != "jax":
        return contextlib.nullcontext()
    import jax

    return jax.enable_x64(True)


def test_results_are_the_reference_s() -> None:
    x = numbers((4, 6, 5), dtype="float64")
    with float64():
        _, ours = pair(7, 5, return_sequences=True, return_state=True, dtype="float64")
        results = ours(x)
    expected, (h_n, c_n), _ = reference.lstm_forward(x, from_keras(ours.get_weights()), batch_first=True)
    for found, one in zip(results, (expected, h_n[0], c_n[0]), strict=True):
        assert "float64" in str(found.dtype)
        assert relative_error(ops.convert_to_numpy(found), one) <= TOLERANCE["float64"]


# Training


def classifier(layer: Any, x: np.ndarray, **options: Any) -> Any:
    model = keras.Sequential([keras.layers.Input(x.shape[1:]), layer, keras.layers.Dense(3, activation="softmax")])
    model.compile(loss="sparse_categorical_crossentropy", optimizer=keras.optimizers.Adam(0.01), **options)
    return model


def twins(x: np.ndarray, units: int = 8, **options: Any) -> tuple[Any, Any]:
    theirs, ours = (classifier(kind(units, **options), x) for kind in (keras.layers.LSTM, LSTM))
    ours.set_weights(theirs.get_weights())
    return theirs, ours


DATA = numbers((48, 9, 4)), np.random.default_rng(0).integers(0, 3, 48)


@needs_gradients
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dropout": 0.4, "seed": 5},
        {"kernel_regularizer": "l2", "recurrent_constraint": "unit_norm", "bias_regularizer": "l1"},
        {"activity_regularizer": "l2", "go_backwards": True, "unit_forget_bias": False},
        {"kernel_initializer": "he_normal", "recurrent_initializer": "zeros", "bias_initializer": "ones"},
    ],
    ids=lambda options: "_".join(options) or "plain",
)
def test_fit_takes_the_same_course(options: dict[str, Any]) -> None:
    x, y = DATA
    theirs, ours = twins(x, **options)
    curves = [m.fit(x, y, batch_size=16, epochs=3, shuffle=False, verbose=0).history["loss"] for m in (theirs, ours)]
    np.testing.assert_allclose(curves[1], curves[0], rtol=2e-5)
    assert curves[0][-1] < curves[0][0]
    np.testing.assert_allclose(ours.predict(x, verbose=0), theirs.predict(x, verbose=0), rtol=1e-3, atol=1e-5)
    assert ours.evaluate(x, y, verbose=0) == pytest.approx(theirs.evaluate(x, y, verbose=0), rel=1e-4)


def test_dropout_has_keras_s_masks() -> None:
    theirs, ours = pair(5, 4, dropout=0.5, seed=3)
    x = numbers((6, 7, 4))
    for _ in range(2):  # each call draws anew
        expected = solve(theirs, [x], None, training=True)
        assert_alike(solve(ours, [x], None, training=True), expected)
    assert np.any(expected["result 0"] != solve(theirs, [x], None)["result 0"])
    assert_alike(solve(ours, [x], None), solve(theirs, [x], None))  # in inference nothing is dropped


def seed_of(words: np.ndarray) -> int:
    """The seed of our draws by the two words that a generator of Keras's gives, which JAX takes for a key."""
    if BACKEND == "jax":
        import jax

        words = np.asarray(jax.random.bits(words, (2,), "uint32"))[::-1]
    return int(words[0]) + (int(words[1]) << 32)


@pytest.mark.parametrize("rates", [{"recurrent_dropout": 0.5}, {"dropout": 0.3, "recurrent_dropout": 0.4}], ids=str)
def test_recurrent_dropout_has_a_mask_for_each_gate(rates: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours are drawn as everywhere in fastlstm, from the seed that the layer's generator gives; Keras is given them."""
    B, T, I, H = 6, 7, 4, 5
    theirs, ours = pair(H, I, seed=3, **rates)
    words = [np.array(seed, "uint32") for seed in ((7, 0), (3, 9))]
    options = LSTMCellOptions(
        input_dropout=rates.get("dropout", 0.0), recurrent_dropout=rates["recurrent_dropout"], dropout_per_gate=True
    )
    for seed in words:
        monkeypatch.setattr(ours.cell.seed_generator, "next", lambda seed=seed, **_: ops.convert_to_tensor(seed))
        number = seed_of(seed)
        place = {"layer": 0, "direction": 0, "first_step": 0, "steps": T, "batch": B, "sizes": (I, H, H)}
        draws = Draws.of(options, True, number, 0, **place, dtype=np.dtype("float32"))
        for name, scales in (("get_dropout_mask", draws.x_scales), ("get_recurrent_dropout_mask", draws.h_scales)):
            given = [ops.convert_to_tensor(np.broadcast_to(one, (B, one.shape[1]))) for one in scales]
            monkeypatch.setattr(theirs.cell, name, lambda step, given=given: given)
        inputs = [numbers((B, T, I)), numbers((B, H), 1), numbers((B, H), 2)]
        expected = solve(theirs, inputs, None, training=True)
        assert_alike(solve(ours, inputs, None, training=True), expected)
        assert_alike(solve(ours, inputs, None), solve(theirs, inputs, None))


def test_recurrent_dropout_draws_anew_and_again_by_its_seed() -> None:
    x, results = numbers((4, 6, 3)), []
    for seed in (1, 1, 2):
        _, layer = pair(5, 3, recurrent_dropout=0.5, seed=seed)
        results.append([ops.convert_to_numpy(layer(x, training=True)) for _ in range(2)])
    assert np.array_equal(results[0], results[1])
    assert np.any(results[0][0] != results[0][1]) and np.any(results[0][0] != results[2][0])


def test_a_rate_of_one_drops_nothing() -> None:
    x = numbers((4, 6, 3))
    theirs, ours = pair(5, 3, dropout=1.0, recurrent_dropout=1.0)
    assert_alike(solve(ours, [x], None, training=True), solve(theirs, [x], None, training=True))


# In models


@pytest.mark.parametrize("merge_mode", ["concat", "sum", "mul", "ave", None])
@pytest.mark.parametrize("kind", ["none", "right", "any"])
def test_bidirectional(merge_mode: str | None, kind: str) -> None:
    for sequences in (False, True):
        layers = [
            keras.layers.Bidirectional(layer(5, return_sequences=sequences), merge_mode=merge_mode)
            for layer in (keras.layers.LSTM, LSTM)
        ]
        assert isinstance(layers[1].backward_layer, LSTM)
        for layer in layers:
            layer.build((None, 6, 3))
            layer.set_weights([numbers(w.shape, i) / 2 for i, w in enumerate(layer.weights)])
        theirs, ours = (solve(layer, [numbers((4, 6, 3))], mask_of(kind, 4, 6, 1)) for layer in layers)
        assert_alike(ours, theirs)


@needs_gradients
def test_masks_come_from_an_embedding() -> None:
    x = np.random.default_rng(0).integers(0, 5, (30, 8))
    x[:, 5:] = 0
    models = []
    for kind in (keras.layers.LSTM, LSTM):
        keras.utils.set_random_seed(1)
        embedding, dense = keras.layers.Embedding(5, 4, mask_zero=True), keras.layers.Dense(1)
        stack = [kind(6, return_sequences=True), keras.layers.Bidirectional(kind(3)), dense]
        model = keras.Sequential([keras.layers.Input((None,)), embedding, *stack])
        model.compile(loss="mse", optimizer="sgd")
        models.append(model)
    models[1].set_weights(models[0].get_weights())
    y = x.sum(axis=1, keepdims=True) / 20
    curves = [m.fit(x, y, epochs=2, batch_size=7, shuffle=False, verbose=0).history["loss"] for m in models]
    np.testing.assert_allclose(curves[1], curves[0], rtol=2e-5)


def test_an_encoder_hands_its_state_to_a_decoder() -> None:
    results = []
    for kind in (keras.layers.LSTM, LSTM):
        keras.utils.set_random_seed(1)
        source, target = keras.Input((None, 3)), keras.Input((None, 2))
        _, h, c = kind(5, return_state=True)(source)
        y = kind(5, return_sequences=True)(target, initial_state=[h, c])
        model = keras.Model([source, target], keras.layers.Dense(2)(y))
        results.append(model.predict([numbers((4, 6, 3)), numbers((4, 9, 2))], verbose=0))
    assert results[0].shape == (4, 9, 2)
    np.testing.assert_allclose(results[1], results[0], rtol=1e-5, atol=1e-6)


def test_stateful_layers_go_on_until_they_are_reset() -> None:
    theirs, ours = pair(5, 3, batch=4, stateful=True)
    x, whole = numbers((4, 6, 3)), []
    for _ in range(3):
        expected = ops.convert_to_numpy(theirs(x))
        whole.append(ops.convert_to_numpy(ours(x)))
        np.testing.assert_allclose(whole[-1], expected, rtol=1e-5, atol=1e-6)
    ours.reset_state()
    assert np.array_equal(ops.convert_to_numpy(ours(x)), whole[0]) and np.any(whole[1] != whole[0])


@needs_gradients
def test_stateful_layers_train() -> None:
    x, y = DATA
    curves = []
    for kind in (keras.layers.LSTM, LSTM):
        keras.utils.set_random_seed(1)
        layer = kind(5, stateful=True, use_cudnn=False)  # the default cannot, on torch: it copies no states
        layers = [keras.layers.Input(batch_shape=(16, 9, 4)), layer, keras.layers.Dense(3)]
        model = keras.Sequential(layers)
        model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), optimizer="sgd")
        curves.append(model.fit(x, y, batch_size=16, epochs=3, shuffle=False, verbose=0).history["loss"])
    np.testing.assert_allclose(curves[1], curves[0], rtol=2e-5)


# Files, settings, types


def test_models_are_saved_and_loaded(tmp_path: Path) -> None:
    x, _ = DATA
    theirs, ours = twins(x)
    ours.save(tmp_path / "ours.keras")
    again = keras.models.load_model(tmp_path / "ours.keras")
    assert type(again.layers[0]) is LSTM
    assert np.array_equal(again.predict(x, verbose=0), ours.predict(x, verbose=0))
    for a, b in ((theirs, ours), (ours, theirs)):  # weights are read by either
        a.set_weights([w + 1 for w in a.get_weights()])
        a.save_weights(tmp_path / "a.weights.h5")
        b.load_weights(tmp_path / "a.weights.h5")
        assert all(np.array_equal(v, w) for v, w in zip(a.get_weights(), b.get_weights(), strict=True))


def test_a_layer_is_made_again_from_its_config() -> None:
    layer = LSTM(3, activation="relu", dropout=0.2, return_state=True, go_backwards=True, fallback=True, name="one")
    again = LSTM.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    theirs = keras.layers.LSTM(3, activation="relu", dropout=0.2, return_state=True, go_backwards=True, name="one")
    assert layer.get_config() == theirs.get_config() | {"fallback": True}


def test_other_activations_need_the_fallback() -> None:
    for name in ("activation", "recurrent_activation"):
        with pytest.raises(ValueError, match=f"^{name} is 'gelu', expected one of 'tanh', .* or fallback=True"):
            LSTM(3, **{name: "gelu"})
    theirs, ours = keras.layers.LSTM(3, activation="gelu"), LSTM(3, activation="gelu", fallback=True)
    x = numbers((2, 5, 4))
    theirs.build(x.shape), ours.build(x.shape)
    ours.set_weights(theirs.get_weights())
    assert_alike(solve(ours, [x], None), solve(theirs, [x], None))


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "float16", "float64"])
def test_types(dtype: str) -> None:
    theirs, ours = pair(5, 4, dtype=dtype, return_sequences=True, recurrent_initializer="zeros")  # none in float16
    x = numbers((3, 6, 4))
    expected, found = theirs(x), ours(x)
    assert found.dtype == expected.dtype
    found, expected = (ops.convert_to_numpy(ops.cast(y, "float32")) for y in (found, expected))
    assert relative_error(found, expected) < {"float64": 1e-6}.get(dtype, TOLERANCE["bfloat16"])


def test_rows_may_vary_from_call_to_call() -> None:
    theirs, ours = pair(5, 4, return_sequences=True)
    for shape in ((3, 6, 4), (1, 1, 4), (8, 2, 4)):
        assert_alike(solve(ours, [numbers(shape)], None), solve(theirs, [numbers(shape)], None))


def test_the_page_runs() -> None:
    run_blocks(PAGES["keras"])


# One backend's own


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of tensorflow's graphs")
class TestTensorFlow:
    def test_tapes_are_used_up(self) -> None:
        x, y = DATA
        _, ours = twins(x)
        ours.fit(x, y, batch_size=16, verbose=0)
        assert not ours.layers[0]._tapes._tapes

    def test_tapes_that_no_backward_pass_takes_are_few(self) -> None:
        from fastlstm.keras.tensorflow import KEPT

        _, ours = pair(5, 4)
        for _ in range(KEPT + 3):
            ours(numbers((2, 3, 4)), training=True)
        assert len(ours._tapes._tapes) == KEPT

    @pytest.mark.parametrize("training", [False, True])
    def test_gradients_may_be_taken_twice(self, training: bool) -> None:
        """The second time, and without training=True, there is no tape."""
        import tensorflow as tf

        _, ours = pair(5, 4)
        x = tf.constant(numbers((2, 3, 4)))
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            total = tf.reduce_sum(ours(x, training=training))
        first, second = (tape.gradient(total, [x, *ours.trainable_variables]) for _ in range(2))
        assert all(np.array_equal(a, b) and np.any(a) for a, b in zip(first, second, strict=True))

    def test_second_derivatives_are_refused(self) -> None:
        import tensorflow as tf

        _, ours = pair(5, 4)
        x = tf.constant(numbers((2, 3, 4)))
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                total = tf.reduce_sum(ours(x))
            dx = inner.gradient(total, x)
        with pytest.raises(NotImplementedError, match="no second derivatives"):
            outer.gradient(dx, x)

    def test_graphs_know_the_shapes(self) -> None:
        import tensorflow as tf

        layer = LSTM(5, return_sequences=True, return_state=True)
        layer.build((None, None, 4))
        function = tf.function(layer, input_signature=[tf.TensorSpec((None, None, 4))])
        y, h, c = function.get_concrete_function().outputs
        assert y.shape.as_list() == [None, None, 5] and h.shape.as_list() == c.shape.as_list() == [None, 5]
        x = numbers((2, 3, 4))
        assert np.array_equal(function(x)[0], layer(x)[0])
