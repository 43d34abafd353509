"""`fastlstm.torch.convert`, and the cell."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from fastlstm.torch import LSTM, LSTMCell, convert  # noqa: E402


class Tagger(nn.Module):
    """As taggers are written: an embedding, an LSTM in both directions, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.lstm = nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True)
        self.decoder = nn.ModuleList([nn.LSTMCell(10, 7)])
        self.linear = nn.Linear(7, 3)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        y, _ = self.lstm(self.embedding(words))
        state = None
        for step in y.unbind(1):
            state = self.decoder[0](step, state)
        return self.linear(state[0])


def test_convert_and_undo() -> None:
    torch.manual_seed(0)
    model, words = Tagger().double(), torch.randint(11, (4, 7))
    optimizer, names, weights = (
        torch.optim.SGD(model.parameters(), 0.1),
        list(model.state_dict()),
        list(model.parameters()),
    )
    expected = model(words)
    conversion = convert(model)
    assert list(conversion.swapped) == ["lstm", "decoder.0"] and not conversion.left
    assert str(conversion) == "lstm: swapped\ndecoder.0: swapped"
    assert type(model.lstm) is LSTM and type(model.decoder[0]) is LSTMCell
    assert names == list(model.state_dict()) and all(a is b for a, b in zip(weights, model.parameters(), strict=True))
    torch.testing.assert_close(model(words), expected, rtol=1e-12, atol=1e-12)
    model(words).sum().backward()
    optimizer.step()
    converted = model(words)
    assert not convert(model).swapped
    conversion.undo()
    assert type(model.lstm) is nn.LSTM and type(model.decoder[0]) is nn.LSTMCell
    torch.testing.assert_close(model(words), converted, rtol=1e-12, atol=1e-12)
    assert not [name for name in model.lstm.__dict__ if name in ("_names", "_layer", "_draws")]


def test_sizes_are_refused_of_what_is_converted_and_torchs_own_way_after_that() -> None:
    layer = nn.ModuleList([nn.LSTM(3, 5), nn.LSTMCell(3, 5)])
    conversion = convert(layer)
    for module in layer:
        with pytest.raises(AttributeError, match="peepholes is False, as the weights are"):
            module.peepholes = True
        with pytest.raises(AttributeError, match="hidden_size is 5, as the weights are"):
            copy.deepcopy(module).hidden_size = 6
    conversion.undo()
    for module in layer:
        module.hidden_size = 6
        assert module.hidden_size == 6


def test_a_layer_itself_and_one_in_two_places() -> None:
    layer = nn.LSTM(3, 5)
    conversion = convert(layer)
    assert type(layer) is LSTM and str(conversion) == "(the model): swapped"
    conversion.undo()
    shared = nn.ModuleList([layer, layer])
    convert(shared)
    assert shared[0] is shared[1] and type(shared[0]) is LSTM


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of quantization and torch.jit
def test_what_is_left_and_why() -> None:
    class Own(nn.LSTM): ...

    class OwnRNN(nn.RNNBase): ...

    parametrized = nn.LSTM(3, 5)
    nn.utils.parametrizations.weight_norm(parametrized, "weight_hh_l0")
    model = nn.ModuleDict(
        {
            "gru": nn.GRU(3, 5),
            "own": Own(3, 5),
            "other": OwnRNN("GRU", 3, 5),
            "bf16": nn.LSTM(3, 5).bfloat16(),
            "parametrized": parametrized,
            "cell": nn.RNNCell(3, 5),
            "quantized": torch.ao.nn.quantizable.LSTMCell(3, 5),
            "scripted": torch.jit.script(nn.LSTM(3, 5)),
            "linear": nn.Linear(3, 5),
            "ours": LSTM(3, 5),
        }
    )
    conversion = convert(model)
    assert not conversion.swapped and conversion.left == {
        "gru": "a torch.nn.GRU is no LSTM",
        "own": f"a {Own.__qualname__} is a subclass of torch.nn.LSTM",
        "other": "it is no LSTM",
        "bf16": "its weights are bfloat16",
        "parametrized": "a ParametrizedLSTM is a subclass of torch.nn.LSTM",
        "cell": "a torch.nn.RNNCell is no LSTM",
        "quantized": "a torch.ao.nn.quantizable.modules.rnn.LSTMCell is no torch.nn.LSTM",
        "scripted": "a torch.jit._script.RecursiveScriptModule is no torch.nn.LSTM",
    }
    assert "bf16: left, its weights are bfloat16" in str(conversion)
    assert str(convert(nn.Linear(3, 5))) == "there is no LSTM"


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("with_state", [True, False])
def test_cell_is_torchs(bias: bool, batched: bool, with_state: bool) -> None:
    def run(kind: Any) -> list[torch.Tensor]:
        torch.manual_seed(0)
        cell = kind(3, 5, bias, dtype=torch.float64)
        shapes = [(4, n) if batched else (n,) for n in (3, 5, 5)]
        x, *state = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
        h, c = cell(x, tuple(state) if with_state else None)
        inputs = [x, *(state if with_state else []), *cell.parameters()]
        return [h, c, *torch.autograd.grad((h * 2 + c**2).sum(), inputs)]

    for a, b in zip(run(nn.LSTMCell), run(LSTMCell), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert repr(LSTMCell(3, 5, bias)) == repr(nn.LSTMCell(3, 5, bias))
    assert list(LSTMCell(3, 5, bias).state_dict()) == list(nn.LSTMCell(3, 5, bias).state_dict())


# Torch's own, where the kernels cannot run


def test_fallback_is_torchs_own() -> None:
    torch.manual_seed(0)
    theirs = nn.ModuleList([nn.LSTM(3, 5, 2), nn.LSTMCell(3, 5)]).bfloat16()
    ours = nn.ModuleList([nn.LSTM(3, 5, 2), nn.LSTMCell(3, 5)])
    convert(ours, fallback=True)
    ours.bfloat16().load_state_dict(theirs.state_dict())
    x = torch.randn(4, 2, 3).bfloat16()
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([4, 2]))
    for a, b in zip(theirs, ours, strict=True):
        for inputs in (x, packed) if isinstance(b, LSTM) else (x[0],):
            found, expected = (torch.utils._pytree.tree_leaves(layer(inputs)) for layer in (b, a))
            assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True) if one is not None)
    with pytest.raises(RuntimeError, match="fallback is to torch's own LSTM"):
        ours[0](x, lengths=[4, 2])
    ours[0].fallback = False
    with pytest.raises(TypeError, match="bfloat16"):
        ours[0](x)


def test_a_cell_names_what_is_wrong() -> None:
    cell, x = LSTMCell(3, 5), torch.randn(2, 3)
    for inputs, error, words in (
        ((x[None],), ValueError, r"input has shape \(1, 2, 3\): expected \(B, 3\)"),
        ((x[:, :2],), ValueError, r"input has shape \(2, 2\): expected \(B, 3\)"),
        ((x, torch.zeros(2, 2, 5)), TypeError, "hx is Tensor: expected a pair"),
        ((x, (torch.zeros(3, 5), torch.zeros(3, 5))), ValueError, "h0"),
    ):
        with pytest.raises(error, match=words):
            cell(*inputs)


def test_fallback_is_not_for_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """In which a linear layer before it gives bfloat16."""
    layer = LSTM(3, 5, fallback=True)
    monkeypatch.setattr(layer, "_torchs", None)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(4, 2, 3).bfloat16(), lengths=[4, 2])[0].dtype == torch.bfloat16


def test_fallback_is_not_for_what_the_kernels_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = LSTM(3, 5, fallback=True)
    monkeypatch.setattr(layer, "_torchs", None)
    assert layer(torch.randn(4, 2, 3), lengths=[4, 2])[0].shape == (4, 2, 5)
