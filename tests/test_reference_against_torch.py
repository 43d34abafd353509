"""`fastlstm.reference` against torch.nn.LSTM: the oracle of the oracle."""

import numpy as np
import pytest

from fastlstm.weights import WeightSpec
from reference_problem import DEEP, DEEP_PROJECTED, LAYOUTS, SPECS, Problem, assert_agree, laid_out, solve

pytestmark = pytest.mark.filterwarnings(
    "ignore:LSTM with projections is not supported with oneDNN:UserWarning"
)  # torch


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
