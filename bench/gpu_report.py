"""What gpu.py found, as tables and plots: python bench/gpu_report.py bench/results/<folder>/steps.json

Figures are µs of a step: the median of a call over its steps. Measures nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from report import absent, number, table
from results import geometric_mean

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
# The same whatever the shape: where all blocks meet once a step, by compute capability; where one block meets nobody;
# and for a launch a step.
MEETING = {"8.0": 0.71, "9.0": 0.57}
LEVELS = {"one block": 0.25, "graph launch": 2.0, "host launch": 5.0}


class Entry(NamedTuple):
    case: str
    mode: str
    precision: str


class Run:
    """One report of gpu.py."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data, self.cases = data, data["cases"]

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

    def step(self, entry: Entry, system: str) -> float | None:
        """µs of a step."""
        median = self.rows.get(entry, {}).get(system, {}).get("median")
        return None if median is None else 1e6 * median / self.cases[entry.case]["T"]

    def fastest(self, entry: Entry) -> tuple[str, float] | None:
        """Of our algorithms, when each is asked for by name."""
        known = {name: value for name in ALGORITHMS if (value := self.step(entry, name)) is not None}
        return min(known.items(), key=lambda pair: pair[1]) if known else None

    def lost(self, entry: Entry) -> float | None:
        """The automatic choice's time over that of the fastest algorithm."""
        own, best = self.step(entry, AUTO), self.fastest(entry)
        return own / best[1] if own and best else None

    def gain(self, entry: Entry) -> float | None:
        """cuDNN's time over ours."""
        own, other = self.step(entry, AUTO), self.step(entry, CUDNN)
        return other / own if own and other else None

    def levels(self, mode: str) -> dict[str, float]:
        """The floors of ways to run, in µs a step; training takes each step twice."""
        known = MEETING.get(self.data["gpu"]["compute_capability"])
        once = LEVELS | ({"blocks meet": known} if known else {})
        return {name: level * (2 if mode == "training" else 1) for name, level in once.items()}

    def floor(self, entry: Entry) -> float | None:
        case = self.cases[entry.case]
        has_model = entry.mode == "inference" and entry.precision in ("fp16", "bf16")
        return FLOORS.get(case["H"], {}).get(case["B"]) if has_model else None


def sizes(run: Run, entry: Entry) -> list[str]:
    return [str(run.cases[entry.case][letter]) for letter in "BHT"]


def steps_table(run: Run, entries: list[Entry]) -> str:
    """A line for each shape: every system's time, cuDNN's over ours, the floor."""
    systems = run.names("system")
    head = ["N", "H", "T", *systems, "auto took", "cudnn / auto", "floor"]
    lines = []
    for entry in entries:
        cells = [microseconds(run, entry, system) for system in systems]
        took = run.rows[entry].get(AUTO, {}).get("took", "")
        lines.append([*sizes(run, entry), *cells, took, number(run.gain(entry)), number(run.floor(entry))])
    return table(head, lines)


def microseconds(run: Run, entry: Entry, system: str) -> str:
    value = run.step(entry, system)
    return number(value) if value is not None else absent(run.rows[entry].get(system, {}))


def choices_table(run: Run, entries: list[Entry]) -> str:
    """For each entry the fastest algorithm and the automatic choice; where it lost most comes first."""
    lost = {entry: value for entry in entries if (value := run.lost(entry))}
    lines = []
    for entry, value in sorted(lost.items(), key=lambda pair: -pair[1]):
        fastest, took = run.fastest(entry), run.rows[entry][AUTO].get("took", "")
        lines.append([*sizes(run, entry), entry.precision, entry.mode, fastest[0] if fastest else "", took])
        lines[-1] += [number(value)]
    return table(["N", "H", "T", "precision", "mode", "fastest", "auto took", "auto / fastest"], lines)


def errors_table(run: Run) -> str:
    """The largest error of each system against the reference in float64, and where."""
    lines = []
    for precision in run.names("precision"):
        for system in run.names("system"):
            rows = [r for r in run.data["rows"] if (r["precision"], r["system"]) == (precision, system)]
            known = [row for row in rows if "error" in row]
            if known:
                worst = max(known, key=lambda row: row["error"])
                lines.append([precision, system, f"{worst['error']:.1e}", f"{worst['error_in']}, {worst['case']}"])
    return table(["precision", "system", "largest error", "in"], lines)


def remarks(run: Run) -> list[str]:
    reasons: dict[str, int] = {}
    for row in run.data["rows"]:
        for kind in ("missing", "wrong", "crashed"):
            if kind in row:
                loud = kind if kind == "missing" else f"{kind.upper()} ({row['case']}, {row['mode']})"
                text = f"{row['system']}, {row['precision']}: {loud}: {row[kind]}"
                reasons[text] = reasons.get(text, 0) + 1
    lines = [f"{text} ({count} times)" if count > 1 else text for text, count in reasons.items()]
    if left := run.data["not_reached"]:
        lines.append(f"The time was over before {left} of the shapes, precisions and modes.")
    return lines


def markdown(run: Run, plots: list[str]) -> str:
    data, gpu = run.data, run.data["gpu"]
    commit = (data["commit"] or "unknown")[:10] + (" and uncommitted changes" if data["changed"] else "")
    facts = [
        f"{data['started']}, fastlstm {data['versions']['fastlstm']}, commit {commit}",
        f"{gpu['name']}, compute capability {gpu['compute_capability']}, {gpu['processors']} multiprocessors",
        *(f"nvidia-smi: {line}" for line in gpu["nvidia_smi"]),
        f"{gpu['library']}, cuDNN {gpu.get('cudnn', 'none')}, kernels for {data['build']['cuda_architectures']}",
        f"{data['machine']['cpu']}, {data['machine']['cores']} cores, {data['machine']['system']}",
    ]
    parts = [f"# {data['name']}, {gpu['name']}", "\n".join(f"- {fact}" for fact in facts)]
    parts.append(
        "µs of a step: the median time of a call on the GPU, over T. A call is all that a user waits for: the product "
        "of x, in training all gradients and the packing of weights. `auto` is the automatic choice, `took` its "
        "algorithm in the forward pass; the floor is a model on paper, of an H100's forward pass in 16 bits."
    )
    parts += [f"![{Path(plot).stem}]({plot})" for plot in plots]
    if any(run.gain(entry) for entry in run.rows):
        parts += [gains(run)]
    for mode in run.names("mode"):
        for precision in run.names("precision"):
            if entries := run.entries(mode, precision):
                parts += [f"## {mode.capitalize()}, {precision}", steps_table(run, entries)]
    losses = [value for entry in run.rows if (value := run.lost(entry))]
    if losses:
        mean = f"Geometric mean of what is lost {number(geometric_mean(losses))}, at most {number(max(losses))}."
        parts += ["## The automatic choice", mean, choices_table(run, run.entries())]
    parts += ["## Errors", errors_table(run), "## Remarks", "\n".join(f"- {line}" for line in remarks(run))]
    return "\n\n".join(part for part in parts if part) + "\n"


def gains(run: Run) -> str:
    """cuDNN's time over ours, by mode and precision."""
    lines = []
    for mode in run.names("mode"):
        for precision in run.names("precision"):
            known = [value for entry in run.entries(mode, precision) if (value := run.gain(entry))]
            if known:
                ahead = f"{sum(value > 1 for value in known)} of {len(known)}"
                figures = (geometric_mean(known), min(known), max(known))
                lines.append([mode, precision, *map(number, figures), ahead])
    head = ["mode", "precision", "cudnn / auto, geometric mean", "least", "most", "shapes in which auto is ahead"]
    return table(head, lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, nargs="+", help="what gpu.py wrote")
    parser.add_argument("--no-plot", action="store_true", help="tables alone, which need no matplotlib")
    options = parser.parse_args(argv)
    for path in options.path:
        run = Run(json.loads(path.read_text()))
        plots: list[str] = []
        if not options.no_plot and CUDNN in run.names("system"):
            try:
                from gpu_plots import draw
            except ImportError as reason:
                print(f"no plots: {reason}")
            else:
                plots = [plot.name for plot in draw(run, path)]
        text = markdown(run, plots)
        path.with_suffix(".md").write_text(text)
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
