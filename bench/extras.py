"""What the bench measures beside times: latencies of single steps, memory of training, where one case's time goes."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import fastlstm
from cases import Case, choose, problem
from rivals import OURS, RIVALS, Missing
from rivals.ours import set_up
from worker import Crashed, Worker

LATENCY_CASES = ("step_64", "step_256", "vad_step", "amp_stream")
LATENCY_RIVALS = (OURS, "torch", "onnxruntime")
LATENCY_CALLS = 5000
PERCENTILES = (50, 99, 99.9)
MEMORY_CASES = ("batch32_256", "year_64", "long_256", "hydrology", "qlib")


def latency(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Percentiles of single steps, one after the other, alone and beside a busy Python thread in the same process.

    The process may use all cores, so that the two threads share nothing but the interpreter's lock.
    """
    rows = []
    cores = max(options.threads)
    for name in LATENCY_RIVALS:
        worker = Worker(RIVALS[name], threads=1, cores=cores)
        for case in choose(list(LATENCY_CASES)):
            for busy in (False, True):
                row = {"case": case.name, "rival": name, "busy": busy, "calls": LATENCY_CALLS}
                try:
                    worker.ask("set_up", case, "step", limit=options.limit)
                    times = worker.ask("latencies", LATENCY_CALLS, busy, limit=options.limit)
                    row |= {f"p{p:g}": float(np.percentile(times, p)) for p in PERCENTILES}
                except (Missing, Crashed) as reason:
                    row["missing"] = str(reason)
                rows.append(row)
        worker.close()
    return rows


def memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    """By how much a call of ours raises the most memory used, in a fresh process, beside what it has to keep or return.

    Training has to save i f g o, c, h and x of each step, and returns y, dx, the last state and the gradients of state
    and weights; inference returns y and the last state, and the first call keeps the packed weights.
    """
    rows = []
    for case in choose(list(MEMORY_CASES)):
        item, steps, states = np.dtype(case.dtype).itemsize, case.T * case.B, 2 * case.layers * case.B * case.H
        inputs = [case.I] + [case.H] * (case.layers - 1)
        saved = steps * sum(6 * case.H + size for size in inputs)
        weights = sum(map(sum, case.weights())) + 8 * case.H * case.layers
        must = {
            "inference": steps * case.H + states + weights,
            "training": saved + steps * (case.H + case.I) + 2 * states + weights,
        }
        for mode, numbers in must.items():
            worker = Worker(RIVALS[OURS], threads=1)
            row = {"case": case.name, "mode": mode, "must": numbers * item}
            try:
                worker.ask("set_up", case.shortened(0, mode), mode, limit=options.limit)  # loads code, starts pools
                row["peak"] = worker.ask("peak_memory", case, mode, limit=options.limit)
            except (Missing, Crashed) as reason:
                row["missing"] = str(reason)
            worker.close()
            rows.append(row)
    return rows


PARTS: dict[str, Callable[[argparse.Namespace], list[dict[str, Any]]]] = {"latency": latency, "memory": memory}


def profile(case: Case, threads: list[int], seconds: float = 1.0) -> str:
    """A table of where a call's time goes, by mode, threads and phase; the calling thread's rest is Python's."""
    core: Any = fastlstm._core
    if not hasattr(core, "profile"):
        return "this build of fastlstm has no profile"
    lines = [f"| {case.name} | phase | a call | share |", "|---|---|---|---|"]
    for mode in case.modes:
        for n in threads:
            run = set_up(problem(case), mode, n).run
            run()
            core.profile(True)
            calls, start = 0, time.perf_counter()
            while time.perf_counter() - start < seconds:
                run()
                calls += 1
            whole = time.perf_counter() - start
            phases: dict[str, float] = core.profile(False)
            phases["Python"] = whole - sum(phases.values())
            for phase, spent in sorted(phases.items(), key=lambda pair: -pair[1]):
                lines.append(f"| {mode}, {n} threads | {phase} | {spent / calls * 1e6:.1f} µs | {spent / whole:.1%} |")
    return "\n".join(lines)
