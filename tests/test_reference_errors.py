"""What `fastlstm.reference` refuses, and how it says so."""

import numpy as np
import pytest

from fastlstm import reference
from fastlstm.weights import WeightSpec, initial_weights


def call(**changes):
    """A valid call of one layer, I=3, H=4, T=5, B=2, but for `changes`."""
    weights = initial_weights(WeightSpec(3, 4, num_layers=2), dtype=np.float64, rng=np.random.default_rng(0))
    arguments = {
        "x": np.ones((5, 2, 3)),
        "weights": weights,
        "state": (np.ones((2, 2, 4)), np.ones((2, 2, 4))),
    } | changes
    return reference.lstm_forward(**arguments)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        pytest.param(
            {"x": np.zeros((5, 2, 7))}, ValueError, r"x has shape \(5, 2, 7\), .*expected \(T, B, 3\)", id="x_size"
        ),
        pytest.param({"x": np.zeros(3)}, ValueError, r"x has shape \(3,\)", id="x_rank"),
        pytest.param(
            {"x": np.zeros((5, 2, 3), "f")}, TypeError, r"x has dtype float32.*x\.astype\(np\.float64\)", id="x_dtype"
        ),
        pytest.param({"x": [[[0.0] * 3]]}, TypeError, "x is a list", id="x_list"),
        pytest.param(
            {"state": np.zeros(3)}, TypeError, r"state is a ndarray, expected a pair \(h0, c0\)", id="state_array"
        ),
        pytest.param(
            {"state": (np.zeros((2, 2, 4)), np.zeros((2, 3, 4)))}, ValueError, r"c0 has shape \(2, 3, 4\)", id="c0"
        ),
        pytest.param({"state": (np.zeros((2, 2, 4), "f"), None)}, TypeError, "h0 has dtype float32", id="h0_dtype"),
        pytest.param({"lengths": [5, 6]}, ValueError, r"lengths\[1\] is 6, but there are 5 steps", id="long_length"),
        pytest.param({"lengths": [5]}, ValueError, r"lengths has shape \(1,\), expected \(2,\)", id="lengths_shape"),
        pytest.param({"lengths": [1.0, 2.0]}, TypeError, "lengths has dtype float64", id="float_lengths"),
        pytest.param(
            {"mask": np.ones((2, 5))}, ValueError, r"mask has shape \(2, 5\), expected \(5, 2\)", id="mask_shape"
        ),
        pytest.param({"reset": np.full((5, 2), 2)}, ValueError, "reset holds 2", id="reset_values"),
        pytest.param({"masked_output": "hold"}, ValueError, "masked_output is 'hold'", id="masked_output"),
        pytest.param({"dropout": 1.5, "dropout_seed": 0}, ValueError, r"dropout is 1\.5", id="dropout"),
        pytest.param(
            {"dropout": 0.5}, ValueError, "dropout_seed is None, expected an integer", id="dropout_without_seed"
        ),
        pytest.param(
            {"dropout": 0.5, "dropout_seed": 2**64},
            ValueError,
            "dropout_seed is 18446744073709551616",
            id="dropout_seed",
        ),
        pytest.param(
            {"out": np.zeros((5, 2, 3))}, ValueError, r"out has shape \(5, 2, 3\), expected \(5, 2, 4\)", id="out_shape"
        ),
        pytest.param(
            {"out": np.zeros((2, 5, 4)).swapaxes(0, 1)}, ValueError, "out is read-only, not C-cont", id="out_strides"
        ),
    ],
)
def test_forward_refuses(changes, error, message):
    with pytest.raises(error, match=message):
        call(**changes)


def test_backward_refuses_what_does_not_fit_the_tape():
    _, _, tape = call()
    with pytest.raises(ValueError, match=r"dy has shape \(5, 2, 3\), expected \(5, 2, 4\)"):
        reference.lstm_backward(tape, np.zeros((5, 2, 3)))
    with pytest.raises(TypeError, match="dcells has dtype float32"):
        reference.lstm_backward(tape, dcells=np.zeros((5, 2, 4), np.float32))
    with pytest.raises(ValueError, match=r"dc_n has shape \(1,\)"):
        reference.lstm_backward(tape, None, (None, np.zeros(1)))
    with pytest.raises(TypeError, match="tape is a NoneType"):
        reference.lstm_backward(None)
