"""Reads what gpu.py wrote: figures, ratios, the fastest algorithm, floors, what others published. Lays nothing out."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

AUTO, CUDNN = "auto", "cudnn"
ALGORITHMS = ("step", "resident", "persistent")

# A model on paper, in µs a step, of an H100's forward pass in 16 bits: all blocks wait for one another, h is brought to
# each, and the product takes its time. By H, then N. Nobody can be below it, unless the model is wrong.
FLOORS = {
    256: {16: 0.62, 64: 0.67, 256: 0.80},
    512: {16: 0.70, 64: 0.81, 256: 1.5},
    768: {16: 0.81, 64: 1.3, 256: 3.5},
    1024: {16: 0.99, 64: 1.6, 256: 4.5},
}
# The same whatever the shape: where all blocks hand h to one another, by compute capability; where one block keeps it;
# and for a launch a step.
EXCHANGE = {"8.0": 0.71, "9.0": 0.57}
LEVELS = {"one block": 0.25, "graph launch": 2.0, "host launch": 5.0}

# What others have published, in ms of a call: FlashRNN's plot of an H100 SXM. They stand beside ours, and no ratio is
# taken: the machine, the input size and the versions are others.
ANCHOR = "N=16, H=768"  # at T = 1024
ANCHORS = {
    ("cuDNN", "fp16"): {"inference": 2.01, "training": 5.19},
    ("FlashRNN, fused", "bf16"): {"inference": 4.87, "training": 13.6},
    ("FlashRNN, alternating", "bf16"): {"inference": 10.8, "training": 26.5},
    ("haste", "fp32"): {"inference": 18.4, "training": 43.9},
    ("a loop in PyTorch", ""): {"inference": 147.0, "training": 484.0},
}


class Entry(NamedTuple):
    case: str
    mode: str
    precision: str


class Run:
    """What gpu.py found of one grid."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data, self.grid, self.cases = data, data["grid"], data["cases"]

    @classmethod
    def of(cls, path: Path) -> Run:
        return cls(json.loads(path.read_text()))

    @cached_property
    def rows(self) -> dict[Entry, dict[str, dict[str, Any]]]:
        """By entry and system, in the order in which they were measured."""
        found: dict[Entry, dict[str, dict[str, Any]]] = {}
        for row in self.data["rows"]:
            found.setdefault(Entry(row["case"], row["mode"], row["precision"]), {})[row["system"]] = row
        return found

    def entries(self, mode: str = "", precision: str = "") -> list[Entry]:
        """By N, then H; only those that something was timed in."""
        chosen = [e for e, row in self.rows.items() if mode in ("", e.mode) and precision in ("", e.precision)]
        timed = [e for e in chosen if any("median" in row for row in self.rows[e].values())]
        return sorted(timed, key=lambda e: (self.cases[e.case]["B"], self.cases[e.case]["H"]))

    def names(self, of: str) -> list[str]:
        """The modes or precisions, or systems, that something was timed in."""
        return list(dict.fromkeys(row[of] for row in self.data["rows"] if "median" in row))

    def call(self, entry: Entry, system: str, figure: str = "median") -> float | None:
        """Seconds of a call: on the GPU, or "host": until it is back in Python."""
        return self.rows.get(entry, {}).get(system, {}).get(figure)

    def step(self, entry: Entry, system: str) -> float | None:
        """µs of a step."""
        median = self.call(entry, system)
        return None if median is None else 1e6 * median / self.cases[entry.case]["T"]

    def ratio(self, entry: Entry, system: str, over: str) -> float | None:
        """The time of one over another's: above 1 the other is faster."""
        one, other = self.call(entry, system), self.call(entry, over)
        return one / other if one and other else None

    def ranking(self, entry: Entry) -> list[str]:
        """Our algorithms, each asked for by name, the fastest first."""
        known = {name: value for name in ALGORITHMS if (value := self.call(entry, name)) is not None}
        return sorted(known, key=known.__getitem__)

    def lost(self, entry: Entry) -> float | None:
        """The automatic choice's time over that of the fastest algorithm."""
        order = self.ranking(entry)
        return self.ratio(entry, AUTO, order[0]) if len(order) > 1 else None

    def gain(self, entry: Entry) -> float | None:
        """cuDNN's time over ours."""
        return self.ratio(entry, CUDNN, AUTO)

    def levels(self, mode: str) -> dict[str, float]:
        """The floors of ways to run, in µs a step; training takes each step twice."""
        known = EXCHANGE.get(self.data["gpu"]["compute_capability"])
        once = LEVELS | ({"exchange": known} if known else {})
        return {name: level * (2 if mode == "training" else 1) for name, level in once.items()}

    def floor(self, entry: Entry) -> float | None:
        case = self.cases[entry.case]
        has_model = entry.mode == "inference" and entry.precision in ("fp16", "bf16")
        return FLOORS.get(case["H"], {}).get(case["B"]) if has_model else None
