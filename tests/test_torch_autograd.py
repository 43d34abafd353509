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
