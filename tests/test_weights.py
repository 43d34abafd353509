"""`fastlstm.weights`: torch's names, shapes and initial distribution, and errors that name the weight."""

import math

import numpy as np
import pytest

from fastlstm import _core
from fastlstm.functional import lstm_forward
from fastlstm.weights import WeightSpec, check_array, check_weights, initial_weights

SPECS = [
    pytest.param(WeightSpec(3, 4), id="one_layer"),
    pytest.param(WeightSpec(3, 4, bias=False), id="no_bias"),
    pytest.param(WeightSpec(3, 4, num_layers=3, bidirectional=True), id="three_layers_both_directions"),
    pytest.param(WeightSpec(1, 2, proj_size=1), id="smallest_projection"),
    pytest.param(WeightSpec(7, 5, 2, False, True, 3), id="everything_but_bias"),
]


def weights_of(spec: WeightSpec, dtype: type = np.float64) -> dict[str, np.ndarray]:
    return initial_weights(spec, dtype=dtype, rng=np.random.default_rng(0))


@pytest.mark.parametrize("spec", SPECS)
def test_names_shapes_and_order_are_those_of_torch(spec):
    torch = pytest.importorskip("torch")
    lstm = torch.nn.LSTM(
        spec.input_size,
        spec.hidden_size,
        spec.num_layers,
        bias=spec.bias,
        bidirectional=spec.bidirectional,
        proj_size=spec.proj_size,
    )
    assert list(spec.shapes().items()) == [(name, tuple(weight.shape)) for name, weight in lstm.named_parameters()]


@pytest.mark.parametrize("spec", SPECS)
def test_spec_is_inferred_from_weights_in_any_order(spec):
    weights = weights_of(spec)
    assert WeightSpec.from_weights(weights) == spec
    assert WeightSpec.from_weights(dict(reversed(weights.items()))) == spec


def test_sizes_follow_from_projection_and_directions():
    spec = WeightSpec(3, 5, bidirectional=True, proj_size=2)
    assert (spec.num_directions, spec.hidden_output, spec.output_size) == (2, 2, 4)
    spec = WeightSpec(3, 5)
    assert (spec.num_directions, spec.hidden_output, spec.output_size) == (1, 5, 5)


def test_sizes_of_numpy_are_kept_as_plain_integers():
    spec = WeightSpec(np.int64(3), np.uint8(5), bias=np.True_)
    assert spec == WeightSpec(3, 5)
    assert type(spec.input_size) is int and type(spec.bias) is bool


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        pytest.param((-1, 4), ValueError, "input_size is -1, expected an integer of at least 0", id="negative_input"),
        pytest.param((3, -4), ValueError, "hidden_size is -4", id="negative_hidden"),
        pytest.param((3, 4.0), TypeError, "hidden_size is 4.0", id="fractional_hidden"),
        pytest.param((3, True), TypeError, "hidden_size is True", id="boolean_hidden"),
        pytest.param((3, "4"), TypeError, "hidden_size is '4'", id="text_hidden"),
        pytest.param((3, 4, 0), ValueError, "num_layers is 0", id="no_layers"),
        pytest.param((3, 4, 1, 0.5), TypeError, "bias is 0.5, expected True or False", id="dropout_where_bias_stands"),
        pytest.param((3, 4, 1, True, 1), TypeError, "bidirectional is 1", id="number_for_bidirectional"),
        pytest.param(
            (3, 4, 1, True, False, 4), ValueError, "proj_size is 4, but hidden_size is 4", id="wide_projection"
        ),
        pytest.param((3, 4, 1, True, False, -1), ValueError, "proj_size is -1", id="negative_projection"),
    ],
)
def test_spec_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        WeightSpec(*arguments)


def without(name):
    return lambda weights: weights.pop(name)


def replaced(name, array):
    return lambda weights: weights.update({name: array})


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        pytest.param(without("weight_hh_l0"), ValueError, "weights has no weight_hh_l0", id="first_weight_missing"),
        pytest.param(without("weight_hh_l1"), ValueError, "weights lacks weight_hh_l1", id="weight_missing"),
        pytest.param(without("bias_hh_l0"), ValueError, "weights lacks bias_hh_l0", id="half_of_the_bias_missing"),
        pytest.param(
            without("weight_ih_l1"), ValueError, "unexpected weight_hh_l1", id="layer_without_its_first_weight"
        ),
        pytest.param(replaced("w", np.zeros(1)), ValueError, "weights has unexpected w", id="unknown_name"),
        pytest.param(
            replaced("weight_ih_l0", np.zeros((18, 3))), ValueError, r"\(18, 3\), expected \(4\*hidden", id="rows"
        ),
        pytest.param(replaced("weight_ih_l0", np.zeros(16)), ValueError, r"weight_ih_l0 has shape \(16,\)", id="rank"),
        pytest.param(
            replaced("weight_hh_l0", np.zeros((16, 5))), ValueError, r"weight_hh_l0 .*\(16, 5\)", id="columns"
        ),
        pytest.param(replaced("bias_ih_l1", np.zeros((16, 1))), ValueError, r"bias_ih_l1 .*\(16, 1\)", id="bias_rank"),
        pytest.param(replaced("weight_hr_l0", np.zeros(4)), ValueError, "weight_hr_l0 has shape", id="projection_rank"),
        pytest.param(replaced("bias_ih_l0", [0.0] * 16), TypeError, "bias_ih_l0 is a list", id="list_for_an_array"),
    ],
)
def test_weights_are_refused_with(spoil, error, message):
    weights = weights_of(WeightSpec(3, 4, num_layers=2))
    spoil(weights)
    with pytest.raises(error, match=message):
        WeightSpec.from_weights(weights)


def test_check_weights_orders_and_copies_only_where_needed():
    spec = WeightSpec(3, 4)
    weights = weights_of(spec)
    weights["weight_hh_l0"] = np.asfortranarray(weights["weight_hh_l0"])
    checked = check_weights(spec, dict(reversed(weights.items())), np.float64)
    assert list(checked) == list(spec.shapes())
    assert all(array.flags.c_contiguous for array in checked.values())
    assert checked["weight_ih_l0"] is weights["weight_ih_l0"]
    np.testing.assert_array_equal(checked["weight_hh_l0"], weights["weight_hh_l0"])


def test_check_weights_refuses_another_dtype_and_names_the_cure():
    spec = WeightSpec(3, 4)
    weights = weights_of(spec)
    weights["bias_hh_l0"] = weights["bias_hh_l0"].astype(np.float32)
    with pytest.raises(TypeError, match=r"bias_hh_l0 has dtype float32.*bias_hh_l0\.astype\(np\.float64\)"):
        check_weights(spec, weights, np.float64)


def test_check_weights_refuses_weights_of_another_spec():
    with pytest.raises(ValueError, match=r"weight_hh_l0 has shape \(16, 4\).*needs \(20, 5\)|weight_ih_l0 has shape"):
        check_weights(WeightSpec(3, 5), weights_of(WeightSpec(3, 4)), np.float64)


def test_check_array_names_the_type_of_a_stranger():
    with pytest.raises(TypeError, match=r"x is a fractions\.Fraction, expected a numpy\.ndarray"):
        check_array("x", __import__("fractions").Fraction(1, 2))


def test_initial_weights_are_uniform_within_torch_s_bound():
    weights = initial_weights(WeightSpec(300, 64), dtype=np.float64, rng=np.random.default_rng(1))
    bound = 1 / math.sqrt(64)
    w = weights["weight_ih_l0"]
    assert np.abs(w).max() <= bound
    assert np.abs(w).max() > 0.999 * bound
    assert abs(w.mean()) < 0.01 * bound
    assert w.std() == pytest.approx(bound / math.sqrt(3), rel=0.01)


def test_one_seed_gives_the_same_initial_weights_in_both_dtypes():
    spec = WeightSpec(3, 4, num_layers=2)
    wide, narrow = weights_of(spec), weights_of(spec, np.float32)
    for name in spec.shapes():
        assert narrow[name].dtype == np.float32
        np.testing.assert_array_equal(narrow[name], wide[name].astype(np.float32))


def test_forget_bias_stands_on_every_layer_and_direction():
    spec = WeightSpec(3, 4, num_layers=2, bidirectional=True)
    plain = weights_of(spec)
    weights = initial_weights(spec, dtype=np.float64, rng=np.random.default_rng(0), forget_bias=3.0)
    others = np.r_[0:4, 8:16]
    for name in spec.shapes():
        if name.startswith("bias"):
            expected = 3.0 if name.startswith("bias_ih") else 0.0
            np.testing.assert_array_equal(weights[name][4:8], expected)
            np.testing.assert_array_equal(weights[name][others], plain[name][others])
        else:
            np.testing.assert_array_equal(weights[name], plain[name])


def test_forget_bias_needs_a_bias():
    with pytest.raises(ValueError, match=r"forget_bias is 1\.0, but bias is False"):
        initial_weights(WeightSpec(3, 4, bias=False), dtype=np.float64, rng=np.random.default_rng(0), forget_bias=1.0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (8, 12), (33, 17), (64, 128)])
def test_matrices_are_transposed(isa: str, dtype: str, shape: tuple[int, int]) -> None:
    array = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    found = _core.transposed(array)
    assert found.flags.c_contiguous and np.array_equal(found, array.T)
    assert np.array_equal(_core.transposed(array.T), array)


def test_weights_may_be_transposed(isa: str, dtype: str) -> None:
    """As Keras's are, in whose order NumPy copies slowly."""
    weights = initial_weights(WeightSpec(5, 7), dtype=np.dtype(dtype), rng=np.random.default_rng(0), forget_bias=None)
    turned = {name: np.ascontiguousarray(array.T).T for name, array in weights.items()}
    x = np.random.default_rng(1).standard_normal((6, 3, 5)).astype(dtype)
    assert np.array_equal(lstm_forward(x, turned)[0], lstm_forward(x, weights)[0])
