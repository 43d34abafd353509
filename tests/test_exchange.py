"""Weights to and from other libraries, both ways: the library itself runs them, and has to find what ours finds."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from cases import relative_error
from fastlstm import LSTM, audio, exchange

I, H, T, B = 4, 6, 7, 3
# Keras on torch asks for arrays in a way that NumPy 2 calls old.
ON_TORCH = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
LIMIT = 2e-6  # other libraries' tanh is another, in float32
X = np.random.default_rng(0).standard_normal((B, T, I), np.float32)  # batch first, as most of them have it


def ours_of(weights: dict[str, np.ndarray]) -> np.ndarray:
    return LSTM.from_weights(weights, batch_first=True)(X)[0]


def assert_same(found: Any, expected: np.ndarray) -> None:
    assert relative_error(np.asarray(found), expected) <= LIMIT


# torch and safetensors


@pytest.fixture
def torch() -> ModuleType:
    return pytest.importorskip("torch")


TORCH = {
    "plain": {},
    "without_bias": {"bias": False},
    "two_layers": {"num_layers": 2, "bidirectional": True},
    "projection": {"proj_size": 2},
}


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
@pytest.mark.parametrize("options", TORCH.values(), ids=TORCH)
def test_torch(torch: ModuleType, options: dict[str, Any], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    theirs = torch.nn.LSTM(I, H, batch_first=True, **options)
    y = theirs(torch.tensor(X))[0].detach().numpy()
    assert_same(ours_of(exchange.from_torch(theirs)), y)
    save_file({"body." + name: tensor for name, tensor in theirs.state_dict().items()}, tmp_path / "theirs")
    assert_same(ours_of(exchange.from_safetensors(tmp_path / "theirs", "body.")), y)
    numbers = json.loads(json.dumps({name: tensor.tolist() for name, tensor in theirs.state_dict().items()}))
    assert_same(ours_of(exchange.from_torch(numbers)), y)

    lstm = LSTM(I, H, batch_first=True, seed=0, **options)
    exchange.to_safetensors(lstm.state_dict(), tmp_path / "ours", "body.")
    for state in (exchange.to_torch(lstm.state_dict(), "body."), load_file(tmp_path / "ours")):
        theirs.load_state_dict({name.removeprefix("body."): tensor for name, tensor in state.items()})
        assert_same(theirs(torch.tensor(X))[0].detach(), lstm(X)[0])


def test_torch_cell(torch: ModuleType) -> None:
    theirs = torch.nn.LSTMCell(I, H)
    h, _ = theirs(torch.tensor(X[:, 0]))
    assert_same(ours_of(exchange.from_torch(theirs))[:, 0], h.detach().numpy())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_torch_dtypes(torch: ModuleType, dtype: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    theirs = torch.nn.LSTM(I, H).to(getattr(torch, dtype))
    save_file(theirs.state_dict(), tmp_path / "theirs")
    for weights in (exchange.from_torch(theirs), exchange.from_safetensors(tmp_path / "theirs")):
        for name, tensor in theirs.state_dict().items():
            assert weights[name].dtype == ("float64" if dtype == "float64" else "float32")
            np.testing.assert_array_equal(weights[name], tensor.double().numpy())


# Keras


@pytest.fixture
def keras(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """On any backend. Importing it reads its settings and writes a file of them."""
    if "KERAS_HOME" not in os.environ:
        monkeypatch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
    if "KERAS_BACKEND" not in os.environ:
        monkeypatch.setenv("KERAS_BACKEND", "torch")
    return pytest.importorskip("keras")


@ON_TORCH
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("directions", [1, 2])
def test_keras(keras: ModuleType, directions: int, bias: bool) -> None:
    layers = [keras.layers.LSTM(H, return_sequences=True, use_bias=bias) for _ in range(2)]
    layers = [keras.layers.Bidirectional(layer) for layer in layers] if directions == 2 else layers
    model = keras.Sequential(layers)
    model.build(X.shape)
    read = [exchange.from_keras(layer.get_weights(), n) for n, layer in enumerate(layers)]
    assert_same(ours_of(read[0] | read[1]), keras.ops.convert_to_numpy(model(X)))

    lstm = LSTM(I, H, 2, bias, batch_first=True, bidirectional=directions == 2, seed=0)
    for n, layer in enumerate(layers):
        layer.set_weights(exchange.to_keras(lstm.state_dict(), n))
    assert_same(keras.ops.convert_to_numpy(model(X)), lstm(X)[0])


# Flax


def linen_cell() -> tuple[Any, Callable[..., Any]]:
    """The parameters, and a function of them: the output of X."""
    import jax
    from flax import linen

    cell = linen.OptimizedLSTMCell(H)  # whose parameters are LSTMCell's
    carry = cell.initialize_carry(jax.random.key(1), X[:, 0].shape)
    params = cell.init(jax.random.key(0), carry, X[:, 0])["params"]
    return params, lambda params: linen.RNN(cell).apply({"params": {"cell": params}}, X)


def nnx_cell(name: str) -> tuple[Any, Callable[..., Any]]:
    from flax import nnx

    cell = getattr(nnx, name)(I, H, rngs=nnx.Rngs(0))
    state = nnx.state(cell, nnx.Param)

    def run(params: Any) -> Any:
        nnx.replace_by_pure_dict(state, params)
        nnx.update(cell, state)
        return nnx.RNN(cell)(X)

    return nnx.to_pure_dict(state), run


FLAX: dict[str, Callable[[], tuple[Any, Callable[..., Any]]]] = {
    "linen": linen_cell,
    "nnx": lambda: nnx_cell("LSTMCell"),
    "nnx_optimized": lambda: nnx_cell("OptimizedLSTMCell"),
}


@pytest.mark.parametrize("form", FLAX)
def test_flax(form: str) -> None:
    pytest.importorskip("flax")
    import jax

    params, run = FLAX[form]()
    params = jax.tree_util.tree_map(lambda a: np.asarray(a) + np.float32(0.1 * (a.ndim == 1)), params)  # biases were 0
    run = jax.jit(run) if form == "linen" else run  # compiled once
    weights = exchange.from_flax(params)
    assert (weights["bias_ih_l0"] == np.float32(0.1)).all()
    assert_same(run(params), ours_of(weights))
    lstm = LSTM(I, H, batch_first=True, seed=0)
    assert_same(run(exchange.to_flax(lstm.state_dict(), form)), lstm(X)[0])
    without = LSTM(I, H, bias=False, seed=0).state_dict()
    again = exchange.from_flax(exchange.to_flax(without, form))
    assert not again["bias_ih_l0"].any() and (again["weight_hh_l0"] == without["weight_hh_l0"]).all()


def test_flax_of_one_direction_and_layer() -> None:
    state = LSTM(I, H, 2, bidirectional=True, seed=0).state_dict()
    params = exchange.to_flax(state, "nnx", layer=1, direction=1)
    again = exchange.from_flax(params, layer=1, direction=1)
    assert list(again) == ["weight_ih_l1_reverse", "weight_hh_l1_reverse", "bias_ih_l1_reverse", "bias_hh_l1_reverse"]
    np.testing.assert_array_equal(again["weight_ih_l1_reverse"], state["weight_ih_l1_reverse"])


# ONNX: test_onnx.py runs models; here is what has no model.


@pytest.mark.parametrize("bidirectional", [False, True])
def test_onnx_and_back(bidirectional: bool) -> None:
    state = LSTM(I, H, 2, bidirectional=bidirectional, peepholes=True, seed=0).state_dict()
    again = {name: a for n in range(2) for name, a in exchange.from_onnx(**exchange.to_onnx(state, n), layer=n).items()}
    assert again.keys() == state.keys()
    for name, weight in state.items():
        np.testing.assert_array_equal(again[name], weight)


# Audio plugins


def audio_model(layers: int, bias: bool = True, first: float = 0.0) -> audio.AudioModel:
    rng = np.random.default_rng(0)
    state = tuple(np.full((layers, 1, H), value, np.float32) for value in (first, 2 * first))
    weights = LSTM(1, H, layers, bias, seed=0).state_dict()
    return audio.AudioModel(weights, state, rng.standard_normal((1, H), np.float32), np.array([0.25], np.float32))


def sound_of(model: audio.AudioModel, x: np.ndarray) -> np.ndarray:
    """[N] from [N]."""
    y = LSTM.from_weights(model.weights).stream(1, model.state)(x[:, None, None])
    return (y @ model.head_weight.T + model.head_bias).ravel()


SOUND = np.random.default_rng(1).uniform(-1, 1, 50).astype(np.float32)


@pytest.mark.parametrize("layers", [1, 3])
def test_nam(torch: ModuleType, layers: int, tmp_path: Path) -> None:
    """Beside torch, by the format's description; and beside Neural Amp Modeler itself, where it is installed."""
    core, head = torch.nn.LSTM(1, H, layers), torch.nn.Linear(H, 1)
    h, c = (torch.randn(layers, 1, H) for _ in range(2))
    parts = []
    for n in range(layers):
        w = [getattr(core, f"weight_{of}_l{n}").detach().numpy() for of in ("ih", "hh")]
        b = sum(getattr(core, f"bias_{of}_l{n}").detach().numpy() for of in ("ih", "hh"))
        parts += [np.hstack(w).ravel(), b, h[n, 0].numpy(), c[n, 0].numpy()]
    parts += [head.weight.detach().numpy().ravel(), head.bias.detach().numpy()]
    config = {"input_size": 1, "hidden_size": H, "num_layers": layers}
    file = {"version": "0.5.4", "architecture": "LSTM", "config": config, "weights": np.concatenate(parts).tolist()}
    (tmp_path / "theirs.nam").write_text(json.dumps(file))
    read = audio.from_nam(tmp_path / "theirs.nam")
    expected = head(core(torch.tensor(SOUND[:, None, None]), (h, c))[0]).detach().numpy().ravel()
    assert_same(sound_of(read, SOUND), expected)

    audio.to_nam(read, tmp_path / "ours.nam")
    written = json.loads((tmp_path / "ours.nam").read_text())
    assert written | {"sample_rate": None} == file | {"sample_rate": None}


@pytest.mark.parametrize("layers", [1, 2])
def test_neural_amp_modeler_plays_what_we_write(layers: int, tmp_path: Path) -> None:
    pytest.importorskip("nam")
    import torch
    from nam.models import init_from_nam

    model = audio_model(layers, first=0.5)
    audio.to_nam(model, tmp_path / "ours.nam")
    theirs = init_from_nam(json.loads((tmp_path / "ours.nam").read_text())).eval()
    found = theirs(torch.tensor(SOUND), pad_start=False).detach().numpy()
    assert_same(found, sound_of(model, SOUND))
    theirs.export(tmp_path, basename="theirs", include_snapshot=False)  # with the state after a second of silence
    silence = np.zeros(48_000, np.float32)
    found = theirs(torch.tensor(np.append(silence, SOUND)), pad_start=False).detach().numpy()[len(silence) :]
    assert_same(sound_of(audio.from_nam(tmp_path / "theirs.nam"), SOUND), found)


@ON_TORCH
@pytest.mark.parametrize("layers", [1, 2])
def test_rtneural(keras: ModuleType, layers: int, tmp_path: Path) -> None:
    """Keras, from which RTNeural's files are written, runs what the file has."""
    for bias in (True, False):
        model = audio_model(layers, bias)
        audio.to_rtneural(model, tmp_path / "ours.json")
        file = json.loads((tmp_path / "ours.json").read_text())
        theirs = keras.Sequential(
            [keras.layers.LSTM(layer["shape"][-1], return_sequences=True) for layer in file["layers"][:-1]]
            + [keras.layers.Dense(1)]
        )
        theirs.build((1, None, 1))
        for layer, written in zip(theirs.layers, file["layers"], strict=True):
            layer.set_weights([np.array(array, np.float32) for array in written["weights"]])
        found = keras.ops.convert_to_numpy(theirs(SOUND[None, :, None])).ravel()
        assert_same(found, sound_of(model, SOUND))
        for layer, written in zip(theirs.layers, file["layers"], strict=True):
            written["weights"] = [array.tolist() for array in layer.get_weights()]
        (tmp_path / "theirs.json").write_text(json.dumps(file))
        assert_same(sound_of(audio.from_rtneural(tmp_path / "theirs.json"), SOUND), found)


# What is refused


STATE = LSTM(I, H, seed=0).state_dict()
WIDER: Callable[..., dict[str, np.ndarray]] = lambda **options: LSTM(I, H, **options).state_dict()  # noqa: E731


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: exchange.to_keras(WIDER(proj_size=2)), "weights has weight_hr_l0, which keras.layers.LSTM has not"),
        (lambda: exchange.to_keras(WIDER(peepholes=True)), "weights has weight_peephole_l0, which keras"),
        (lambda: exchange.to_flax(WIDER(layer_norm=True), "nnx"), "weights has gamma_ih_l0, which Flax's LSTM has not"),
        (lambda: exchange.to_flax(STATE, "haiku"), "form is 'haiku', expected one of 'linen', 'nnx', 'nnx_optimized'"),
        (lambda: exchange.to_torch(WIDER(layer_norm=True)), "weights has gamma_ih_l0, which torch.nn.LSTM has not"),
        (lambda: exchange.to_onnx(WIDER(proj_size=2)), "weights has weight_hr_l0, which ONNX's LSTM has not"),
        (lambda: exchange.to_keras(STATE, 1), "weights has no weight_hh_l1: expected the weights of layer 1"),
        (lambda: exchange.from_keras([np.zeros((4, 24))]), "arrays has 1, expected 2"),
        (lambda: exchange.from_flax({"kernel": np.zeros((4, 24))}), "params has kernel, expected the parameters of an"),
        (lambda: exchange.from_torch(STATE, "lstm."), "prefix is 'lstm.', expected what names of the checkpoint"),
    ],
)
def test_refuses(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_audio_refuses(tmp_path: Path) -> None:
    path, model = tmp_path / "model", audio_model(1, first=0.5)
    with pytest.raises(ValueError, match="state is not 0"):
        audio.to_rtneural(model, path)
    with pytest.raises(ValueError, match="weights has two directions"):
        audio.to_nam(model._replace(weights=LSTM(1, H, bidirectional=True).state_dict()), path)
    audio.to_nam(model, path)
    file = json.loads(path.read_text())
    path.write_text(json.dumps(file | {"weights": file["weights"][1:]}))
    with pytest.raises(ValueError, match=r"has 210 weights, expected 211 of its config"):
        audio.from_nam(path)
    path.write_text(json.dumps(file | {"architecture": "WaveNet"}))
    with pytest.raises(ValueError, match="has the architecture 'WaveNet', expected 'LSTM'"):
        audio.from_nam(path)
    path.write_text(json.dumps({"layers": [{"type": "gru"}, {"type": "dense"}]}))
    with pytest.raises(ValueError, match=r"has the layers gru, dense, expected lstm, \.\.\., dense"):
        audio.from_rtneural(path)
    dense = {"type": "dense", "activation": "tanh", "weights": []}
    path.write_text(json.dumps({"layers": [{"type": "lstm"}, dense]}))
    with pytest.raises(ValueError, match="has a dense layer of activation 'tanh', expected none"):
        audio.from_rtneural(path)
