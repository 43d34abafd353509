"""`fastlstm.optim` against torch.optim.Adam and torch.nn.utils.clip_grad_norm_, and its errors."""

import numpy as np
import pytest

from fastlstm.optim import Adam, clip_gradients

TOLERANCE = {"float32": 2e-6, "float64": 1e-14}
SETTINGS = [
    pytest.param({}, id="defaults"),
    pytest.param({"lr": 0.3, "betas": (0.5, 0.7), "eps": 1e-2}, id="other_betas_and_eps"),
    pytest.param({"weight_decay": 0.1}, id="weight_decay"),
    pytest.param({"betas": (0.0, 0.0)}, id="no_memory"),
]


def arrays(dtype, seed):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in (("w", (4, 3)), ("b", (5,)), ("s", ()))}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_adam_steps_are_those_of_torch(settings, dtype):
    torch = pytest.importorskip("torch")
    ours = arrays(dtype, 0)
    theirs = {name: torch.tensor(w, requires_grad=True) for name, w in ours.items()}
    adam, peer = Adam(**settings), torch.optim.Adam(theirs.values(), **settings)
    for step in range(25):
        grads = arrays(dtype, 1 + step)
        if step == 20:
            adam.lr = peer.param_groups[0]["lr"] = 0.05
        adam.step(ours, grads)
        for name, w in theirs.items():
            w.grad = torch.tensor(grads[name])
        peer.step()
        for name, w in ours.items():
            assert w.dtype == dtype
            np.testing.assert_allclose(w, theirs[name].detach().numpy(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_first_adam_step_is_lr_against_the_sign_of_the_gradient():
    weights = {"w": np.array([1.0, 1.0, 1.0])}
    Adam(lr=0.5).step(weights, {"w": np.array([1e-3, -7.0, 0.0])})
    np.testing.assert_allclose(weights["w"], [0.5, 1.5, 1.0], atol=1e-5)


def test_adam_works_in_place_and_leaves_the_gradients_alone():
    w, g = np.ones(3), np.arange(3.0)
    Adam(weight_decay=0.1).step({"w": w}, {"w": g})
    assert (w != 1).all()
    np.testing.assert_array_equal(g, [0, 1, 2])


def test_adam_continues_from_a_state_dict_exactly():
    weights, adam = arrays("float32", 0), Adam(lr=0.1, betas=(0.8, 0.9), weight_decay=0.01)
    for step in range(3):
        adam.step(weights, arrays("float32", 1 + step))
    other_weights, other = {name: w.copy() for name, w in weights.items()}, Adam()
    state = adam.state_dict()
    other.load_state_dict(state)
    for array in (*state["m"].values(), *state["v"].values()):
        array[...] = 99  # both sides must have copied
    for each, of in ((adam, weights), (other, other_weights)):
        each.step(of, arrays("float32", 9))
    for name, w in weights.items():
        np.testing.assert_array_equal(w, other_weights[name])
    assert other.state_dict()["step"] == 4


def read_only(array):
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("weights", "grads", "error", "message"),
    [
        pytest.param({"b": np.ones(2)}, {"b": np.ones(2)}, ValueError, "the first step had w, b", id="names_change"),
        pytest.param(None, {"w": np.ones(3)}, ValueError, "weights has w, b, but grads had w", id="gradient_missing"),
        pytest.param(None, {"w": np.ones(3), "b": np.ones(3)}, ValueError, r"b has shape \(2,\), but its", id="shape"),
        pytest.param(
            None, {"w": np.ones(3), "b": np.ones(2, np.float32)}, TypeError, "its gradient has float32", id="dtype"
        ),
        pytest.param(
            {"w": np.ones(3), "b": np.ones(7)},
            {"w": np.ones(3), "b": np.ones(7)},
            ValueError,
            r"b has shape \(7,\), but Adam's state has \(2,\)",
            id="shape_of_the_state",
        ),
        pytest.param({"w": np.ones(3), "b": read_only(np.ones(2))}, None, ValueError, "b is read-only", id="read_only"),
        pytest.param(
            {"w": np.ones(3), "b": np.ones(2, int)},
            {"w": np.ones(3), "b": np.ones(2, int)},
            TypeError,
            "int64",
            id="int",
        ),
    ],
)
def test_adam_refuses_before_it_writes(weights, grads, error, message):
    good = {"w": np.ones(3), "b": np.ones(2)}
    adam = Adam()
    adam.step({name: array.copy() for name, array in good.items()}, good)
    weights = {name: array.copy() for name, array in good.items()} if weights is None else weights
    before, state = {name: array.copy() for name, array in weights.items()}, adam.state_dict()
    with pytest.raises(error, match=message):
        adam.step(weights, good if grads is None else grads)
    for name, array in weights.items():
        np.testing.assert_array_equal(array, before[name])
    assert adam.state_dict()["step"] == state["step"]
    np.testing.assert_array_equal(adam.state_dict()["m"]["w"], state["m"]["w"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"lr": -1}, "lr is -1", id="negative_lr"),
        pytest.param({"lr": float("nan")}, "lr is nan", id="nan_lr"),
        pytest.param({"eps": -1e-8}, "eps is", id="negative_eps"),
        pytest.param({"weight_decay": -0.1}, "weight_decay is", id="negative_weight_decay"),
        pytest.param({"betas": (0.9, 1.0)}, "betas is", id="beta_of_one"),
    ],
)
def test_adam_refuses_setting(settings, message):
    with pytest.raises(ValueError, match=message):
        Adam(**settings)


def test_load_state_dict_names_the_keys():
    state = Adam().state_dict()
    del state["v"]
    with pytest.raises(ValueError, match=r"state has the keys lr, .*expected lr, betas.* v"):
        Adam().load_state_dict(state)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("max_norm", [0.0, 0.1, 1.0, 5.0, 1e6])
def test_clipping_is_that_of_torch(max_norm, dtype):
    torch = pytest.importorskip("torch")
    grads = arrays(dtype, 3)
    theirs = [torch.zeros(g.shape, requires_grad=True) for g in grads.values()]
    for tensor, g in zip(theirs, grads.values(), strict=True):
        tensor.data, tensor.grad = tensor.data.to(getattr(torch, dtype)), torch.tensor(g)
    norm = clip_gradients(grads, max_norm)
    assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(theirs, max_norm)), rel=TOLERANCE[dtype])
    for tensor, g in zip(theirs, grads.values(), strict=True):
        assert g.dtype == dtype
        np.testing.assert_allclose(g, tensor.grad.numpy(), rtol=TOLERANCE[dtype])


def test_clipping_leaves_small_gradients_bit_for_bit():
    grads = {"w": np.array([0.1, 0.2], np.float32)}
    clip_gradients(grads, 1.0)
    np.testing.assert_array_equal(grads["w"], np.array([0.1, 0.2], np.float32))


def test_norm_of_float32_does_not_overflow():
    assert clip_gradients({"w": np.full(4, 1e30, np.float32)}, 1.0) == pytest.approx(2e30)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_norm_says_that_a_gradient_is_not_finite(bad):
    assert not np.isfinite(clip_gradients({"w": np.array([1.0, bad])}, 1.0))


def test_clipping_refuses_negative_norms_and_read_only_gradients():
    with pytest.raises(ValueError, match="max_norm is -1"):
        clip_gradients({}, -1)
    with pytest.raises(ValueError, match="the gradient of w is read-only"):
        clip_gradients({"w": read_only(np.ones(2))}, 1.0)
