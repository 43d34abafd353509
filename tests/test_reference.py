"""`fastlstm.reference`, the oracle, against plain loops, finite differences and published numbers."""

import numpy as np
import pytest

from fastlstm import masking, reference
from fastlstm.activations import sigmoid
from fastlstm.weights import WeightSpec
from reference_problem import DEEP, DEEP_PROJECTED, LAYOUTS, Problem, assert_agree, laid_out, solve

# Semantics by hand


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_option_agrees_between_layouts(layout):
    problem = Problem(DEEP, batch=4)
    dropout = {"dropout": 0.4, "dropout_seed": 3, "masked_output": "repeat"}
    options = problem.options("lengths", "mask", "reset")
    expected = solve(problem, dcells=True, **options, **dropout)
    if layout == "unbatched":  # the first row of a batch of one
        for name in ("x", "dy", "dcells", "mask", "reset"):
            setattr(problem, name, getattr(problem, name)[:, :1])
        problem.state, problem.dstate = ([s[:, :1] for s in pair] for pair in (problem.state, problem.dstate))
        problem.lengths = np.array([4])
        expected = solve(problem, dcells=True, **problem.options("lengths", "mask", "reset"), **dropout)
        problem.lengths = np.int32(4)
    options = {name: laid_out(getattr(problem, name), layout) for name in ("mask", "reset")}
    found = solve(problem, layout, dcells=True, lengths=problem.lengths, **options, **dropout)
    for name in ("y", "cells", "dx"):
        expected[name] = laid_out(expected[name], layout)
    if layout == "unbatched":
        expected |= {name: expected[name][:, 0] for name in ("h_n", "c_n", "dh0", "dc0")}
    assert_agree(found, expected, tolerance=0 if layout == "time_major" else 1e-14)


@pytest.mark.parametrize("masked_output", ["zero", "repeat"])
def test_lengths_are_the_mask_and_nothing_else(masked_output):
    problem = Problem(DEEP)
    mask = masking.lengths_to_mask(problem.lengths, problem.steps)
    reset = problem.reset & mask  # a reset acts on a masked step, but not beyond a row's length
    by_lengths = solve(problem, lengths=problem.lengths, reset=problem.reset, masked_output=masked_output)
    assert_agree(by_lengths, solve(problem, mask=mask.astype(int), reset=reset, masked_output=masked_output), 0)


def test_reset_acts_on_a_masked_step():
    problem = Problem(WeightSpec(3, 5), steps=3, batch=1)
    mask, reset = np.array([[1], [0], [0]]), np.array([[0], [1], [0]])
    y, (h_n, c_n), _ = reference.lstm_forward(
        problem.x, problem.weights, problem.state, mask=mask, reset=reset, masked_output="repeat"
    )
    assert y[0].all() and not y[1:].any() and not h_n.any() and not c_n.any()


def test_cells_are_the_last_states_of_shorter_calls():
    problem = Problem(WeightSpec(3, 4, bidirectional=True))
    cells = solve(problem)["cells"]
    for t in range(problem.steps):
        _, (_, c_n), _ = reference.lstm_forward(problem.x[: t + 1], problem.weights, problem.state)
        np.testing.assert_allclose(cells[t, :, :4], c_n[0], rtol=1e-13)
        _, (_, c_n), _ = reference.lstm_forward(problem.x[t:], problem.weights, problem.state)
        np.testing.assert_allclose(cells[t, :, 4:], c_n[1], rtol=1e-13)


def test_cells_are_held_where_a_step_does_not_count_in_both_modes():
    problem = Problem(WeightSpec(3, 4), steps=4, batch=1)
    mask = [[0], [1], [0], [0]]
    for masked_output in ("zero", "repeat"):
        cells = solve(problem, mask=mask, masked_output=masked_output)["cells"]
        np.testing.assert_array_equal(cells[0, 0], problem.state[1][0, 0])
        np.testing.assert_array_equal(cells[2:, 0], cells[[1, 1], 0])
        assert (cells[1] != cells[0]).all()


def test_what_stands_in_a_step_that_does_not_count_is_never_read():
    problem = Problem(DEEP_PROJECTED)
    options = problem.options("lengths", "mask", "reset")
    expected = solve(problem, **options)
    counts = problem.mask & (np.arange(problem.steps)[:, None] < problem.lengths)
    for bad in (np.nan, np.inf):
        problem.x[~counts] = bad
        assert_agree(solve(problem, **options), expected, tolerance=0)


def test_a_nan_stays_in_its_row_and_passes_to_its_later_steps():
    problem = Problem(WeightSpec(3, 5))
    expected = solve(problem)["y"]
    problem.x[2, 1, 0] = np.nan
    y = solve(problem)["y"]
    assert np.isnan(y[2:, 1]).all()
    np.testing.assert_array_equal(np.isnan(y).sum(), y[2:, 1].size)
    np.testing.assert_allclose(y[:2], expected[:2], rtol=1e-13)


def test_extreme_inputs_saturate_without_overflow():
    problem = Problem(WeightSpec(3, 5))
    problem.x *= 1e6
    found = solve(problem)
    assert all(np.isfinite(a).all() for a in found.values())


def test_sigmoid_is_relatively_right_in_both_tails():
    x = np.array([-700.0, -40.0, -1.0, 0.0, 1.0, 40.0, 700.0])
    expected = [np.exp(-700.0), np.exp(-40.0), 1 / (1 + np.e), 0.5, np.e / (1 + np.e), 1.0, 1.0]
    np.testing.assert_allclose(sigmoid(x), expected, rtol=1e-15)


@pytest.mark.parametrize(("steps", "batch"), [(0, 3), (4, 0), (0, 0)], ids=["no_steps", "no_rows", "neither"])
@pytest.mark.parametrize("layout", ["time_major", "batch_first"])
def test_empty_sequences_and_batches_work_in_both_passes(steps, batch, layout):
    problem = Problem(DEEP_PROJECTED, steps, batch)
    patterns = {name: laid_out(getattr(problem, name), layout) for name in ("mask", "reset")}
    found = solve(problem, layout, dcells=True, dropout=0.5, dropout_seed=1, **patterns, lengths=problem.lengths)
    assert found["y"].shape == laid_out(problem.dy, layout).shape
    assert found["cells"].shape == laid_out(problem.dcells, layout).shape
    assert found["dx"].shape == laid_out(problem.x, layout).shape
    for name, expected in zip(("h_n", "c_n", "dh0", "dc0"), (*problem.state, *problem.dstate), strict=True):
        np.testing.assert_array_equal(found[name], expected)
    assert all(
        not g.any() and g.shape == problem.weights[n[1:]].shape for n, g in found.items() if n[1:] in problem.weights
    )


def test_step_by_step_is_the_whole_sequence():
    problem = Problem(WeightSpec(3, 5, num_layers=2, proj_size=2))
    state, steps = problem.state, []
    for t in range(problem.steps):
        y, state, tape = reference.lstm_forward(problem.x[t : t + 1], problem.weights, state, training=False)
        assert tape is None
        steps.append(y)
    whole = solve(problem)
    assert_agree({"y": np.concatenate(steps), "h_n": state[0]}, {"y": whole["y"], "h_n": whole["h_n"]}, 1e-14)


def test_missing_gradients_are_zero():
    problem = Problem(DEEP)
    y, (h_n, c_n), cells, tape = reference.lstm_forward(problem.x, problem.weights, problem.state, return_cells=True)
    zero, dh_n = np.zeros_like, problem.dstate[0]
    for given, full in (
        (((), {}), ((zero(y), (zero(h_n), zero(c_n))), {"dcells": zero(cells)})),
        (((None, (dh_n, None)), {}), ((zero(y), (dh_n, zero(c_n))), {"dcells": zero(cells)})),
        (((None, None), {"dcells": problem.dcells}), ((zero(y), None), {"dcells": problem.dcells})),
    ):
        a, b = (reference.lstm_backward(tape, *arguments, **named) for arguments, named in (given, full))
        for left, right in zip((a.x, *a.state, *a.weights.values()), (b.x, *b.state, *b.weights.values()), strict=True):
            np.testing.assert_array_equal(left, right)


def test_no_state_is_a_zero_state():
    problem = Problem(DEEP)
    y, _, _ = reference.lstm_forward(problem.x, problem.weights)
    problem.state = tuple(np.zeros_like(s) for s in problem.state)
    np.testing.assert_array_equal(y, solve(problem)["y"])


def test_backward_depends_on_nothing_that_the_caller_can_still_write():
    problem = Problem(DEEP_PROJECTED)
    options = problem.options("lengths", "mask", "reset")
    y, state, cells, tape = reference.lstm_forward(
        problem.x, problem.weights, problem.state, return_cells=True, dropout=0.5, dropout_seed=1, **options
    )
    arguments = problem.dy, problem.dstate
    first = reference.lstm_backward(tape, *arguments, dcells=problem.dcells)
    for array in (y, *state, cells, problem.x, *problem.weights.values(), *problem.state, *options.values()):
        array[...] = 1
    again = reference.lstm_backward(tape, *arguments, dcells=problem.dcells)
    for a, b in zip((first.x, *first.state), (again.x, *again.state), strict=True):
        np.testing.assert_array_equal(a, b)
    for name, gradient in first.weights.items():
        np.testing.assert_array_equal(gradient, again.weights[name])


def test_both_biases_get_the_full_gradient_in_arrays_of_their_own():
    found = solve(Problem(DEEP))
    for suffix in ("_l0", "_l0_reverse", "_l1", "_l1_reverse"):
        ih, hh = found["dbias_ih" + suffix], found["dbias_hh" + suffix]
        np.testing.assert_array_equal(ih, hh)
        assert not np.shares_memory(ih, hh)


def test_float32_gradients_of_a_long_batch_are_as_good_as_their_dtype():
    spec = WeightSpec(4, 8)
    exact, rounded = Problem(spec, 100, 250), Problem(spec, 100, 250, dtype=np.float32)
    for name in ("x", "dy"):
        setattr(exact, name, getattr(rounded, name).astype(np.float64))
    for name in ("state", "dstate"):
        setattr(exact, name, tuple(s.astype(np.float64) for s in getattr(rounded, name)))
    exact.weights = {name: w.astype(np.float64) for name, w in rounded.weights.items()}
    expected = {name: a.astype(np.float32) for name, a in solve(exact).items()}
    assert_agree(solve(rounded), expected, tolerance=1e-6)


def test_out_receives_y_and_is_returned():
    problem = Problem(DEEP)
    out = np.full((problem.batch, problem.steps, 8), np.nan)
    y, _, _ = reference.lstm_forward(
        problem.x.swapaxes(0, 1), problem.weights, problem.state, batch_first=True, out=out
    )
    assert y is out
    np.testing.assert_array_equal(out.swapaxes(0, 1), solve(problem)["y"])


# Finite differences: the one oracle that needs no other implementation


@pytest.mark.parametrize("masked_output", ["zero", "repeat"])
@pytest.mark.parametrize(
    "options",
    [(), ("mask",), ("lengths",), ("reset",), ("dropout",), ("lengths", "mask", "reset", "dropout")],
    ids=lambda names: "_and_".join(names) or "plain",
)
@pytest.mark.parametrize("spec", [DEEP, DEEP_PROJECTED], ids=["deep", "deep_projected"])
def test_gradients_are_finite_differences(spec, options, masked_output):
    problem = Problem(spec, steps=5, batch=3, seed=5)
    settings = problem.options(*(name for name in options if name != "dropout"))
    if "dropout" in options:
        settings |= {"dropout": 0.3, "dropout_seed": 2**63 + 11, "dropout_call": 4}
    found = solve(problem, dcells=True, masked_output=masked_output, **settings)

    def loss():
        now = reference.lstm_forward(
            problem.x, problem.weights, problem.state, return_cells=True, masked_output=masked_output, **settings
        )
        pairs = ((now[0], problem.dy), *zip(now[1], problem.dstate, strict=True), (now[2], problem.dcells))
        return sum((a * d).sum() for a, d in pairs)

    rng, step = np.random.default_rng(0), 1e-5
    for name, array in {"x": problem.x, "h0": problem.state[0], "c0": problem.state[1], **problem.weights}.items():
        way = rng.standard_normal(array.shape)
        array += step * way
        high = loss()
        array -= 2 * step * way
        low = loss()
        array += step * way
        gradient = found["d" + name]
        error = abs((high - low) / (2 * step) - (gradient * way).sum())
        assert error <= 1e-8 * (1 + np.sqrt((gradient**2).sum())), name


def one_layer(problem, layer):
    """The weights and state of one layer of a one-directional problem, as an LSTM of its own."""
    weights = {n.replace(f"_l{layer}", "_l0"): w for n, w in problem.weights.items() if n.endswith(f"_l{layer}")}
    return weights, tuple(s[layer : layer + 1] for s in problem.state)


@pytest.mark.parametrize("dropout", [0.0, 0.3, 1.0])
def test_dropout_stands_between_layers_only(dropout):
    problem = Problem(WeightSpec(3, 4, num_layers=3))
    output = problem.x
    for layer in range(3):
        if layer:
            kept = reference.dropout_mask(dropout, 5, 9, layer=layer - 1, steps=6, batch=4, num_directions=1, units=4)
            output = output * kept / (1 - dropout) if dropout < 1 else np.zeros_like(output)
        output, _, _ = reference.lstm_forward(output, *one_layer(problem, layer))
    found = solve(problem, dropout=dropout, dropout_seed=5, dropout_call=9)
    assert_agree(found, {"y": output}, 1e-14)


def test_inference_drops_nothing():
    problem = Problem(DEEP)
    y, _, tape = reference.lstm_forward(problem.x, problem.weights, problem.state, dropout=0.9, training=False)
    assert tape is None
    np.testing.assert_array_equal(y, solve(problem)["y"])
