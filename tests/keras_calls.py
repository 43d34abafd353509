"""Calls of `fastlstm.keras.LSTM` that are less usual, beside keras.layers.LSTM; tests/test_keras.py starts this."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from cases import TOLERANCE, relative_error
from fastlstm.keras import LSTM
from keras_problem import assert_alike, float64, mask_of, numbers, pair, solve


@pytest.mark.parametrize("sequences", [False, True])
def test_masks_of_a_row_or_of_three_dimensions_and_states_of_a_row(sequences: bool) -> None:
    theirs, ours = pair(5, 4, return_sequences=sequences, return_state=True)
    x, states = numbers((3, 6, 4)), [numbers((1, 5), 1), numbers((1, 5), 2)]
    mask = mask_of("any", 3, 6, 1)
    assert mask is not None
    for one in (mask[..., None], mask[:1]):
        assert_alike(solve(ours, [x], one), solve(theirs, [x], one))
    for one in (None, mask):
        rows = [np.repeat(state, 3, axis=0) for state in states]  # JAX's own loop takes no single one
        expected = solve(theirs, [x, *rows], one)
        for name in {"dh0", "dc0"} & expected.keys():
            expected[name] = expected[name].sum(axis=0, keepdims=True)
        assert_alike(solve(ours, [x, *states], one), expected)


def test_wrong_masks_and_states_are_named() -> None:
    x = numbers((2, 6, 4))
    _, layer = pair(5, 4)
    with pytest.raises(ValueError, match=r"mask has shape \(2, 6, 2\), expected \(batch, steps\)"):
        layer(x, mask=ops.ones((2, 6, 2), "bool"))
    with pytest.raises(ValueError, match="initial_state has 1 tensors, expected 2: h and c"):
        layer(x, initial_state=[ops.zeros((2, 5))])
    with pytest.raises(ValueError, match=r"initial_state's c has shape \(2, 4\), expected \(batch, 5\)"):
        layer(x, initial_state=[ops.zeros((2, 5)), ops.zeros((2, 4))])


def test_float64_from_its_first_weights_on() -> None:
    with float64():
        theirs, ours = keras.layers.LSTM(5, dtype="float64"), LSTM(5, dtype="float64")
        x = numbers((3, 6, 4), dtype="float64")
        for layer in (theirs, ours):
            layer.build(x.shape)
        theirs.set_weights(ours.get_weights())  # ours stay as they were made: of float32 on numpy
        assert "float64" in str(ours(x).dtype)
        found, expected = (ops.convert_to_numpy(layer(x)) for layer in (ours, theirs))
        assert relative_error(found, expected) <= TOLERANCE["beside Keras"]


class Residual(keras.layers.Layer):
    """A layer without `compute_output_shape`, so that Keras infers it from `call`."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = LSTM(4, return_sequences=True, recurrent_dropout=0.1)

    def call(self, x: object, training: bool = False) -> object:
        return x + self.lstm(x, training=training)


@pytest.mark.parametrize("steps", [6, None])
def test_shapes_are_inferred_through_layers_around_it(steps: int | None) -> None:
    inputs = keras.Input((steps, 4))
    layer = Residual()
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == (None, steps, 4)
    x = numbers((3, 6, 4))
    np.testing.assert_allclose(model.predict(x, verbose=0), x + ops.convert_to_numpy(layer.lstm(x)), atol=1e-6)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="of JAX's symbolic sizes")
def test_a_program_exported_by_jax_holds_keras_s_loop() -> None:
    import jax
    from jax import export

    _, layer = pair(5, 4)
    shape = jax.ShapeDtypeStruct(export.symbolic_shape("batch, 6, 4"), "float32")
    program = export.deserialize(export.export(jax.jit(lambda x: layer(x)))(shape).serialize())
    x = numbers((3, 6, 4))
    assert relative_error(np.asarray(program.call(x)), np.asarray(layer(x))) <= TOLERANCE["beside Keras"]


LOAD = """
import sys, keras, numpy
model = keras.models.load_model("model.keras", custom_objects={"fastlstm>LSTM": keras.layers.LSTM})
assert type(model.layers[0]) is type(model.layers[1].forward_layer) is keras.layers.LSTM
assert "fastlstm" not in sys.modules
numpy.save("found.npy", model.predict(numpy.load("x.npy"), verbose=0))
"""


def test_a_program_without_fastlstm_loads_files_into_keras_s_layer(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((6, 4)), LSTM(5, return_sequences=True), keras.layers.Bidirectional(LSTM(3))])
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", numbers((3, 6, 4)))
    subprocess.run([sys.executable, "-c", LOAD], cwd=tmp_path, check=True)
    expected = model.predict(numbers((3, 6, 4)), verbose=0)
    assert relative_error(np.load(tmp_path / "found.npy"), expected) <= TOLERANCE["beside Keras"]
