"""`fastlstm.reference`, the oracle, against torch.nn.LSTM, plain loops, finite differences and published numbers."""

import numpy as np
import pytest

from fastlstm import masking, reference
from fastlstm.weights import WeightSpec, initial_weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:LSTM with projections is not supported with oneDNN:UserWarning"
)  # torch

SPECS = [
    pytest.param(WeightSpec(3, 5), id="one_layer"),
    pytest.param(WeightSpec(1, 1), id="one_unit"),
    pytest.param(WeightSpec(3, 5, bias=False), id="no_bias"),
    pytest.param(WeightSpec(3, 4, num_layers=3), id="three_layers"),
    pytest.param(WeightSpec(4, 3, bidirectional=True), id="both_directions"),
    pytest.param(WeightSpec(3, 5, proj_size=2), id="projection"),
    pytest.param(WeightSpec(2, 5, 2, True, True, 3), id="two_layers_both_directions_projection"),
    pytest.param(WeightSpec(2, 4, 2, False, True), id="two_layers_both_directions_no_bias"),
]
DEEP = WeightSpec(3, 4, num_layers=2, bidirectional=True)
DEEP_PROJECTED = WeightSpec(3, 4, num_layers=2, bidirectional=True, proj_size=2)
LAYOUTS = ["time_major", "batch_first", "unbatched"]


class Problem:
    """Random inputs, weights and output gradients, time-major; `unbatched` is the problem's first row."""

    def __init__(self, spec, steps=6, batch=4, seed=0, dtype=np.float64):
        rng = np.random.default_rng(seed)

        def draw(*shape):
            return rng.standard_normal(shape).astype(dtype)

        rows, self.spec, self.steps, self.batch = spec.num_layers * spec.num_directions, spec, steps, batch
        self.weights = {name: 2 * w for name, w in initial_weights(spec, dtype=dtype, rng=rng).items()}
        self.x = draw(steps, batch, spec.input_size)
        self.state = draw(rows, batch, spec.hidden_output), draw(rows, batch, spec.hidden_size)
        self.dy = draw(steps, batch, spec.output_size)
        self.dstate = draw(rows, batch, spec.hidden_output), draw(rows, batch, spec.hidden_size)
        self.dcells = draw(steps, batch, spec.num_directions * spec.hidden_size)
        self.lengths = rng.integers(0, steps + 1, batch)
        self.lengths[: 2 * (batch > 1)] = (0, steps)[: min(batch, 2)]
        self.mask = rng.random((steps, batch)) < 0.6
        self.reset = rng.random((steps, batch)) < 0.35

    def options(self, *names):
        return {name: getattr(self, name) for name in names}


def laid_out(a, layout):
    """A sequence `[T,B,..]` in this layout; unbatched is its first row."""
    return a if layout == "time_major" else a.swapaxes(0, 1) if layout == "batch_first" else a[:, 0]


def solve(problem, layout="time_major", dcells=False, **options):
    """Every output and gradient by name, as reference computes them in this layout."""
    first_row = layout == "unbatched"
    pair = tuple(s[:, 0] if first_row else s for s in problem.state)
    dpair = tuple(s[:, 0] if first_row else s for s in problem.dstate)
    y, (h_n, c_n), cells, tape = reference.lstm_forward(
        laid_out(problem.x, layout),
        problem.weights,
        pair,
        batch_first=layout == "batch_first",
        return_cells=True,
        **options,
    )
    grads = reference.lstm_backward(
        tape, laid_out(problem.dy, layout), dpair, dcells=laid_out(problem.dcells, layout) if dcells else None
    )
    found = {"y": y, "h_n": h_n, "c_n": c_n, "cells": cells, "dx": grads.x}
    return found | {"dh0": grads.state[0], "dc0": grads.state[1]} | {"d" + n: g for n, g in grads.weights.items()}


def assert_agree(found, expected, tolerance=1e-12):
    """max|a - b| <= tolerance * max|b| for every array of `expected`, with its shape and dtype."""
    for name, b in expected.items():
        a = found[name]
        assert a.shape == b.shape and a.dtype == b.dtype, name
        scale = np.abs(b).max(initial=0)
        assert np.isfinite(scale), name
        error = np.abs(a - b).max(initial=0)
        assert error <= tolerance * scale, f"{name}: {error} against {scale}"


# torch.nn.LSTM as the oracle of the oracle


def torch_lstm(problem, **options):
    torch = pytest.importorskip("torch")
    spec = problem.spec
    dtype = getattr(torch, problem.x.dtype.name)
    lstm = torch.nn.LSTM(
        spec.input_size,
        spec.hidden_size,
        spec.num_layers,
        spec.bias,
        bidirectional=spec.bidirectional,
        proj_size=spec.proj_size,
        dtype=dtype,
        **options,
    )
    lstm.load_state_dict({name: torch.tensor(w) for name, w in problem.weights.items()})
    return lstm


def torch_arrays(lstm, inputs, outputs, cotangents):
    """Outputs and, from their cotangents, gradients by autograd; each a NumPy array by name."""
    torch = pytest.importorskip("torch")
    torch.autograd.backward(list(outputs.values()), [torch.tensor(c) for c in cotangents])
    found = {name: a.detach().numpy() for name, a in outputs.items()}
    found |= {"d" + name: a.grad.numpy() for name, a in inputs.items()}
    return found | {"d" + name: w.grad.numpy() for name, w in lstm.named_parameters()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 1e-6)], ids=["float64", "float32"])
def test_outputs_and_gradients_are_those_of_torch(spec, layout, dtype, tolerance):
    torch = pytest.importorskip("torch")
    problem = Problem(spec, dtype=dtype)
    lstm = torch_lstm(problem, batch_first=layout == "batch_first")
    pair = [s[:, 0] if layout == "unbatched" else s for s in (*problem.state, *problem.dstate)]
    x, h0, c0 = (torch.tensor(a, requires_grad=True) for a in (laid_out(problem.x, layout), *pair[:2]))
    y, (h_n, c_n) = lstm(x, (h0, c0))
    outputs = {"y": y, "h_n": h_n, "c_n": c_n}
    expected = torch_arrays(lstm, {"x": x, "h0": h0, "c0": c0}, outputs, (laid_out(problem.dy, layout), *pair[2:]))
    assert_agree(solve(problem, layout), expected, tolerance)


@pytest.mark.parametrize("spec", SPECS)
def test_lengths_are_torch_s_packed_sequences(spec):
    torch = pytest.importorskip("torch")
    problem = Problem(spec, steps=7, batch=5)
    lengths = np.array([3, 7, 1, 5, 7])
    lstm = torch_lstm(problem)
    x, h0, c0 = (torch.tensor(a, requires_grad=True) for a in (problem.x, *problem.state))
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    packed_y, (h_n, c_n) = lstm(packed, (h0, c0))
    y, _ = torch.nn.utils.rnn.pad_packed_sequence(packed_y, total_length=7)
    outputs = {"y": y, "h_n": h_n, "c_n": c_n}
    expected = torch_arrays(lstm, {"x": x, "h0": h0, "c0": c0}, outputs, (problem.dy, *problem.dstate))
    assert_agree(solve(problem, lengths=lengths), expected)


def torch_row_by_row(problem, counts, reset, masked_output):
    """Each row cut into episodes by hand, each episode one torch call on the steps that count.

    counts and reset `[T,B]`. Holding a state over a step is leaving the step out; a cut is a call with a zero state.
    """
    torch = pytest.importorskip("torch")
    spec, lstm = problem.spec, torch_lstm(problem)
    x, h0, c0 = (torch.tensor(a, requires_grad=True) for a in (problem.x, *problem.state))
    reverse_rows = torch.arange(len(h0)) % spec.num_directions == 1
    all_y, all_h, all_c = [], [], []
    for b in range(problem.batch):
        starts = sorted({0, *np.flatnonzero(reset[:, b])})
        row_y, h_rows, c_rows = [], [], []
        for start, end in zip(starts, [*starts[1:], problem.steps], strict=True):
            given = torch.tensor([end == problem.steps if r else start == 0 and not reset[0, b] for r in reverse_rows])
            given = given[:, None]
            h, c = torch.where(given, h0[:, b], 0.0), torch.where(given, c0[:, b], 0.0)
            last_layer = h[-spec.num_directions :]
            used = [t for t in range(start, end) if counts[t, b]]
            if used:
                y, (h, c) = lstm(x[used, b], (h, c))
                y = y.reshape(len(used), spec.num_directions, -1)
            for t in range(start, end):
                for d in range(spec.num_directions):
                    walked = [k for k, s in enumerate(used) if (s >= t if d else s <= t)]
                    at = (walked[0] if d else walked[-1]) if walked else None
                    held = last_layer[d] if at is None else y[at, d]
                    row_y.append(held if masked_output == "repeat" or counts[t, b] else torch.zeros_like(held))
            h_rows.append(h)
            c_rows.append(c)
        all_y.append(torch.stack(row_y).reshape(problem.steps, -1))
        all_h.append(torch.where(reverse_rows[:, None], h_rows[0], h_rows[-1]))
        all_c.append(torch.where(reverse_rows[:, None], c_rows[0], c_rows[-1]))
    outputs = {"y": torch.stack(all_y, 1), "h_n": torch.stack(all_h, 1), "c_n": torch.stack(all_c, 1)}
    return torch_arrays(lstm, {"x": x, "h0": h0, "c0": c0}, outputs, (problem.dy, *problem.dstate))


@pytest.mark.parametrize("masked_output", ["zero", "repeat"])
@pytest.mark.parametrize(
    "names",
    [("lengths",), ("mask",), ("reset",), ("lengths", "mask"), ("mask", "reset"), ("lengths", "mask", "reset")],
    ids="_and_".join,
)
@pytest.mark.parametrize("spec", [WeightSpec(3, 5), DEEP, DEEP_PROJECTED], ids=["one_layer", "deep", "deep_projected"])
def test_patterns_are_torch_row_by_row_and_episode_by_episode(spec, names, masked_output):
    for seed in range(3):
        problem = Problem(spec, steps=7, batch=5, seed=seed)
        inside = np.arange(problem.steps)[:, None] < problem.lengths if "lengths" in names else np.True_
        counts = np.broadcast_to(inside & (problem.mask if "mask" in names else True), problem.mask.shape)
        reset = problem.reset & inside if "reset" in names else np.zeros_like(problem.reset)
        expected = torch_row_by_row(problem, counts, reset, masked_output)
        assert_agree(solve(problem, masked_output=masked_output, **problem.options(*names)), expected)


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
    np.testing.assert_allclose(reference.sigmoid(x), expected, rtol=1e-15)


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
