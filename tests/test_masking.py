"""`fastlstm.masking` against plain loops over rows, in every layout."""

import numpy as np
import pytest

from fastlstm import masking

NAN = np.nan
LAYOUTS = ["time_major", "batch_first", "unbatched"]


def gappy(shape, dtype=np.float64, seed=0):
    """Random values with NaNs, at the edges too, and one series that is all NaN."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(dtype)
    x[rng.random(shape) < 0.5] = NAN
    x[..., 0, 0] = NAN
    return x


def laid_out(x, layout):
    """x [T,B,I] in this layout; unbatched is its first row."""
    return {"time_major": x, "batch_first": x.swapaxes(0, 1), "unbatched": x[:, 0]}[layout]


def series_by_series(x, fill):
    """x [T,B,I] with `fill` applied to every series of its own."""
    filled = x.copy()
    for b in range(x.shape[1]):
        for k in range(x.shape[2]):
            filled[:, b, k] = fill(x[:, b, k])
    return filled


def hold_last(series):
    last, filled = NAN, []
    for value in series:
        last = last if np.isnan(value) else value
        filled.append(last)
    return filled


def interpolate(series):
    seen = ~np.isnan(series)
    t = np.arange(len(series))
    return np.interp(t, t[seen], series[seen]) if seen.any() else series


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("vectorised", "by_series"),
    [
        pytest.param(masking.forward_fill, hold_last, id="forward_fill"),
        pytest.param(masking.linear_fill, interpolate, id="linear_fill"),
    ],
)
def test_fill_is_the_loop_over_series(vectorised, by_series, dtype, layout):
    x = gappy((11, 4, 3), dtype)
    before = x.copy()
    filled = vectorised(laid_out(x, layout), batch_first=layout == "batch_first")
    assert filled.dtype == dtype
    np.testing.assert_allclose(filled, laid_out(series_by_series(x, by_series), layout), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("fill", [masking.forward_fill, masking.linear_fill, masking.mean_fill])
@pytest.mark.parametrize("shape", [(0, 2, 3), (4, 0, 3), (4, 2, 0), (0, 3)], ids=["T=0", "B=0", "I=0", "unbatched_T=0"])
def test_fill_of_nothing_is_nothing(fill, shape):
    assert fill(np.zeros(shape)).shape == shape


def test_forward_fill_starts_with_initial_where_nothing_was_seen():
    x = np.array([[[NAN], [2.0]], [[1.0], [NAN]]])
    np.testing.assert_array_equal(masking.forward_fill(x, initial=-5), [[[-5], [2]], [[1], [2]]])
    np.testing.assert_array_equal(masking.forward_fill(x), [[[NAN], [2]], [[1], [2]]])


def test_linear_fill_keeps_infinite_values_where_they_are():
    x = np.array([[np.inf], [1.0], [NAN], [3.0], [np.inf]])
    np.testing.assert_array_equal(masking.linear_fill(x).ravel(), [np.inf, 1, 2, 3, np.inf])


def test_mean_fill_takes_each_feature_over_all_rows_and_steps():
    x = np.array([[[1.0, NAN], [NAN, 10.0]], [[3.0, 20.0], [8.0, NAN]]])
    np.testing.assert_array_equal(masking.mean_fill(x), [[[1, 15], [4, 10]], [[3, 20], [8, 15]]])
    np.testing.assert_array_equal(masking.mean_fill(x, mean=[7, 9]), [[[1, 9], [7, 10]], [[3, 20], [8, 9]]])


def test_mean_fill_of_float32_is_summed_exactly_enough():
    x = np.full((100_000, 1), 16_777_217.0, np.float64).astype(np.float32)
    x[0] = NAN
    assert masking.mean_fill(x)[0, 0] == np.float32(16_777_217.0)


def test_mean_fill_refuses_a_feature_without_values():
    with pytest.raises(ValueError, match="x has no value of feature 1"):
        masking.mean_fill(np.array([[1.0, NAN], [NAN, NAN]]))
    with pytest.raises(ValueError, match=r"mean has shape \(3,\).*expected \(2,\)"):
        masking.mean_fill(np.zeros((4, 2)), mean=[0, 0, 0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mask_from_nan_has_the_layout_of_x(layout):
    x = gappy((6, 3, 2))
    expected = np.array([[not np.isnan(x[t, b]).any() for b in range(3)] for t in range(6)])
    kept = np.array([[not np.isnan(x[t, b]).all() for b in range(3)] for t in range(6)])
    np.testing.assert_array_equal(masking.mask_from_nan(laid_out(x, layout)), laid_out(expected, layout))
    np.testing.assert_array_equal(masking.mask_from_nan(laid_out(x, layout), missing="all"), laid_out(kept, layout))


def test_lengths_and_masks_convert_both_ways_in_every_layout():
    lengths = np.array([3, 0, 5, 1], np.uint8)
    expected = np.array([[t < length for length in lengths] for t in range(6)])
    for batch_first in (False, True):
        mask = masking.lengths_to_mask(lengths, 6, batch_first=batch_first)
        assert mask.dtype == bool and mask.flags.c_contiguous
        np.testing.assert_array_equal(mask, expected.T if batch_first else expected)
        back = masking.mask_to_lengths(mask, batch_first=batch_first)
        assert back.dtype == np.int64
        np.testing.assert_array_equal(back, lengths)
    np.testing.assert_array_equal(masking.lengths_to_mask(2, 3), [True, True, False])
    assert masking.mask_to_lengths(np.array([1, 1, 0])).shape == ()
    assert masking.mask_to_lengths(np.array([1, 1, 0])) == 2


def test_lengths_to_mask_is_as_long_as_the_longest_row():
    assert masking.lengths_to_mask([2, 4]).shape == (4, 2)
    assert masking.lengths_to_mask([]).shape == (0, 0)
    assert masking.lengths_to_mask([0, 0]).shape == (0, 2)
    assert masking.mask_to_lengths(np.ones((0, 2))).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(lambda: masking.lengths_to_mask([2, -1]), ValueError, r"lengths\[1\] is -1", id="negative_length"),
        pytest.param(
            lambda: masking.lengths_to_mask([9], 8), ValueError, r"\[0\] is 9, but there are 8", id="long_length"
        ),
        pytest.param(lambda: masking.lengths_to_mask(9, 8), ValueError, "lengths is 9", id="long_single_length"),
        pytest.param(lambda: masking.lengths_to_mask([2.0]), TypeError, "lengths has dtype float64", id="float_length"),
        pytest.param(lambda: masking.lengths_to_mask([True]), TypeError, "lengths has dtype bool", id="boolean_length"),
        pytest.param(
            lambda: masking.lengths_to_mask([[1]]), ValueError, r"lengths has shape \(1, 1\)", id="length_rank"
        ),
        pytest.param(
            lambda: masking.mask_to_lengths([[1, 1], [0, 1], [0, 0], [0, 1]]),
            ValueError,
            "mask counts step 3 of row 1 after",
            id="mask_with_a_hole",
        ),
        pytest.param(
            lambda: masking.mask_to_lengths([[0, 1, 1]], batch_first=True),
            ValueError,
            "mask counts step 1 of row 0 after",
            id="left_padded_mask",
        ),
        pytest.param(lambda: masking.mask_to_lengths([[0, 2]]), ValueError, "mask holds 2", id="mask_with_a_2"),
        pytest.param(lambda: masking.mask_to_lengths([0.5]), ValueError, r"mask holds 0\.5", id="mask_with_a_half"),
        pytest.param(lambda: masking.mask_to_lengths([NAN]), ValueError, "mask holds nan", id="mask_with_a_nan"),
        pytest.param(lambda: masking.mask_to_lengths(["a"]), TypeError, "mask has dtype <U1", id="mask_of_text"),
        pytest.param(lambda: masking.mask_to_lengths([None]), TypeError, "mask has dtype object", id="mask_of_objects"),
        pytest.param(lambda: masking.mask_to_lengths(True), ValueError, r"mask has shape \(\)", id="mask_rank"),
        pytest.param(lambda: masking.forward_fill(np.zeros(3)), ValueError, r"x has shape \(3,\)", id="fill_rank"),
        pytest.param(
            lambda: masking.linear_fill(np.zeros((3, 1), int)), TypeError, "x has dtype int64", id="fill_integers"
        ),
        pytest.param(lambda: masking.forward_fill([[1.0]]), TypeError, "x is a list", id="fill_list"),
        pytest.param(
            lambda: masking.mask_from_nan(np.zeros(3), missing="none"), ValueError, "missing is 'none'", id="missing"
        ),
        pytest.param(
            lambda: masking.mask_from_nan(np.array(1.0)), ValueError, r"x has shape \(\)", id="mask_from_scalar"
        ),
    ],
)
def test_masking_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call()
