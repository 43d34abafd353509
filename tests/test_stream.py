"""A stream gives, step by step and block by block, the bits of the whole sequence; and refuses what it cannot do."""

from __future__ import annotations

import copy
import ctypes
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import fastlstm
from fastlstm import LSTM, Stream

NETS = {
    "one_layer": {"input_size": 9, "hidden_size": 37},
    "one_of_everything": {"input_size": 1, "hidden_size": 1},
    "units_shared": {"input_size": 150, "hidden_size": 260},
    "three_layers": {"input_size": 9, "hidden_size": 21, "num_layers": 3},
    "projection": {"input_size": 9, "hidden_size": 37, "num_layers": 2, "proj_size": 5},
    "no_bias": {"input_size": 130, "hidden_size": 17, "bias": False},
}
STORAGES = ["whole", "bf16", "int8"]


def make(net: str = "one_layer", dtype: str = "float32", storage: str = "whole", **options):
    lstm = LSTM(**NETS[net], dtype=dtype, seed=0, **options)
    return lstm if storage == "whole" else lstm.compress(storage)


def draw(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(dtype)


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [1, 2, 3, 7, 50], ids="batch_of_{}".format)
@pytest.mark.parametrize("net", NETS)
def test_steps_and_blocks_are_the_whole_sequence(isa: str, dtype: str, net: str, batch: int, threads: int) -> None:
    lstm = make(net, dtype)
    x = draw(23, batch, lstm.input_size, dtype=dtype)
    expected, (h_n, c_n) = lstm(x, threads=1)
    stream = lstm.stream(batch, threads=threads)
    parts = [stream(x[:5]), stream(x[5])[None], stream(x[6])[None], stream(x[7:7]), stream(x[7:8]), stream(x[8:])]
    assert_same(np.concatenate(parts), expected)
    assert_same(stream.state[0], h_n)
    assert_same(stream.state[1], c_n)


@pytest.mark.parametrize("storage", STORAGES)
def test_compressed_weights_stream_too(isa: str, storage: str) -> None:
    lstm = make("three_layers", storage=storage)
    x = draw(20, 2, lstm.input_size)
    stream = lstm.stream(2)
    assert_same(np.concatenate([*(stream(step)[None] for step in x[:10]), stream(x[10:])]), lstm(x)[0])


def test_a_block_is_laid_out_as_the_layer_says() -> None:
    lstm = make(batch_first=True)
    x = draw(3, 8, lstm.input_size)
    assert_same(lstm.stream(3)(x), lstm(x)[0])


def test_without_a_batch_axis() -> None:
    lstm = make("three_layers")
    x = draw(8, lstm.input_size)
    expected, (h_n, _) = lstm(x)
    stream = lstm.stream(None)
    out = np.empty(lstm.hidden_size, np.float32)
    found = [stream(x[0]), stream(x[1], out=out).copy(), *stream(x[2:])]
    assert_same(np.stack(found), expected)
    assert_same(stream.state[0], h_n)
    assert stream.batch_size is None and "batch_size=None" in repr(stream)


def test_it_starts_from_a_given_state_and_takes_another() -> None:
    lstm = make("projection")
    x, state = draw(4, 2, lstm.input_size), (draw(2, 2, 5), draw(2, 2, 37))
    stream = lstm.stream(2, state)
    assert_same(stream(x), lstm(x, state)[0])
    stream.state = state
    assert_same(stream(x), lstm(x, state)[0])
    stream.state = (None, state[1])
    assert_same(stream.state[0], np.zeros_like(state[0]))
    assert_same(stream.state[1], state[1])
    stream.state[0][:] = 7  # a copy
    assert not stream.state[0].any()


@pytest.mark.parametrize("rows", [[1, 3], np.array([False, True, False, True]), slice(1, None, 2)], ids=type)
def test_reset_of_some_rows(rows) -> None:
    if isinstance(rows, slice):
        rows = np.arange(4)[rows]
    lstm = make()
    x = draw(6, 4, lstm.input_size)
    stream = lstm.stream(4)
    stream(x[:3])
    stream.reset(rows)
    reset = np.zeros((6, 4), bool)
    reset[3, [1, 3]] = True
    assert_same(stream(x[3:]), lstm(x, reset=reset)[0][3:])
    stream.reset()
    assert_same(stream(x), lstm(x)[0])


def test_out_receives_y_and_is_returned() -> None:
    lstm = make()
    x = draw(5, 2, lstm.input_size)
    stream, expected = lstm.stream(2), lstm(x)[0]
    step, block = np.empty((2, 37), np.float32), np.empty((4, 2, 37), np.float32)
    assert stream(x[0], out=step) is step and stream(x[1:], out=block) is block
    assert_same(np.concatenate([step[None], block]), expected)


def test_any_strides() -> None:
    lstm = make()
    x = draw(5, 3, 2 * lstm.input_size)[:, ::-1, ::2]
    stream, expected = lstm.stream(3), lstm(np.ascontiguousarray(x))[0]
    assert_same(np.stack([stream(step) for step in x]), expected)
    x = np.asfortranarray(draw(5, 3, lstm.input_size))
    stream.reset()
    assert_same(np.stack([stream(step) for step in x]), lstm(x)[0])


def test_later_weights_do_not_reach_it() -> None:
    lstm = make()
    x = draw(4, 1, lstm.input_size)
    expected, stream = lstm(x)[0], lstm.stream()
    with lstm.updating() as weights:
        weights["weight_hh_l0"] *= 0
    assert_same(stream(x), expected)
    assert_same(lstm.stream()(x), lstm(x)[0])


@pytest.mark.parametrize("duplicate", [lambda s: pickle.loads(pickle.dumps(s)), copy.deepcopy, copy.copy])
@pytest.mark.parametrize("storage", STORAGES)
def test_a_copy_carries_on_alone(storage: str, duplicate) -> None:
    lstm = make("three_layers", storage=storage)
    x = draw(9, 2, lstm.input_size)
    stream = lstm.stream(2)
    stream(x[:4])
    other = duplicate(stream)
    assert isinstance(other, Stream)
    stream(x[5])
    assert_same(other(x[4:]), lstm(x)[0][4:])


@pytest.mark.parametrize(
    ("x", "error", "parts"),
    [
        (np.zeros((2, 8), "f4"), ValueError, ("x has shape (2, 8)", "(2, 9)")),
        (np.zeros((3, 9), "f4"), ValueError, ("x has shape (3, 9)", "(2, 9)")),
        (np.zeros(9, "f4"), ValueError, ("x has shape (9,)", "(2, 9)", "(T, 2, 9)")),
        (np.zeros((4, 3, 9), "f4"), ValueError, ("x has shape (4, 3, 9)", "batch_size, 2")),
        (np.zeros((4, 2, 8), "f4"), ValueError, ("x has shape (4, 2, 8)", "input size 9")),
        (np.zeros((2, 9)), TypeError, ("x has dtype float64", "x.astype(np.float32)")),
        ([[0.0] * 9] * 2, TypeError, ("x is a", "numpy.ndarray")),
    ],
)
def test_bad_x_leaves_the_state_alone(x, error, parts) -> None:
    stream = make().stream(2)
    stream(draw(2, 9))
    before = stream.state
    with pytest.raises(error) as caught:
        stream(x)
    assert all(part in str(caught.value) for part in parts), caught.value
    assert_same(stream.state[1], before[1])


def test_bad_out() -> None:
    stream, x = make().stream(2), draw(2, 9)
    stream(x)
    before = stream.state
    locked = np.zeros((2, 37), "f4")
    locked.flags.writeable = False
    memory = np.zeros(2 * 37 + 9, "f4")
    inside = memory[: 2 * 9].reshape(2, 9), memory[: 2 * 37].reshape(2, 37)
    for given, out, message in [
        (x, np.zeros((2, 36), "f4"), "out has shape (2, 36)"),
        (x, np.zeros((2, 37)), "out has dtype float64"),
        (x, np.zeros((37, 2), "f4").T, "out is not contiguous"),
        (x, locked, "out is read-only"),
        (*inside, "out overlaps x"),
        (x, [], "out is a"),
    ]:
        with pytest.raises((ValueError, TypeError)) as caught:
            stream(given, out=out)
        assert message in str(caught.value)
    assert_same(stream.state[0], before[0])


def test_bad_arguments() -> None:
    lstm = make()
    for batch_size in (0, -1, 2**40):
        with pytest.raises(ValueError, match=f"batch_size is {batch_size}"):
            lstm.stream(batch_size)
    for batch_size in (1.5, True, "1"):
        with pytest.raises(TypeError, match="batch_size is"):
            lstm.stream(batch_size)
    with pytest.raises(ValueError, match="threads is 0"):
        lstm.stream(threads=0)
    with pytest.raises(ValueError, match="bidirectional is True"):
        LSTM(3, 5, bidirectional=True).stream()
    with pytest.raises(ValueError, match=r"state\[1\] \(c\) has shape"):
        lstm.stream(1, (np.zeros((1, 1, 37), "f4"), np.zeros((1, 2, 37), "f4")))
    stream = lstm.stream(None)
    with pytest.raises(ValueError, match="rows is given"):
        stream.reset([0])
    with pytest.raises(MemoryError, match="bytes"):
        lstm.stream(2**31 - 1)


def test_one_thread_at_a_time() -> None:
    lstm = LSTM(64, 256, seed=0)
    stream, x = lstm.stream(8), draw(3000, 8, 64)
    results, refused = [], []

    def run() -> None:
        results.append(stream(x))

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():
        try:
            stream(x[:1])
        except RuntimeError as error:
            refused.append(str(error))
    thread.join()
    assert len(results) == 1 and np.isfinite(results[0]).all()
    assert refused and "one stream for each thread" in refused[0]


# A library that counts what its process asks of malloc and its kin, whoever asks.
COUNTER = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
long allocations = 0;
void* malloc(size_t n) {
  static void* (*real)(size_t);
  if (!real) real = (void* (*)(size_t))dlsym(RTLD_NEXT, "malloc");
  __atomic_fetch_add(&allocations, 1, __ATOMIC_RELAXED);
  return real(n);
}
int posix_memalign(void** p, size_t a, size_t n) {
  static int (*real)(void**, size_t, size_t);
  if (!real) real = (int (*)(void**, size_t, size_t))dlsym(RTLD_NEXT, "posix_memalign");
  __atomic_fetch_add(&allocations, 1, __ATOMIC_RELAXED);
  return real(p, a, n);
}
void* mmap(void* at, size_t n, int protection, int flags, int file, long offset) {
  static void* (*real)(void*, size_t, int, int, int, long);
  if (!real) real = (void* (*)(void*, size_t, int, int, int, long))dlsym(RTLD_NEXT, "mmap");
  __atomic_fetch_add(&allocations, 1, __ATOMIC_RELAXED);
  return real(at, n, protection, flags, file, offset);
}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts allocations by preloading a library")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_step_allocates_nothing(threads: int, tmp_path: Path) -> None:
    (tmp_path / "counter.c").write_text(COUNTER)
    library = tmp_path / "counter.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", tmp_path / "counter.c", "-o", library, "-ldl"], check=True)
    code = f"""
import ctypes, numpy as np, fastlstm
count = ctypes.c_long.in_dll(ctypes.CDLL({str(library)!r}), "allocations")
for sizes in ((9, 37, 3), (150, 260, 1)):
    stream = fastlstm.LSTM(*sizes, seed=0).stream(2, threads={threads})
    x, out = np.ones((2, sizes[0]), np.float32), np.empty((2, sizes[1]), np.float32)
    stream(x, out=out)
    stream(x)
    before = count.value
    for _ in range(1000):
        stream(x, out=out)
    print(count.value - before)
"""
    # a path that the preloaded copy was loaded from counts for both
    environment = {"LD_PRELOAD": str(library), "PYTHONPATH": str(Path(fastlstm.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert all(int(line) < 10 for line in done.stdout.split()), done.stdout  # the interpreter's own, now and then


def test_the_counter_counts() -> None:
    assert "allocations" in COUNTER and ctypes.sizeof(ctypes.c_long) == 8
