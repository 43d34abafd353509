"""`fastlstm.torch.LSTM` and the ways of torch's autograd: graphs that are kept, moved, run again, and end."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from fastlstm.torch import LSTM  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread_of_torch")


def test_gradients_accumulate_and_graphs_are_retained() -> None:
    layer, x = LSTM(3, 5), torch.randn(4, 2, 3)
    y, _ = layer(x)
    y.sum().backward(retain_graph=True)
    first = [weight.grad.clone() for weight in layer.parameters()]
    y.sum().backward()
    assert all(torch.equal(2 * a, weight.grad) for a, weight in zip(first, layer.parameters(), strict=True))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.sum().backward()


def test_gradients_of_any_strides() -> None:
    layer, x = LSTM(3, 5), torch.randn(4, 2, 3, requires_grad=True)
    dy = torch.randn(5, 2, 4).permute(2, 1, 0)
    a, b = (torch.autograd.grad(layer(x)[0], x, d)[0] for d in (dy, dy.contiguous()))
    assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
def test_anomaly_mode_and_checkpoint() -> None:
    layer, x = LSTM(3, 5, 2, dropout=0.5), torch.randn(4, 2, 3, requires_grad=True)
    torch.manual_seed(1)
    plain = torch.autograd.grad(layer(x)[0].sum(), [x, *layer.parameters()])
    with torch.autograd.detect_anomaly(check_nan=True):
        torch.manual_seed(1)
        y, _ = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
        again = torch.autograd.grad(y.sum(), [x, *layer.parameters()])
    assert all(map(torch.equal, plain, again))


def test_a_tape_that_was_moved_is_made_again() -> None:
    layer, x = LSTM(3, 5, 2, dropout=0.5), torch.randn(4, 2, 3, requires_grad=True)
    torch.manual_seed(1)
    plain = torch.autograd.grad(layer(x)[0].sum(), [x, *layer.parameters()])
    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda tensor: tensor):
        y, _ = layer(x)
    assert all(map(torch.equal, plain, torch.autograd.grad(y.sum(), [x, *layer.parameters()])))


def test_gradients_of_a_batch_of_gradients() -> None:
    """By `is_grads_batched`, of what is asked for, beside one after the other."""
    torch.manual_seed(0)
    layer = LSTM(3, 5, 2, dropout=0.5, bidirectional=True, dtype=torch.float64)
    x, h, c = (torch.randn(*shape, dtype=torch.float64) for shape in ((4, 2, 3), (4, 2, 5), (4, 2, 5)))
    y, (_, c_n) = layer(x, (h.requires_grad_(), c), lengths=[4, 2])
    outputs, inputs, eye = [y.sum((0, 1)), c_n.sum((0, 1)).repeat(2)], [h, layer.weight_hh_l1], torch.eye(10).double()
    found = torch.autograd.grad(outputs, inputs, [eye, eye], is_grads_batched=True, retain_graph=True)
    singly = [torch.autograd.grad(outputs, inputs, [row, row], retain_graph=True) for row in eye]
    for together, rows in zip(found, zip(*singly, strict=True), strict=True):
        torch.testing.assert_close(together, torch.stack(rows), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("create_graph", [False, True])
def test_vectorized_jacobian_and_hessian(create_graph: bool) -> None:
    functional = torch.autograd.functional
    layer, x = LSTM(2, 3, dtype=torch.float64), torch.randn(3, 1, 2, dtype=torch.float64, requires_grad=create_graph)
    for derivative in (functional.jacobian, functional.hessian):
        a, b = (
            derivative(lambda x: layer(x)[0].square().sum(), x, create_graph=create_graph, vectorize=vectorize)
            for vectorize in (True, False)
        )
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
        assert a.requires_grad == b.requires_grad == create_graph


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of torch.jit
def test_forward_mode_is_refused() -> None:
    layer, x = LSTM(3, 5), torch.randn(4, 2, 3)
    with pytest.raises((RuntimeError, NotImplementedError), match=r"jvp|forward AD|forward mode AD"):
        torch.func.jvp(lambda x: layer(x)[0], (x,), (x,))


def test_a_tape_lives_as_long_as_its_graph() -> None:
    from fastlstm.torch.tapes import _TAPES

    layer, x, before = LSTM(3, 5), torch.randn(4, 2, 3), len(_TAPES)
    y, _ = layer(x)
    assert len(_TAPES) == before + 1
    y.sum().backward()
    assert len(_TAPES) == before
    y, _ = layer(x)
    del y, _
    assert len(_TAPES) == before
