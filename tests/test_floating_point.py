"""Floating point at its edges: denormals count as zero inside and only there, NaN and infinity propagate, on every
instruction set that can run here."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import fastlstm
from fastlstm import _core, reference

# A denormal, and a weight that would make it visible if it were not taken for zero.
DENORMAL = {"float32": (1e-40, 1e30), "float64": (1e-310, 1e300)}
# The square root of a denormal: each factor is normal, the product is not.
ROOT = {"float32": 1e-20, "float64": 1e-160}

# One row has a path of its own; few rows share the units, with a barrier at each step; many rows are shared themselves.
SHAPES = {"one_row": (20, 1), "units_shared": (20, 8), "rows_shared": (20, 64)}


def numpy_has_denormals(dtype: str) -> bool:
    """By value, on this thread: a flushed operand or a flushed result would be 0."""
    tiny, _ = DENORMAL[dtype]
    operand, root = np.full(64, tiny, dtype), np.full(64, ROOT[dtype], dtype)
    return bool((operand * np.asarray(2, dtype) > 0).all() and (root * root > 0).all())


def layer(dtype: str, value: float, **options: bool) -> fastlstm.LSTM:
    """All weights have one value; no bias, so that zero in is zero out."""
    lstm = fastlstm.LSTM(64, 128, bias=False, dtype=dtype, seed=0, **options)
    with lstm.updating() as weights:
        for weight in weights.values():
            weight[...] = value
    return lstm


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_denormal_inputs_are_zero(isa: str, dtype: str, shape: str, threads: int) -> None:
    tiny, large = DENORMAL[dtype]
    x = np.full((*SHAPES[shape], 64), tiny, dtype)
    y, (h, c), _ = layer(dtype, large, bidirectional=True).forward(x, threads=threads)
    assert (y == 0).all() and (h == 0).all() and (c == 0).all()
    assert numpy_has_denormals(dtype)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_denormal_results_are_zero(isa: str, dtype: str, shape: str, threads: int) -> None:
    x = np.full((*SHAPES[shape], 64), ROOT[dtype], dtype)
    y, (h, c), _ = layer(dtype, ROOT[dtype]).forward(x, threads=threads)
    assert (y == 0).all() and (h == 0).all() and (c == 0).all()
    assert numpy_has_denormals(dtype)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_denormal_gradients_are_zero(isa: str, dtype: str, shape: str, threads: int) -> None:
    tiny, large = DENORMAL[dtype]
    lstm = layer(dtype, large)
    _, _, tape = lstm.forward(np.zeros((*SHAPES[shape], 64), dtype), threads=threads)
    seen = lstm.backward(tape, dy=np.full((*SHAPES[shape], 128), tiny, dtype), threads=threads)
    assert all((array == 0).all() for array in (seen.x, *seen.state, *seen.weights.values()))
    assert numpy_has_denormals(dtype)


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_activation_of_a_denormal(isa: str, dtype: str, name: str) -> None:
    tiny, _ = DENORMAL[dtype]
    assert (_core.activation(name, np.full(9, tiny, dtype)) == (0.5 if name == "sigmoid" else 0)).all()
    assert numpy_has_denormals(dtype)


def test_denormals_are_back_after_an_error(dtype: str) -> None:
    with pytest.raises(ValueError, match="lengths"):
        layer(dtype, 1.0)(np.zeros((3, 2, 64), dtype), lengths=[1, 4])
    assert numpy_has_denormals(dtype)


def test_denormals_are_back_in_other_threads(dtype: str) -> None:
    seen: list[bool] = []

    def work() -> None:
        layer(dtype, 1.0)(np.ones((20, 64, 64), dtype), threads=2)
        seen.append(numpy_has_denormals(dtype))

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert seen == [True, True]
    assert numpy_has_denormals(dtype)


# NaN and infinity: where one goes in, the reference says where it comes out.


Arguments = tuple[np.ndarray, dict[str, np.ndarray], tuple[np.ndarray, np.ndarray]]


def spoiled_arguments(where: str, value: float) -> Arguments:
    """x, weights and state with one number replaced."""
    rng = np.random.default_rng(3)
    lstm = fastlstm.LSTM(5, 19, 2, bidirectional=True, dtype=np.float64, seed=3)
    x = rng.standard_normal((7, 4, 5))
    state = rng.standard_normal((4, 4, 19)), rng.standard_normal((4, 4, 19))
    weights = lstm.state_dict()
    places = {"x": x[3, 2], "h0": state[0][0, 1], "c0": state[1][3, 2], "weight": weights["weight_hh_l1"][25]}
    places |= {"bias": weights["bias_ih_l0"]}
    places[where][1] = value
    return x, weights, state


@pytest.mark.parametrize("where", ["x", "h0", "c0", "weight", "bias"])
def test_nan_comes_out_where_it_does_in_the_reference(isa: str, dtype: str, where: str) -> None:
    x, weights, state = spoiled_arguments(where, np.nan)
    y, (h, c), tape = reference.lstm_forward(x, weights, state)
    dy = np.ones_like(y)
    expected = (y, h, c, *(g := reference.lstm_backward(tape, dy)).state, g.x, *g.weights.values())
    cast = {name: array.astype(dtype) for name, array in weights.items()}
    y, (h, c), tape = fastlstm.lstm_forward(x.astype(dtype), cast, tuple(array.astype(dtype) for array in state))
    found = (y, h, c, *(g := fastlstm.lstm_backward(tape, dy.astype(dtype))).state, g.x, *g.weights.values())
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))


@pytest.mark.parametrize("sign", [1, -1], ids=["plus", "minus"])
@pytest.mark.parametrize("where", ["x", "h0", "c0", "bias"])
def test_infinity_saturates_as_in_the_reference(isa: str, dtype: str, where: str, sign: int) -> None:
    x, weights, state = spoiled_arguments(where, sign * np.inf)
    with np.errstate(all="ignore"):
        y, (h, c), _ = reference.lstm_forward(x, weights, state)
    cast = {name: array.astype(dtype) for name, array in weights.items()}
    ours = fastlstm.lstm_forward(x.astype(dtype), cast, tuple(array.astype(dtype) for array in state))
    bound = {"rtol": 0, "atol": 1e-5 if dtype == "float32" else 1e-12}
    np.testing.assert_allclose(ours[0], y, **bound)
    np.testing.assert_allclose(ours[1][0], h, **bound)
    np.testing.assert_allclose(ours[1][1], c, **bound)


def test_nan_gradient_reaches_what_lies_before_it(isa: str, dtype: str) -> None:
    lstm = fastlstm.LSTM(5, 19, dtype=dtype, seed=3)
    x = np.random.default_rng(3).standard_normal((7, 4, 5)).astype(dtype)
    y, _, tape = lstm.forward(x)
    dy = np.ones_like(y)
    dy[3, 2, 0] = np.nan
    g = lstm.backward(tape, dy)
    expected = np.zeros((7, 4), bool)
    expected[:4, 2] = True
    np.testing.assert_array_equal(np.isnan(g.x), np.broadcast_to(expected[:, :, None], x.shape))
    np.testing.assert_array_equal(np.isnan(g.state[0][0]), np.broadcast_to(expected[:1].T, (4, 19)))
