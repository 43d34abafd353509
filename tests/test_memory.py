"""Memory: what cannot be had is a MemoryError that names the size before work starts, and nothing is ever kept."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import textwrap
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastlstm

ON_LINUX = Path("/proc/self/statm").exists()
WITH_ASAN = ON_LINUX and "libasan" in Path("/proc/self/maps").read_text()
counts_memory = pytest.mark.skipif(
    not ON_LINUX or WITH_ASAN, reason="needs /proc, and a process whose memory AddressSanitizer does not hold back"
)

MIB = 2**20

# The limit is set after the imports; x is one number seen as many, so that it takes no memory itself.
LIMITED = """
import resource, time
import numpy as np
import fastlstm

def view(dtype, *shape):
    return np.lib.stride_tricks.as_strided(np.ones(1, dtype), shape, [0] * len(shape))

small = fastlstm.LSTM(1, 64, seed=0)
expected = small(np.ones((5, 3, 1), np.float32))[0]

def limit(mebibytes):
    with open("/proc/self/statm") as statm:
        now = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + mebibytes * 2**20, resource.RLIM_INFINITY))

def refused(call):
    start = time.process_time()
    try:
        call()
    except MemoryError as error:
        print(error)
    else:
        raise AssertionError("there was memory enough: the test shows nothing")
    # Touching a few hundred MiB takes this long at most; the work would take minutes
    assert time.process_time() - start < 2, "work had started"
    assert (small(np.ones((5, 3, 1), np.float32))[0] == expected).all()
"""


# y of 64 MiB fits; the tape, seven times that, does not. All within a limit of 256 MiB.
TOO_LARGE = {
    "y": "limit(256); refused(lambda: small(view(np.float32, 2**20, 8, 1)))",
    "copy_of_x": "limit(256); refused(lambda: fastlstm.LSTM(3, 1)(view(np.float32, 2**16, 2**10, 3)))",
    "mask": "limit(256); refused(lambda: fastlstm.LSTM(1, 1)(view(np.float32, 2**15, 2**11, 1), "
    "mask=view(np.bool_, 2**15, 2**11)))",
    "lengths": "limit(256); refused(lambda: fastlstm.LSTM(1, 1)(view(np.float32, 0, 2**27, 1), "
    "lengths=view(np.int64, 2**27)))",
    "order_of_many_rows": "limit(256); refused(lambda: fastlstm.LSTM(1, 1)(view(np.float32, 1, 2**24, 1)))",
    "between_layers": "two = fastlstm.LSTM(1, 64, 3); out = np.full((2**11, 2**9, 64), 7, np.float32); limit(256); "
    "refused(lambda: two(view(np.float32, 2**11, 2**9, 1), out=out)); assert (out == 7).all()",
    "tape": "out = np.full((2**12, 64, 64), 7, np.float32); limit(256); "
    "refused(lambda: small.forward(view(np.float32, 2**12, 64, 1), out=out)); assert (out == 7).all()",
    "dx": "narrow = fastlstm.LSTM(4096, 1); _, _, tape = narrow.forward(np.zeros((2**10, 16, 4096), np.float32)); "
    "limit(128); refused(lambda: narrow.backward(tape))",
    "weights": "limit(256); refused(lambda: fastlstm.LSTM(2**14, 2**14))",
    "packed_weights": "large = fastlstm.LSTM(2**11, 2**11); limit(64); "
    "refused(lambda: large(np.zeros((1, 1, 2**11), np.float32)))",
    "transposed_weights": "large = fastlstm.LSTM(2**11, 2**11); "
    "*_, tape = large.forward(np.zeros((2, 1, 2**11), np.float32)); limit(160); refused(lambda: large.backward(tape))",
}


@counts_memory
@pytest.mark.parametrize("name", TOO_LARGE)
def test_memory_that_cannot_be_had(name: str, tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-X", "faulthandler", "-c", LIMITED + textwrap.dedent(TOO_LARGE[name])]
    options = {"cwd": tmp_path, "env": environment, "text": True, "timeout": 60}
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d\.? ?([KMGT]iB|bytes)", done.stdout), f"no size in {done.stdout!r}"


@counts_memory
def test_layers_of_one_direction_share_y(tmp_path: Path) -> None:
    code = """
three = fastlstm.LSTM(1, 64, 3, seed=0)
limit(48)
y, _ = three(view(np.float32, 2**8, 2**9, 1), threads=1)
assert y.nbytes == 32 * 2**20
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-X", "faulthandler", "-c", LIMITED + code]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, timeout=60)


# Of a million steps the whole tape would have 1.8 GiB, and y 244 MiB.
LONG = """
import time
import numpy as np
import fastlstm

def peak():  # of this program: ru_maxrss begins with that of the one that started it
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**10

layer = fastlstm.LSTM(8, 64, {layers}, seed=0)
x = np.random.default_rng(0).standard_normal(({steps}, 1, 8), np.float32)
layer(x[:100])
before, start = peak(), time.perf_counter()
_, (h_n, _), tape = layer.forward(x, checkpoint_every="auto", return_sequence=False)
grads = layer.backward(tape, dstate=(np.ones_like(h_n), None))
print(f"{{peak() - before:.0f}} MiB in {{time.perf_counter() - start:.1f}} s")
assert tape.nbytes < 1.15 * x.nbytes, tape.nbytes
assert peak() - before < {limit}
assert np.isfinite(grads.x).all() and grads.x[-1].any()
"""


@counts_memory
@pytest.mark.parametrize("layers, steps, limit", [(1, 1_000_000, 80), (3, 250_000, 30)])
def test_long_sequences_train_in_little_memory(layers: int, steps: int, limit: int, tmp_path: Path) -> None:
    # dx and the copy of x take 61 MiB of a million steps
    code = LONG.format(layers=layers, steps=steps, limit=limit)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@counts_memory
def test_a_million_steps_infer_without_y(tmp_path: Path) -> None:
    code = """
layer = fastlstm.LSTM(1, 64, 3, seed=0)
x = view(np.float32, 1_000_000, 1, 1)
layer(x[:100])
limit(32)
assert layer(x, return_sequence=False, threads=1)[0] is None
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, "-X", "faulthandler", "-c", LIMITED + code]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, timeout=300)


# Sizes that no machine holds: each case is a program of its own, since the danger is a crash
GIANTS = {
    "y_overflows": "LSTM(1, 4)(view(np.float32, 2**30, 2**30, 1))",
    "tape_overflows": "LSTM(1, 4).forward(view(np.float32, 2**30, 2**30, 1))",
    "y_beyond_memory": "LSTM(1, 4)(view(np.float32, 2**40, 1, 1))",
    "x_copy_beyond_memory": "LSTM(3, 4)(view(np.float32, 2**40, 1, 3))",
    "mask_beyond_memory": "LSTM(1, 4)(view(np.float32, 2**40, 1, 1), mask=view(np.bool_, 2**40, 1))",
    "reset_beyond_memory": "LSTM(1, 4)(view(np.float32, 1, 2**40, 1), reset=view(np.bool_, 1, 2**40))",
    "lengths_beyond_memory": "LSTM(1, 4)(view(np.float32, 1, 2**40, 1), lengths=view(np.int64, 2**40))",
    "lengths_beyond_memory_without_steps": "LSTM(1, 4)(view(np.float32, 0, 2**40, 1), lengths=view(np.int64, 2**40))",
    "state_beyond_memory": "LSTM(1, 1)(view(np.float32, 0, 2**40, 1), [view(np.float32, 1, 2**40, 1)] * 2)",
    "weights_overflow": "LSTM(2**40, 2**40)",
    "layers_beyond_memory": "LSTM(1, 1, 10**12)",
}


@pytest.mark.parametrize("name", GIANTS)
def test_sizes_beyond_memory_are_refused(name: str, tmp_path: Path) -> None:
    code = f"""
from fastlstm import LSTM
{"" if WITH_ASAN else "limit(2**14)"}  # for a system that promises more memory than it has
try:
    {GIANTS[name]}
except (ValueError, MemoryError) as error:
    print(type(error).__name__, error)
"""
    command = [sys.executable, "-X", "faulthandler", "-c", LIMITED + code]
    options = {"cwd": tmp_path, "text": True, "timeout": 20}
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    assert done.returncode == 0, done.stdout
    assert re.search(r"(?m)^ValueError .*\d|^MemoryError .*\d\.? ?([KMGTPE]iB|bytes)", done.stdout), done.stdout


# Nothing is kept


def resident() -> int:
    """Bytes of memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def growth(call: Callable[[], object], count: int) -> int:
    """What `count` calls add to the process after a few have filled the allocator's pools."""
    for _ in range(max(count // 10, 3)):
        call()
    gc.collect()
    before = resident()
    for _ in range(count):
        call()
    gc.collect()
    return resident() - before


class Calls:
    """One of each kind; the arrays are attributes, so that their references can be counted."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.lstm = fastlstm.LSTM(8, 24, 2, bidirectional=True, proj_size=12, dropout=0.5, seed=0)
        self.x = rng.standard_normal((30, 16, 8), np.float32)
        self.state = rng.standard_normal((4, 16, 12), np.float32), rng.standard_normal((4, 16, 24), np.float32)
        self.lengths, self.mask = rng.integers(0, 31, 16), rng.integers(0, 2, (30, 16))
        self.reset = self.mask[::-1].astype(bool)
        self.out = np.empty((30, 16, 24), np.float32)
        self.dy, self.dcells = np.ones((30, 16, 24), np.float32), np.ones((30, 16, 48), np.float32)
        self.options: dict[str, Any] = {"lengths": self.lengths, "mask": self.mask, "reset": self.reset}
        *_, self.tape = self.lstm.forward(self.x, self.state, **self.options)

    def inference(self) -> object:
        return self.lstm(self.x, self.state, **self.options, out=self.out, return_cells=True)

    def training(self) -> object:
        *_, tape = self.lstm.forward(self.x, self.state, **self.options)
        return self.lstm.backward(tape, self.dy, self.state, dcells=self.dcells, threads=2)

    def checkpoints(self) -> object:
        *_, tape = self.lstm.forward(self.x, self.state, **self.options, checkpoint_every=10, return_sequence=False)
        return self.lstm.backward(tape, None, self.state, dcells=self.dcells, truncate=7, threads=2)

    def backward(self) -> object:
        return self.lstm.backward(self.tape, self.dy, self.state, dcells=self.dcells)

    def copies(self) -> object:
        strided = np.asfortranarray(self.x)
        return self.lstm(strided, [array[..., ::-1] for array in self.state], **self.options)

    def packing(self) -> object:
        with self.lstm.updating() as weights:
            weights["weight_hh_l1"] *= 0.99
        return self.lstm(self.x[:1])

    def refused(self) -> None:
        for wrong in ({"lengths": [31] * 16}, {"mask": self.mask * 2}, {"out": self.x}, {"threads": 0}):
            with pytest.raises(ValueError, match="expected"):
                self.lstm.forward(self.x, self.state, **wrong)
        with pytest.raises(TypeError, match="expected"):
            self.lstm.backward(self.tape, self.dy.astype(np.float64), self.state)

    def counted(self) -> list[object]:
        arrays = [self.x, *self.state, self.lengths, self.mask, self.reset, self.out, self.dy, self.dcells]
        return [*arrays, self.tape, self.tape.native, self.lstm, self.state, None, np.dtype(np.float32)]


KINDS = ["inference", "training", "checkpoints", "backward", "copies", "packing", "refused"]


@pytest.mark.parametrize("kind", KINDS)
def test_references_are_given_back(kind: str) -> None:
    calls = Calls()
    call, counted = getattr(calls, kind), calls.counted()
    call()
    gc.collect()
    before = [sys.getrefcount(item) for item in counted]
    for _ in range(50):
        call()
    gc.collect()
    after = [sys.getrefcount(item) for item in counted]
    moved = [new - old for old, new in zip(before, after, strict=True)]
    # None and the dtype belong to all: what else runs may move them by a few, a leak by at least one a call
    assert not any(moved[:-2]) and max(map(abs, moved[-2:])) < 50, moved


@counts_memory
@pytest.mark.parametrize("kind", KINDS)
def test_memory_does_not_grow(kind: str) -> None:
    calls = Calls()
    # The smallest result has 3 KiB, a tape 1 MiB: kept once a call, either would be seen
    assert growth(getattr(calls, kind), 400) < 1 * MIB


def test_a_tape_goes_when_it_is_dropped() -> None:
    calls = Calls()
    y, _, tape = calls.lstm.forward(calls.x)
    watched = [weakref.ref(tape), weakref.ref(y)]
    del tape, y
    assert [reference() for reference in watched] == [None, None]


def test_a_tape_outlives_its_layer_and_inputs() -> None:
    calls = Calls()
    expected = calls.backward()
    tape, dy, state, dcells = calls.tape, calls.dy, calls.state, calls.dcells
    del calls
    gc.collect()
    junk = [np.full((30, 16, 8), np.nan, np.float32) for _ in range(50)]
    found = fastlstm.lstm_backward(tape, dy, state, dcells=dcells)
    assert len(junk) == 50
    np.testing.assert_array_equal(found.x, expected.x)


def test_results_own_their_memory() -> None:
    calls = Calls()
    y, (h, c), cells, tape = calls.lstm.forward(calls.x, return_cells=True)
    copies = [array.copy() for array in (y, h, c, cells)]
    del tape
    for _ in range(20):
        calls.training()
    for array, copy in zip((y, h, c, cells), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@counts_memory
def test_release_memory_gives_back_what_was_kept(tmp_path: Path) -> None:
    code = """
    import resource, numpy as np, fastlstm
    def resident():
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize() / 2**20
    lstm = fastlstm.LSTM(1, 64, seed=0)
    lstm.forward(np.ones((2000, 64, 1), np.float32))
    kept = resident()
    fastlstm.release_memory()
    assert kept - resident() > 100, (kept, resident())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_memory_that_is_kept_does_not_slow_down_small_calls() -> None:
    """Programs that train step by step, as those with episodes do, leave thousands of blocks behind."""
    small, large = fastlstm.LSTM(64, 64, seed=0), fastlstm.LSTM(16, 128, seed=0)
    step, x = np.zeros((1, 1, 64), np.float32), np.zeros((1, 8, 16), np.float32)

    def seconds() -> float:
        """Of the CPU, in the best of many blocks."""
        best = np.inf
        for _ in range(200):
            begun = time.process_time()
            for _ in range(20):
                small(step, threads=1)
            best = min(best, time.process_time() - begun)
        return best

    fastlstm.release_memory()
    before = seconds()
    tapes = [large.forward(x, threads=1)[-1] for _ in range(500)]
    del tapes
    assert seconds() < 1.7 * before  # 4 times, where each allocation looked at each block
