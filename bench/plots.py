"""The plots of a report: ratio to each rival, a roofline with every case on it, cost by size. Called by report.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

import ceilings
from cases import SIZES
from results import TIE, Entry, Run
from rivals import OURS

INK, FAINT, PAPER, OWN = "#22303c", "#a9b1b8", "#fbfaf7", "#c8401f"
STYLE = {"font.size": 9, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}
STYLE |= {"figure.facecolor": PAPER, "axes.facecolor": PAPER, "axes.edgecolor": FAINT, "axes.titlesize": 10}
STYLE |= {
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
}
# One look a rival, the same in every plot; the kind that are far behind share a colour.
LOOKS = {
    "torch": ("o", "#2a6f97"),
    "onnxruntime": ("s", "#3f8f4f"),
    "openvino": ("D", "#8e6bb0"),
    "onednn": ("^", "#c99a2e"),
    "jax": ("v", "#4aa5a5"),
    "keras_tensorflow_xla": ("P", "#d1709b"),
    "keras_tensorflow": ("X", "#9a8f84"),
    "keras_torch": ("<", "#9a8f84"),
    "keras_jax": (">", "#9a8f84"),
    "torch_compile": ("h", "#9a8f84"),
    "torch_packed": ("p", "#2a6f97"),
    "torch_loop": ("*", "#2a6f97"),
    "numpy": ("d", "#9a8f84"),
}
NEAR, EDGE = 0.5, 16.0  # ratios further off are drawn here
MODE_LOOK = {"inference": ("o", "#2a6f97"), "training": ("s", "#c99a2e"), "step": ("^", "#8e6bb0")}


def plain(axis: Any) -> None:
    """Numbers as they are said: 0.5, 16, 1000."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def threads_text(threads: int) -> str:
    return f"{threads} thread{'s' * (threads > 1)}"


def ratios(run: Run) -> Figure | None:
    """A panel for each mode and number of threads, a line for each case, a mark for each rival."""
    entries = [e for e in run.entries(groups=["grid"]) or run.entries() if e.mode != "step"]
    modes, threads = [m for m in ("inference", "training") if any(e.mode == m for e in entries)], run.threads
    names = list(dict.fromkeys(entry.case for entry in entries))
    rivals = [name for name in run.rivals(entries) if name in LOOKS]
    if not rivals:
        return None
    figure = Figure(figsize=(9.5, 1.5 + 0.27 * len(names) * len(threads)), layout="constrained")
    panels = figure.subplots(len(threads), len(modes), sharex=True, sharey=True, squeeze=False)
    for line, n in zip(panels, threads, strict=True):
        for axes, mode in zip(line, modes, strict=True):
            ratio_panel(axes, run, [Entry(name, mode, n) for name in names], rivals)
            axes.set_title(f"{mode}, {threads_text(n)}")
    panels[0][0].set_yticks(range(len(names)), names)
    panels[0][0].set_ylim(len(names) - 0.5, -0.5)
    panels[0][0].set_xlim(NEAR / 1.1, EDGE * 1.15)
    for name in rivals:
        marker, colour = LOOKS[name]
        panels[0][0].plot([], [], marker, color=colour, label=name)
    figure.legend(loc="outside lower center", ncols=min(len(rivals), 6), frameon=False)
    figure.suptitle(
        f"A rival's time over {OURS}'s: right of the line {OURS} is faster", weight="bold", x=0.01, ha="left"
    )
    return figure


def ratio_panel(axes: Any, run: Run, entries: list[Entry], rivals: list[str]) -> None:
    """The best rival of a case is drawn strong, with its quartiles, the others pale; ties lie in the grey band."""
    axes.set_xscale("log", base=2)
    axes.axvspan(1 - TIE, 1 + TIE, color=FAINT, alpha=0.35, linewidth=0)
    axes.axvline(1, color=INK, linewidth=0.8)
    for line, entry in enumerate(entries):
        axes.axhline(line, color=FAINT, alpha=0.3, linewidth=0.6, zorder=0)
        best = run.best(entry) if entry in run.rows else None
        for name in rivals:
            value = run.ratio(entry, name)
            if value is None:
                continue
            (marker, colour), leads = LOOKS[name], best is not None and best[0] == name
            at = float(np.clip(value, NEAR, EDGE))
            axes.plot(at, line, marker, color=colour, markersize=7 if leads else 5, alpha=1 if leads else 0.55)
            if leads:
                own, other = run.rows[entry][OURS], run.rows[entry][name]
                axes.hlines(line, other["q1"] / own["q3"], other["q3"] / own["q1"], color=colour, linewidth=1.4)
    axes.set_xticks([NEAR, 1, 2, 4, 8, EDGE], [f"≤{NEAR:g}", "1", "2", "4", "8", f"≥{EDGE:g}"])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)


def roofline(run: Run) -> Figure | None:
    """Each case at its FLOPs for each byte of weights; a thin line leads from ours to what the model allows."""
    threads = [n for n in run.threads if str(n) in run.ceilings]
    if not threads:
        return None
    figure = Figure(figsize=(9.5, 4.6), layout="constrained")
    panels = figure.subplots(1, len(threads), sharex=True, sharey=True, squeeze=False)[0]
    for axes, n in zip(panels, threads, strict=True):
        roofs(axes, run.ceilings[str(n)])
        for entry in run.entries(threads=n, dtype="float32"):
            case, rate, limit = run.cases[entry.case], run.rate(entry), run.limit(entry)
            if rate is None or limit is None:
                continue
            marker, colour = MODE_LOOK[entry.mode]
            x = ceilings.intensity(case, entry.mode)
            axes.plot(
                [x, x], [rate / 1e9, case["flops"][entry.mode] / limit[0] / 1e9], color=colour, alpha=0.25, lw=0.8
            )
            axes.plot(x, rate / 1e9, marker, color=colour, markersize=5, alpha=0.75, markeredgewidth=0)
        axes.set_title(threads_text(n))
        axes.set_xlabel("FLOPs for each byte of weights that has to be read")
        axes.set_xscale("log")
        axes.set_yscale("log")
        plain(axes.xaxis)
        plain(axes.yaxis)
    panels[0].set_ylabel("GFLOP/s")
    for mode, (marker, colour) in MODE_LOOK.items():
        panels[0].plot([], [], marker, color=colour, label=mode)
    panels[0].legend(frameon=False, loc="lower right")
    figure.suptitle(f"{OURS} below the machine's roofs (float32)", weight="bold", x=0.01, ha="left")
    return figure


def roofs(axes: Any, rates: dict[str, Any]) -> None:
    """The peak, and the bandwidths of working sets in a second-level cache, a third-level one and memory."""
    peak, x = rates["float32"], np.geomspace(0.04, 2000, 200)
    drawn = np.inf
    for size, name in ((256 << 10, "256 KB"), (4 << 20, "4 MB"), (rates["read"][-1][0], "memory")):
        rate = ceilings.read_rate(rates, size)
        if rate > 0.75 * drawn:  # two lines that can hardly be told apart
            continue
        drawn = rate
        axes.plot(x, np.minimum(peak, rate * x) / 1e9, color=INK, linewidth=0.9, zorder=0)
        axes.text(0.042, rate * 0.14 / 1e9, f"{name}\n{rate / 1e9:.0f} GB/s", fontsize=7.5, va="bottom")
    axes.text(1900, peak / 1e9 * 1.08, f"{peak / 1e9:.0f} GFLOP/s", ha="right", fontsize=7.5)


def growth(run: Run) -> Figure | None:
    """Time of a call by size, ours and two rivals', on one thread."""
    sizes = {of: [n for n in every if f"sweep_{of}_{n}" in run.cases] for of, every in SIZES.items()}
    sizes = {of: every for of, every in sizes.items() if len(every) > 1}
    modes = [mode for mode in ("inference", "training") if run.entries(mode, groups=["sweep"])]
    if not sizes or not modes:
        return None
    threads = run.threads[0]
    figure = Figure(figsize=(9.5, 2.5 * len(modes) + 0.6), layout="constrained")
    panels = figure.subplots(len(modes), len(sizes), sharex="col", sharey="row", squeeze=False)
    looks = {OURS: ("o", OWN), "torch": LOOKS["torch"], "onnxruntime": LOOKS["onnxruntime"]}
    for line, mode in zip(panels, modes, strict=True):
        for axes, (of, every) in zip(line, sizes.items(), strict=True):
            for name, (marker, colour) in looks.items():
                times = [run.median(Entry(f"sweep_{of}_{n}", mode, threads), name) or np.nan for n in every]
                strength = {"linewidth": 1.8, "zorder": 3} if name == OURS else {"linewidth": 1.0, "alpha": 0.8}
                axes.plot(
                    every, 1e3 * np.array(times), f"{marker}-", color=colour, markersize=3.5, label=name, **strength
                )
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            plain(axes.xaxis)
            plain(axes.yaxis)
            axes.grid(color=FAINT, alpha=0.3, linewidth=0.6)
            axes.tick_params(length=0)
        line[0].set_ylabel(f"{mode}, ms a call")
    for axes, of in zip(panels[-1], sizes, strict=True):
        axes.set_xlabel(of, weight="bold")
    panels[0][0].legend(frameon=False, fontsize=8)
    base = "T,B,I,H = 50,32,64,128 but for one of them"
    figure.suptitle(f"How the cost grows ({base}; {threads_text(threads)})", weight="bold", x=0.01, ha="left")
    return figure


PLOTS: dict[str, Callable[[Run], Figure | None]] = {"ratios": ratios, "roofline": roofline, "growth": growth}


def draw(run: Run, path: Path) -> list[Path]:
    """Write every plot that the run has figures for beside `path`, as <name>-<plot>.png."""
    written = []
    with matplotlib.rc_context(STYLE):
        for name, make in PLOTS.items():
            figure = make(run)
            if figure is not None:
                written.append(path.with_name(f"{path.stem}-{name}.png"))
                figure.savefig(written[-1], dpi=130)
    return written
