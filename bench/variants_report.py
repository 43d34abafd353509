"""What variants.py found, as tables and as a plot: a torch loop's time over ours, and ours over our plain cell's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from plots import FAINT, INK, MODE_LOOK, STYLE, plain, threads_text
from report import duration, number, table
from results import geometric_mean
from rivals import OURS

PLAIN, TORCH = "plain", "torch"
MODES = ("inference", "training")
GOAL = 1.3  # of the plain cell's time
BEGIN, END = "<!-- costs: python bench/variants.py --docs -->", "<!-- end of costs -->"
Row = dict[str, Any]


def shape(row: Row) -> str:
    return ",".join(map(str, row["shape"]))


def quotient(row: Row, above: str, below: str) -> float | None:
    figures = [row["systems"].get(name, {}).get("median") for name in (above, below)]
    return figures[0] / figures[1] if all(figures) else None


def gain(row: Row) -> float | None:
    """The torch loop's time over ours."""
    return quotient(row, TORCH, OURS)


def cost(row: Row) -> float | None:
    """Our time over that of our plain cell."""
    return quotient(row, OURS, PLAIN)


def rows(report: Row, mode: str, variant: str = "") -> list[Row]:
    return [row for row in report["rows"] if row["mode"] == mode and variant in ("", row["variant"])]


def variants(report: Row) -> list[str]:
    """Those that were timed."""
    return list(dict.fromkeys(row["variant"] for row in report["rows"] if cost(row)))


def values(of: Callable[[Row], float | None], chosen: Iterable[Row]) -> tuple[list[float], str]:
    """Of the rows that were timed in quiet, or of all where there are none; then with a star."""
    known = [(value, noisy(row)) for row in chosen if (value := of(row))]
    quiet = [value for value, is_noisy in known if not is_noisy]
    return quiet or [value for value, _ in known], "*" * bool(known and not quiet)


def noisy(row: Row) -> bool:
    return any(figures.get("noisy") for figures in row["systems"].values())


def spread(of: Callable[[Row], float | None], chosen: Iterable[Row]) -> str:
    """The geometric mean, and from where to where."""
    known, star = values(of, chosen)
    if not known:
        return ""
    between = f" ({number(min(known))} to {number(max(known))})" if len(known) > 1 else ""
    return number(geometric_mean(known)) + star + between


def summary(report: Row) -> str:
    """A line for each variant, over all shapes and numbers of threads."""
    head = ["variant", "cost of inference", "cost of training", "gain in inference", "gain in training"]
    lines = [
        [f"`{name}`", *(spread(of, rows(report, mode, name)) for of in (cost, gain) for mode in MODES)]
        for name in variants(report)
    ]
    return table(head, lines)


def means(report: Row) -> str:
    """In words: of all but the plain cell."""
    parts = []
    for mode in MODES:
        chosen = [row for row in rows(report, mode) if row["variant"] != PLAIN]
        for what, of in (("cost", cost), ("gain", gain)):
            known, star = values(of, chosen)
            if known:
                parts.append(f"{what} of {mode} {number(geometric_mean(known))}{star}")
    return ", ".join(parts).replace("gain of", "gain in")


def page(report: Row, picture: str) -> str:
    """The Markdown page of a run."""
    machine, versions = report["machine"], report["versions"]
    commit = f"commit {(report['commit'] or 'unknown')[:10]}{' (changed)' * bool(report['changed'])}"
    facts = f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}; {report['build']['isa_active']}; "
    facts += f"torch {versions['torch']}, fastlstm {versions['fastlstm']}, {commit}."
    parts = [f"# Cell variants: {report['name']}", facts, f"![gain and cost by variant]({picture})"]
    about = "Cost: our time over that of our plain cell; gain: the time of a torch loop over ours. Figures with a star "
    about += "were timed beside other processes, and means leave them out. Geometric means of all but the plain cell: "
    parts += [f"{about}{means(report)}.", summary(report)]
    for mode in MODES:
        lines = [line(row) for row in rows(report, mode)]
        head = ["variant", "T,B,I,H", "threads", "ours", "torch loop", "gain", "cost"]
        if lines:
            parts += [f"## {mode.capitalize()}", table(head, lines)]
    return "\n\n".join([*parts, *troubles(report)]) + "\n"


def line(row: Row) -> list[str]:
    texts = []
    for name in (OURS, TORCH):
        figures = row["systems"].get(name, {})
        why = next((kind for kind in ("missing", "wrong", "crashed") if kind in figures), "")
        texts.append(duration(figures["median"]) + "*" * figures["noisy"] if "median" in figures else why)
    return [row["variant"], shape(row), str(row["threads"]), *texts, number(gain(row)), number(cost(row))]


def troubles(report: Row) -> list[str]:
    """What is missing, wrong or crashed, each reason once."""
    reasons = [
        f"{kind}: {name} in {row['variant']}, {row['mode']}: {figures[kind]}"
        for row in report["rows"]
        for name, figures in row["systems"].items()
        for kind in ("missing", "wrong", "crashed")
        if kind in figures
    ]
    return list(dict.fromkeys(reasons))


def printed(report: Row) -> str:
    dear = [
        f"  {', '.join((*line(row)[:2], row['mode'], threads_text(row['threads'])))}: {value:.2f}{'*' * noisy(row)}"
        for row in report["rows"]
        if (value := cost(row)) and value > GOAL
    ]
    above = [f"above {GOAL} of plain:", *dear] if dear else [f"none above {GOAL} of plain"]
    return "\n".join([summary(report), *troubles(report), *above, f"geometric means: {means(report)}"])


def write_docs(report: Row, name: str, page: Path) -> None:
    """Replace what stands between the two marks of `page` by the summary of results/<name>.json."""
    text, machine = page.read_text(), report["machine"]
    about = f"Geometric means and ranges over shapes and numbers of threads, on {machine['cores']} cores of one "
    about += f"{machine['cpu']} ({report['build']['isa_active']}): [all figures](../bench/results/{name}.md)."
    picture = f"![gain and cost by variant](../bench/results/{name}.png)"
    parts = [text.split(BEGIN)[0] + BEGIN, about, summary(report), picture, END + text.split(END)[1]]
    page.write_text("\n\n".join(parts))


def draw(report: Row, path: Path) -> None:
    names = variants(report)
    if not names:
        return
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.5, 1.4 + 0.34 * len(names)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        panel(left, report, names, gain)
        left.set_xscale("log", base=2)
        left.set_title("A torch loop's time / ours")
        panel(right, report, names, cost)
        right.axvline(GOAL, color=FAINT, linestyle="--", linewidth=1)
        right.set_title("Our time / our plain cell's")
        for axes in (left, right):
            axes.axvline(1, color=INK, linewidth=0.8)
            axes.tick_params(length=0)
            axes.spines["left"].set_visible(False)
            plain(axes.xaxis)
        left.set_yticks(range(len(names)), names)
        left.set_ylim(len(names) - 0.5, -0.5)
        low, high = right.get_xlim()
        right.set_xlim(min(0.8, low), max(1.4, high))
        right.xaxis.set_minor_formatter(NullFormatter())
        for mode, (marker, colour) in shown(report):
            left.plot([], [], marker, color=colour, label=f"{mode}, mean of shapes and threads")
        left.plot([], [], "|", color=INK, label="each shape and number of threads")
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        figure.savefig(path, dpi=130)


def shown(report: Row) -> list[tuple[str, tuple[str, str]]]:
    return [(mode, MODE_LOOK[mode]) for mode in MODES if rows(report, mode)]


def panel(axes: Any, report: Row, names: list[str], of: Callable[[Row], float | None]) -> None:
    """Inference lies a little above a variant's line, training a little below."""
    for at, name in enumerate(names):
        axes.axhline(at, color=FAINT, alpha=0.3, linewidth=0.6, zorder=0)
        for (mode, (marker, colour)), shift in zip(shown(report), np.array([-0.17, 0.17]), strict=False):
            known, _ = values(of, rows(report, mode, name))
            if known:
                axes.plot(known, [at + shift] * len(known), "|", color=colour, alpha=0.6, markersize=7)
                axes.plot(geometric_mean(known), at + shift, marker, color=colour, markersize=5.5)
