"""`fastlstm.torch.LSTM` beside torch.nn.LSTM: it is the same from outside, and computes the same."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest

import fastlstm
from cases import assert_close

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence  # noqa: E402

from fastlstm.torch import LSTM, operators  # noqa: E402
from torch_cases import as_arrays, assert_as_exact, random_case, results_of, second_gradients_of  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_thread_of_torch"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning"),
]


# The interface

SIZES = [
    {},
    {"num_layers": 3, "bidirectional": True},
    {"proj_size": 3, "bias": False, "batch_first": True},
    {"num_layers": 2, "dropout": 0.5, "dtype": torch.float64},
]


def both(**arguments: Any) -> tuple[nn.LSTM, LSTM]:
    made = []
    for kind in (nn.LSTM, LSTM):
        torch.manual_seed(11)
        made.append(kind(7, 9, **arguments))
    return made[0], made[1]


@pytest.mark.parametrize("arguments", SIZES, ids=str)
def test_weights_are_torchs(arguments: dict[str, Any]) -> None:
    theirs, ours = both(**arguments)
    assert list(theirs.state_dict()) == list(ours.state_dict())
    for (name, a), b in zip(theirs.state_dict().items(), ours.state_dict().values(), strict=True):
        assert torch.equal(a, b) and a.dtype == b.dtype, name
    for layer in (theirs, ours):
        torch.manual_seed(3)
        layer.reset_parameters()
    assert all(map(torch.equal, theirs.parameters(), ours.parameters()))
    assert [[a.shape for a in layer] for layer in theirs.all_weights] == [
        [a.shape for a in layer] for layer in ours.all_weights
    ]
    LSTM(7, 9, **arguments).load_state_dict(theirs.state_dict(), strict=True)
    nn.LSTM(7, 9, **arguments).load_state_dict(ours.state_dict(), strict=True)


@pytest.mark.parametrize("arguments", SIZES, ids=str)
def test_attributes_are_torchs(arguments: dict[str, Any]) -> None:
    theirs, ours = both(**arguments)
    assert repr(theirs) == repr(ours)
    for name in ("mode", *nn.LSTM.__constants__):
        assert getattr(theirs, name) == getattr(ours, name), name
    ours.flatten_parameters()
    assert isinstance(ours, nn.RNNBase)


def test_what_torch_refuses_is_refused_with_its_words() -> None:
    for arguments in ({"hidden_size": 0}, {"dropout": 2.0}, {"proj_size": 9}, {"bias": 1}, {"num_layers": 0}):
        with pytest.raises((TypeError, ValueError)) as theirs:
            nn.LSTM(**{"input_size": 3, "hidden_size": 9} | arguments)
        with pytest.raises(theirs.type) as ours:
            LSTM(**{"input_size": 3, "hidden_size": 9} | arguments)
        assert str(ours.value) == str(theirs.value)
    with pytest.warns(UserWarning, match="dropout option adds dropout"):
        LSTM(3, 9, dropout=0.5)


def test_forget_bias_and_repr_of_own_options() -> None:
    lstm = LSTM(3, 4, peepholes=True, layer_norm=True, cell=fastlstm.LSTMCellOptions(cell_clip=2.0), forget_bias=3.0)
    assert repr(lstm) == (
        "LSTM(3, 4, peepholes=True, layer_norm=True, cell=LSTMCellOptions(cell_clip=2.0), forget_bias=3.0)"
    )
    assert (lstm.bias_ih_l0 + lstm.bias_hh_l0)[4:8].tolist() == [3.0] * 4
    assert lstm.gamma_ih_l0.tolist() == [1.0] * 16 and lstm.beta_c_l0.tolist() == [0.0] * 4
    assert 0 < lstm.weight_peephole_l0.abs().max() <= 0.5
    with pytest.raises(ValueError, match=r"forget_bias is 1\.0, but bias is False"):
        LSTM(3, 4, bias=False, forget_bias=1.0)


def test_attributes_that_are_set_are_followed_or_refused() -> None:
    torch.manual_seed(0)
    layer, x = LSTM(3, 5, 2), torch.randn(4, 2, 3)
    y, _ = layer(x)
    layer.batch_first = True
    assert torch.equal(layer(x.transpose(0, 1))[0], y.transpose(0, 1))
    layer.batch_first, layer.dropout = False, 1.0
    assert not torch.equal(layer(x)[0], y)
    layer.dropout, layer.cell = 0.0, fastlstm.LSTMCellOptions(cell_clip=0.01)
    assert not torch.equal(layer(x)[0], y)
    layer.cell = fastlstm.LSTMCellOptions()
    sizes = {"input_size": 4, "hidden_size": 6, "num_layers": 1, "bias": False, "bidirectional": True, "proj_size": 2}
    for name, value in {**sizes, "peepholes": True, "layer_norm": True}.items():
        before = getattr(layer, name)
        with pytest.raises(AttributeError, match=rf"^{name} is {before}, .* expected a new layer for {name}={value}"):
            setattr(layer, name, value)
        setattr(layer, name, before)
    for name, value, error in (("dropout", 2.0, ValueError), ("dropout", "x", TypeError), ("cell", None, TypeError)):
        before = getattr(layer, name)
        with pytest.raises(error, match=name):
            setattr(layer, name, value)
        assert getattr(layer, name) is before
    assert torch.equal(layer(x)[0], y)


# The numbers


@pytest.mark.parametrize("number", range(300))
def test_numbers_are_torchs(number: int) -> None:
    case = random_case(number)
    truth = results_of(case.layer(nn.LSTM).double(), case.astype(torch.float64))
    found, theirs = (as_arrays(results_of(case.layer(kind), case)) for kind in (LSTM, nn.LSTM))
    assert_as_exact(found, theirs, as_arrays(truth))


@pytest.mark.parametrize("number", range(0, 300, 5))
def test_second_derivatives_are_torchs(number: int) -> None:
    case = random_case(number).astype(torch.float64)
    found, truth = (as_arrays(second_gradients_of(case.layer(kind), case)) for kind in (LSTM, nn.LSTM))
    assert_close(found, truth, "float64")


@pytest.mark.parametrize("wanted", [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)], ids=str)
def test_only_what_is_asked_for(wanted: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bool, bool]] = []
    run = operators.backward_natively

    def watched(*args: Any) -> Any:
        asked.append(args[-2:])
        return run(*args)

    monkeypatch.setattr(operators, "backward_natively", watched)
    case = next(case for case in map(random_case, range(100)) if case.state and case.dtype == torch.float64)
    found = results_of(case.layer(LSTM), case, tuple(map(bool, wanted)))
    assert asked == [(bool(wanted[0]), bool(wanted[2]))] * any(wanted)
    truth = results_of(case.layer(LSTM), case)
    assert_close(as_arrays(found), {name: a for name, a in as_arrays(truth).items() if name in found}, "float64")
    assert found["y"].requires_grad == any(wanted)


def test_inference_and_training_agree_to_the_bit() -> None:
    for number in range(20):
        case = random_case(number)
        layer = case.layer(LSTM)
        with torch.no_grad():
            plain = layer(case.x, case.state)
        with torch.inference_mode():
            inference = layer(case.x, case.state)
        training = layer(case.x, case.state)
        for other in (inference, training):
            assert torch.equal(plain[1][0], other[1][0]) and torch.equal(plain[1][1], other[1][1])


SMALL = [
    {},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"bidirectional": True, "proj_size": 1, "bias": False},
    {
        "num_layers": 2,
        "dropout": 0.4,
        "peepholes": True,
        "layer_norm": True,
        "cell": fastlstm.LSTMCellOptions(
            zoneout_h=0.2, zoneout_c=0.1, recurrent_dropout=0.3, input_dropout=0.2, weight_drop=0.3
        ),
    },
]


@pytest.mark.parametrize("arguments", SMALL, ids=["plain", "deep", "projected", "variants"])
def test_derivatives_are_those_of_differences(arguments: dict[str, Any]) -> None:
    """First and second ones, of every result, with lengths, mask and reset."""
    torch.manual_seed(0)
    layer = LSTM(2, 2, **arguments, dtype=torch.float64)
    batch = 3 if layer.batch_first else 2
    rows = layer.num_layers * (1 + layer.bidirectional)
    shapes = [(3, 2, 2), (rows, batch, layer.proj_size or 2), (rows, batch, 2)]
    inputs = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    marks = {
        "lengths": torch.tensor([2, 5 - batch, 1][:batch]),
        "mask": torch.tensor([[1, 1], [0, 1], [1, 1]]),
        "reset": torch.tensor([[0, 0], [0, 1], [0, 0]]),
    }
    names = [name for name, _ in layer.named_parameters()]

    def run(x: Any, h: Any, c: Any, *weights: Any) -> tuple[Any, ...]:
        torch.manual_seed(3)
        given = dict(zip(names, weights, strict=True))
        options = {"return_cells": True, "return_gates": True, **marks}
        y, state, *more = torch.func.functional_call(layer, given, (x, (h, c)), options)
        return y, *state, *more

    everything = (*inputs, *layer.parameters())
    assert torch.autograd.gradcheck(run, everything)
    assert torch.autograd.gradgradcheck(run, everything, fast_mode=True)


def test_nothing_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """x, the state and its gradient go in, y and the gradients come out, all in the memory that they lie in."""
    addresses: list[int] = []

    def watched(function: Any) -> Any:
        def call(*args: Any) -> Any:
            results = function(*args)
            found = torch.utils._pytree.tree_leaves((args, results))
            addresses.extend(array.ctypes.data for array in found if isinstance(array, np.ndarray))
            return results

        return call

    for name in ("forward_natively", "backward_natively"):
        monkeypatch.setattr(operators, name, watched(getattr(operators, name)))
    layer, dy = LSTM(3, 5, batch_first=True), torch.randn(2, 4, 5)
    x, *state = torch.randn(4, 2, 3).transpose(0, 1).requires_grad_(), torch.randn(1, 2, 5), torch.randn(1, 2, 5)
    y, (h, c) = layer(x, tuple(state))
    grads = torch.autograd.grad(y, [x, *layer.parameters()], dy)
    for tensor in (x, *state, y, h, c, dy, *grads):
        assert tensor.data_ptr() in addresses


# Marks


def test_lengths_are_a_packed_sequence_that_is_not_packed() -> None:
    torch.manual_seed(0)
    layer, x = LSTM(3, 5, 2, bidirectional=True), torch.randn(6, 4, 3)
    lengths = [2, 6, 1, 4]
    packed_y, (h, c) = layer(pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False))
    y, (h_n, c_n) = layer(x, lengths=lengths)
    assert torch.equal(pad_packed_sequence(packed_y)[0], y) and torch.equal(h, h_n) and torch.equal(c, c_n)
    assert torch.equal(layer(x, lengths=np.array(lengths))[0], layer(x, lengths=torch.tensor(lengths).int())[0])


def test_a_reset_is_a_new_call() -> None:
    torch.manual_seed(0)
    layer, x = LSTM(3, 5), torch.randn(6, 1, 3)
    y, state = layer(x, reset=torch.arange(6)[:, None] == 4)
    first, second = layer(x[:4]), layer(x[4:])
    assert torch.equal(y, torch.cat([first[0], second[0]])) and torch.equal(state[0], second[1][0])


def test_masked_steps_repeat_or_are_zero() -> None:
    layer, x, mask = LSTM(3, 5), torch.randn(3, 1, 3), torch.tensor([[1], [0], [1]])
    assert layer(x, mask=mask)[0][1].abs().max() == 0
    repeated = layer(x, mask=mask, masked_output="repeat")[0]
    assert torch.equal(repeated[1], repeated[0]) and repeated[0].abs().max() > 0


def test_cells_and_gates() -> None:
    layer, x = LSTM(3, 5, bidirectional=True, batch_first=True), torch.randn(2, 4, 3)
    _, (_, c_n), cells, gates = layer(x, return_cells=True, return_gates=True)
    assert cells.shape == (2, 4, 10) and gates.shape == (2, 4, 40)
    assert torch.equal(cells[:, -1, :5], c_n[0]) and torch.equal(cells[:, 0, 5:], c_n[1])
    packed = pack_padded_sequence(x, torch.tensor([4, 3]), True)
    _, _, packed_cells = layer(packed, return_cells=True)
    assert torch.equal(pad_packed_sequence(packed_cells, True)[0][0], cells[0])


def test_bad_calls_are_named() -> None:
    layer, x = LSTM(3, 5), torch.randn(4, 2, 3)
    for inputs, options, error, words in (
        ((torch.randn(4, 2, 7),), {}, ValueError, "x has shape .4, 2, 7., but the weights need input size 3"),
        ((x.double(),), {}, TypeError, r"input is torch.float64, .* torch.float32: expected input.to\(torch.float32\)"),
        ((x.to("meta"),), {}, RuntimeError, "input is on meta, but the weights are on cpu"),
        ((x.to_sparse(),), {}, TypeError, "sparse_coo: expected .* torch.strided"),
        ((x, torch.zeros(2, 1, 2, 5)), {}, TypeError, "hx is Tensor: expected a pair"),
        ((x, (torch.zeros(1, 2, 5),) * 3), {}, TypeError, r"hx is \(Tensor, Tensor, Tensor\): expected a pair"),
        ((x, (torch.zeros(1, 2, 5), None)), {}, TypeError, r"hx is \(Tensor, NoneType\): expected a pair"),
        ((x, (torch.zeros(1, 2, 5), torch.zeros(1, 2, 5).half())), {}, TypeError, "c0 is torch.float16"),
        ((x, (torch.zeros(1, 2, 5, device="meta"),) * 2), {}, RuntimeError, "h0 is on meta"),
        ((x, (torch.zeros(1, 2, 5), torch.zeros(1, 3, 5))), {}, ValueError, "c0"),
        ((x,), {"lengths": [5, 1]}, ValueError, r"lengths\[0\] is 5"),
        ((x,), {"masked_output": "zeros"}, ValueError, "masked_output is 'zeros'"),
        ((x,), {"return_cells": 1}, TypeError, "return_cells is 1"),
        ((pack_padded_sequence(x, torch.tensor([4, 2])),), {"mask": x[..., 0] > 0}, ValueError, "mask is given"),
    ):
        with pytest.raises(error, match=words):
            layer(*inputs, **options)
    with pytest.raises(RuntimeError, match="input is on cpu, but the weights are on meta"):
        LSTM(3, 5, device="meta")(x)
    with pytest.raises(TypeError, match="bfloat16"):
        layer.bfloat16()(x.bfloat16())


def test_signs_that_are_still_to_be_turned() -> None:
    """Torch turns the sign of z.conj().imag when it is read."""
    layer, a = LSTM(3, 5), torch.randn(4, 2, 3)
    x, dy = torch.complex(a, a).conj().imag, torch.complex(*torch.ones(2, 4, 2, 5)).conj().imag
    assert x.is_neg() and dy.is_neg()
    found, expected = layer(x)[0], layer(-a)[0]
    assert torch.equal(found, expected)
    grads = [
        torch.autograd.grad(y, list(layer.parameters()), d) for y, d in ((found, dy), (expected, dy.resolve_neg()))
    ]
    assert all(map(torch.equal, *grads))


# Randomness


def test_dropout_draws_from_torchs_generator_in_training_alone() -> None:
    layer, x = LSTM(3, 50, 2, dropout=0.5), torch.ones(4, 2, 3)

    def seeded(seed: int, grad: bool = True) -> torch.Tensor:
        torch.manual_seed(seed)
        with torch.set_grad_enabled(grad):
            return layer(x)[0]

    assert torch.equal(seeded(1), seeded(1)) and torch.equal(seeded(1), seeded(1, grad=False))
    assert not torch.equal(seeded(1), seeded(2))
    torch.manual_seed(1)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    before = torch.get_rng_state()
    assert torch.equal(layer(x)[0], layer(x)[0]) and torch.equal(torch.get_rng_state(), before)


def test_dropout_keeps_the_mean() -> None:
    """With weights that make the second layer nearly linear, the mean over many draws is what eval gives."""
    torch.manual_seed(0)
    layer, x = LSTM(2, 8, 2, dropout=0.5), torch.ones(1, 4000, 2)
    layer.weight_ih_l1.data *= 0.01
    with torch.no_grad():
        trained, evaluated = layer(x)[0].mean(1), layer.eval()(x)[0].mean(1)
    assert (trained - evaluated).abs().max() < 1e-4


def test_backward_in_eval_mode() -> None:
    options = fastlstm.LSTMCellOptions(recurrent_dropout=0.5, weight_drop=0.5)
    layer, x = LSTM(3, 5, 2, dropout=0.5, cell=options).eval(), torch.randn(4, 2, 3, requires_grad=True)
    plain = LSTM(3, 5, 2)
    plain.load_state_dict(layer.state_dict())
    grads = [torch.autograd.grad(m(x)[0].sum(), [x, *m.parameters()]) for m in (layer, plain)]
    assert all(map(torch.equal, *grads))


def test_backward_of_zoneout_in_eval_mode_is_that_of_its_expectation() -> None:
    options = fastlstm.LSTMCellOptions(zoneout_h=0.3, zoneout_c=0.2)
    layer = LSTM(2, 3, 2, cell=options, bidirectional=True, dtype=torch.float64).eval()
    x = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        expected = layer(x, lengths=[4, 2])[0]
    torch.testing.assert_close(layer(x, lengths=[4, 2])[0], expected, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x, lengths=[4, 2])[0], (x, *layer.parameters()))


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, x = LSTM(3, 5), torch.randn(4, 2, 3).to(dtype)
    state = (torch.randn(1, 2, 5), torch.randn(1, 2, 5).to(dtype))
    with torch.autocast("cpu", dtype):
        y, (h_n, c_n) = layer(x, state)
        assert y.dtype == h_n.dtype == c_n.dtype == dtype
        y.float().sum().backward()
    exact = layer(x.float(), (state[0], state[1].float()))[0]
    assert torch.equal(y, exact.to(dtype))
    assert layer.weight_ih_l0.grad.dtype == torch.float32
    with torch.autocast("cpu", dtype):
        assert LSTM(3, 5, dtype=torch.float64)(x.double())[0].dtype == torch.float64


# Copies and files


def test_copies_and_files() -> None:
    layer, x = LSTM(3, 5, 2, peepholes=True, cell=fastlstm.LSTMCellOptions(zoneout_c=0.1)).eval(), torch.randn(4, 2, 3)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    with torch.no_grad():
        y, _ = layer(x)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)):
            assert torch.equal(other(x)[0], y)
            other.weight_hh_l0.zero_()
            assert torch.equal(layer(x)[0], y) and not torch.equal(other(x)[0], y)
