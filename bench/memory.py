"""Peak memory and time of training one long sequence, whole tape against checkpoints: python bench/memory.py

Each length runs in a process of its own. Writes results/checkpointing-memory.json and the plot beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from machine import facts
from plots import FAINT, INK, OWN, STYLE, plain

HERE = Path(__file__).resolve().parent
I, H = 8, 64
STEPS = [1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000]
WAYS = {"whole tape": None, "checkpoints": "auto"}
LOOKS = {"whole tape": ("s", "#2a6f97"), "checkpoints": ("o", OWN)}
# The first call packs weights and loads code. VmHWM is the peak of this process; before and after each call it is set
# back. No y and no dy: with them both ways would need 8 H more bytes a step.
CHILD = """
import json, sys, time
import numpy as np
import fastlstm

def peak():
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

I, H, T, every, repeat = json.loads(sys.argv[1])
lstm = fastlstm.LSTM(I, H, seed=0)

def train(x):
    _, (h_n, _), tape = lstm.forward(x, checkpoint_every=every, return_sequence=False, threads=1)
    return tape.nbytes, lstm.backward(tape, dstate=(np.ones_like(h_n), None), threads=1)

x = np.random.default_rng(0).standard_normal((T, 1, I), np.float32)
train(x[:300])
fastlstm.release_memory()
before, seconds = peak(), []
for _ in range(repeat):
    start = time.perf_counter()
    nbytes, _ = train(x)
    seconds.append(time.perf_counter() - start)
    grown = peak() - before if len(seconds) == 1 else grown
print(json.dumps({"peak": grown, "tape": nbytes, "x": x.nbytes, "seconds": seconds}))
"""


def measure(T: int, way: str, rounds: int) -> dict[str, Any]:
    repeat = int(np.clip(rounds * 100_000 / T, 2, 200))
    arguments = json.dumps([I, H, T, WAYS[way], repeat])
    done = subprocess.run([sys.executable, "-c", CHILD, arguments], capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(f"T = {T}, {way}: {done.stderr.strip()}")
    row = json.loads(done.stdout)
    return row | {"T": T, "way": way, "seconds": float(np.median(row["seconds"])), "calls": repeat}


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The time with checkpoints over that with the whole tape, by T."""
    seconds = {(row["T"], row["way"]): row["seconds"] for row in rows}
    return {str(T): seconds[T, "checkpoints"] / seconds[T, "whole tape"] for T in dict.fromkeys(r["T"] for r in rows)}


def draw(report: dict[str, Any], path: Path) -> None:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.5, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        for way, (marker, colour) in LOOKS.items():
            rows = [row for row in report["rows"] if row["way"] == way]
            T, peak = [row["T"] for row in rows], [row["peak"] / 2**20 for row in rows]
            left.plot(T, peak, f"{marker}-", color=colour, markersize=4.5, linewidth=1.6)
            left.annotate(f"{way}: {peak[-1]:,.0f} MiB", (T[-1], peak[-1]), (-6, 5), textcoords="offset points",
                          ha="right", color=colour, weight="bold")  # fmt: skip
        least = [2 * row["x"] / 2**20 for row in rows]
        left.plot(T, least, "--", color=FAINT, linewidth=1)
        left.annotate("dx and a copy of x", (T[len(T) // 3], least[len(T) // 3]), (8, -12), textcoords="offset points")
        left.set_ylabel("MiB beside x")
        left.set_yscale("log")
        left.set_title("Peak memory of forward and backward")
        right.plot(*zip(*((int(T), ratio) for T, ratio in report["time ratio"].items()), strict=True), "o-", color=OWN)
        right.axhline(1, color=INK, linewidth=0.8)
        right.set_ylim(0, 2)
        right.set_title("Time with checkpoints / whole tape")
        for axes in (left, right):
            axes.set_xscale("log")
            axes.set_xlabel("steps T", weight="bold")
            axes.grid(color=FAINT, alpha=0.3, linewidth=0.6)
            axes.tick_params(length=0)
            plain(axes.yaxis)
        title = f"Training one sequence of I = {I}, H = {H}, B = 1 in float32, no y, one thread"
        figure.suptitle(title, weight="bold", x=0.01, ha="left")
        figure.savefig(path, dpi=130)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="checkpointing-memory")
    parser.add_argument("--folder", type=Path, default=HERE / "results")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--rounds", type=int, default=5, help="calls of 100,000 steps; of fewer steps more")
    options = parser.parse_args(argv)
    report: dict[str, Any] = {"name": options.name, **facts(), "I": I, "H": H, "rows": []}
    plan = [(T, way) for T in options.steps for way in WAYS]
    with tqdm(plan, unit="process", dynamic_ncols=True) as bar:
        for T, way in bar:
            bar.set_postfix_str(f"T = {T:,}, {way}")
            report["rows"].append(measure(T, way, options.rounds))
    report["time ratio"] = ratios(report["rows"])
    for row in report["rows"]:
        print(f"T = {row['T']:>9,}  {row['way']:<12} {row['peak'] / 2**20:8.1f} MiB  {row['seconds']:8.4f} s")
    print("time with checkpoints / whole tape:", {T: round(ratio, 2) for T, ratio in report["time ratio"].items()})
    path = options.folder / f"{options.name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    draw(report, path.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
