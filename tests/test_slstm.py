"""The NumPy sLSTM against the package xlstm, against a cell written for torch's autograd, and against differences."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from fastlstm import slstm_reference as slstm
from fastlstm.slstm_weights import SLSTMSpec, SLSTMState
from slstm_cases import SPECS, Arrays, assert_equal, problem, solve

BY_SPEC = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)

# xlstm


def solve_by_xlstm(p: dict[str, Any], spec: SLSTMSpec) -> Arrays:
    """By the vanilla backend of the package xlstm and torch's autograd. It multiplies no x, and wants a bias."""
    torch = pytest.importorskip("torch")
    try:
        cell_module = importlib.import_module("xlstm.blocks.slstm.cell")
    except ImportError as missing:
        pytest.skip(f"xlstm cannot be imported: {missing}")
    H, N, K = spec.hidden_size, spec.num_heads, spec.head_size
    config = cell_module.sLSTMCellConfig(H, N, backend="vanilla", dtype="float32", output_shape="SBH")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "bias_init", "small_init")  # the default one divides by K - 1
        cell = cell_module.sLSTMCell(config).double()

    def leaf(array: np.ndarray) -> Any:
        return torch.from_numpy(array.copy()).requires_grad_()

    w = {name: leaf(array) for name, array in p["weights"].items()}
    x, state = leaf(p["x"]), [leaf(part) for part in p["state"]] if p["state"] else None
    pre = (x @ w["weight_ih"].T if spec.input_size else x).swapaxes(0, 1)  # batch first
    del cell._recurrent_kernel_, cell._bias_
    cell._recurrent_kernel_ = w["weight_hh"].reshape(4, N, K, K).swapaxes(0, 1).reshape(N, 4 * K, K)
    cell._bias_ = w["bias"] if spec.bias else torch.zeros(4 * H, dtype=pre.dtype)
    y, last = cell(pre, torch.cat(state) if state else None)
    torch.autograd.backward(
        [y, last], [torch.from_numpy(p["dy"]), torch.from_numpy(np.concatenate(p["dstate"]))], inputs=None
    )
    found = {"y": y, "dx": x.grad} | {f"{part}_n": last[i][None] for i, part in enumerate("hcnm")}
    found |= {f"d{part}0": state[i].grad for i, part in enumerate("hcnm")} if state else {}
    found |= {"d" + name: array.grad for name, array in w.items()}
    return {name: array.detach().numpy() for name, array in found.items()}


@BY_SPEC
@pytest.mark.parametrize("state", [False, True], ids=["zero_state", "state"])
def test_is_that_of_xlstm(spec: SLSTMSpec, state: bool) -> None:
    p = problem(spec, state=state)
    assert_equal(solve(p), solve_by_xlstm(p, spec))


@pytest.mark.parametrize("scale", [3.0, 10.0, 30.0])
def test_is_that_of_xlstm_where_gates_saturate(scale: float) -> None:
    spec = SLSTMSpec(0, 6, 2)
    p = problem(spec, T=20, scale=scale)
    p["weights"]["weight_hh"] /= scale
    p["dy"], p["dstate"] = p["dy"] / scale, SLSTMState(*(part / scale for part in p["dstate"]))
    assert_equal(solve(p), solve_by_xlstm(p, spec))


# torch's autograd, through the equations as the paper has them: blocks of zeros, c and n and exp(m) told apart


def solve_by_torch(p: dict[str, Any], spec: SLSTMSpec, held: np.ndarray, cut: np.ndarray) -> Arrays:
    torch = pytest.importorskip("torch")
    H, N, K = spec.hidden_size, spec.num_heads, spec.head_size

    def leaf(array: np.ndarray) -> Any:
        return torch.from_numpy(array.copy()).requires_grad_()

    w = {name: leaf(array) for name, array in p["weights"].items()}
    x, state = leaf(p["x"]), [leaf(part) for part in p["state"]]
    h, c, n, m = (part[0] for part in state)
    dense = [
        torch.block_diag(*(w["weight_hh"][g * H + k * K : g * H + (k + 1) * K] for k in range(N))) for g in range(4)
    ]
    outputs = []
    for t, x_t in enumerate(x):
        kept, alive = torch.from_numpy(held[t][:, None]), torch.from_numpy(~cut[t][:, None])
        h, c, n, m = h * alive, c * alive, n * alive, m * alive
        pre = x_t @ w["weight_ih"].T if spec.input_size else x_t
        i, f, z, o = (
            pre[:, g * H : (g + 1) * H] + h @ dense[g].T + (w["bias"][g * H : (g + 1) * H] if spec.bias else 0)
            for g in range(4)
        )
        log_f = m - torch.nn.functional.softplus(-f)
        new_m = torch.where(n == 0, i, torch.maximum(i, log_f))
        log_f = torch.where(n == 0, -torch.inf, log_f)  # no past
        new_c = torch.exp(log_f - new_m) * c + torch.exp(i - new_m) * torch.tanh(z)
        new_n = torch.exp(log_f - new_m) * n + torch.exp(i - new_m)
        new = torch.sigmoid(o) * new_c / new_n, new_c, new_n, new_m
        h, c, n, m = (torch.where(kept, a, b) for a, b in zip((h, c, n, m), new, strict=True))
        outputs.append(torch.where(kept, 0, h))
    y = torch.stack(outputs)
    loss = (y * torch.from_numpy(p["dy"])).sum()
    for part, d in zip((h, c, n, m), p["dstate"], strict=True):
        loss = loss + (part * torch.from_numpy(d[0])).sum()
    loss.backward()
    found = {"y": y, "dx": x.grad} | {f"{name}_n": part[None] for name, part in zip("hcnm", (h, c, n, m), strict=True)}
    found |= {f"d{name}0": part.grad for name, part in zip("hcnm", state, strict=True)}
    found |= {"d" + name: array.grad for name, array in w.items()}
    return {name: array.detach().numpy() for name, array in found.items()}


@BY_SPEC
def test_gradients_are_those_of_torch(spec: SLSTMSpec) -> None:
    p, nothing = problem(spec), np.zeros((6, 3), bool)
    assert_equal(solve(p), solve_by_torch(p, spec, nothing, nothing))


@pytest.mark.parametrize("seed", range(4))
def test_marks_are_those_of_torch(seed: int) -> None:
    spec, rng = SPECS["heads"], np.random.default_rng(seed)
    p = problem(spec, 9, 5, seed)
    mask, reset, lengths = rng.random((9, 5)) < 0.7, rng.random((9, 5)) < 0.2, np.array([9, 0, 4, 7, 8])
    inside = np.arange(9)[:, None] < lengths
    found = solve(p, mask=mask, reset=reset, lengths=lengths)
    assert_equal(found, solve_by_torch(p, spec, ~(mask & inside), reset & inside))


# differences


def test_gradients_are_slopes() -> None:
    spec, step = SLSTMSpec(2, 4, 2), 1e-3
    p = problem(spec, 5, 3, seed=2)
    options = {"mask": np.random.default_rng(0).random((5, 3)) < 0.8, "masked_output": "repeat"}

    def loss() -> float:
        y, state, _ = slstm.slstm_forward(p["x"], p["weights"], p["state"], **options)
        return float((y * p["dy"]).sum() + sum((a * d).sum() for a, d in zip(state, p["dstate"], strict=True)))

    def slopes(array: np.ndarray) -> np.ndarray:
        found = np.empty_like(array)
        for i in range(array.size):
            before, sides = array.flat[i], []
            for h in (step, -step, 2 * step, -2 * step):
                array.flat[i] = before + h
                sides.append(loss())
            array.flat[i] = before
            found.flat[i] = (8 * (sides[0] - sides[1]) - (sides[2] - sides[3])) / (12 * step)
        return found

    found = solve(p, **options)
    arrays = {"dx": p["x"]} | {f"d{part}0": array for part, array in p["state"]._asdict().items()}
    arrays |= {"d" + name: array for name, array in p["weights"].items()}
    for name, array in arrays.items():
        assert_equal({name: found[name]}, {name: slopes(array)}, 1e-9)


# the rest


def test_no_gate_overflows_and_n_stays_above_one() -> None:
    rng = np.random.default_rng(0)
    x = rng.choice([-1e4, -80.0, 0.0, 80.0, 1e4], (50, 4, 4 * 6)).astype(np.float32)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        y, state, tape = slstm.slstm_forward(x, {"weight_hh": np.zeros((24, 3), np.float32)})
        grads = slstm.slstm_backward(tape, np.ones_like(y))
    assert np.abs(y).max() <= 1 and state.n.min() >= 1
    assert np.isfinite(grads.x).all()


@pytest.mark.parametrize("layout", ["batch_first", "unbatched"])
def test_layouts_differ_in_nothing_else(layout: str) -> None:
    p = problem(SPECS["heads"], B=1 if layout == "unbatched" else 3)
    expected = solve(p)

    def laid_out(name: str, array: np.ndarray) -> np.ndarray:
        if name not in ("x", "dx", "y", "dy"):
            of_state = name in [f"{d}{part}{end}" for d in ("", "d") for part in "hcnm" for end in ("_n", "0")]
            return array[:, 0] if of_state and layout == "unbatched" else array
        return array[:, 0] if layout == "unbatched" else np.ascontiguousarray(array.swapaxes(0, 1))

    p |= {name: laid_out(name, p[name]) for name in ("x", "dy")}
    p |= {name: SLSTMState(*(laid_out("h0", part) for part in p[name])) for name in ("state", "dstate")}
    found = solve(p, batch_first=layout == "batch_first")
    assert_equal(found, {name: laid_out(name, array) for name, array in expected.items()})


@pytest.mark.parametrize(("T", "B"), [(0, 3), (4, 0), (0, 0)])
def test_nothing_to_do(T: int, B: int) -> None:
    p = problem(SPECS["heads"], T, B)
    found = solve(p)
    assert found["y"].shape == (T, B, 6)
    assert not found["dweight_hh"].any()
    assert_equal(found, {f"{part}_n": array for part, array in p["state"]._asdict().items()})
    assert_equal(found, {f"d{part}0": array for part, array in p["dstate"]._asdict().items()})


WRONG = {
    "input_size": ({"input_size": -1}, ValueError),
    "hidden_size": ({"hidden_size": 2.5}, TypeError),
    "num_heads": ({"num_heads": 4}, ValueError),
    "bias": ({"bias": 1}, TypeError),
}


@pytest.mark.parametrize(("name", "wrong"), WRONG.items(), ids=WRONG)
def test_wrong_size_is_named(name: str, wrong: tuple[dict[str, Any], type[Exception]]) -> None:
    with pytest.raises(wrong[1], match=f"{name} is .*expected"):
        SLSTMSpec(**({"input_size": 3, "hidden_size": 6, "num_heads": 2} | wrong[0]))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": np.zeros((6, 3, 5))}, ValueError, r"x has shape \(6, 3, 5\), but the weights need input size 4"),
        ({"x": np.zeros((6, 3, 4), np.float32)}, TypeError, "x has dtype float32"),
        ({"x": [[[0.0]]]}, TypeError, "x is a list"),
        ({"state": (None, None)}, TypeError, "state is a tuple, expected four"),
        ({"state": (None, None, None, np.zeros((3, 6)))}, ValueError, r"m0 has shape \(3, 6\), expected \(1, 3, 6\)"),
        ({"masked_output": "hold"}, ValueError, "masked_output is 'hold'"),
        ({"weights": {"weight_ih": np.zeros((24, 4))}}, ValueError, "no weight_hh"),
        ({"weights": {"weight_hh": np.zeros((24, 4))}}, ValueError, r"weight_hh has shape \(24, 4\)"),
        ({"weights": {"weight_hh": np.zeros((24, 3)), "weight_hr": 0}}, ValueError, "unexpected weight_hr"),
    ],
)
def test_wrong_argument_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    p = problem(SPECS["heads"])
    arguments = {name: p[name] for name in ("x", "weights", "state")} | change
    with pytest.raises(error, match=message):
        slstm.slstm_forward(**arguments)
