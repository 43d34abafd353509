"""The activations: each is as exact as its comment in csrc says, its derivative is one, and the native ones agree with
their NumPy twins, on every instruction set that can run here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fastlstm import _core, activations

# Sigmoid and tanh, swept. Truth is NumPy one precision higher; bounds are those of csrc/activations.h.

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


def test_sigmoid_and_tanh_at_the_ends(isa: str, dtype: str) -> None:
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
    for name in activations.ACTIVATIONS:
        for function in (_core.activation, _core.activation_slope):
            whole = function(name, x, 0.3, 0.2)
            np.testing.assert_array_equal(function(name, x[:size], 0.3, 0.2), whole[:size])


# The others, swept. Truth is the twin one precision higher.

NAMES = list(activations.ACTIVATIONS)
PARAMETERS = {
    "hard_sigmoid": (0.2, 0.5),
    "affine": (1.7, -0.4),
    "leaky_relu": (0.01, 0.0),
    "elu": (1.3, 0.0),
    "scaled_tanh": (1.7159, 0.6667),
    "thresholded_relu": (0.7, 0.0),
}
# Where the last results are that are no denormals; softplus goes as far down.
LIMIT = {"float32": 87.3, "float64": 708.3}
# In ulps; those of "scaled_tanh" by FMA, in float32.
MOST = {"relu": 0.0, "leaky_relu": 0.5, "elu": 2.5, "softsign": 1.5, "softplus": 2.9, "thresholded_relu": 0.0}
SCALED_TANH_MOST = {"float32": {True: 5.5, False: 6.5}, "float64": {True: 4.5, False: 4.5}}


def parameters_of(name: str, dtype: str) -> tuple[float, float]:
    """alpha and beta as the kernel sees them, so that their rounding is no error of its own."""
    alpha, beta = np.asarray(PARAMETERS.get(name, (0.0, 0.0)), dtype).tolist()
    return alpha, beta


def exactly(function: Callable[..., np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    exact = EXACT[x.dtype.name]
    if np.finfo(exact).nmant <= np.finfo(x.dtype).nmant:
        pytest.skip(f"{np.dtype(exact)} is no more exact than {x.dtype} here")
    return function(name, x.astype(exact), *parameters_of(name, x.dtype.name))


def without_denormals(x: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """x where no other number is a denormal, which a kernel takes for zero."""
    tiny = np.finfo(x.dtype).tiny
    return x[np.logical_and.reduce([(other == 0) | (np.abs(other) >= tiny) for other in others])]


@pytest.mark.parametrize("limit", [1.0, 20.0, None], ids=["near", "middle", "far"])
@pytest.mark.parametrize("name", [*MOST, "scaled_tanh"])
def test_activation_error(isa: str, dtype: str, name: str, limit: float | None) -> None:
    x = points(dtype, limit or LIMIT[dtype])
    alpha, beta = parameters_of(name, dtype)
    if name == "scaled_tanh":
        x = without_denormals(x, x * np.asarray(beta, dtype))
    x = without_denormals(x, exactly(activations.activate, name, x))
    most = MOST.get(name, SCALED_TANH_MOST[dtype][isa != "x86_v2"])
    assert ulps(_core.activation(name, x, alpha, beta), exactly(activations.activate, name, x)) <= most


@pytest.mark.parametrize("name", ["hard_sigmoid", "affine"])
def test_error_where_a_sum_may_cancel(isa: str, dtype: str, name: str) -> None:
    x = points(dtype, 20.0)
    alpha, beta = parameters_of(name, dtype)
    error = np.abs(_core.activation(name, x, alpha, beta) - exactly(activations.activate, name, x))
    terms = np.spacing((np.abs(alpha * x) + abs(beta)).astype(dtype))
    assert float((error / terms).max()) <= (0.5 if isa != "x86_v2" else 1.0)


@pytest.mark.parametrize("alpha", [0.0, 1.0], ids=["as_relu", "as_expm1"])
def test_special_elus(isa: str, dtype: str, alpha: float) -> None:
    x = points(dtype, 20.0)
    found = _core.activation("elu", x, alpha)
    assert ulps(found, activations.activate("elu", x.astype(EXACT[dtype]), alpha)) <= 1.2
    if alpha == 0:
        np.testing.assert_array_equal(_core.activation_slope("elu", found, alpha), (x > 0).astype(dtype))


# Where they end


ENDS = {  # at minus infinity, -1e4, 0, 1e4 and infinity
    "relu": (0, 0, 0, 1e4, np.inf),
    "hard_sigmoid": (0, 0, 0.5, 1, 1),
    "affine": (-np.inf, -17000.4, -0.4, 16999.6, np.inf),
    "leaky_relu": (-np.inf, -100, 0, 1e4, np.inf),
    "elu": (-1.3, -1.3, 0, 1e4, np.inf),
    "softsign": (-1, -1e4 / 10001, 0, 1e4 / 10001, 1),
    "softplus": (0, 0, np.log(2), 1e4, np.inf),
    "scaled_tanh": (-1.7159, -1.7159, 0, 1.7159, 1.7159),
    "thresholded_relu": (0, 0, 0, 1e4, np.inf),
}


@pytest.mark.parametrize("name", ENDS)
def test_activations_at_the_ends(isa: str, dtype: str, name: str) -> None:
    x = np.array([-np.inf, -1e4, 0, 1e4, np.inf], dtype)
    for found in (
        _core.activation(name, x, *parameters_of(name, dtype)),
        activations.activate(name, x, *parameters_of(name, dtype)),
    ):
        assert found.dtype == dtype
        np.testing.assert_allclose(found, ENDS[name], rtol=4 * np.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_activations_keep_a_nan(isa: str, dtype: str, name: str) -> None:
    x = np.array([0.25, np.nan, 0.75], dtype)
    for functions in ((_core.activation, _core.activation_slope), (activations.activate, activations.activation_slope)):
        for function in functions:
            found = function(name, x, *parameters_of(name, dtype))
            np.testing.assert_array_equal(np.isnan(found), [False, True, False])


def test_an_infinite_softplus_of_what_exp_can_not_hold(isa: str, dtype: str) -> None:
    largest = np.finfo(dtype).max
    x = np.array([88, 89, 709, 710, 1000, largest], dtype)
    np.testing.assert_array_equal(_core.activation("softplus", x), x)
    assert (_core.activation("softplus", -x[1:2] if dtype == "float32" else -x[3:]) == 0).all()


def test_corners_belong_to_the_side_that_onnx_says(isa: str, dtype: str) -> None:
    below, at = np.nextafter(np.asarray(0.7, dtype), np.asarray(0, dtype)), np.asarray(0.7, dtype)
    x = np.array([below, at])
    alpha = float(at)
    for function in (_core.activation, activations.activate):
        np.testing.assert_array_equal(function("thresholded_relu", x, alpha), np.array([0, at]))


# Derivatives


def differences(name: str, x: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    step = 1e-5
    above, below = activations.activate(name, x + step, alpha, beta), activations.activate(name, x - step, alpha, beta)
    return (above - below) / (2 * step)


@pytest.mark.parametrize("name", NAMES)
def test_slope_is_the_derivative(name: str) -> None:
    x = np.linspace(-6.003, 6.001, 1201)  # no point is within a step of a kink
    alpha, beta = parameters_of(name, "float64")
    slope = activations.activation_slope(name, activations.activate(name, x, alpha, beta), alpha, beta)
    np.testing.assert_allclose(slope, differences(name, x, alpha, beta), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_slope_equals_its_twin(isa: str, dtype: str, name: str) -> None:
    alpha, beta = parameters_of(name, dtype)
    y = _core.activation(name, points(dtype, 20.0), alpha, beta)
    y = without_denormals(y, y)
    found, truth = _core.activation_slope(name, y, alpha, beta), exactly(activations.activation_slope, name, y)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(found, truth, rtol=0, atol=1.5 * eps * max(1, alpha) * max(1, beta))
    if name in ("softsign", "softplus"):
        assert float((np.abs(found - truth) / np.maximum(np.abs(truth), np.finfo(dtype).tiny)).max()) <= 1.5 * eps


def test_slope_of_a_scaled_tanh_that_is_zero(isa: str, dtype: str) -> None:
    y = np.zeros(3, dtype)
    for function in (_core.activation_slope, activations.activation_slope):
        np.testing.assert_array_equal(function("scaled_tanh", y, 0.0, 2.0), y)


# Names


def test_defaults_are_of_every_name() -> None:
    for name in NAMES:
        np.testing.assert_array_equal(_core.activation(name, np.zeros(0)), [])
    assert [name for name, defaults in activations.ACTIVATIONS.items() if None in defaults] == ["affine", "scaled_tanh"]


@pytest.mark.parametrize(
    "function", [_core.activation, _core.activation_slope, activations.activate, activations.activation_slope]
)
def test_an_unknown_name_lists_those_that_exist(function: Callable[[str, np.ndarray], np.ndarray]) -> None:
    with pytest.raises(ValueError, match=f"activation is 'gelu': expected one of {', '.join(NAMES)}$"):
        function("gelu", np.zeros(3))
