"""`fastlstm.torch` in its process: threads are torch's, one OpenMP, forks, DataLoader's workers."""

from __future__ import annotations

import inspect
import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fastlstm

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402

from fastlstm.torch import LSTM, operators, packs  # noqa: E402


@pytest.fixture(autouse=True)
def restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def answer_of(code: str) -> Any:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_fastlstm_does_not_import_torch() -> None:
    assert answer_of('import fastlstm, sys; print("true" if "torch" not in sys.modules else "false")')


def test_another_torch_is_refused_at_once() -> None:
    code = """
import json, torch
del torch._C._is_tracing
try:
    import fastlstm.torch
except ImportError as error:
    print(json.dumps(str(error)))
"""
    assert re.match(
        r"fastlstm.torch needs torch 2\.5 or later, .* torch 2\.\d.* lacks .* '_is_tracing'", answer_of(code)
    )


def test_verbose_prints_the_path_of_each_call() -> None:
    code = """
import torch, fastlstm.torch
lstm = fastlstm.torch.LSTM(3, 5, batch_first=True)
lstm(torch.zeros(2, 7, 3))
with torch.no_grad():
    lstm(torch.zeros(6, 3))
"""
    environment = os.environ | {"FASTLSTM_VERBOSE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    said = re.findall(r"(T=\d B=\d): layer 0 (forward|backward)", done.stderr)
    assert said == [("T=7 B=2", "forward"), ("T=7 B=2", "backward"), ("T=6 B=1", "forward")]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="libraries are listed in /proc")
@pytest.mark.parametrize("order", ["import torch, fastlstm.torch", "import fastlstm, torch, fastlstm.torch"])
def test_there_is_one_openmp(order: str) -> None:
    """Whoever is imported first: two pools of threads would wait for the same cores."""
    code = f"""
{order}
import json, re
x = torch.randn(50, 64, 128)
fastlstm.torch.LSTM(128, 256)(x)[0].sum().backward()
(x @ torch.randn(128, 512)).tanh()
with open("/proc/self/maps") as maps:
    print(json.dumps(sorted(set(re.findall(r"\\S*lib(?:gomp|iomp|omp)[^/\\n]*", maps.read())))))
"""
    assert len(answer_of(code)) == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_torchs(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def watched(function: Any) -> Any:
        place = list(inspect.signature(function).parameters).index("threads")
        return lambda *args: (given.append(args[place]), function(*args))[1]

    for name in ("forward_natively", "backward_natively"):
        monkeypatch.setattr(operators, name, watched(getattr(operators, name)))
    monkeypatch.setattr(packs, "_pack", watched(packs._pack))
    torch.set_num_threads(threads)
    fastlstm.set_num_threads(3 - threads)
    layer, x = LSTM(3, 5), torch.randn(4, 2, 3)
    layer(x)[0].sum().backward()
    with torch.no_grad():
        layer(x)
    assert given == [threads] * 5  # pack, forward, backward; pack, forward


def train_once(layer: nn.Module, x: torch.Tensor) -> float:
    y, _ = layer(x)
    y.sum().backward()
    return float(y.detach().sum())


def test_a_child_after_fork_computes_the_same() -> None:
    """On our threads, which two are wanted of here; torch's own would hang, had it as much to do."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    layer, x = LSTM(32, 64), torch.randn(8, 32, 32)
    expected = train_once(layer, x)
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writer, repr(train_once(layer, x)).encode())
        os._exit(0)
    os.close(writer)
    if not select.select([reader], [], [], 120)[0]:
        os.kill(child, signal.SIGKILL)  # so that the answer below is empty
    with os.fdopen(reader) as answer:
        found = answer.read()
    assert os.waitpid(child, 0)[1] == 0 and float(found) == expected


class Encoded(Dataset[Any]):
    """Items that an LSTM computes, in a worker."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.layer, self.x = LSTM(8, 16).eval(), torch.randn(6, 5, 1, 8)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, item: int) -> torch.Tensor:
        with torch.no_grad():
            return self.layer(self.x[item])[0]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_of_a_loader(context: str) -> None:
    data = Encoded()
    expected = torch.stack([data[item] for item in range(len(data))])
    loader = DataLoader(data, batch_size=3, num_workers=2, multiprocessing_context=context)
    assert torch.equal(torch.cat(list(loader)), expected)
