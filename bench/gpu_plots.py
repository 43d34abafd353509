"""µs of a step against H, a panel for each N and precision, beside cuDNN and the floors. Called by gpu_report.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure

from plots import FAINT, INK, OWN, STYLE, plain

if TYPE_CHECKING:
    from gpu_results import Run

# How each system is drawn, in this order: the later above the earlier.
LOOKS: dict[str, dict[str, Any]] = {
    "step": {"color": "#9a8f84", "marker": "o", "linewidth": 0.9},
    "step graph": {"color": "#9a8f84", "marker": "s", "linewidth": 0.9, "linestyle": "--"},
    "resident": {"color": "#3f8f4f", "marker": "v", "linewidth": 0.9},
    "persistent": {"color": "#c99a2e", "marker": "^", "linewidth": 0.9},
    "cudnn": {"color": "#2a6f97", "marker": "D", "linewidth": 1.8},
    "auto": {"color": OWN, "marker": "", "linewidth": 3.2, "alpha": 0.45, "solid_capstyle": "round"},
}
LABELS = {"auto": "fastlstm, automatic choice", "cudnn": "cuDNN, by torch"}


def draw(run: Run, path: Path) -> list[Path]:
    """<name>-<mode>.png beside `path`, for each mode."""
    written = []
    with matplotlib.rc_context(STYLE):
        for mode in run.names("mode"):
            written.append(path.with_name(f"{path.stem}-{mode}.png"))
            figure_of(run, mode).savefig(written[-1], dpi=130)
    return written


def figure_of(run: Run, mode: str) -> Figure:
    precisions = [name for name in run.names("precision") if run.entries(mode, name)]
    batches = sorted({run.cases[entry.case]["B"] for entry in run.entries(mode)})
    size = (1.9 + 2.5 * len(precisions), 1.5 + 1.75 * len(batches))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(batches), len(precisions), sharex=True, sharey="row", squeeze=False)
    for line, N in zip(panels, batches, strict=True):
        for axes, precision in zip(line, precisions, strict=True):
            panel(axes, run, mode, precision, N)
        line[0].set_ylabel(f"N = {N}\nµs a step")
    for axes, precision in zip(panels[0], precisions, strict=True):
        axes.set_title(precision)
    every = sorted({run.cases[entry.case]["H"] for entry in run.entries(mode)})
    for axes in panels[-1]:
        axes.set_xticks(every, [str(H) for H in every], fontsize=8, rotation=45)
        axes.set_xlabel("H", weight="bold")
    first, handles = panels[0][0], []
    for name in shown(run):
        handles += first.plot([], [], label=LABELS.get(name, name), markersize=4, **LOOKS[name])
    handles += first.plot([], [], "_", color=INK, markersize=9, markeredgewidth=2, label="floor (model, H100)")
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4), frameon=False)
    what = {"inference": "the forward pass", "training": "forward and all gradients"}[mode]
    title = f"Time of a step by hidden size: {what}, {run.data['gpu']['name']}"
    figure.suptitle(title, weight="bold", x=0.01, ha="left")
    return figure


def shown(run: Run) -> list[str]:
    return [name for name in LOOKS if name in run.names("system")]


def panel(axes: Any, run: Run, mode: str, precision: str, N: int) -> None:
    entries = [entry for entry in run.entries(mode, precision) if run.cases[entry.case]["B"] == N]
    for name, level in run.levels(mode).items():
        axes.axhline(level, color=FAINT, linewidth=0.7, linestyle=":", zorder=0)
        if axes.get_subplotspec().is_last_col():
            where = {"transform": axes.get_yaxis_transform(), "va": "center"}
            axes.text(1.02, level, name, fontsize=7, color=INK, alpha=0.7, **where)
    for name in shown(run):
        known = [(run.cases[e.case]["H"], value) for e in entries if (value := run.step(e, name)) is not None]
        if known:
            axes.plot(*zip(*known, strict=True), markersize=4, **LOOKS[name])
    floors = [(run.cases[e.case]["H"], value) for e in entries if (value := run.floor(e)) is not None]
    if floors:
        axes.plot(*zip(*floors, strict=True), "_", color=INK, markersize=11, markeredgewidth=2, zorder=4)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    plain(axes.xaxis)
    plain(axes.yaxis)
    axes.grid(axis="y", color=FAINT, alpha=0.3, linewidth=0.6)
    axes.tick_params(length=0, which="both")
