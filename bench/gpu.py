"""Times each algorithm on a GPU, beside cuDNN, after a comparison with the reference: python bench/gpu.py steps

Writes <name>-<grid>.json, which gpu_report.py turns into tables and plots. gpu_first_minutes.sh calls both.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import gpu_arrays
from cases import Case, Problem, problem
from check import FULL_TOLERANCE, TOLERANCE, Results, Wrong, solved, worst
from gpu_arrays import Gpu
from gpu_systems import CHECKED, OURS, PRECISIONS, SYSTEMS, Precision, Task, ends, taken
from machine import facts, save
from rivals import Missing, Runner

HERE = Path(__file__).resolve().parent
MODES = ("inference", "training")
INPUT = 128  # I of every shape: cuDNN's fastest kernels want a multiple of it
MOST_FLOPS = 2.0**38  # of the product with h in a call: fewer steps where they are large
BLOCK = 0.01  # seconds of a block
SLOW = 20.0  # times the fastest: such a system is timed once


# Grids: what is most worth knowing first, for time may run out


@dataclass(frozen=True)
class Grid:
    batches: tuple[int, ...]
    sizes: tuple[int, ...]
    precisions: tuple[str, ...]
    systems: tuple[str, ...]
    steps: int

    def cases(self) -> list[Case]:
        """First those of the first batches and sizes."""
        at = itertools.product(range(len(self.batches)), range(len(self.sizes)))
        order = sorted(at, key=lambda place: (sum(place), place))
        return [shape(self.batches[n], self.sizes[h], self.steps) for n, h in order]


def shape(N: int, H: int, steps: int) -> Case:
    most = MOST_FLOPS / (8.0 * N * H * H)
    return Case(f"N={N}, H={H}", min(steps, 1 << int(np.log2(max(most, CHECKED)))), N, INPUT, H)


GRIDS = {
    "steps": Grid(
        (16, 64, 1, 256, 128),
        (768, 256, 1024, 64, 512, 128),
        tuple(PRECISIONS),
        (*OURS, "step graph", "cudnn"),
        1024,
    ),
    # Around the sizes where the automatic choice changes.
    "choices": Grid(
        (32, 1, 8, 132, 512), (64, 128, 256, 48, 96, 192, 384, 640, 896), ("fp16", "fp32"), tuple(OURS), 256
    ),
    # So short that launches cost more than what they do.
    "graphs": Grid(
        (1, 16, 64), (256, 64, 768), ("fp16", "fp32"), ("auto", "auto graph", "step", "step graph", "cudnn"), 16
    ),
}


def measure(gpu: Gpu, case: Case, mode: str, precision: Precision, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each system, with its figures, or why there are none."""
    rows, runners, first = [], {}, None
    for name in options.systems:
        row = {"case": case.name, "mode": mode, "precision": precision.name, "system": name}
        rows.append(row)
        try:
            gpu.use_tf32(precision.tf32)
            short = replace(case, T=min(case.T, CHECKED))
            task = Task(gpu, rounded(gpu, short, precision.dtype), mode, precision)
            exact = solved_once(gpu, short, precision.dtype)
            row["error"], row["error_in"] = worst(results(SYSTEMS[name](task)), exact, precision.tolerance(TOLERANCE))
            task = task._replace(problem=whole(case))
            runner = SYSTEMS[name](task)
            found = results(runner)
            first = first or found
            worst(found, first, precision.tolerance(FULL_TOLERANCE))
            if name == "auto":
                row["took"] = taken(task)
            runners[name] = runner
        except (Missing, ValueError) as reason:  # ValueError: "which this layer cannot be"
            row["missing"] = str(reason)
        except Wrong as reason:
            row["wrong"] = str(reason)
        except Exception as reason:  # whatever a library or a driver raises must not end the run
            row["crashed"] = f"{type(reason).__name__}: {reason}"
    figures = time_in_turns(gpu, runners, options.rounds)
    return [row | figures.get(row["system"], {}) for row in rows]


@functools.lru_cache(maxsize=2)
def rounded(gpu: Gpu, case: Case, dtype: str) -> Problem:
    """The problem with the numbers that the dtype has, in float64."""
    p = problem(case, "float32")

    def exactly(array: np.ndarray) -> np.ndarray:
        return gpu.get(gpu.put(array, dtype))

    some = {name: exactly(getattr(p, name)) for name in ("x", "h0", "c0", "dy")}
    return replace(p, weights={name: exactly(array) for name, array in p.weights.items()}, **some)


@functools.lru_cache(maxsize=2)
def solved_once(gpu: Gpu, case: Case, dtype: str) -> Results:
    """What is the same in all modes, since inference has a part of training's results."""
    return solved(rounded(gpu, case, dtype), "training")


whole = functools.lru_cache(maxsize=1)(functools.partial(problem, dtype="float32"))


def results(runner: Runner) -> Results:
    return {name: array.astype(np.float64) for name, array in ends(runner.read(runner.run())).items()}


def time_in_turns(gpu: Gpu, runners: dict[str, Runner], rounds: int) -> dict[str, dict[str, Any]]:
    """Figures by system: medians and quartiles of blocks, which take turns in a new order each round."""
    blocks: dict[str, list[tuple[float, float]]] = {}
    crashed: dict[str, dict[str, Any]] = {}
    calls: dict[str, int] = {}

    def block(name: str, count: int) -> None:
        try:
            figures = gpu.time(runners[name].run, count)
            blocks.setdefault(name, []).append(figures)
        except Exception as reason:  # as in `measure`
            crashed[name] = {"crashed": f"{type(reason).__name__}: {reason}"}

    for name in runners:
        block(name, 1)
    estimates = {name: found[0][0] for name, found in blocks.items()}
    again = [name for name, seconds in estimates.items() if seconds <= SLOW * min(estimates.values())]
    for name in again:
        calls[name] = max(1, round(BLOCK / max(estimates[name], 1e-9)))
        blocks[name] = []  # the estimate was the first call of its kind, cold
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        for at in rng.permutation(len(again)):
            if again[at] not in crashed:
                block(again[at], calls[again[at]])
    return {name: summary(found) for name, found in blocks.items() if found} | crashed


def summary(blocks: list[tuple[float, float]]) -> dict[str, Any]:
    q1, median, q3 = np.percentile([device for device, _ in blocks], [25, 50, 75]).tolist()
    host = float(np.median([host for _, host in blocks]))
    return {"median": median, "q1": q1, "q3": q3, "host": host, "blocks": len(blocks)}


def plan(options: argparse.Namespace) -> Iterator[tuple[Case, Precision, str]]:
    cases = GRIDS[options.grid].cases()
    if options.shapes:
        cases = [shape(N, H, options.steps) for N, H in options.shapes]
    for case in cases:
        for precision, mode in itertools.product(options.precisions, options.modes):
            yield replace(case, T=min(case.T, options.steps)), PRECISIONS[precision], mode


def time_all(report: dict[str, Any], gpu: Gpu, options: argparse.Namespace, path: Path) -> None:
    """Row by row until the time is over; what is not reached is counted, so that an interrupted run says so too."""
    done = {(row["case"], row["precision"], row["mode"]) for row in report["rows"]}
    entries = [entry for entry in plan(options) if (entry[0].name, entry[1].name, entry[2]) not in done]
    report["not_reached"] = len(entries)
    for case, precision, mode in entries:
        if time.time() > options.until:
            break
        report["cases"][case.name] = asdict(case)
        rows = measure(gpu, case, mode, precision, options)
        report["rows"] += rows
        report["not_reached"] -= 1
        save(path, report)
        print(f"{case.name}, T={case.T}, {precision.name}, {mode}:", ", ".join(map(said, rows)), flush=True)
        if any("crashed" in row for row in rows) and not works(gpu):
            # The error left this process without a GPU: a new one goes on with the next row.
            os.execv(sys.executable, [sys.executable, *sys.argv, "--resume", "--until", str(options.until)])
        gpu.release()
    save(path, report)


def works(gpu: Gpu) -> bool:
    try:
        return gpu.get(gpu.put(np.ones(1), "float32"))[0] == 1
    except Exception:  # of whatever kind: that is the question
        return False


def said(row: dict[str, Any]) -> str:
    if "median" not in row:
        return f"{row['system']} " + next(kind for kind in ("WRONG", "CRASHED", "missing") if kind.lower() in row)
    took = f" ({row['took']})" if "took" in row else ""
    return f"{row['system']}{took} {row['median'] * 1e3:.3g} ms"


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    gpu, why_not = gpu_arrays.find()
    if gpu is None:
        print("no GPU can be used:", "; ".join(why_not))
        return gpu_arrays.NO_GPU
    path = options.folder / f"{options.name}-{options.grid}.json"
    report: dict[str, Any] = {
        "name": options.name,
        "grid": options.grid,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **facts(),
        "gpu": gpu.facts() | {"nvidia_smi": gpu_arrays.nvidia_smi()},
        "settings": {"rounds": options.rounds, "block": BLOCK},
        "cases": {},
        "rows": [],
    }
    if options.resume and path.exists():
        report = json.loads(path.read_text())
    time_all(report, gpu, options, path)
    for kind in ("wrong", "crashed"):
        for row in (row for row in report["rows"] if kind in row):
            print(f"{kind.upper()}: {row['system']}, {row['case']}, {row['precision']}, {row['mode']}: {row[kind]}")
    absent = [f"{row['system']}: {row['missing'].partition(': ')[0]}" for row in report["rows"] if "missing" in row]
    for reason in dict.fromkeys(absent):
        print(f"missing: {reason}")
    if report["not_reached"]:
        print(f"the time was over before {report['not_reached']} shapes, precisions and modes")
    print(path)
    return 1 if any("wrong" in row or "crashed" in row for row in report["rows"]) else 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("grid", choices=list(GRIDS), help="steps: beside cuDNN; choices: of an algorithm; graphs: of launches")
    add("--systems", nargs="+", choices=list(SYSTEMS), help="default the grid's")
    add("--precisions", nargs="+", choices=list(PRECISIONS), help="default the grid's")
    add("--modes", nargs="+", choices=MODES, default=list(MODES))
    add("--shapes", nargs="+", type=sizes, metavar="N,H", help="default the grid's")
    add("--steps", type=int, help="T at most; default the grid's")
    add("--rounds", type=int, default=5, help="blocks of each system (default 5)")
    add("--seconds", type=float, default=600.0, help="after which no shape is begun (default 600)")
    add("--name", default="gpu", help="of the file, before the grid's (default gpu)")
    add("--folder", type=Path, default=HERE / "results")
    add("--resume", action="store_true", help="keep the rows that are in the file")
    add("--until", type=float, help="seconds since 1970, instead of --seconds")
    options = parser.parse_args(argv)
    grid = GRIDS[options.grid]
    for name in ("systems", "precisions", "steps"):
        if getattr(options, name) is None:
            setattr(options, name, getattr(grid, name))
    options.until = options.until or time.time() + options.seconds
    return options


def sizes(text: str) -> tuple[int, int]:
    """N and H of "16,768"."""
    found = tuple(map(int, text.split(",")))
    if len(found) != 2 or min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected N,H, such as 16,768")
    return found[0], found[1]


if __name__ == "__main__":
    sys.exit(main())
