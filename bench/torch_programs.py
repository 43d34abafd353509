"""Programs as torch's users write them, with torch.nn.LSTM and with fastlstm.torch: python bench/torch_programs.py

Writes results/<name>.json and a table beside it. Each program runs in turns with what it is compared with, in one
process. The figure is the fastest block of each; on one thread, of CPU time, which other processes disturb less.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastlstm
from fastlstm.torch import LSTM, convert
from machine import facts, machine

HERE = Path(__file__).resolve().parent
Run = Callable[[], Any]
BLOCK = 0.003  # seconds, or one call: so short that some blocks pass between two turns of other processes


class Program(NamedTuple):
    """What runs, by the names of its columns: torch's first, which the others are measured by."""

    name: str
    lanes: dict[str, Run]
    trains: bool


class Model(nn.Module):
    """An LSTM and a linear layer: a forecaster, or a tagger with an embedding before it."""

    def __init__(self, kind: Any, inputs: int, hidden: int, outputs: int, words: int = 0, **options: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, inputs) if words else nn.Identity()
        self.lstm = kind(inputs, hidden, batch_first=True, **options)
        self.linear = nn.Linear(hidden * (1 + self.lstm.bidirectional), outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.lstm(self.embedding(x))
        return self.linear(y)


def training_step(model: nn.Module, x: torch.Tensor) -> Run:
    """Forward, backward and Adam."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)

    def run() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    return run


def inference(model: nn.Module, x: torch.Tensor) -> Run:
    model.eval()
    return lambda: model(x)


# Name, steps, batch, inputs, hidden, outputs, further arguments
MODELS = [
    ("hydrology", 365, 64, 31, 128, 1, {}),
    ("stocks (qlib)", 60, 200, 6, 64, 1, {"num_layers": 2}),
    ("language model", 70, 20, 128, 256, 256, {}),
    ("tagger", 40, 32, 100, 128, 20, {"bidirectional": True, "words": 5000}),
    ("amplifier", 1000, 16, 1, 16, 1, {}),
]


def models() -> list[Program]:
    """Each with torch's layer, and after one line: `convert(model)`."""
    programs = []
    for mode, run in (("training step", training_step), ("inference", inference)):
        for name, T, B, I, H, outputs, options in MODELS:
            pair = [Model(nn.LSTM, I, H, outputs, **options) for _ in range(2)]
            convert(pair[1])
            x = torch.randint(5000, (B, T)) if "words" in options else torch.randn(B, T, I)
            lanes = dict(zip(("torch", "fastlstm"), (run(model, x) for model in pair), strict=True))
            programs.append(Program(f"{name}: {mode}", lanes, mode == "training step"))
    return programs


def lengths() -> list[Program]:
    """Rows of different length: packed and unpacked, or said to the layer."""
    T, B, I, H = 100, 32, 64, 128
    theirs, ours = nn.LSTM(I, H), LSTM(I, H)
    x, ends = torch.randn(T, B, I), torch.randint(1, T + 1, (B,))

    def packed(layer: nn.Module) -> torch.Tensor:
        y, _ = layer(pack_padded_sequence(x, ends, enforce_sorted=False))
        return pad_packed_sequence(y, total_length=T)[0]

    ways = {
        "torch, packed": (theirs, lambda: packed(theirs)),
        "fastlstm, packed": (ours, lambda: packed(ours)),
        "fastlstm, lengths=": (ours, lambda: ours(x, lengths=ends)[0]),
    }
    return [
        Program("rows of different length: training", {name: differentiate(*way) for name, way in ways.items()}, True),
        Program("rows of different length: inference", {name: forward for name, (_, forward) in ways.items()}, False),
    ]


def differentiate(layer: nn.Module, forward: Callable[[], torch.Tensor]) -> Run:
    def run() -> None:
        layer.zero_grad()
        forward().square().mean().backward()

    return run


def resets() -> list[Program]:
    """A PPO update's forward and backward over episodes that begin anywhere: a step at a time, as libraries do it."""
    T, B, I, H = 128, 8, 64, 256
    theirs, converted, ours = nn.LSTM(I, H), nn.LSTM(I, H), LSTM(I, H)
    convert(converted)
    x, starts = torch.randn(T, B, I), torch.rand(T, B) < 0.03

    def stepwise(layer: nn.Module) -> torch.Tensor:
        h = c = torch.zeros(1, B, H)
        ys = []
        for t in range(T):
            keep = (~starts[t]).float()[None, :, None]
            y, (h, c) = layer(x[t : t + 1], (h * keep, c * keep))
            ys.append(y)
        return torch.cat(ys)

    ways = {
        "torch, step by step": (theirs, lambda: stepwise(theirs)),
        "fastlstm, step by step": (converted, lambda: stepwise(converted)),
        "fastlstm, reset=": (ours, lambda: ours(x, reset=starts)[0]),
    }
    return [Program("PPO with resets: training", {name: differentiate(*way) for name, way in ways.items()}, True)]


def overhead() -> list[Program]:
    """One step of one row of 64 units: what torch's machinery costs, beside NumPy's face of the same kernels."""
    theirs, ours, numpy = nn.LSTM(64, 64), LSTM(64, 64), fastlstm.LSTM(64, 64)
    x, array = torch.randn(1, 1, 64), np.random.default_rng(0).standard_normal((1, 1, 64), np.float32)

    def train(layer: nn.Module) -> Run:
        def run() -> None:
            y, _ = layer(x)
            torch.autograd.grad(y, list(layer.parameters()), y)

        return run

    def train_numpy() -> None:
        numpy.load_state_dict(weights)
        y, _, tape = numpy.forward(array)
        numpy.backward(tape, dy=y)

    weights = numpy.state_dict()
    first = {"torch": lambda: theirs(x), "fastlstm": lambda: ours(x), "fastlstm on NumPy": lambda: numpy(array)}
    second = {"torch": train(theirs), "fastlstm": train(ours), "fastlstm on NumPy": train_numpy}
    return [
        Program("one step of one row: inference", first, False),
        Program("one step of one row: training", second, True),
    ]


def measure(program: Program, seconds: float, clock: Callable[[], float]) -> dict[str, dict[str, float]]:
    """Seconds a call by that clock: the fastest block of each lane, the median, and how many there were."""
    calls, blocks = {}, {name: list[float]() for name in program.lanes}
    for name, run in program.lanes.items():
        for _ in range(3):
            run()
        begun = clock()
        run()
        calls[name] = max(1, int(BLOCK / max(clock() - begun, 1e-7)))
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, blocks.values())) < 5:
        for name, run in program.lanes.items():
            begun = clock()
            for _ in range(calls[name]):
                run()
            blocks[name].append((clock() - begun) / calls[name])
    return {
        name: {"fastest": min(times), "median": statistics.median(times), "blocks": len(times)}
        for name, times in blocks.items()
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: torch's time, and how many times as fast the others are."""
    lines = ["| program | threads | torch | times as fast |", "|---|---|---|---|"]
    for row in rows:
        (first, torchs), *others = row["lanes"].items()
        name = "" if first == "torch" else f" ({first.removeprefix('torch, ')})"
        faster = "; ".join(f"{lane} {torchs['fastest'] / own['fastest']:.2f}" for lane, own in others)
        lines.append(f"| {row['program']} | {row['threads']} | {in_words(torchs['fastest'])}{name} | {faster} |")
    return "\n".join(lines)


def in_words(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="torch-programs")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each program and number of threads")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", default="", help="programs whose names contain this")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    base, report = HERE / "results" / arguments.name, facts() | {"machine": machine()}
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        fastlstm.set_num_threads(threads)
        torch.manual_seed(0)
        for program in (*models(), *lengths(), *resets(), *overhead()):
            if arguments.only not in program.name:
                continue
            with torch.inference_mode(not program.trains):
                lanes = measure(program, arguments.seconds, time.process_time if threads == 1 else time.perf_counter)
            row = {"program": program.name, "threads": threads, "load": os.getloadavg()[0], "lanes": lanes}
            rows.append(row)
            print(table([row]).splitlines()[-1], file=sys.stderr, flush=True)
            base.with_suffix(".json").write_text(json.dumps(report | {"programs": rows}, indent=1) + "\n")
    base.with_suffix(".md").write_text(page(rows))


def page(rows: list[dict[str, Any]]) -> str:
    loads = [row["load"] for row in rows]
    load = f"{machine()['cores']} cores, shared with others (load {min(loads):.0f} to {max(loads):.0f})"
    clock = "On one thread times are of the CPU, on more of a clock; the fastest block counts."
    return f"# Programs with torch\n\n{machine()['cpu']}, {load}; torch {torch.__version__}. {clock}\n\n{table(rows)}\n"


if __name__ == "__main__":
    main()
