"""Turns what run.py wrote into Markdown and plots beside it: python bench/report.py bench/results/<name>.json

Every ratio is a rival's median over ours in the same run: above 1 we are faster. Measures nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from goals import CLIFF, verdicts
from results import TIE, Entry, Run, geometric_mean, is_tie
from rivals import OURS

Cells = list[str]


def duration(seconds: float) -> str:
    """Three digits, in µs, ms or s."""
    unit, scale = ("µs", 1e6) if seconds < 1e-3 else ("ms", 1e3) if seconds < 1 else ("s", 1.0)
    value = seconds * scale
    digits = max(0, 2 - int(np.floor(np.log10(value)))) if value > 0 else 0
    return f"{value:.{digits}f} {unit}"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value < 10 else f"{value:.0f}"


def table(head: Cells, lines: Iterable[Cells]) -> str:
    """A Markdown table, without the columns that have no cell."""
    lines = list(lines)
    used = [at for at in range(len(head)) if any(line[at] for line in lines)]
    every = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(line[at] for at in used)} |" for line in every) if lines else ""


def shape(case: dict[str, Any]) -> str:
    extras = [f"{case['layers']} layers"] * (case["layers"] > 1) + ["both directions"] * case["bidirectional"]
    extras += [case["varying"]] * bool(case["varying"]) + [case["dtype"]] * (case["dtype"] != "float32")
    return ", ".join([",".join(str(case[letter]) for letter in "TBIH"), *extras])


# Cells


def our_cell(run: Run, entry: Entry) -> str:
    own = run.median(entry)
    if own is None:
        return absent(run.rows[entry].get(OURS, {}))
    return duration(own) + "*" * run.noisy(entry)


def share_cell(run: Run, entry: Entry) -> str:
    share = run.share(entry)
    return f"{share[0]:.0%} {share[1]}" if share else ""


def ratio_text(value: float, noisy: bool) -> str:
    text = number(value) + "*" * noisy
    return f"tie ({text})" if is_tie(value) else f"**{text}**" if value > 1 else text


def best_cell(run: Run, entry: Entry) -> str:
    best = run.best(entry)
    return f"{best[0]} {ratio_text(best[1], run.noisy(entry, best[0]))}" if best else ""


def rival_cell(run: Run, entry: Entry, rival: str) -> str:
    row, value = run.rows[entry].get(rival, {}), run.ratio(entry, rival)
    if value is not None:
        return ratio_text(value, run.noisy(entry, rival))
    return duration(row["median"]) if "median" in row else absent(row)


def absent(row: dict[str, Any]) -> str:
    return next((kind for kind in ("WRONG", "CRASHED", "missing") if kind.lower() in row), "")


# Tables


def figures(run: Run, entries: list[Entry], today: bool = False) -> str:
    """A line for each entry: our time and its part of the limit, the best rival, and each rival's ratio."""
    rivals = run.rivals(entries)
    head = ["case", "T,B,I,H", "mode", "threads", OURS, "of its limit", "best rival", "called today", *rivals]
    lines = []
    for entry in entries:
        case = run.cases[entry.case]
        lines.append([entry.case, shape(case), entry.mode, str(entry.threads), our_cell(run, entry)])
        lines[-1] += [share_cell(run, entry), best_cell(run, entry)]
        own = case["today"] if today else ""
        lines[-1] += [f"{own} {rival_cell(run, entry, own)}" if own else ""]
        lines[-1] += [rival_cell(run, entry, rival) for rival in rivals]
    if len(entries) > 1:
        lines.append(["geometric mean", *[""] * 7, *(mean_cell(run, entries, rival) for rival in rivals)])
    return table(head, lines)


def mean_cell(run: Run, entries: list[Entry], rival: str) -> str:
    known = [run.ratio(entry, rival) for entry in entries if not run.noisy(entry, rival)]
    count = sum(value is not None for value in known)
    return f"{number(geometric_mean(known))} of {count}" if count else ""


def sweeps(run: Run) -> str:
    """One line for each size: the time, and the time by FLOP as a multiple of the fastest size's in its sweep."""
    columns = [(mode, threads) for mode in ("inference", "training") for threads in run.threads]
    head = ["size", *(f"{mode}, {threads} thr." for mode, threads in columns)]
    names = dict.fromkeys(entry.case for entry in run.entries(groups=["sweep"]))
    rates = {entry: run.rate(entry) or 0.0 for entry in run.entries(groups=["sweep"])}
    lines = []
    for name in names:
        cells = [name.removeprefix("sweep_").replace("_", " = ")]
        for mode, threads in columns:
            entry = Entry(name, mode, threads)
            family = name.rsplit("_", 1)[0]
            same = [rate for e, rate in rates.items() if e[1:] == entry[1:] and e.case.startswith(family)]
            own = rates.get(entry)
            cells.append(f"{our_cell(run, entry)}, {max(same) / own:.2f}" if own else "")
        lines.append(cells)
    return table(head, lines)


def goals(run: Run) -> str:
    """How many of each goal's rows pass, and every row that does not."""
    every = list(verdicts(run))
    words = ("pass", "limit", "short", "tie", "behind")
    counts = {
        goal: Counter(v.verdict for v in every if v.goal == goal) for goal in dict.fromkeys(v.goal for v in every)
    }
    summary = table(["goal", *words], [[goal, *(str(n[w] or "") for w in words)] for goal, n in counts.items()])
    order = {word: at for at, word in enumerate(reversed(words))}
    missed = sorted((v for v in every if v.verdict not in ("pass", "limit")), key=lambda v: (v.goal, order[v.verdict]))
    lines = [[v.goal, v.where, number(v.got), number(v.needed), v.verdict, v.why] for v in missed]
    note = (
        "*limit*: at the machine's limit, where more cannot be asked; *short*: ahead, but by less than the goal; "
        f"*tie*: within {TIE:.0%}; sizes may cost {CLIFF} times their neighbour's time by FLOP."
    )
    rest = ["Not reached:", table(["goal", "where", "got", "needed", "", ""], lines)] if lines else []
    return "\n\n".join([summary, note, *rest]) if every else ""


def latencies(run: Run) -> str:
    rows = run.data.get("latency", [])
    head = ["case", "", "other thread", "p50", "p99", "p99.9"]
    return table(
        head,
        [
            [row["case"], row["rival"], "busy" if row["busy"] else "none"]
            + [duration(row[p]) if p in row else absent(row) for p in ("p50", "p99", "p99.9")]
            for row in rows
        ],
    )


def memory(run: Run) -> str:
    def line(row: dict[str, Any]) -> Cells:
        must = f"{row['must'] / 1e6:.1f} MB"
        peak = [f"{row['peak'] / 1e6:.1f} MB", number(row["peak"] / row["must"])] if "peak" in row else ["missing", ""]
        return [row["case"], row["mode"], must, *peak]

    return table(["case", "mode", "must keep or return", "peak", "ratio"], map(line, run.data.get("memory", [])))


def machine_limits(run: Run) -> str:
    if "missing" in run.ceilings:
        return f"Not measured: {run.ceilings['missing']}"
    first = next(iter(run.ceilings.values()))
    sizes = [size for size, _ in first["read"]]
    head = ["threads", "float32 GFLOP/s", "float64", *(f"{size >> 10} KB, GB/s" for size in sizes)]
    return table(
        head,
        [
            [
                n,
                f"{r['float32'] / 1e9:.1f}",
                f"{r['float64'] / 1e9:.1f}",
                *(f"{rate / 1e9:.0f}" for _, rate in r["read"]),
            ]
            for n, r in run.ceilings.items()
        ],
    )


def readme(run: Run) -> str:
    """README's table: the grid, each cell with the best rival's ratio and torch's."""
    columns = [(mode, threads) for mode in ("inference", "training") for threads in run.threads]
    head = ["T,B,I,H", *(f"{mode}, {threads} thread{'s' * (threads > 1)}" for mode, threads in columns)]

    def cell(entry: Entry) -> str:
        best = run.best(entry) if entry in run.rows else None
        if best is None:
            return ""
        return f"{best[0]} {ratio_text(best[1], run.noisy(entry, best[0]))}; torch {rival_cell(run, entry, 'torch')}"

    names = [name for name, case in run.cases.items() if case["group"] == "grid"]
    return table(
        head, [[shape(run.cases[name]), *(cell(Entry(name, *column)) for column in columns)] for name in names]
    )


def remarks(run: Run) -> list[str]:
    """What a reader must know before believing a figure."""
    lines = []
    if any(row.get("noisy") for row in run.data["rows"]):
        lines.append("`*` Other processes were busy during most blocks of this figure: draw no conclusion from it.")
    reasons: dict[str, list[str]] = {}
    for row in run.data["rows"]:
        for kind in ("missing", "wrong", "crashed"):
            if kind in row:
                loud = kind if kind == "missing" else kind.upper()
                cases = reasons.setdefault(f"{row['rival']} is {loud}: {row[kind]}", [])
                cases += [row["case"]] * (row["case"] not in cases)
    return lines + [f"{reason} ({', '.join(cases)})" for reason, cases in reasons.items()]


def sections(run: Run) -> dict[str, str]:
    grid = {mode: run.entries(mode, groups=["grid", ""], dtype="float32") for mode in ("inference", "training")}
    return {
        "Inference": figures(run, grid["inference"]),
        "Training": figures(run, grid["training"]),
        "One step": figures(run, [e for e in run.entries("step") if run.cases[e.case]["group"] != "real"]),
        "Real workloads": figures(run, run.entries(groups=["real"]), today=True),
        "float64": figures(run, [e for e in run.entries(dtype="float64") if run.cases[e.case]["group"] != "real"]),
        "Other cases": figures(run, run.entries(groups=["extra"], dtype="float32")),
        "Sizes": sweeps(run),
        "Latency of single steps": latencies(run),
        "Memory": memory(run),
        "Goals": goals(run),
        "The machine": machine_limits(run),
        "Remarks": "\n".join(f"- {note}" for note in remarks(run)),
    }


def markdown(run: Run, plots: list[str]) -> str:
    data = run.data
    machine, start = data["machine"], data["import"]
    packages = ", ".join(f"{name} {number or 'not installed'}" for name, number in data["versions"].items())
    commit = (data["commit"] or "none")[:10] + (" and uncommitted changes" if data["changed"] else "")
    facts = [
        f"{data['started']}, commit {commit}",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, load before {machine['load']:.1f}",
        f"{packages}; {data['build']['compiler']}, {data['build']['isa_active']}",
        f"importing {OURS} takes {duration(start['median'])} ({duration(start['q1'])} to {duration(start['q3'])}) "
        f"over NumPy's {duration(start['numpy'])}",
    ]
    parts = [f"# {data['name']}", "\n".join(f"- {fact}" for fact in facts)]
    parts.append(
        f"Medians; under a rival's name stands its time over ours in the same run. Below {TIE:.0%} it is a tie. "
        "Means leave out noisy figures. The limit is that of bench/README.md."
    )
    parts += [f"![{Path(plot).stem}]({plot})" for plot in plots]
    for title, text in sections(run).items():
        parts += [f"## {title}", text] if text else []
    return "\n\n".join(parts) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="what run.py wrote")
    parser.add_argument("--no-plot", action="store_true", help="tables alone, which need no matplotlib")
    parser.add_argument("--readme", action="store_true", help="print README's table, and write nothing")
    options = parser.parse_args(argv)
    run = Run.of(options.path)
    if options.readme:
        print(readme(run))
        return 0
    plots: list[str] = []
    if not options.no_plot:
        from plots import draw  # with matplotlib, which tables do not need

        plots = [path.name for path in draw(run, options.path)]
    text = markdown(run, plots)
    options.path.with_suffix(".md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
