"""`fastlstm.torch` never computes with weights that are no longer there, however they were changed."""

from __future__ import annotations

import concurrent.futures
import contextlib
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from fastlstm.torch import LSTM, packs  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread_of_torch")


def assert_fresh(layer: LSTM, x: torch.Tensor) -> None:
    """What the layer gives is what one that never packed gives with its weights, and not what `before` was."""
    other = LSTM(layer.input_size, layer.hidden_size, layer.num_layers, dtype=x.dtype)
    with torch.no_grad():
        for mine, its in zip(layer.parameters(), other.parameters(), strict=True):
            its.copy_(mine)
        assert torch.equal(layer(x)[0], other(x)[0])


def step_of(kind: Any, **options: Any) -> Callable[[LSTM], None]:
    def change(layer: LSTM) -> None:
        for weight in layer.parameters():
            weight.grad = torch.randn_like(weight)
        kind(layer.parameters(), **options).step()

    return change


def by_data(layer: LSTM) -> None:
    for weight in layer.parameters():
        weight.data.mul_(0.9)


def by_numpy(layer: LSTM) -> None:
    for weight in layer.parameters():
        weight.detach().numpy()[...] *= 0.9


def by_data_pointer(layer: LSTM) -> None:
    layer.weight_hh_l1.data = torch.randn(20, 5)


def by_other_strides(layer: LSTM) -> None:
    """The same memory, read in another order."""
    layer.weight_hh_l1.data = layer.weight_hh_l1.data.reshape(5, 20).T


def by_parameter(layer: LSTM) -> None:
    layer.weight_hh_l0 = nn.Parameter(torch.randn(20, 5))


def by_no_grad(layer: LSTM) -> None:
    with torch.no_grad():
        layer.bias_hh_l1[3] += 1


def by_vector(layer: LSTM) -> None:
    vector = nn.utils.parameters_to_vector(layer.parameters())
    nn.utils.vector_to_parameters(vector * 0.9, layer.parameters())


def by_state_dict(layer: LSTM) -> None:
    nn.ModuleList([layer]).load_state_dict(nn.ModuleList([LSTM(3, 5, 2)]).state_dict())


def by_assigned_state_dict(layer: LSTM) -> None:
    layer.load_state_dict(LSTM(3, 5, 2).state_dict(), assign=True)


def by_moving(layer: LSTM) -> None:
    layer.double().float()
    for weight in layer.parameters():
        weight.data *= 0.9


def by_one_value_and_train(layer: LSTM) -> None:
    layer.weight_hh_l0.data[1, 1] += 1
    layer.train()


def by_one_value_and_eval(layer: LSTM) -> None:
    layer.weight_hh_l0.data[1, 1] += 1
    layer.eval()


def by_one_value_and_repack(layer: LSTM) -> None:
    layer.weight_hh_l0.data[1, 1] += 1
    layer.repack()


CHANGES = {
    "fused_adam": step_of(torch.optim.Adam, fused=True),
    "fused_adamw": step_of(torch.optim.AdamW, fused=True),
    "fused_sgd": step_of(torch.optim.SGD, lr=0.1, fused=True),
    "foreach_adam": step_of(torch.optim.Adam, foreach=True),
    "sgd": step_of(torch.optim.SGD, lr=0.1),
    **{change.__name__: change for change in (by_data, by_numpy, by_data_pointer, by_other_strides, by_parameter)},
    **{change.__name__: change for change in (by_no_grad, by_vector, by_state_dict, by_assigned_state_dict, by_moving)},
    **{change.__name__: change for change in (by_one_value_and_train, by_one_value_and_eval, by_one_value_and_repack)},
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen(change: str, mode: Any) -> None:
    torch.manual_seed(0)
    layer, x = LSTM(3, 5, 2).eval(), torch.randn(4, 2, 3)
    for _ in range(3):
        with mode():
            before = layer(x)[0].clone()
            assert torch.equal(layer(x)[0], before)
        CHANGES[change](layer)
        with mode():
            assert not torch.equal(layer(x)[0], before)
        assert_fresh(layer, x)


def test_a_pack_is_used_again_and_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[None] = []
    monkeypatch.setattr(packs, "_pack", lambda *args: (packed.append(None), packs_pack(*args))[1])
    layer, x, kept = LSTM(3, 5), torch.randn(4, 2, 3), len(packs._LOANS)
    with torch.no_grad():
        for _ in range(3):
            layer(x)
        assert len(packed) == 1 and len(packs._LOANS) == kept + 1
        layer.train()
        layer(x)
        assert len(packed) == 2
    layer(x)
    assert len(packed) == 3  # a training call packs for itself
    with torch.no_grad():
        layer(x)
    assert len(packed) == 3
    del layer
    gc.collect()
    assert len(packs._LOANS) == kept


packs_pack = packs._pack


def test_memory_is_not_held_for_the_next_call() -> None:
    """Not by a loan, when the weights have moved elsewhere."""
    layer, x = LSTM(3, 5), torch.randn(4, 2, 3)
    layer(x)
    with torch.no_grad():
        layer(x)
    memory = weakref.ref(layer.weight_hh_l0.untyped_storage())
    layer.weight_hh_l0.data = layer.weight_hh_l0.data.clone()
    assert memory() is None
    assert_fresh(layer, x)


def test_weights_of_other_numbers_and_signs_in_the_same_place() -> None:
    layer, x, numbers = LSTM(3, 5), torch.randn(4, 2, 3), torch.randn(20, 5, dtype=torch.complex64)
    layer.weight_hh_l0.data = numbers.imag
    before = layer(x)[0]
    layer.weight_hh_l0.data = numbers.conj().imag
    assert layer.weight_hh_l0.is_neg() and not torch.equal(layer(x)[0], before)
    assert_fresh(layer, x)
    layer.weight_hh_l0.requires_grad_(False).data = numbers.imag.view(torch.int32)
    with pytest.raises(TypeError, match="weight_hh_l0 has dtype int32"):
        layer(x)


def test_training_calls_pack_each_time() -> None:
    """No sample could miss a write there."""
    layer, x = LSTM(3, 5), torch.randn(4, 2, 3)
    before = layer(x)[0]
    layer.weight_hh_l0.data[1, 1] += 1
    assert not torch.equal(layer(x)[0], before)


def test_inference_tensors_as_weights() -> None:
    """They have no version."""
    torch.manual_seed(0)
    x = torch.randn(4, 2, 3)
    with torch.inference_mode():
        layer = LSTM(3, 5, 2)
        assert layer.weight_hh_l0.is_inference()
        before = layer(x)[0]
        layer.weight_hh_l0.mul_(0.9)
        assert not torch.equal(layer(x)[0], before)
        assert_fresh(layer, x)


def test_averaged_models() -> None:
    torch.manual_seed(0)
    layer, x = LSTM(3, 5, 2), torch.randn(4, 2, 3)
    average = torch.optim.swa_utils.AveragedModel(layer, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    optimizer = torch.optim.Adam(layer.parameters(), fused=True)
    for _ in range(4):
        layer(x)[0].sum().backward()
        optimizer.step()
        average.update_parameters(layer)
        assert_fresh(average.module, x)


def test_weights_of_others() -> None:
    """functional_call's, another layer's, and those of a layer at the address of one that has gone."""
    torch.manual_seed(0)
    layer, x = LSTM(3, 5, 2), torch.randn(4, 2, 3)
    with torch.no_grad():
        layer(x)
        others = {name: weight * 0.9 for name, weight in layer.state_dict().items()}
        found, _ = torch.func.functional_call(layer, others, (x,))
        layer(x)
        twin = LSTM(3, 5, 2)
        twin.load_state_dict(others)
        assert torch.equal(found, twin(x)[0])
        twin.weight_ih_l0 = layer.weight_ih_l0
        assert_fresh(twin, x)
        assert_fresh(layer, x)
        for _ in range(50):
            assert_fresh(LSTM(3, 5, 2), x)


def test_memory_that_is_taken_away_is_not_read() -> None:
    """As sharded training does between steps."""
    layer, x = LSTM(3, 5, 2), torch.randn(4, 2, 3)
    with torch.no_grad():
        before = layer(x)[0]
        weights = [weight.clone() for weight in layer.parameters()]
        for weight in layer.parameters():
            weight.data = torch.empty(0)
        with pytest.raises(ValueError, match="weight_ih_l0 has shape"):
            layer(x)
        for weight, values in zip(layer.parameters(), weights, strict=True):
            weight.data = values
        assert torch.equal(layer(x)[0], before)


@pytest.mark.parametrize("grad", [True, False])
def test_threads_that_change_weights(grad: bool) -> None:
    """Calls of many threads while another one writes: none dies, and the last state is the one that counts."""
    torch.manual_seed(0)
    layer, x = LSTM(3, 5, 2), torch.randn(4, 2, 3)

    def call(_: int) -> bool:
        with contextlib.nullcontext() if grad else torch.no_grad():
            return bool(torch.isfinite(layer(x)[0]).all())

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(call, i) for i in range(200)]
        for _ in range(50):
            CHANGES["fused_sgd"](layer)
        assert all(future.result() for future in futures)
    assert_fresh(layer, x)
