"""What gpu.py found, as tables and plots: python bench/gpu_report.py bench/results/gpu-h100-*.json

Writes <name>.md beside them, for all grids of a name. Figures are µs of a step: the median of a call over its steps.
Measures nothing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gpu_results import ANCHOR, ANCHORS, AUTO, Entry, Run
from report import absent, number, table
from results import geometric_mean

TITLES = {"steps": "Beside cuDNN", "choices": "The choice of an algorithm", "graphs": "Graphs of launches"}
NOTE = (
    "µs of a step: the median time of a call on the GPU, over T. A call is all that a user waits for: the product of "
    "x, in training all gradients and the packing of weights. `auto` is the automatic choice, `took` its algorithm in "
    "the forward pass; the floor is a model on paper, of an H100's forward pass in 16 bits."
)


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


def fastest_table(run: Run, mode: str, precision: str) -> str:
    """Which algorithm by N and H, how far before the next, and the automatic choice where it is another."""
    entries = {(run.cases[e.case]["B"], run.cases[e.case]["H"]): e for e in run.entries(mode, precision)}
    every = sorted({H for _, H in entries})
    lines = []
    for N in sorted({N for N, _ in entries}):
        lines.append([str(N), *(fastest(run, entries.get((N, H))) for H in every)])
    return table(["N, H", *map(str, every)], lines)


def fastest(run: Run, entry: Entry | None) -> str:
    order = [] if entry is None else run.ranking(entry)
    if entry is None or len(order) < 2:
        return ""
    took = run.rows[entry].get(AUTO, {}).get("took", order[0])
    other = f", not {took}" if took != order[0] else ""
    return f"{order[0]} {number(run.ratio(entry, order[1], order[0]))}×{other}"


def graphs_table(run: Run, entries: list[Entry]) -> str:
    """µs of a call as plain launches, and until it is back in Python, beside the replay of their graph."""
    head = ["N", "H", "T", "precision", "mode", "system", "call", "until back", "graph", "call / graph"]
    lines = []
    for entry in entries:
        for system in (AUTO, "step"):
            figures = [run.call(entry, *of) for of in ((system,), (system, "host"), (f"{system} graph",))]
            cells = [number(None if seconds is None else 1e6 * seconds) for seconds in figures]
            lines.append([*sizes(run, entry), entry.precision, entry.mode, system, *cells])
            lines[-1] += [number(run.ratio(entry, system, f"{system} graph"))]
    return table(head, lines)


def anchors_table(run: Run) -> str:
    """ms of a call at the shape that others published; nothing where it was not timed."""
    if run.cases.get(ANCHOR, {}).get("T") != 1024:
        return ""
    own = {
        (f"{system} here", precision): {
            mode: run.call(Entry(ANCHOR, mode, precision), system) for mode in run.names("mode")
        }
        for precision in run.names("precision")
        for system in run.names("system")
    }
    milliseconds = {key: {m: 1e3 * s for m, s in row.items() if s is not None} for key, row in own.items()}
    lines = [
        [name, precision, number(row.get("inference")), number(row.get("training"))]
        for (name, precision), row in {**milliseconds, **ANCHORS}.items()
        if row
    ]
    return table(["system", "precision", "ms, inference", "ms, training"], lines)


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
                loud = "missing" if kind == "missing" else f"{kind.upper()} ({row['case']}, {row['mode']})"
                why = row[kind].partition(": ")[0] if kind == "missing" else row[kind]  # the rest tells of one shape
                text = f"{row['system']}, {row['precision']}: {loud}: {why}"
                reasons[text] = reasons.get(text, 0) + 1
    lines = [f"{text} ({count} times)" if count > 1 else text for text, count in reasons.items()]
    if left := run.data["not_reached"]:
        lines.append(f"The time was over before {left} of the shapes, precisions and modes.")
    return lines


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


def facts(run: Run) -> str:
    data, gpu = run.data, run.data["gpu"]
    commit = (data["commit"] or "unknown")[:10] + (" and uncommitted changes" if data["changed"] else "")
    lines = [
        f"{data['started']}, fastlstm {data['versions']['fastlstm']}, commit {commit}",
        f"{gpu['name']}, compute capability {gpu['compute_capability']}, {gpu['processors']} multiprocessors",
        *(f"nvidia-smi: {line}" for line in gpu["nvidia_smi"]),
        f"{gpu['library']}, cuDNN {gpu.get('cudnn', 'none')}, kernels for {data['build']['cuda_architectures']}",
        f"{data['machine']['cpu']}, {data['machine']['cores']} cores, {data['machine']['system']}",
    ]
    return "\n".join(f"- {line}" for line in lines)


def section(run: Run, plots: list[str]) -> list[str]:
    """All of one grid."""
    parts = [f"## {TITLES[run.grid]}", *(f"![{Path(plot).stem}]({plot})" for plot in plots)]
    if any(run.gain(entry) for entry in run.rows):
        parts += [gains(run)]
    if published := anchors_table(run):
        parts += [f"### As published: {ANCHOR}, T=1024", published]
    if run.grid == "graphs":
        parts += ["µs of a call: on the GPU, until it is back in Python, and as the replay of its graph."]
        parts += [graphs_table(run, run.entries())]
    losses = [value for entry in run.rows if (value := run.lost(entry))]
    if losses:
        mean, most = number(geometric_mean(losses)), number(max(losses))
        parts += [f"The automatic choice over the fastest algorithm: {mean} in the geometric mean, at most {most}."]
    for mode in run.names("mode"):
        for precision in run.names("precision"):
            if entries := run.entries(mode, precision):
                parts += [f"### {mode.capitalize()}, {precision}", fastest_table(run, mode, precision)]
                parts += [steps_table(run, entries)]
    return [*parts, "### Errors", errors_table(run), "\n".join(f"- {line}" for line in remarks(run))]


def markdown(runs: list[Run], plots: list[list[str]]) -> str:
    """One report of all grids, which were measured on one machine."""
    first = runs[0]
    parts = [f"# {first.data['name']}, {first.data['gpu']['name']}", facts(first), NOTE]
    for run, own in zip(runs, plots, strict=True):
        parts += section(run, own)
    return "\n\n".join(part for part in parts if part) + "\n"


def plots_of(run: Run, path: Path) -> list[str]:
    """Of the grid that has floors to see, where there is matplotlib."""
    if run.grid != "steps":
        return []
    try:
        from gpu_plots import draw
    except ImportError as reason:
        print(f"no plots: {reason}", file=sys.stderr)
        return []
    return [plot.name for plot in draw(run, path)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", type=Path, nargs="+", help="what gpu.py wrote, under one name")
    parser.add_argument("--no-plot", action="store_true", help="tables alone, which need no matplotlib")
    options = parser.parse_args(argv)
    order = list(TITLES)
    runs = sorted(((Run.of(path), path) for path in options.paths), key=lambda pair: order.index(pair[0].grid))
    plots = [[] if options.no_plot else plots_of(run, path) for run, path in runs]
    text = markdown([run for run, _ in runs], plots)
    run, path = runs[0]
    path.with_name(f"{run.data['name']}.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
