"""`fastlstm.torch` under DistributedDataParallel: gloo, two processes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from torch import distributed, multiprocessing, nn  # noqa: E402

from fastlstm.torch import LSTM  # noqa: E402

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="torch has no gloo here"
)

RANKS = 2


def test_gradients_are_those_of_one_process_on_the_whole_batch(tmp_path: Path) -> None:
    multiprocessing.spawn(compare_gradients, (str(tmp_path / "store"),), RANKS)


def test_sharded_training_is_torchs(tmp_path: Path) -> None:
    multiprocessing.spawn(compare_sharded, (str(tmp_path / "store"),), RANKS)


def test_no_stale_weight_is_used(tmp_path: Path) -> None:
    multiprocessing.spawn(compare_inference, (str(tmp_path / "store"),), RANKS)


@contextlib.contextmanager
def joined(rank: int, store: str) -> Iterator[None]:
    """Ends the process where all went well; an error goes on to `spawn`, which reports it."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    yield
    distributed.destroy_process_group()
    # DistributedDataParallel and FSDP hold gloo's threads beyond that. One that lets go of its last tensor while Python
    # shuts down ends there, and takes the process with it: "terminate called without an active exception".
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def compare_gradients(rank: int, store: str) -> None:
    with joined(rank, store):
        torch.manual_seed(0)
        alone, x = LSTM(3, 5, 2, bidirectional=True, dtype=torch.float64), torch.randn(6, 4, 3, dtype=torch.float64)
        alone(x)[0].square().mean().backward()
        torch.manual_seed(rank)  # DistributedDataParallel sends the first process's weights to the other
        layer = LSTM(3, 5, 2, bidirectional=True, dtype=torch.float64)
        if rank == 0:
            layer.load_state_dict(alone.state_dict())
        together = nn.parallel.DistributedDataParallel(layer)
        together(x.chunk(RANKS, 1)[rank])[0].square().mean().backward()
        for mine, its in zip(layer.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, its.grad, rtol=1e-12, atol=1e-15)


def compare_sharded(rank: int, store: str) -> None:
    """Each weight is whole only while its layer runs: its memory is freed after that, and taken again."""
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    with joined(rank, store):
        mesh = distributed.init_device_mesh("cpu", (RANKS,))

        def outputs(kind: type[nn.Module]) -> list[torch.Tensor]:
            torch.manual_seed(0)
            model = nn.Sequential(kind(4, 6, 2, dtype=torch.float64))
            for module in (model[0], model):
                fsdp.fully_shard(module, mesh=mesh)
            optimizer, found = torch.optim.SGD(model.parameters(), 0.5), []
            for x in torch.randn(3, RANKS, 5, 2, 4, dtype=torch.float64)[:, rank]:
                optimizer.zero_grad()
                model(x)[0].square().sum().backward()
                optimizer.step()
                with torch.no_grad():
                    found += [model(x)[0].clone() for _ in range(2)]
            return found

        for a, b in zip(outputs(LSTM), outputs(nn.LSTM), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def compare_inference(rank: int, store: str) -> None:
    """A call without gradients, which keeps its pack, before and after all that writes to weights."""
    with joined(rank, store):
        torch.manual_seed(rank)
        layer, x = LSTM(3, 5, 2), torch.randn(6, 4, 3)
        before = answer(layer, x)
        together = nn.parallel.DistributedDataParallel(layer, gradient_as_bucket_view=True)
        assert torch.equal(before, answer(layer, x)) == (rank == 0)  # the other has the first one's weights now
        optimizer = torch.optim.Adam(together.parameters(), fused=True)
        for _ in range(3):
            before = answer(together, x)
            together(x)[0].square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            assert not torch.equal(before, answer(together, x))
            assert torch.equal(answer(together, x), answer_of_its_weights(layer, x))


def answer(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return layer(x)[0].clone()


def answer_of_its_weights(layer: LSTM, x: torch.Tensor) -> torch.Tensor:
    """Of a layer that has never packed."""
    other = LSTM(3, 5, 2)
    other.load_state_dict(layer.state_dict())
    return answer(other, x)
