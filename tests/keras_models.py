"""Models of Keras's with our layer and with Keras's: fit, masks, states, files; tests/test_keras.py starts this."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from fastlstm.keras import LSTM
from keras_problem import BACKEND, assert_alike, mask_of, needs_gradients, numbers, pair, solve
from test_examples import PAGES, run_blocks


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
    assert abs(curves[0][-1] / curves[0][0] - 1) > 1e-3  # it moves, wherever dropout takes it
    np.testing.assert_allclose(ours.predict(x, verbose=0), theirs.predict(x, verbose=0), rtol=1e-3, atol=1e-5)
    assert ours.evaluate(x, y, verbose=0) == pytest.approx(theirs.evaluate(x, y, verbose=0), rel=1e-4)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the others keep no tapes in the layer")
def test_fit_uses_up_its_tapes() -> None:
    x, y = DATA
    _, ours = twins(x)
    ours.fit(x, y, batch_size=16, verbose=0)
    assert not ours.layers[0]._tapes._tapes


# How directions are merged is Keras's, whatever the mask.
MERGED = [*((mode, "right") for mode in ("concat", "sum", "mul", "ave", None)), ("concat", "none"), ("concat", "any")]


@pytest.mark.parametrize(("merge_mode", "kind"), MERGED)
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


def test_the_example_of_the_docstring_runs() -> None:
    found = doctest.testmod(importlib.import_module(LSTM.__module__))
    assert found.attempted and not found.failed


def test_the_page_runs() -> None:
    run_blocks(PAGES["keras"])
