"""Turns what run.py wrote into Markdown tables and a plot beside it: python bench/report.py bench/results/<name>.json

Every ratio is a rival's median over ours in the same run: above 1 we are faster. Computes no times of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

OURS = "fastlstm"
TIE = 0.10  # a smaller difference is noise (README.md)

Rows = dict[str, dict[str, Any]]  # by rival


def rows_of(report: dict[str, Any], case: str, mode: str, threads: int) -> Rows:
    wanted = {"case": case, "mode": mode, "threads": threads}
    return {row["rival"]: row for row in report["rows"] if wanted.items() <= row.items()}


def values(report: dict[str, Any], key: str) -> list[Any]:
    """What stands under `key` in the rows, each once, in their order."""
    return list(dict.fromkeys(row[key] for row in report["rows"]))


def ratio(rows: Rows, rival: str) -> float | None:
    if "median" not in rows.get(OURS, {}) or "median" not in rows.get(rival, {}):
        return None
    return rows[rival]["median"] / rows[OURS]["median"]


def is_noisy(rows: Rows, rival: str) -> bool:
    return any(rows.get(name, {}).get("noisy", False) for name in (OURS, rival))


def is_tie(value: float) -> bool:
    return abs(value - 1) < TIE


def duration(seconds: float) -> str:
    """Three digits, in µs, ms or s."""
    unit, scale = ("µs", 1e6) if seconds < 1e-3 else ("ms", 1e3) if seconds < 1 else ("s", 1.0)
    value = seconds * scale
    digits = max(0, 2 - int(np.floor(np.log10(value)))) if value > 0 else 0
    return f"{value:.{digits}f} {unit}"


# Tables


def our_cell(rows: Rows, flops: float) -> str:
    row = rows.get(OURS, {})
    if "median" not in row:
        return absent(row)
    return f"{duration(row['median'])}{'*' if row['noisy'] else ''}, {flops / row['median'] / 1e9:.3g}"


def rival_cell(rows: Rows, rival: str) -> str:
    row = rows.get(rival, {})
    if "median" not in row:
        return absent(row)
    text, value = f"{duration(row['median'])}{'*' if row['noisy'] else ''}", ratio(rows, rival)
    if value is None:
        return text
    number = f"{value:.2f}" if value < 10 else f"{value:.0f}"
    return f"{text}, tie ({number})" if is_tie(value) else f"{text}, **{number}**"


def absent(row: dict[str, Any]) -> str:
    return "WRONG" if "wrong" in row else "missing" if "missing" in row else ""


def table(report: dict[str, Any], mode: str) -> str:
    """One row for each case, and for each number of threads our time and every rival's with its ratio."""
    rivals = [rival for rival in values(report, "rival") if rival != OURS]
    threads = values(report, "threads")
    head = ["case", "T,B,I,H"]
    for n in threads:
        head += [f"{n} thread{'s' * (n > 1)}: {OURS}, GFLOP/s", *rivals]
    lines = [head, ["---"] * len(head)]
    for name, case in report["cases"].items():
        cells = [name, ",".join(str(case[letter]) for letter in "TBIH")]
        for n in threads:
            rows = rows_of(report, name, mode, n)
            cells += [our_cell(rows, case["flops"][mode]), *(rival_cell(rows, rival) for rival in rivals)]
        lines.append(cells)
    means = ["geometric mean", ""]
    for n in threads:
        means += ["", *(mean_cell(report, mode, n, rival) for rival in rivals)]
    lines.append(means)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def mean_cell(report: dict[str, Any], mode: str, threads: int, rival: str) -> str:
    every = [rows_of(report, case, mode, threads) for case in report["cases"]]
    known = [value for rows in every if not is_noisy(rows, rival) and (value := ratio(rows, rival)) is not None]
    return f"**{np.exp(np.mean(np.log(known))):.2f}** of {len(known)}" if known else ""


def remarks(report: dict[str, Any]) -> list[str]:
    """What a reader must know before believing a figure."""
    lines = []
    if any(row.get("noisy") for row in report["rows"]):
        lines.append("`*` Other processes were busy during most blocks of this figure: draw no conclusion from it.")
    missing: dict[str, list[str]] = {}
    for row in report["rows"]:
        for kind in ("missing", "wrong"):
            if kind in row:
                cases = missing.setdefault(f"{row['rival']} is {kind}: {row[kind]}", [])
                cases += [row["case"]] * (row["case"] not in cases)
    lines += [f"{reason} ({', '.join(cases)})" for reason, cases in missing.items()]
    return lines


def markdown(report: dict[str, Any], plot_name: str | None) -> str:
    machine, start = report["machine"], report["import"]
    packages = ", ".join(f"{name} {number or 'not installed'}" for name, number in report["versions"].items())
    commit = (report["commit"] or "none")[:10] + (" and uncommitted changes" if report["changed"] else "")
    facts = [
        f"{report['started']}, commit {commit}",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, load before {machine['load']:.1f}",
        f"{packages}; {report['build']['compiler']}, {report['build']['isa_active']}",
        f"importing {OURS} takes {duration(start['median'])} ({duration(start['q1'])} to {duration(start['q3'])}) "
        f"over NumPy's {duration(start['numpy'])}",
    ]
    parts = [f"# {report['name']}", "\n".join(f"- {fact}" for fact in facts)]
    method = "Medians; the bold number is the rival's time over ours in the same run"
    parts.append(f"{method}. A difference below {TIE:.0%} is a tie. Means leave out noisy figures.")
    for mode in values(report, "mode"):
        parts += [f"## {mode.capitalize()}", table(report, mode)]
    notes = remarks(report)
    parts += ["## Remarks", "\n".join(f"- {note}" for note in notes)] if notes else []
    parts += [f"![ratios]({plot_name})"] if plot_name else []
    return "\n\n".join(parts) + "\n"


# The plot

INK, FAINT, PAPER = "#22303c", "#a9b1b8", "#fbfaf7"
COLOURS = ("#e4572e", "#2a6f97", "#5a9a5a", "#8e6bb0", "#c99a2e", "#4aa5a5", "#7a6a5a", "#d1709b")
MARKERS = "osD^vPX*"


def plot(report: dict[str, Any], path: Path) -> None:
    """The ratio to each rival by case, on a panel for each mode and number of threads.

    Bars reach from quartile to quartile, ties lie in the grey band, noisy figures are pale.
    """
    import matplotlib
    from matplotlib.figure import Figure

    modes, threads, cases = values(report, "mode"), values(report, "threads"), list(report["cases"])
    rivals = [rival for rival in values(report, "rival") if rival != OURS]
    style = {"font.size": 9, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}
    style |= {"figure.facecolor": PAPER, "axes.facecolor": PAPER, "axes.edgecolor": FAINT}
    with matplotlib.rc_context(style):
        size = (2.2 + 3.4 * len(threads) * len(modes), 1.9 + 0.3 * len(cases))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, len(modes) * len(threads), sharex=True, sharey=True, squeeze=False)[0]
        places = [(mode, n) for mode in modes for n in threads]
        for axes, (mode, n) in zip(panels, places, strict=True):
            panel(axes, report, mode, n, rivals)
            axes.set_title(f"{mode}, {n} thread{'s' * (n > 1)}", loc="left", weight="bold", fontsize=10)
        panels[0].set_yticks(range(len(cases)), cases)
        panels[0].set_ylim(len(cases) - 0.5, -0.5)
        shown = dict(pair[::-1] for axes in panels for pair in zip(*axes.get_legend_handles_labels(), strict=True))
        figure.legend(shown.values(), shown, loc="outside lower center", ncols=len(rivals) or 1, frameon=False)
        figure.suptitle(f"A rival's time over {OURS}'s: right of the line {OURS} is faster", weight="bold", fontsize=12)
        figure.savefig(path, dpi=140)


def panel(axes: Any, report: dict[str, Any], mode: str, threads: int, rivals: list[str]) -> None:
    axes.axvspan(1 - TIE, 1 + TIE, color=FAINT, alpha=0.3, linewidth=0)
    axes.axvline(1, color=INK, linewidth=0.8)
    for at, rival in enumerate(rivals):
        look = {"fmt": MARKERS[at % len(MARKERS)], "color": COLOURS[at % len(COLOURS)], "markersize": 5}
        axes.errorbar([], [], label=rival, **look)
        for line, case in enumerate(report["cases"]):
            rows = rows_of(report, case, mode, threads)
            value = ratio(rows, rival)
            if value is None:
                continue
            low, high = rows[rival]["q1"] / rows[OURS]["q3"], rows[rival]["q3"] / rows[OURS]["q1"]
            y, alpha = line + 0.16 * (at - (len(rivals) - 1) / 2), 0.3 if is_noisy(rows, rival) else 1.0
            axes.errorbar(value, y, xerr=[[value - low], [high - value]], alpha=alpha, **look)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(axis="y", color=FAINT, alpha=0.3, linewidth=0.6)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="what run.py wrote")
    parser.add_argument("--no-plot", action="store_true", help="tables alone, which need no matplotlib")
    options = parser.parse_args(argv)
    report = json.loads(options.path.read_text())
    picture = options.path.with_suffix(".png")
    if not options.no_plot:
        plot(report, picture)
    text = markdown(report, None if options.no_plot else picture.name)
    options.path.with_suffix(".md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
