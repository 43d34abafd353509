"""`fastlstm.torch` under what torch does to functions: torch.func, torch.compile, torch.export, opcheck, ModuleInfo."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import fastlstm

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402
from torch.func import functional_call  # noqa: E402

from cases import TOLERANCE, assert_close, relative_error  # noqa: E402
from fastlstm.torch import LSTM, LSTMCell, operators  # noqa: E402

Tensors = list[torch.Tensor]
# torch warns of what torch itself is going to remove.
pytestmark = [
    pytest.mark.usefixtures("one_thread_of_torch"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def assert_equal(found: Any, expected: Any) -> None:
    """Two trees of tensors that are the same to the bit."""
    a, b = torch.utils._pytree.tree_leaves(found), torch.utils._pytree.tree_leaves(expected)
    assert len(a) == len(b) and all(map(torch.equal, a, b))


def squares(layer: nn.Module, weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    y, (h, c) = functional_call(layer, weights, (x,))
    return (y**2).sum() + (h**2).sum() + c.sum()


def weights_of(layer: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach() for name, weight in layer.named_parameters()}


def gradients(layer: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    loss = squares(layer, {}, x)
    return dict(zip(weights_of(layer), torch.autograd.grad(loss, list(layer.parameters())), strict=True))


# torch.func

LAYERS = {
    "plain": functools.partial(LSTM, 3, 5),
    "deep": functools.partial(LSTM, 3, 5, 2, bidirectional=True),
    "projected": functools.partial(LSTM, 3, 5, proj_size=2, bias=False),
}


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest) -> LSTM:
    torch.manual_seed(0)
    return LAYERS[request.param]()


def test_grad_of_a_functional_call(layer: LSTM) -> None:
    x = torch.randn(4, 2, 3)
    assert_equal(torch.func.grad(functools.partial(squares, layer))(weights_of(layer), x), gradients(layer, x))


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for each time that a forward pass runs."""
    entries: list[None] = []
    run = operators._run
    monkeypatch.setattr(operators, "_run", lambda *args: (entries.append(None), run(*args))[1])
    return entries


def test_gradients_by_sample(layer: LSTM, forwards: list[None]) -> None:
    xs = torch.randn(6, 4, 2, 3)
    found = torch.vmap(torch.func.grad(functools.partial(squares, layer)), (None, 0))(weights_of(layer), xs)
    assert len(forwards) == 6  # backward finds the tapes
    for sample, x in enumerate(xs):
        assert_equal({name: grads[sample] for name, grads in found.items()}, gradients(layer, x))


def test_ensembles(layer: LSTM) -> None:
    models = [
        type(layer)(3, 5, layer.num_layers, layer.bias, False, 0.0, layer.bidirectional, layer.proj_size) for _ in "123"
    ]
    weights, _ = torch.func.stack_module_state(models)
    x = torch.randn(4, 2, 3)
    losses = torch.vmap(functools.partial(squares, layer), (0, None))(weights, x)
    losses.sum().backward()
    for k, model in enumerate(models):
        assert_equal({name: weight.grad[k] for name, weight in weights.items()}, gradients(model, x))
    with torch.no_grad():
        assert_equal(torch.vmap(functools.partial(squares, layer), (0, None))(weights, x), losses.detach())


def test_vmap_over_any_axis_and_in_itself(layer: LSTM) -> None:
    x = torch.randn(4, 6, 2, 3, 2)
    found = torch.vmap(torch.vmap(lambda x: layer(x)[0], -1, -1), 1, 1)(x)
    assert_equal(
        found, torch.stack([torch.stack([layer(x[:, i, ..., j])[0] for j in range(2)], -1) for i in range(6)], 1)
    )


def test_hessian() -> None:
    layer, x = LSTM(2, 2, dtype=torch.float64), torch.randn(3, 1, 2, dtype=torch.float64)

    def loss(weight: torch.Tensor) -> torch.Tensor:
        return squares(layer, {"weight_hh_l0": weight}, x)

    weight = layer.weight_hh_l0.detach()
    by_func = torch.func.jacrev(torch.func.grad(loss))(weight)
    assert_equal(by_func, torch.autograd.functional.hessian(loss, weight))
    matrix = by_func.reshape(16, 16)
    torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=1e-15)
    assert matrix.abs().max() > 1e-3


def test_a_gradient_penalty() -> None:
    """As in a Wasserstein GAN's critic, which cuDNN refuses: the same numbers as torch's own on the CPU."""
    torch.manual_seed(0)
    theirs, x = nn.LSTM(3, 5, 2).double(), torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    ours = LSTM(3, 5, 2, dtype=torch.float64)
    ours.load_state_dict(theirs.state_dict())
    found = []
    for layer in (theirs, ours):
        (dx,) = torch.autograd.grad(layer(x)[0].sum(), x, create_graph=True)
        penalty = (dx.norm(2, -1) - 1).pow(2).sum()
        # torch's own has no gradient for the last bias, which dx does not depend on but through nothing
        found.append(torch.autograd.grad(penalty, [x, *layer.parameters()]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_dropout_under_vmap_is_as_torchs() -> None:
    layer, x = LSTM(3, 5, 2, dropout=0.5), torch.randn(4, 2, 3).expand(3, 4, 2, 3)

    def run(randomness: str) -> torch.Tensor:
        return torch.vmap(lambda x: layer(x)[0], randomness=randomness)(x)

    with pytest.raises(RuntimeError, match="randomness"):
        run("error")
    same, different = run("same"), run("different")
    assert torch.equal(same[0], same[1]) and not torch.equal(different[0], different[1])


def test_parametrizations() -> None:
    class Halved(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight / 2

    torch.manual_seed(0)
    layer, plain, x = LSTM(3, 5), LSTM(3, 5), torch.randn(4, 2, 3)
    plain.load_state_dict(layer.state_dict() | {"weight_hh_l0": layer.weight_hh_l0 / 2})
    nn.utils.parametrize.register_parametrization(layer, "weight_hh_l0", Halved())
    nn.utils.parametrizations.weight_norm(layer, "weight_ih_l0")
    for _ in range(2):
        torch.testing.assert_close(layer(x)[0], plain(x)[0])
        with torch.no_grad():
            torch.testing.assert_close(layer(x)[0], plain(x)[0])
            layer.parametrizations.weight_hh_l0.original.mul_(2)
            plain.weight_hh_l0.mul_(2)
    layer(x)[0].sum().backward()
    assert layer.parametrizations.weight_hh_l0.original.grad.abs().max() > 0
    assert layer.parametrizations.weight_ih_l0.original1.grad.abs().max() > 0


# torch.compile


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Counted:
    """A compiled function, and how often it was compiled."""

    def __init__(self, function: Callable[..., Any], dynamic: bool | None) -> None:
        self.counter = CompileCounterWithBackend("aot_eager")
        self.call = torch.compile(function, fullgraph=True, dynamic=dynamic, backend=self.counter)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    ("dynamic", "training"),
    [(None, False), (None, True), (True, True)],
    ids=["automatic_inference", "automatic_training", "dynamic_training"],
)
def test_compiled_no_more_often_than_torchs_own(dynamic: bool | None, training: bool) -> None:
    """In one graph, for any T and B; sizes of 1 cost what they cost for any layer."""
    ours, theirs = LSTM(3, 5, 2, bidirectional=True), nn.Linear(3, 5)
    compiled, other = Counted(ours, dynamic), Counted(lambda x: theirs(x).tanh(), dynamic)
    for T, B in [(4, 2), (5, 3), (7, 2), (1, 1), (1, 2), (5, 1), (9, 9)]:
        x = torch.randn(T, B, 3)
        with torch.set_grad_enabled(training):
            y, state = compiled.call(x)
            assert_equal((y, state), ours(x))
            other.call(x)
        if training:
            weights = list(ours.parameters())
            assert_equal(torch.autograd.grad(y.sum(), weights), torch.autograd.grad(ours(x)[0].sum(), weights))
    assert compiled.counter.frame_count <= other.counter.frame_count


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_dropout_follows_torchs_seed() -> None:
    layer, x = LSTM(3, 5, 2, dropout=0.5), torch.randn(4, 2, 3)
    compiled = Counted(layer, None).call

    def run(seed: int, call: Any) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(seed)
        y, _ = call(x)
        return y, *torch.autograd.grad(y.sum(), list(layer.parameters()))

    assert_equal(run(1, compiled), run(1, compiled))
    assert not torch.equal(run(1, compiled)[0], run(2, compiled)[0])
    layer.dropout = 0.0
    assert_equal(run(1, compiled), run(2, layer))


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_keywords() -> None:
    layer, x = LSTM(3, 5, cell=fastlstm.LSTMCellOptions(cell_clip=1.0), peepholes=True), torch.randn(4, 2, 3)
    given = {"lengths": torch.tensor([4, 2]), "reset": torch.rand(4, 2) < 0.3, "return_cells": True}
    compiled = Counted(layer, None).call
    assert_equal(compiled(x, masked_output="repeat", **given), layer(x, masked_output="repeat", **given))


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_by_inductor_backward_runs_no_second_forward(forwards: list[None]) -> None:
    """Its partition of the graph keeps the tape."""
    layer, x = LSTM(3, 5), torch.randn(4, 2, 3)
    y, _ = torch.compile(layer, fullgraph=True)(x)
    found = torch.autograd.grad(y, list(layer.parameters()), torch.ones_like(y))
    assert len(forwards) == 1
    assert_equal(found, torch.autograd.grad(layer(x)[0], list(layer.parameters()), torch.ones_like(y)))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("grad", [False, True])
def test_export(grad: bool) -> None:
    layer, x = LSTM(3, 5, 2, batch_first=True).eval(), torch.randn(4, 6, 3)
    shapes = {"input": {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}}
    with torch.set_grad_enabled(grad):
        program = torch.export.export(layer, (x,), dynamic_shapes=shapes)
    assert [node.target for node in program.graph.nodes if "lstm" in str(node.target)] == [
        operators.ops.lstm_forward.default
    ]
    for other in (x, torch.randn(2, 9, 3)):
        assert_equal(program.module()(other), layer(other))


# The operators


def operator_inputs(requires_grad: bool, keeps_tape: bool) -> tuple[Any, ...]:
    torch.manual_seed(0)
    layer = LSTM(3, 5, 2, bidirectional=True, dropout=0.3)
    weights = [weight.detach().requires_grad_(requires_grad) for weight in layer.parameters()]
    x, state = torch.randn(4, 2, 3, requires_grad=requires_grad), [torch.randn(4, 2, 5) for _ in "hc"]
    marks = [torch.tensor([4, 2]), None, torch.rand(4, 2) < 0.2, torch.tensor(3)]
    return x, state, weights, marks, f"{layer._layer}|False|False|True|True|True|{keeps_tape}"


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("keeps_tape", [False, True])
def test_opcheck_of_forward(requires_grad: bool, keeps_tape: bool) -> None:
    torch.library.opcheck(operators.ops.lstm_forward.default, operator_inputs(requires_grad, keeps_tape))


@pytest.mark.parametrize("wants_x", [False, True])
@pytest.mark.parametrize("wants_weights", [False, True])
def test_opcheck_of_backward(wants_x: bool, wants_weights: bool) -> None:
    inputs = operator_inputs(False, True)
    *results, tape = operators.ops.lstm_forward(*inputs)
    grads = [None if place == 1 else torch.randn_like(result) for place, result in enumerate(results)]
    torch.library.opcheck(operators.ops.lstm_backward.default, (grads, tape, wants_x, wants_weights, *inputs))


def test_meta_tensors_have_shapes() -> None:
    layer = LSTM(3, 5, 2, batch_first=True, device="meta")
    y, (h, c) = layer(torch.empty(4, 7, 3, device="meta"))
    assert (y.shape, h.shape, c.shape) == ((4, 7, 5), (2, 4, 5), (2, 4, 5)) and y.is_meta


def test_tensors_that_have_ways_of_their_own() -> None:
    """Two tensors that pass for one, as input, state, or both."""
    TwoTensor = pytest.importorskip("torch.testing._internal.two_tensor").TwoTensor
    torch.manual_seed(0)
    layer, x, h = LSTM(3, 5), (torch.randn(4, 2, 3), torch.randn(4, 2, 3)), (torch.randn(1, 2, 5), torch.zeros(1, 2, 5))
    for inputs, states in ((x, h), (x, h[:1] * 2), (x[:1] * 2, h)):
        both = [TwoTensor(*pair) if pair[0] is not pair[1] else pair[0] for pair in (inputs, states)]
        y, _ = layer(both[0], (both[1], both[1]))
        expected = [layer(a, (b, b))[0] for a, b in zip(inputs, states, strict=True)]
        assert torch.equal(y.a, expected[0]) and torch.equal(y.b, expected[1])


# torch's own inputs


def module_inputs(kind: type[nn.Module], dtype: torch.dtype, training: bool) -> list[Any]:
    modules = pytest.importorskip("torch.testing._internal.common_modules")
    info = next(info for info in modules.module_db if info.module_cls is kind)
    return list(info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kinds", [(nn.LSTM, LSTM), (nn.LSTMCell, LSTMCell)], ids=["LSTM", "LSTMCell"])
@pytest.mark.filterwarnings("ignore:dropout option adds dropout:UserWarning")
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_module_info(kinds: tuple[type[nn.Module], type[nn.Module]], dtype: torch.dtype, training: bool) -> None:
    """The inputs that torch tests its modules with; they ship in its wheel."""

    def run(kind: type[nn.Module], one: Any, dtype: torch.dtype) -> dict[str, Any]:
        torch.manual_seed(0)
        module = kind(*one.constructor_input.args, **one.constructor_input.kwargs).to(dtype).train(training)
        if getattr(module, "num_layers", 1) > 1:
            module.dropout = 0.0  # which draws other numbers
        args = torch.utils._pytree.tree_map(lambda a: a.to(dtype) if torch.is_tensor(a) else a, one.forward_input.args)
        results = torch.utils._pytree.tree_leaves(module(*args, **one.forward_input.kwargs))
        names = [name for name, _ in module.named_parameters()]
        grads = torch.autograd.grad(sum((result**2).sum() for result in results), list(module.parameters()))
        named = [*enumerate(results), *zip(names, grads, strict=True)]
        return {f"d{name}": tensor.detach().numpy() for name, tensor in named}

    ratios = []
    for one in module_inputs(kinds[0], dtype, training):
        theirs, found = (run(kind, one, dtype) for kind in kinds)
        truth, is_single = run(kinds[0], one, torch.float64), dtype == torch.float32
        times = TOLERANCE["times for saturated gates"] if is_single else 1
        assert_close(found, truth, "float32" if is_single else "float64", times)
        few = 1e-8  # a tenth of an ulp, for those that are right by luck
        errors = ((relative_error(results[name], truth[name]) + few for results in (found, theirs)) for name in truth)
        ratios += [ours / torchs for ours, torchs in errors]
    assert ratios
    if is_single:  # in float64, torch's is the truth
        assert np.exp(np.mean(np.log(ratios))) < TOLERANCE["times torch, mean"]
