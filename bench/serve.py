"""What runs in a rival's process: sets cases up, runs and times them, as worker.py asks. Started by worker.py alone."""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from cases import STEPS_CHECKED, Case, problem
from rivals import Missing, Rival, Runner

TICK = 0.01  # what the kernel's count of CPU time is rounded to


class Session:
    """What a worker can be asked for. It holds one case at a time."""

    def __init__(self, rival: Rival, threads: int) -> None:
        self.rival, self.threads = rival, threads
        self.runner: Runner | None = None

    def set_up(self, case: Case, mode: str) -> dict[str, np.ndarray]:
        """Its results: of one call, or of the last one of several steps."""
        self.runner = None  # the case before goes first, to save memory
        gc.collect()
        try:
            module = importlib.import_module(self.rival.module)
        except ImportError as error:
            raise Missing(f"{error}") from None
        self.runner = module.set_up(problem(case), mode, self.threads, **self.rival.options)
        result = [self.runner.run() for _ in range(STEPS_CHECKED if mode == "step" else 1)][-1]
        return {name: np.asarray(array) for name, array in self.runner.read(result).items()}

    def time(self, calls: int, warm: bool) -> tuple[float, float | None]:
        """Of a block of calls: seconds a call, and cores that others used meanwhile, None where that is not known.

        warm: the same call runs once before the clock starts, for its caches and its pool.
        """
        run = self.runner.run
        gc.collect()
        gc.disable()
        try:
            if warm:
                run()
            before, own = machine_seconds(), time.process_time()
            start = time.perf_counter()
            for _ in range(calls):
                run()
            seconds = time.perf_counter() - start
            after, own = machine_seconds(), time.process_time() - own
        finally:
            gc.enable()
        others = None if before is None or after is None else max(0.0, after - before - own - 2 * TICK) / seconds
        return seconds / calls, others

    def latencies(self, calls: int, busy: bool) -> list[float]:
        """Seconds of each of `calls` calls, alone or beside a Python thread that never rests."""
        stop, clock, run = threading.Event(), time.perf_counter, self.runner.run

        def work() -> None:
            while not stop.is_set():
                sum(range(1000))

        other = threading.Thread(target=work, daemon=True)
        if busy:
            other.start()
        times = []
        for _ in range(calls):
            start = clock()
            run()
            times.append(clock() - start)
        stop.set()
        return times

    def peak_memory(self, case: Case, mode: str) -> int:
        """Bytes by which the first call of a case raises the most memory that this process ever had."""
        module = importlib.import_module(self.rival.module)
        run = module.set_up(problem(case), mode, self.threads, **self.rival.options).run
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before would be used again and not be seen
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is used now
        before = status("VmHWM")
        run()
        return status("VmHWM") - before


def status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def machine_seconds() -> float | None:
    """CPU seconds that all processes have used together, with those that the hypervisor took away."""
    try:
        words = Path("/proc/stat").read_text().splitlines()[0].split()
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(word) for word in words[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def serve(pipe: Connection) -> None:
    """Answer until the other end is gone."""
    session = Session(*pipe.recv())
    while True:
        try:
            command, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = "returned", getattr(session, command)(*arguments)
        except Missing as reason:
            answer = "missing", str(reason)
        except Exception as error:
            traceback.print_exc()
            answer = "failed", f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
        pipe.send(answer)


if __name__ == "__main__":
    if sys.platform == "linux":  # a stopped process would outlive a killed bench for ever
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    serve(Connection(int(sys.argv[1])))
