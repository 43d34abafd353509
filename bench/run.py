"""Checks that all rivals compute the same LSTM, then times them in turns: python bench/run.py --quick

Writes results/<name>.json, which report.py turns into tables and a plot. README.md has the method and its reasons.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import time
import timeit
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import ThreadpoolController
from tqdm import tqdm

import fastlstm
from cases import CASES, MODES, QUICK, Case, Problem, choose, problem
from fastlstm import reference
from rivals import OURS, RIVALS, Missing, Runner, versions

HERE = Path(__file__).resolve().parent

CHECK_FLOPS = 2e9  # the float64 reference gets as many steps of a case as fit into these
# The largest max|a-b| / max|b| of an array: is it the same LSTM? (How exact it is, the test suite asks.)
TOLERANCE = {"float32": 1e-5, "float64": 1e-11}
FULL_TOLERANCE = {"float32": 1e-4, "float64": 1e-10}  # between rivals over all steps

SETTLE_LIMIT = 1.0  # seconds that other threads get to fall asleep
BUSY = 0.05  # the part of one core that other processes may use during a block
TICK = 0.01  # what the kernel's count of their time is rounded to


class Wrong(Exception):
    """A rival computes something else; the message says which array and by how much."""


# Checking


def worst(got: dict[str, np.ndarray], expected: dict[str, np.ndarray], limit: float) -> tuple[float, str]:
    """The largest relative error of an array, and its name; raises Wrong above the limit."""
    errors = {}
    for name, array in got.items():
        if array.shape != expected[name].shape:
            raise Wrong(f"{name} has shape {array.shape}, expected {expected[name].shape}")
        errors[name] = float(np.abs(array - expected[name]).max() / np.abs(expected[name]).max())
    name = max(errors, key=lambda name: np.nan_to_num(errors[name], nan=np.inf))
    if not errors[name] <= limit:
        raise Wrong(f"{name} is {errors[name]:.1e} off, expected at most {limit:.0e}")
    return errors[name], name


def check(case: Case, mode: str, rival: str, threads: int, exact: dict[str, np.ndarray]) -> tuple[float, str]:
    """A rival's error against the float64 reference over the first steps."""
    runner = RIVALS[rival](problem(case.shortened(CHECK_FLOPS, mode)), mode, threads)
    return worst(runner.read(runner.run()), exact, TOLERANCE[case.dtype])


def exact_results(case: Case, mode: str) -> dict[str, np.ndarray]:
    p: Problem = problem(case.shortened(CHECK_FLOPS, mode), "float64")
    y, (h_n, c_n), tape = reference.lstm_forward(p.x, p.weights, (p.h0, p.c0), training=mode == "training")
    results = {"y": y, "h_n": h_n, "c_n": c_n}
    if mode == "training":
        g = reference.lstm_backward(tape, p.dy)
        results |= {"dx": g.x, "dh0": g.state[0], "dc0": g.state[1]}
        results |= {f"d{name}": array for name, array in g.weights.items()}
    return results


# Timing


class Block(NamedTuple):
    """One timed stretch of calls of one rival."""

    seconds: float  # a call
    others: float | None  # cores that other processes used meanwhile, beyond rounding; None where that is not known

    @property
    def quiet(self) -> bool:
        return self.others is None or self.others <= BUSY


def settle() -> None:
    """Wait until no thread of this process works any more: some pools spin for 50 ms after a call."""
    deadline = time.perf_counter() + SETTLE_LIMIT
    while time.perf_counter() < deadline:
        start, used = time.perf_counter(), time.process_time()
        time.sleep(0.005)
        if time.process_time() - used < 0.1 * (time.perf_counter() - start):
            return


def machine_seconds() -> float | None:
    """CPU seconds that all processes have used together, with those that the hypervisor took away."""
    try:
        words = Path("/proc/stat").read_text().splitlines()[0].split()
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(word) for word in words[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def time_block(runner: Runner, calls: int) -> Block:
    """The same rival runs once before the clock starts, so that its weights lie in the caches and its pool is awake."""
    settle()
    runner.run()
    before, own = machine_seconds(), time.process_time()
    start = time.perf_counter()
    for _ in range(calls):
        runner.run()
    seconds = time.perf_counter() - start
    after, own = machine_seconds(), time.process_time() - own
    others = None if before is None or after is None else max(0.0, after - before - own - 2 * TICK) / seconds
    return Block(seconds / calls, others)


def time_in_turns(runners: dict[str, Runner], rounds: int, seconds: float, budget: float) -> dict[str, dict[str, Any]]:
    """Blocks of about `seconds`, in a new order each round, until each rival has `rounds` quiet ones or twice as many.

    Where a round takes long there are fewer, at least three, so that a case stays near `budget` seconds.
    """
    calls = {}
    for name, runner in runners.items():
        estimate = min(timeit.repeat(runner.run, number=1, repeat=3))
        calls[name] = max(1, round(seconds / estimate))
    blocks: dict[str, list[Block]] = {name: [] for name in runners}
    rng, start = np.random.default_rng(0), time.perf_counter()
    gc.collect()
    gc.disable()
    try:
        for turn in range(2 * rounds):
            enough = min(sum(block.quiet for block in own) for own in blocks.values()) >= rounds
            late = turn >= 3 and time.perf_counter() - start > budget
            if enough or late:
                break
            for name in rng.permutation(list(runners)):
                blocks[name].append(time_block(runners[name], calls[name]))
    finally:
        gc.enable()
    return {name: summary(own, calls[name]) for name, own in blocks.items()}


def summary(blocks: list[Block], calls: int) -> dict[str, Any]:
    """Median and quartiles of the quiet blocks; of all, and marked as noisy, if less than three were quiet."""
    quiet = [block for block in blocks if block.quiet]
    noisy = len(quiet) < min(3, len(blocks))
    q1, median, q3 = np.percentile([block.seconds for block in (blocks if noisy else quiet)], [25, 50, 75]).tolist()
    return {
        "median": median,
        "q1": q1,
        "q3": q3,
        "noisy": noisy,
        "calls_per_block": calls,
        "blocks": [{"seconds": block.seconds, "others": block.others} for block in blocks],
    }


def measure(case: Case, mode: str, threads: int, rivals: list[str], options: argparse.Namespace) -> list[dict]:
    """Check, set up and time all rivals of one case: a row for each, with its figures, or why there are none."""
    rows, runners = {}, {}
    exact, first = exact_results(case, mode), None
    whole = problem(case)
    for rival in rivals:
        rows[rival] = row = {"case": case.name, "mode": mode, "threads": threads, "rival": rival}
        try:
            row["error"], row["error_in"] = check(case, mode, rival, threads, exact)
            runner = RIVALS[rival](whole, mode, threads)
            results = runner.read(runner.run())
            if first is None:
                first = results
            worst(results, first, FULL_TOLERANCE[case.dtype])
            runners[rival] = runner
        except Missing as reason:
            row["missing"] = str(reason)
        except Wrong as reason:
            row["wrong"] = str(reason)
    if runners:
        for rival, figures in time_in_turns(runners, options.rounds, options.block, options.budget).items():
            rows[rival] |= figures
    return list(rows.values())


def import_times(runs: int) -> dict[str, float]:
    """Seconds that `import fastlstm` takes after `import numpy`, and NumPy's own, in fresh interpreters."""
    code = "import time as t; a = t.perf_counter(); import numpy; b = t.perf_counter(); import fastlstm"
    code += "; print(b - a, t.perf_counter() - b)"
    command = [sys.executable, "-c", code]
    subprocess.run(command, check=True, capture_output=True)  # reads the files into the page cache
    printed = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(runs)]
    times = np.array([[float(word) for word in line.split()] for line in printed])
    q1, median, q3 = np.percentile(times[:, 1], [25, 50, 75]).tolist()
    return {"numpy": float(np.median(times[:, 0])), "median": median, "q1": q1, "q3": q3, "runs": runs}


# Where and what


def machine() -> dict[str, Any]:
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = os.getloadavg()[0]
    return {"cpu": (names or [platform.processor()])[0], "cores": cores, "system": platform.platform(), "load": load}


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def commit() -> dict[str, Any]:
    """The commit of the checkout, and whether it was changed; None outside of one. (The build may be an older one.)"""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "--verify", "HEAD")
    return {"commit": head, "changed": bool(git("status", "--porcelain")) if head else None}


def save(path: Path, report: dict[str, Any]) -> None:
    """Replaced at once, so that an interrupted run leaves all that it has measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".json.part")
    draft.write_text(json.dumps(report, indent=1) + "\n")
    draft.replace(path)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    cases = choose(options.cases or [case.name for case in CASES])
    path = options.folder / f"{options.name}.json"
    report: dict[str, Any] = {
        "name": options.name,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **commit(),
        "machine": machine(),
        "versions": {"python": platform.python_version(), "fastlstm": fastlstm.__version__, **versions()},
        "build": fastlstm.build_config(),
        "settings": {"rounds": options.rounds, "block": options.block, "budget": options.budget},
        "import": import_times(options.imports),
        "cases": {case.name: {**vars(case), "flops": {mode: case.flops(mode) for mode in MODES}} for case in cases},
        "rows": [],
    }
    rivals = [OURS, *(rival for rival in RIVALS if rival != OURS and rival in options.rivals)]
    controller = ThreadpoolController()
    plan = [(case, mode, threads) for case in cases for mode in options.modes for threads in options.threads]
    with tqdm(plan, unit="case", dynamic_ncols=True) as bar:
        for case, mode, threads in bar:
            bar.set_description(f"{case.name} {mode}, {threads} threads")
            with controller.limit(limits=threads, user_api="blas"):
                report["rows"] += measure(case, mode, threads, rivals, options)
            save(path, report)
    wrong = [row for row in report["rows"] if "wrong" in row]
    for row in wrong:
        print(f"WRONG: {row['rival']} in {row['case']}, {row['mode']}, {row['threads']} threads: {row['wrong']}")
    for reason in dict.fromkeys(f"{row['rival']}: {row['missing']}" for row in report["rows"] if "missing" in row):
        print(f"missing: {reason}")
    print(f"{path}\nnow: python bench/report.py {path}")
    return 1 if wrong else 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cores = machine()["cores"]
    parser.add_argument("--quick", action="store_true", help=f"a minute or two: {', '.join(QUICK)}, few short blocks")
    parser.add_argument("--cases", nargs="+", metavar="NAME", help="names or patterns such as 'row_*'; default all")
    parser.add_argument("--rivals", nargs="*", choices=list(RIVALS), default=list(RIVALS), help="beside fastlstm")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--threads", nargs="+", type=int, default=[n for n in (1, 2) if n <= cores])
    parser.add_argument("--rounds", type=int, help="quiet blocks for each rival (default 9; quick 3)")
    parser.add_argument("--block", type=float, help="seconds of a block (default 0.2; quick 0.05)")
    parser.add_argument("--budget", type=float, help="seconds after which a case gets no more rounds (default 60)")
    parser.add_argument("--name", default=time.strftime("%Y-%m-%d"), help="of the file; default today")
    parser.add_argument("--folder", type=Path, default=HERE / "results")
    options = parser.parse_args(argv)
    quick = options.quick
    options.cases = options.cases or (list(QUICK) if quick else None)
    defaults = {"rounds": 3 if quick else 9, "block": 0.05 if quick else 0.2, "budget": 10.0 if quick else 60.0}
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.imports = 3 if quick else 15
    return options


if __name__ == "__main__":
    sys.exit(main())
