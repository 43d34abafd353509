"""`fastlstm.keras.LSTM` beside keras.layers.LSTM, call by call; tests/test_keras.py starts this on each backend."""

from __future__ import annotations

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
from keras_problem import BACKEND, assert_alike, float64, mask_of, numbers, pair, solve

SIZES = [(1, 1, 1, 1), (2, 5, 3, 7), (7, 4, 1, 16), (3, 6, 13, 5), (11, 3, 8, 33)]  # B, T, I, H
KINDS = ["none", "right", "any", "nothing counts", "everything counts"]
BOUNDED = ["tanh", "hard_sigmoid", "softsign", "sigmoid"]
ACTIVATIONS = [*BOUNDED, "relu", "linear", "leaky_relu", "elu", "softplus"]


@pytest.mark.parametrize("seed", range(15 if BACKEND == "jax" else 100))  # JAX compiles a program for each
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


def test_results_are_the_reference_s() -> None:
    x = numbers((4, 6, 5), dtype="float64")
    with float64():
        _, ours = pair(7, 5, return_sequences=True, return_state=True, dtype="float64")
        results = ours(x)
    expected, (h_n, c_n), _ = reference.lstm_forward(x, from_keras(ours.get_weights()), batch_first=True)
    for found, one in zip(results, (expected, h_n[0], c_n[0]), strict=True):
        assert "float64" in str(found.dtype)
        assert relative_error(ops.convert_to_numpy(found), one) <= TOLERANCE["float64"]


# Dropout


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


# Settings, types


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


# One backend's own


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of tensorflow's graphs")
class TestTensorFlow:
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
