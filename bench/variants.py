"""Cell variants beside a torch loop over steps, and beside our own plain cell: python bench/variants.py

Writes results/<name>.json, a page of tables and a plot beside it; README.md has the method. `--docs` puts the summary
of a report into docs/cells.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cases import problem
from cells import VARIANTS, CellCase, Variant, cell_problem
from check import FULL_TOLERANCE, TOLERANCE, Results, Wrong, worst
from fastlstm import reference
from machine import facts, machine
from measure import Settings, Team, time_in_turns
from rivals import OURS, RIVALS, Missing, Rival
from variants_report import MODES, PLAIN, TORCH, draw, page, printed, write_docs
from worker import Crashed

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs" / "cells.md"
# One row, as it streams; an amplifier's audio; DeepAR; and two of the grid.
SHAPES = ((100, 1, 64, 128), (500, 50, 1, 16), (47, 32, 48, 40), (100, 32, 64, 128), (100, 32, 256, 256))
# Of the steps compared with the reference: so few that no number lies on another side of a kink than in float64.
CHECK_FLOPS = 2e8
# So many times the tolerances with layer normalisation, which divides by deviations that may be small: torch is as far
# from the reference then as we are (3e-5 over some steps), and both from one another (5e-4 over all).
NORMALISED = 20
# A process each. In turns with a variant runs the plain cell, so that a noisy minute does not count as its cost.
SYSTEMS = {OURS: Rival("rivals.our_cells"), PLAIN: Rival("rivals.our_cells"), TORCH: Rival("rivals.torch_cells")}


def exact_results(case: CellCase, mode: str) -> Results:
    """The reference's, in float64."""
    p, training = cell_problem(problem(case, "float64")), mode == "training"
    y, (h_n, c_n), *gates, tape = reference.lstm_forward(p.x, p.weights, p.state, training=training, **p.options)
    results = {"y": y, "h_n": h_n, "c_n": c_n} | ({"gates": gates[0]} if gates else {})
    if training:
        g = reference.lstm_backward(tape, p.dy, dgates=p.dgates)
        results |= {"dx": g.x, "dh0": g.state[0], "dc0": g.state[1]}
        results |= {f"d{name}": array for name, array in g.weights.items()}
    return results


def same_over_all_steps(got: Results, expected: Results, times: float) -> None:
    """Raises Wrong. Of gradients the mean counts: of millions of numbers some do lie on another side of a kink."""
    outputs = {name: array for name, array in got.items() if not name.startswith("d")}
    worst(outputs, expected, times * FULL_TOLERANCE["float32"])
    for name in got.keys() - outputs.keys():
        error = np.abs(got[name] - expected[name]).mean() / np.abs(expected[name]).mean()
        if not error <= 10 * times * FULL_TOLERANCE["float32"]:
            raise Wrong(f"{name} is {error:.1e} off in the mean")


def measure(variant: Variant, shape: tuple[int, ...], mode: str, team: Team, settings: Settings) -> dict[str, Any]:
    """A row: figures by system, or why there are none. Each is checked before any is timed."""
    case = CellCase.of(variant, *shape)
    short = case.shortened(CHECK_FLOPS, mode)
    exact, first, timed = exact_results(short, mode), None, []
    times = NORMALISED if variant.layer_norm else 1
    row: dict[str, Any] = {"variant": variant.name, "shape": shape, "mode": mode, "threads": team.threads}
    systems: dict[str, dict[str, Any]] = {}
    for name in (OURS, TORCH):
        try:
            error, where = worst(team.ask(name, "set_up", short, mode), exact, times * TOLERANCE["float32"])
            systems[name] = {"error": error, "error_in": where}
            results = team.ask(name, "set_up", case, mode)
            same_over_all_steps(results, first or results, times)
            first = first or results
            timed.append(name)
        except (Missing, Wrong, Crashed) as reason:
            systems[name] = {type(reason).__name__.lower(): str(reason)}
    if OURS not in timed:
        return row | {"systems": systems}
    team.ask(PLAIN, "set_up", CellCase.of(VARIANTS["plain"], *shape), mode)
    timed.insert(1, PLAIN)
    deadline = time.perf_counter() + 20 * settings.rounds * settings.block
    for name, figures in time_in_turns(timed, team, settings, deadline).items():
        blocks = {"blocks": [block["seconds"] for block in figures.get("blocks", [])]}
        systems[name] = systems.get(name, {}) | figures | blocks
    return row | {"systems": systems}


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    if options.docs:
        write_docs(json.loads(options.docs.read_text()), options.docs.stem, options.page)
        return 0
    RIVALS.update(SYSTEMS)
    report: dict[str, Any] = {"name": options.name, **facts(), "rows": []}
    settings = Settings(options.rounds, options.block, options.limit)
    chosen = [VARIANTS[name] for name in options.variants]
    plan = [
        (shape, mode, variant)
        for shape, mode, variant in itertools.product(options.shapes, options.modes, chosen)
        if mode in variant.modes
    ]
    with tqdm(total=len(plan) * len(options.threads), unit="row", dynamic_ncols=True) as bar:
        for threads in options.threads:
            with Team(threads, options.limit) as team:
                for shape, mode, variant in plan:
                    bar.set_postfix_str(f"{variant.name}, {','.join(map(str, shape))}, {mode}, {threads} threads")
                    report["rows"].append(measure(variant, shape, mode, team, settings))
                    bar.update()
    path = options.folder / f"{options.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    draw(report, path.with_suffix(".png"))
    path.with_suffix(".md").write_text(page(report, path.with_suffix(".png").name))
    print(printed(report))
    print(path)
    failed = [s for row in report["rows"] for s in row["systems"].values() if "wrong" in s or "crashed" in s]
    return 1 if failed else 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="two shapes, one thread, three short blocks")
    add("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME")
    add("--shapes", nargs="+", type=shape_of, metavar="T,B,I,H", help=f"default {SHAPES}; quick the first two")
    add("--modes", nargs="+", choices=MODES, default=list(MODES))
    add("--threads", nargs="+", type=int, help="default 1 2; quick 1")
    add("--rounds", type=int, help="quiet blocks for each system (default 7; quick 3)")
    add("--block", type=float, help="seconds of a block (default 0.1; quick 0.03)")
    add("--limit", type=float, default=120.0, help="seconds after which a system that does not answer has crashed")
    add("--name", default="variants")
    add("--folder", type=Path, default=HERE / "results")
    add("--docs", type=Path, metavar="JSON", help="put the summary of this report into --page; measure nothing")
    add("--page", type=Path, default=DOCS, help="default docs/cells.md")
    options = parser.parse_args(argv)
    quick, cores = options.quick, machine()["cores"]
    defaults = {
        "shapes": SHAPES[:2] if quick else SHAPES,
        "threads": [1] if quick else [n for n in (1, 2) if n <= cores],
        "rounds": 3 if quick else 7,
        "block": 0.03 if quick else 0.1,
    }
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def shape_of(text: str) -> tuple[int, ...]:
    """T, B, I and H of "100,32,64,128"."""
    sizes = tuple(map(int, text.split(",")))
    if len(sizes) != 4 or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected T,B,I,H, such as 100,32,64,128")
    return sizes


if __name__ == "__main__":
    sys.exit(main())
