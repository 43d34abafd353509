"""The library in a process that forks, is interrupted, limits its threads or shares them with torch.

Each test is a program of its own with a time-out, since what goes wrong here hangs.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
WITH_ASAN = Path("/proc/self/maps").exists() and "libasan" in Path("/proc/self/maps").read_text()
in_time = pytest.mark.skipif(WITH_ASAN, reason="AddressSanitizer makes each step some thirty times as long")
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")

SECONDS = 90  # until a program counts as hung, on a machine that is busy with other work

# Large enough that two threads share it: by rows (WIDE) and by units, with a barrier at each step (FEW).
PRELUDE = """
import os, sys, threading, time
import numpy as np
import fastlstm

def make(rows):
    lstm = fastlstm.LSTM(64, 128, seed=0)
    return lstm, np.random.default_rng(0).standard_normal((50, rows, 64), np.float32)

def solve(rows, **options):
    lstm, x = make(rows)
    y, _, tape = lstm.forward(x, **options)
    g = lstm.backward(tape, dy=y, **options)
    return b"".join(array.tobytes() for array in (y, g.x, *g.weights.values()))

def solve_all(**options):
    return [solve(rows, **options) for rows in (1, 8, 64)]

def tasks():
    return len(os.listdir("/proc/self/task"))

def most_tasks_during(function):
    '''Threads at work in function, in any of some calls: who counts them may have no processor during one.'''
    return max(most_tasks_during_one(function) for _ in range(5))

def most_tasks_during_one(function):
    '''Those that appear while it runs on a thread of its own.'''
    before, most, worker = tasks(), 0, threading.Thread(target=function)
    worker.start()
    while worker.is_alive():
        most = max(most, tasks() - before)
    for _ in range(1000):  # a thread that has ended is listed a little longer
        if tasks() <= before:
            return most
        time.sleep(0.01)
    raise AssertionError("threads outlive the thread that called")

def long_call(**options):
    lstm, x = make(64)
    for _ in range(4):
        lstm(np.concatenate([x] * 8), **options)

def in_child(function):
    '''Fork, run function in the child, and fail with it.'''
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            function()
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the child failed"
"""


def run(code: str, cwd: Path, first: str = "", **environment: str) -> str:
    """Run a program, with all that it forks, and return what it printed."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    # NumPy's own threads would be counted too
    env |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "2", "PYTHONWARNINGS": "ignore"} | environment
    program = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", first + PRELUDE + textwrap.dedent(code)],
        cwd=cwd,
        env={name: value for name, value in env.items() if value},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = program.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)
        pytest.fail(f"hung: no end after {SECONDS} s; it said:\n{program.communicate()[0]}")
    assert program.returncode == 0, output
    return output


# Number of threads


@pytest.mark.parametrize(("variable", "threads"), [("1", 1), ("3", 3)])
def test_omp_num_threads_is_the_default(variable: str, threads: int, tmp_path: Path) -> None:
    code = f"""
    assert fastlstm.get_num_threads() == {threads} == fastlstm.build_config()["num_threads"]
    assert most_tasks_during(long_call) == {threads}
    """
    run(code, tmp_path, OMP_NUM_THREADS=variable)


def test_set_num_threads_and_threads_are_respected(tmp_path: Path) -> None:
    code = """
    assert fastlstm.get_num_threads() == 2
    assert most_tasks_during(lambda: long_call(threads=1)) == 1
    fastlstm.set_num_threads(1)
    assert fastlstm.get_num_threads() == 1
    assert most_tasks_during(long_call) == 1
    assert most_tasks_during(lambda: long_call(threads=3)) == 3
    assert fastlstm.get_num_threads() == 1
    """
    run(code, tmp_path)


@pytest.mark.parametrize(
    "environment",
    [
        {"OMP_DYNAMIC": "true"},
        {"OMP_THREAD_LIMIT": "1"},
        {"OMP_THREAD_LIMIT": "2"},
        {"OMP_MAX_ACTIVE_LEVELS": "0"},
        {"OMP_PROC_BIND": "true"},
        {"OMP_WAIT_POLICY": "passive"},
    ],
    ids=lambda environment: "-".join(f"{name.lower()}_{value}" for name, value in environment.items()),
)
def test_fewer_threads_than_asked_for_neither_hang_nor_change_the_result(
    environment: dict[str, str], tmp_path: Path
) -> None:
    code = """
    alone = solve_all(threads=1)
    assert solve_all() == solve_all(threads=2) == solve_all(threads=5) == alone
    """
    run(code, tmp_path, **environment)


def test_default_obeys_a_thread_limit(tmp_path: Path) -> None:
    run("assert fastlstm.get_num_threads() == 1", tmp_path, OMP_THREAD_LIMIT="1")


# Fork


def test_child_runs_on_one_thread_until_told_otherwise(tmp_path: Path) -> None:
    code = """
    expected = solve_all()
    assert tasks() == 2  # libgomp keeps its worker
    def child():
        assert tasks() == 1
        assert fastlstm.get_num_threads() == 1
        assert solve_all() == expected
        assert tasks() == 1
        assert most_tasks_during(long_call) == 1
        fastlstm.set_num_threads(2)
        assert fastlstm.get_num_threads() == 2
        assert solve_all() == expected
        assert most_tasks_during(long_call) >= 3  # one to call, and a team that the child made
    in_child(child)
    assert fastlstm.get_num_threads() == 2
    assert solve_all() == expected
    """
    run(code, tmp_path)


def test_child_may_ask_for_threads_in_the_call(tmp_path: Path) -> None:
    code = """
    expected = solve_all()
    in_child(lambda: solve_all(threads=2) == expected or 1 / 0)
    """
    run(code, tmp_path)


def test_child_of_a_parent_that_never_called(tmp_path: Path) -> None:
    code = """
    def child():
        assert solve_all() == solve_all(threads=2)
        fastlstm.set_num_threads(2)
        solve_all()
    in_child(child)
    """
    run(code, tmp_path)


def test_grandchild(tmp_path: Path) -> None:
    code = """
    expected = solve_all()
    def grandchild():
        assert fastlstm.get_num_threads() == 1
        assert solve_all() == expected
        fastlstm.set_num_threads(2)
        assert solve_all() == expected
    def child():
        fastlstm.set_num_threads(2)
        assert solve_all() == expected
        in_child(grandchild)
        assert solve_all() == expected
    in_child(child)
    """
    run(code, tmp_path)


def test_child_continues_a_tape_of_its_parent(tmp_path: Path) -> None:
    code = """
    lstm, x = make(64)
    y, _, tape = lstm.forward(x)
    expected = lstm.backward(tape, dy=y).x.tobytes()
    in_child(lambda: lstm.backward(tape, dy=y).x.tobytes() == expected or 1 / 0)
    """
    run(code, tmp_path)


@needs_torch
def test_child_of_a_parent_in_which_only_torch_has_run_threads(tmp_path: Path) -> None:
    code = """
    import torch
    torch.set_num_threads(2)
    before = tasks()
    torch.ones(2_000_000).exp().sum()
    assert tasks() > before, "torch has made no threads: the test shows nothing"
    expected = solve_all(threads=1)
    def child():
        assert solve_all() == expected
        fastlstm.set_num_threads(2)
        assert solve_all() == expected
    in_child(child)
    """
    run(code, tmp_path)


@needs_torch
@pytest.mark.parametrize("threads", [None, 2])
def test_inside_a_dataloader_worker(threads: int | None, tmp_path: Path) -> None:
    code = f"""
    import torch
    torch.set_num_threads(2)
    lstm, x = make(64)
    expected = lstm(x, threads=2)[0]
    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 4
        def __getitem__(self, index):
            if {threads}:
                fastlstm.set_num_threads({threads})
            assert fastlstm.get_num_threads() == ({threads} or 1)
            return torch.from_numpy(lstm(x)[0])
    loader = torch.utils.data.DataLoader(Rows(), num_workers=2, timeout=60, multiprocessing_context="fork")
    count = 0
    for y in loader:
        assert (y[0].numpy() == expected).all()
        count += 1
    assert count == 4
    """
    run(code, tmp_path)


# Beside torch


@needs_torch
@pytest.mark.parametrize("first", ["torch", "fastlstm"])
def test_one_libgomp_beside_torch(first: str, tmp_path: Path) -> None:
    code = """
    expected = solve(64)
    import torch
    torch.set_num_threads(2)
    torch.ones(2_000_000).exp().sum()
    assert solve(64) == expected
    with open("/proc/self/maps") as maps:
        print(*{line.split()[-1] for line in maps if "gomp" in line or "iomp" in line})
    """
    libraries = run(code, tmp_path, first="import torch" if first == "torch" else "").split()
    assert len(libraries) == 1, f"several OpenMP libraries in one process: {libraries}"


# Ctrl-C

INTERRUPTED = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it starts in the background

def interrupted(call, after=0.3):
    # Seconds from Ctrl-C to KeyboardInterrupt
    sent = []
    def send():
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)
    timer = threading.Timer(after, send)
    timer.start()
    try:
        call()
    except KeyboardInterrupt:
        return time.monotonic() - sent[0]
    timer.cancel()
    raise AssertionError("the call ended before it could be interrupted" if not sent else "Ctrl-C was ignored")

def wide(steps, rows, **options):
    # Costs 8 MFLOP a row and step, and reads an x of one element
    lstm = fastlstm.LSTM(1, 1024, seed=0)
    return lstm, np.lib.stride_tricks.as_strided(np.ones(1, np.float32), (steps, rows, 1), (0, 0, 0))

expected = solve(8)
"""

# Half a minute of work at 100 GFLOP/s, in different proportions: each has a loop of its own to leave.
LONG = {
    "one_row_for_long": (300_000, 1),
    "units_shared": (40_000, 8),
    "rows_shared": (2_000, 160),
    "few_steps_of_many_rows": (8, 12_000),
}


@in_time
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", LONG)
def test_ctrl_c_interrupts_a_forward(shape: str, threads: int, tmp_path: Path) -> None:
    steps, rows = LONG[shape]
    code = f"""
    lstm, x = wide({steps}, {rows})
    print(interrupted(lambda: lstm(x, threads={threads})))
    assert solve(8) == expected
    """
    assert float(run(INTERRUPTED + textwrap.dedent(code), tmp_path)) < 1.5


@in_time
@pytest.mark.parametrize(
    ("steps", "rows", "every"),
    [(4_000, 1, None), (500, 20, None), (8, 1_200, None), (4_000, 1, "auto"), (8, 1_200, 1)],
    ids=["one_row", "few_rows", "few_steps", "one_row_run_again", "few_steps_run_again"],
)
def test_ctrl_c_interrupts_a_backward(steps: int, rows: int, every: int | str | None, tmp_path: Path) -> None:
    code = f"""
    lstm, x = wide({steps}, {rows})
    y, _, tape = lstm.forward(x, checkpoint_every={every!r})
    print(interrupted(lambda: lstm.backward(tape, dy=y, threads=1)))
    assert solve(8) == expected
    """
    assert float(run(INTERRUPTED + textwrap.dedent(code), tmp_path)) < 1.5


@in_time
def test_ctrl_c_in_a_training_forward_and_the_layer_lives_on(tmp_path: Path) -> None:
    code = """
    lstm, x = wide(1_000, 160)
    print(interrupted(lambda: lstm.forward(x)))
    y, _, tape = lstm.forward(x[:5])
    g = lstm.backward(tape, dy=y)
    assert np.isfinite(g.x).all()
    assert (lstm(x[:5])[0] == y).all()
    """
    assert float(run(INTERRUPTED + textwrap.dedent(code), tmp_path)) < 1.5


@in_time
@pytest.mark.parametrize(("heads", "steps", "rows", "threads"), [(1, 8_000, 8, 1), (2, 16_000, 8, 2), (1, 400, 160, 2)])
def test_ctrl_c_interrupts_an_slstm(heads: int, steps: int, rows: int, threads: int, tmp_path: Path) -> None:
    code = f"""
    slstm, x = fastlstm.SLSTM(1, 1024, {heads}, seed=0), wide({steps}, {rows})[1]
    print(interrupted(lambda: slstm(np.concatenate([x] * 8), threads={threads})))
    y, _, tape = slstm.forward(x[:{steps} // 8])
    assert interrupted(lambda: [slstm.backward(tape, dy=y, threads={threads}) for _ in range(100)]) < 1.5
    """
    assert float(run(INTERRUPTED + textwrap.dedent(code), tmp_path)) < 1.5


def test_a_handler_that_does_not_raise_lets_the_call_go_on(tmp_path: Path) -> None:
    code = """
    lstm, x = make(64)
    x = np.concatenate([x] * 16)
    expected = lstm(x)[0]
    ticks = []
    signal.signal(signal.SIGALRM, lambda *_: ticks.append(time.monotonic()))
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    end = time.monotonic() + 1
    while time.monotonic() < end:
        assert (lstm(x)[0] == expected).all()
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert len(ticks) > 2
    """
    run(INTERRUPTED + textwrap.dedent(code), tmp_path)
