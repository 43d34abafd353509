"""Floating point at its edges: denormals count as zero inside and only there, NaN and infinity propagate, and the
activations are as exact as csrc/activations.h says, on every instruction set that can run here."""

from __future__ import annotations

import threading
from collections.abc import Callable

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


# The activations, swept. Truth is NumPy one precision higher; bounds are those of csrc/activations.h.

EXACT = {"float32": np.float64, "float64": np.longdouble}
TRUTH: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
}
SIGMOID_ABSOLUTE = 9e-8  # in float32, with FMA
SIGMOID_ABSOLUTE_WITHOUT_FMA = 9.5e-8
SIGMOID_TAIL = {True: (2.4e-7, 1.2e-6), False: (6e-7, 3.8e-6)}  # by FMA; relative, for x >= -10 and for x >= -80
MOST_ULPS = 5
TANH_ULPS_WITHOUT_FMA = 6.1  # in float32


def points(dtype: str, limit: float) -> np.ndarray:
    """Evenly in [-limit, limit], evenly by exponent, and the neighbours of where formulas change."""
    count = 400_000 if dtype == "float32" else 150_000
    rng = np.random.default_rng(4)
    smallest = np.finfo(dtype).minexp
    exponents = 2.0 ** rng.uniform(smallest, np.log2(limit), count) * rng.choice([-1.0, 1.0], count)
    halves = np.arange(-2 * int(limit), 2 * int(limit) + 1) * (np.log(2.0) / 2)  # where 2^n takes the next n
    corners = np.array([8.2, 9.0, 19.1, 20.0, 80.0, 88.0, 700.0, 709.0])
    close = np.concatenate([corners, -corners, halves, [0.0]]).astype(dtype)
    around = [close]
    for _ in range(3):
        around += [np.nextafter(around[-1], np.asarray(np.inf, dtype)), np.nextafter(close, np.asarray(-np.inf, dtype))]
    x = np.concatenate([rng.uniform(-limit, limit, count).astype(dtype), exponents.astype(dtype), *around])
    return x[(np.abs(x) <= limit) & ((x == 0) | (np.abs(x) >= np.finfo(dtype).tiny))]


def truth_of(name: str, x: np.ndarray) -> np.ndarray:
    exact = EXACT[x.dtype.name]
    if np.finfo(exact).nmant <= np.finfo(x.dtype).nmant:
        pytest.skip(f"{np.dtype(exact)} is no more exact than {x.dtype} here")
    return TRUTH[name](x.astype(exact))


def ulps(found: np.ndarray, truth: np.ndarray) -> float:
    """The largest distance from the truth, in spacings of the numbers found around it."""
    spacing = np.spacing(np.abs(truth).astype(found.dtype)).astype(truth.dtype)
    return float((np.abs(found.astype(truth.dtype) - truth) / spacing).max())


@pytest.mark.parametrize("limit", [1.0, 10.0, 100.0], ids=["near", "middle", "far"])
def test_tanh_error(isa: str, dtype: str, limit: float) -> None:
    x = points(dtype, limit)
    found = _core.activation("tanh", x)
    rounds_twice = isa == "x86_v2" and dtype == "float32"
    assert ulps(found, truth_of("tanh", x)) <= (TANH_ULPS_WITHOUT_FMA if rounds_twice else MOST_ULPS)
    assert np.abs(found).max() <= 1 + (np.finfo(dtype).eps if rounds_twice else 0)
    np.testing.assert_array_equal(_core.activation("tanh", -x), -found)


@pytest.mark.parametrize("limit", [1.0, 20.0, 80.0], ids=["near", "middle", "far"])
def test_sigmoid_error_in_float32(isa: str, limit: float) -> None:
    x = points("float32", limit)
    found = _core.activation("sigmoid", x)
    truth = truth_of("sigmoid", x)
    fma = isa != "x86_v2"
    assert float(np.abs(found - truth).max()) <= (SIGMOID_ABSOLUTE if fma else SIGMOID_ABSOLUTE_WITHOUT_FMA)
    relative = np.abs(found - truth) / truth
    near, tail = SIGMOID_TAIL[fma]
    assert float(relative[x >= -10].max()) <= near
    assert float(relative.max()) <= tail
    assert found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize("limit", [1.0, 20.0, 700.0], ids=["near", "middle", "far"])
def test_sigmoid_error_in_float64(isa: str, limit: float) -> None:
    x = points("float64", limit)
    found = _core.activation("sigmoid", x)
    assert ulps(found, truth_of("sigmoid", x)) <= MOST_ULPS
    assert found.min() >= 0 and found.max() <= 1


def test_activations_at_the_ends(isa: str, dtype: str) -> None:
    largest = float(np.finfo(dtype).max)
    x = np.array([np.inf, -np.inf, np.nan, largest, -largest, 0.0, -0.0, 1e4, -1e4], dtype)
    one, zero, nan = 1.0, 0.0, np.nan
    tiny = {"float32": 2e-35, "float64": 1e-304}[dtype]
    sigmoid, tanh = _core.activation("sigmoid", x), _core.activation("tanh", x)
    np.testing.assert_allclose(sigmoid, [one, zero, nan, one, zero, 0.5, 0.5, one, zero], rtol=0, atol=tiny)
    np.testing.assert_array_equal(tanh, [one, -one, nan, one, -one, zero, -zero, one, -one])
    np.testing.assert_array_equal(np.signbit(tanh[[5, 6]]), [False, True])


@pytest.mark.parametrize("size", [0, 1, 3, 15, 16, 17, 33])
def test_an_activation_does_not_depend_on_its_place(isa: str, dtype: str, size: int) -> None:
    x = np.linspace(-5, 5, 33).astype(dtype)
    for name in ("sigmoid", "tanh"):
        np.testing.assert_array_equal(_core.activation(name, x[:size]), _core.activation(name, x)[:size])
